"use strict";
// Sorts tables by a click on a header, and filters examples. Without it, the page shows the same content.

const number = (text) => parseFloat(text.replace(/,/g, ""));

function compare(one, other) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const [a, b] = [number(one), number(other)];
  return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other) : a - b;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const text = (row) => row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const order = compare(text(a), text(b));
    return descending && text(a) !== "" && text(b) !== "" ? -order : order;
  });
  body.append(...rows);
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

function makeSearchable(box) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const rows = [...box.querySelectorAll("tbody tr")];
  input.type = "search";
  label.className = "search";
  label.append("Search ", input);
  box.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

document.querySelectorAll(".scroll > table").forEach((table) => {
  if (table.tBodies[0].rows.length > 1) makeSortable(table);
});
document.querySelectorAll(".scroll.examples").forEach(makeSearchable);
