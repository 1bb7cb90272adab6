// A click on a heading sorts its table: numbers by their value, with units; a second click the other way round.
const UNITS = { s: 1, ms: 1e-3, "µs": 1e-6 };
function value(cell) {
  const found = cell.textContent.trim().match(/^([✓✗])|^([-+\d.e]+)\s*(s|ms|µs)?/);
  if (!found) return NaN;
  return found[1] ? (found[1] === "✓" ? 1 : 0) : parseFloat(found[2]) * (UNITS[found[3]] ?? 1);
}
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.tabIndex = 0;
    heading.setAttribute("aria-sort", "none");
    const sort = () => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      const compare = (a, b) => {
        const [x, y] = [a, b].map((row) => value(row.cells[column]));
        if (isNaN(x) || isNaN(y)) {
          if (isNaN(x) !== isNaN(y) && column > 0) return isNaN(x) ? 1 : -1; // what has no value comes last
          return (falling ? -1 : 1) * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
        }
        return falling ? y - x : x - y;
      };
      body.replaceChildren(...[...body.rows].sort(compare));
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
