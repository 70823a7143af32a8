"use strict";
// What the pages with images share: switches, boxes on an image, cards, and the enlarged image.
// a check box or radio button with its text, and a dot in the colour of a kind of box
function chip(parent, input, text, kind, change) {
  const box = make("input", input);
  const dot = kind ? [make("span", { className: "dot k-" + kind })] : [];
  parent.append(make("label", { className: "chip" }, box, make("span", { className: "name" }, ...dot, text)));
  box.addEventListener("change", change);
  return box;
}

// check boxes of kinds of boxes; what is ignored is not shown at first
const layersOf = (kinds, change) => kinds.map((kind) =>
  chip($("layers"), { type: "checkbox", name: "layer", value: kind, checked: kind !== "ignored" }, kind, kind, change));

// check boxes of all classes, with the buttons that set them all
function classFilters(change) {
  const filters = data.classes.map((name, value) =>
    chip($("classfilter"), { type: "checkbox", name: "class", value, checked: true }, name, "", change));
  for (const [id, checked] of [["all", true], ["none", false]])
    $(id).addEventListener("click", () => {
      for (const input of filters) input.checked = checked;
      change();
    });
  return filters;
}

const checked = (inputs) => new Set(inputs.filter((input) => input.checked).map((input) => input.value));

// an image without boxes; blank where its file could not be read
function canvasOf({ width, height, jpeg }) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  if (jpeg) svg("image", { href: jpeg, width, height, preserveAspectRatio: "none" }, root);
  else svg("rect", { class: "blank", width, height }, root);
  return root;
}

// a box [left, top, right, bottom] over those that are there; its name, size: of the letters, is for addNames
function addBox(root, box, style, text, size, thick) {
  const more = thick ? " thick" : "";
  svg("rect", { ...place(box), class: "halo" + more }, root);
  svg("rect", { ...place(box), class: "box " + style + more }, root);
  if (text) (root.names ??= [])[thick ? "unshift" : "push"]({ box, text, size });
}

// the names of boxes, of thick ones and then of the uppermost first: above or inside of the box, or else below, where
// they cover no other; where there is no such place, none
function addNames(root) {
  const [first, ...others] = root.names ?? [], { width, height } = root.viewBox.baseVal, taken = [];
  if (!first) return root;
  for (const { box: [left, top, right, bottom], text, size } of [first, ...others.reverse()]) {
    const wide = text.length * size * 0.6, high = size * 1.2;
    const fits = (value, room) => Math.max(0, Math.min(value, room));
    const spots = [[left, top - high], [left, top], [right - wide, top - high], [right - wide, bottom - high], [left, bottom - high], [left, bottom]]
      .filter(([, y]) => y >= 0 && y + high <= height).map(([x, y]) => [fits(x, width - wide), y]);
    const spot = spots.find(([x, y]) => !taken.some(([x0, y0, x1, y1]) => x < x1 && x + wide > x0 && y < y1 && y + high > y0));
    if (!spot) continue;
    const [x, y] = spot;
    taken.push([x, y, x + wide, y + high]);
    svg("text", { class: "label", "font-size": size, x: x + size / 4, y: y + size * 0.9 }, root).textContent = text;
  }
  return root;
}

// an image with some text; a click enlarges it
function cardOf(image, enlarge, ...text) {
  const card = make("button", { type: "button", className: "card" }, image, make("span", { className: "text" }, ...text));
  card.addEventListener("click", () => { enlarge(); $("large").showModal(); });
  return card;
}

// the enlarged image; moves: what each arrow key does
function largeImage(moves) {
  const large = $("large");
  $("previous").addEventListener("click", moves.ArrowLeft);
  $("next").addEventListener("click", moves.ArrowRight);
  $("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  large.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move) { event.preventDefault(); move(); }
  });
}
