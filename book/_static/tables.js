/* Tables inside `.filterable` get a text field, choices for columns with few values, and headers that sort. Without this file they are plain tables. */
"use strict";

const words = cell => cell.textContent.trim();
// "1.2e-5 ± …" and "+3%" sort as numbers; identifiers such as C4a sort with C2 before C10.
const number = text => (/^[-+−]?\d/.test(text) ? parseFloat(text.replace("−", "-")) : NaN);
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (!isNaN(x) && !isNaN(y)) return x - y;
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what is no number stands after the numbers
  return a.localeCompare(b, undefined, { numeric: true });
};

function labelled(text, control) {
  const label = document.createElement("label");
  label.append(text, control);
  return label;
}

function choice(column, head, rows, changed) {
  const values = [...new Set(rows.map(row => words(row.cells[column])))].sort(compare);
  // A column that tells few kinds apart is worth a choice; one that hardly repeats is not.
  if (values.length < 2 || values.length > 12 || values.length * 2 > rows.length) return null;
  const select = document.createElement("select");
  select.append(new Option("all", ""), ...values.map(value => new Option(value, value)));
  select.addEventListener("change", changed);
  return { column, select, label: labelled(words(head), select) };
}

function sortable(head, column, body, rows) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    // Sorting is stable, so sorting by one column and then another nests the two orders.
    rows.sort((a, b) => compare(words(a.cells[column]), words(b.cells[column])) * (down ? -1 : 1));
    body.append(...rows);
  });
}

function enhance(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const search = document.createElement("input");
  search.type = "search";
  const shown = document.createElement("output");
  const choices = [];
  const filter = () => {
    const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        sought.every(word => text.includes(word)) &&
        choices.every(({ column, select }) => !select.value || words(row.cells[column]) === select.value)
      );
    }
    shown.value = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  heads.forEach((head, column) => {
    const made = choice(column, head, rows, filter);
    if (made) choices.push(made);
    if (!body.querySelector(`tr > :nth-child(${column + 1}) details`)) sortable(head, column, body, rows);
  });
  search.addEventListener("input", filter);
  const bar = document.createElement("form");
  bar.className = "table-filter";
  bar.setAttribute("role", "search");
  bar.addEventListener("submit", event => event.preventDefault());
  bar.append(labelled("Containing", search), ...choices.map(made => made.label), shown);
  const around = table.closest(".pst-scrollable-table-container") ?? table;
  around.before(bar);
  filter();
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".filterable table").forEach(enhance));
