"use strict";
// tables that are sorted by a click on the head of a column
for (const table of document.querySelectorAll(".sortable"))
  table.querySelectorAll(".sort").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0], value = ({ cells }) => cells[column].dataset.value ?? cells[column].textContent;
    const compare = (a, b) => column ? (parseFloat(a) || 0) - (parseFloat(b) || 0) : a.localeCompare(b);
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1)));
  }));
