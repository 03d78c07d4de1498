"use strict";
// Every header of a sortable table becomes a button; cells sort by data-value, and those without one come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const status = table.closest(".scroll").nextElementSibling;
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const first = header.dataset.first ?? "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map(row => ({ row, value: row.cells[column].dataset.value ?? "" }));
      rows.sort((a, b) => {
        if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "");
        const difference = Number(a.value) - Number(b.value);
        return sign * (Number.isNaN(difference) ? a.value.localeCompare(b.value) : difference);
      });
      body.append(...rows.map(entry => entry.row));
      headers.forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      status.textContent = `Sorted by ${button.textContent.trim()}, ${order}.`;
    });
  });
}
