// Tables: sorted, saved, their columns.
const value = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = text === "" ? NaN : Number(text);
  return Number.isNaN(number) ? text : number;
};
const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
};
for (const button of $$("thead button")) {
  button.onclick = () => {
    const heading = button.closest("th");
    const column = [...heading.parentNode.children].indexOf(heading);
    const first = heading.classList.contains("number") && !button.textContent.includes("↓") ? -1 : 1;
    const now = { ascending: 1, descending: -1 }[heading.getAttribute("aria-sort")];
    const sign = now ? -now : first;
    $$("th", heading.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = $("tbody", heading.closest("table"));
    const rows = [...body.children].map((row) => [value(row.children[column]), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
}
// A table as it is seen, for a spreadsheet: what is filtered out stays out, numbers have all their digits.
for (const button of $$(".save")) {
  button.onclick = () => {
    const seen = (cells) => cells.filter((cell) => cell.offsetParent !== null);
    const quoted = (text) => `"${String(text).replace(/"/g, '""')}"`;
    const rows = seen($$(`#${button.dataset.table} tr`)).map((row) => seen([...row.children]).flatMap((cell) => {
      const text = cell.dataset.value ?? cell.textContent.replace(/\s+/g, " ").trim();
      return [quoted(text), ...Array(cell.colSpan - 1).fill("")];
    }).join(","));
    const href = URL.createObjectURL(new Blob([rows.join("\r\n")], { type: "text/csv" }));
    make("a", { href, download: `${button.dataset.table}.csv` }).click();
  };
}
const more = $("#more");
if (more) {
  more.onclick = () => {
    const all = $("#runs").classList.toggle("all");
    more.setAttribute("aria-pressed", all);
  };
}
for (const button of $$(".copy")) {
  button.onclick = async () => {
    const code = $("code", button.parentNode);
    getSelection().selectAllChildren(code); // where the clipboard is closed to a file, the words are marked at least
    const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
    button.textContent = done || document.execCommand("copy") ? "copied" : "marked";
  };
}
