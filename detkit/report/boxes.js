"use strict";
// What the pages with images share: elements, switches, boxes on an image, and the enlarged image.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);

function make(name, attributes, ...content) {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...content);
  return element;
}

function svg(name, attributes, parent) {
  const element = document.createElementNS($("ns").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

// a check box or radio button with its text, and a dot in the colour of a kind of box
function chip(parent, input, text, kind, change) {
  const box = make("input", input);
  const dot = kind ? [make("span", { className: "dot k-" + kind })] : [];
  parent.append(make("label", { className: "chip" }, box, make("span", { className: "name" }, ...dot, text)));
  box.addEventListener("change", change);
  return box;
}

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

// a box [left, top, right, bottom], its name above it or, at the upper edge, inside; size: of the letters
function addBox(root, [left, top, right, bottom], style, text, size, thick) {
  const rect = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  const more = thick ? " thick" : "";
  svg("rect", { ...rect, class: "halo" + more }, root);
  svg("rect", { ...rect, class: "box " + style + more }, root);
  if (!text) return;
  const limit = root.viewBox.baseVal.width - text.length * size * 0.6;
  const x = Math.max(2, Math.min(left + size / 4, limit));
  const y = top > size * 1.3 ? top - size * 0.3 : top + size;
  svg("text", { class: "label", "font-size": size, x, y }, root).textContent = text;
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
