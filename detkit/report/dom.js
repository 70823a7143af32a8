"use strict";
// What all pages share: elements, and their data.
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

// the place of a box [left, top, right, bottom]
const place = ([x, y, right, bottom]) => ({ x, y, width: Math.max(0, right - x), height: Math.max(0, bottom - y) });
