"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const {boxes, by, labels, scores, classes, final, iou} = data;
const group = document.getElementById("scene-boxes"), slider = document.getElementById("step");
const said = document.getElementById("said");
// the worst first, so that the best lie on top and are tapped first
const rects = boxes.map(() => document.createElementNS(group.namespaceURI, "rect"));
boxes.forEach(([x1, y1, x2, y2], row) => {
  const rect = rects[row];
  rect.setAttribute("x", x1);
  rect.setAttribute("y", y1);
  rect.setAttribute("width", Math.max(0, x2 - x1));
  rect.setAttribute("height", Math.max(0, y2 - y1));
  rect.addEventListener("click", () => show(final.indexOf(by[row]) + 1));
});
[...rects].reverse().forEach(rect => group.append(rect));
const name = row => `${classes[labels[row]]} ${scores[row].toFixed(3)}`;
const turn = row => final.indexOf(by[row]) + 1;
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
  said.textContent = step === 0
    ? `Before: ${boxes.length} boxes of a score above ${data.score}.`
    : `Step ${step} of ${final.length}: ${name(winner)} is the best box left, and stays. ` +
      (gone ? `It removes ${gone} of its class that overlap it by more than IoU ${iou}.` : "It overlaps no other of its class too much.");
}
if (final.length) {
  document.getElementById("steps").hidden = false;
  slider.max = final.length;
  slider.addEventListener("input", () => show(Number(slider.value)));
  document.getElementById("back").addEventListener("click", () => show(Number(slider.value) - 1));
  document.getElementById("on").addEventListener("click", () => show(Number(slider.value) + 1));
  show(1);
}
