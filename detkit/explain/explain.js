"use strict";
const {boxes, by, labels, scores, classes, final, iou} = data;
const slider = $("step");
const name = row => `${classes[labels[row]]} ${scores[row].toFixed(3)}`;
const turn = row => final.indexOf(by[row]) + 1;
const rects = boxes.map((box, row) => {
  const rect = svg("rect", place(box));
  rect.addEventListener("click", () => show(turn(row)));
  return rect;
});
// the worst first, so that the best lie on top and are tapped first
$("scene-boxes").append(...[...rects].reverse());
function show(step) {
  step = Math.min(Math.max(step, 0), final.length);
  slider.value = step;
  const winner = final[step - 1];
  let gone = 0;
  rects.forEach((rect, row) => {
    const own = turn(row), stays = by[row] === row;
    let kind = "w";
    if (own && own <= step) kind = stays ? "s" : own === step ? "g" : "n";
    if (kind === "g") gone += 1;
    rect.setAttribute("class", kind + (row === winner ? " now" : ""));
  });
  $("said").textContent = step === 0
    ? `Before: ${boxes.length} boxes of a score above ${data.score}.`
    : `Step ${step} of ${final.length}: ${name(winner)} is the best box left, and stays. ` +
      (gone ? `It removes ${gone} of its class that overlap it by more than IoU ${iou}.` : "It overlaps no other of its class too much.");
}
if (final.length) {
  $("steps").hidden = false;
  slider.max = final.length;
  slider.addEventListener("input", () => show(Number(slider.value)));
  for (const [id, move] of [["back", -1], ["on", 1]])
    $(id).addEventListener("click", () => show(Number(slider.value) + move));
  show(1);
}
