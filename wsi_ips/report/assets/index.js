"use strict";
// Sorts and searches the table of slides; without it the page is complete, only fixed.
(function () {
  const table = document.getElementById("slides");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);

  function value(row, column) {
    const text = row.cells[column].dataset.sort || "";
    const number = text === "" ? NaN : Number(text);
    return Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    // empty cells come last in both directions
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sortBy(column) {
    const head = heads[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row, i) => ({ row, i, key: value(row, column) }));
    keyed.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.i - b.i;
      return (down ? -1 : 1) * compare(a.key, b.key) || a.i - b.i;
    });
    body.append(...keyed.map((k) => k.row));
  }

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sortBy(column));
  });

  // class names beside the bars are the same in every row: not searched
  const texts = rows.map((row) =>
    Array.from(row.cells).filter((c) => !c.querySelector(".prob")).map((c) => c.textContent).join(" ").toLowerCase());
  const box = document.getElementById("search");
  const shown = document.getElementById("shown");
  function search() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      if (!row.hidden) n += 1;
    });
    shown.textContent = n === rows.length ? rows.length + " slides" : n + " of " + rows.length + " slides";
  }
  box.addEventListener("input", search);
  document.getElementById("tools").hidden = false;
  search();
})();
