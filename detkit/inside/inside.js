const pictures = [...document.querySelectorAll("figure img")];
const dialog = $("large");
let at = 0;
function show(number) {
  at = (number + pictures.length) % pictures.length;
  const picture = pictures[at];
  $("shown").src = picture.src;
  $("shown").alt = picture.alt;
  $("said").textContent = `${picture.closest("section").querySelector("h2").textContent}: ${picture.alt}`;
  if (!dialog.open) dialog.showModal();
}
pictures.forEach((picture, number) => {
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.addEventListener("click", () => show(number));
  picture.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      show(number);
    }
  });
});
$("back").addEventListener("click", () => show(at - 1));
$("on").addEventListener("click", () => show(at + 1));
$("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") show(at - 1);
  if (event.key === "ArrowRight") show(at + 1);
});
