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
const keyOf = (heading) => heading.dataset.column ?? heading.textContent.trim();
const sortBy = (heading, direction) => {
  const column = [...heading.parentNode.children].indexOf(heading);
  $$("th", heading.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const body = bodyOf(heading.closest("table"));
  const rows = [...body.children].map((row) => [value(row.children[column]), row]);
  rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : sign * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
};
for (const button of $$("thead button")) {
  button.onclick = () => {
    const heading = button.closest("th");
    const first = heading.classList.contains("number") && !button.textContent.includes("↓") ? "descending" : "ascending";
    const next = { ascending: "descending", descending: "ascending" };
    sortBy(heading, next[heading.getAttribute("aria-sort")] ?? first);
    remember();
  };
}
// As a table came, so that an address without a word of it brings that back.
for (const table of $$("#settings, #runs")) {
  const [rows, sorted] = [[...bodyOf(table).children], $("th[aria-sort]", table)];
  const direction = sorted?.getAttribute("aria-sort");
  const state = () => {
    const heading = $("th[aria-sort]", table);
    return heading && [table.id, heading.getAttribute("aria-sort"), keyOf(heading)].join(" ");
  };
  const initial = state();
  views.push({
    save: (view) => { if (state() !== initial) view.append("sort", state()); },
    load: (view) => {
      const wanted = view.getAll("sort").map((text) => text.match(/^(\S+) (ascending|descending) (.+)$/)).find((parts) => parts?.[1] === table.id);
      const heading = wanted && $$("thead th", table).find((other) => keyOf(other) === wanted[3]);
      if (heading) sortBy(heading, wanted[2]);
      else if (state() !== initial) {
        bodyOf(table).append(...rows);
        $$("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
        sorted?.setAttribute("aria-sort", direction);
      }
    },
  });
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
// Which columns of the runs are seen: a style sheet of what is not as the page came.
const columns = $$("#columns input");
if (columns.length) {
  const sheet = document.head.appendChild(make("style"));
  const usual = columns.map((box) => box.checked);
  const choose = (boxes) => {
    columns.forEach((box, place) => { box.checked = boxes[place]; });
    sheet.textContent = columns.map((box) => `#runs [data-column="${CSS.escape(box.value)}"] { display: ${box.checked ? "table-cell" : "none"}; }`).join("\n");
  };
  const change = (boxes) => {
    choose(boxes);
    remember();
  };
  columns.forEach((box) => { box.onchange = () => change(columns.map((other) => other.checked)); });
  $("#columns [data-all]").onclick = () => change(columns.map(() => true));
  $("#columns [data-usual]").onclick = () => change(usual);
  views.push({
    save: (view) => {
      if (columns.some((box, place) => box.checked !== usual[place])) view.append("columns", columns.filter((box) => box.checked).map((box) => box.value).join(" "));
    },
    load: (view) => {
      const wanted = view.get("columns")?.split(" ");
      choose(wanted ? columns.map((box) => wanted.includes(box.value)) : usual);
    },
  });
}
const copied = async (button) => {
  const code = $("code", button.parentNode);
  getSelection().selectAllChildren(code); // where the clipboard is closed to a file, the words are marked at least
  const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  button.textContent = done || document.execCommand("copy") ? "copied" : "marked";
};
$$(".copy").forEach((button) => { button.onclick = () => copied(button); });

// Two parameters: a cell per pair of their values, of the runs that can be seen.
const spreadOf = (values) => {
  const mean = values.reduce((sum, each) => sum + each, 0) / values.length;
  return [mean, Math.sqrt(values.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (values.length - 1))];
};
const digits = (number) => number.toFixed(3).replace("-", "−");
const pair = () => {
  if (!$("#pair")) return;
  const [column, ...names] = ["column", "down", "across"].map((what) => $(`#pair-${what}`).value);
  const [down, across] = names.map((name) => data.factors.find((factor) => factor.name === name));
  const rows = $$(`#runs tr[data-run]`).filter((row) => !hidden.has(row.dataset.run));
  const at = (low, high) => rows.filter(({ dataset: { run } }) => data.runs[run][down.name] === low && data.runs[run][across.name] === high)
    .map((row) => $(`[data-column="${CSS.escape(column)}"]`, row).dataset.value).filter(Boolean).map(Number);
  const best = $("#pair-column").selectedOptions[0].text.endsWith("↓") ? Math.min : Math.max;
  const cells = down.levels.map((low) => across.levels.map((high) => at(low, high)));
  const means = cells.flat().filter((values) => values.length).map((values) => digits(spreadOf(values)[0]));
  const first = means.length > 1 && new Set(means).size > 1 ? digits(best(...cells.flat().filter((values) => values.length).map((values) => spreadOf(values)[0]))) : null;
  const cell = (values) => {
    if (!values.length) return make("td", { class: "number" }, "–");
    const [mean, deviation] = spreadOf(values);
    const rest = ` ${Number.isNaN(deviation) ? "" : `± ${digits(deviation)}, `}${values.length} run${values.length > 1 ? "s" : ""}`;
    return make("td", { class: digits(mean) === first ? "number best" : "number", "data-value": mean }, make("b", {}, digits(mean)), make("small", {}, rest));
  };
  const heads = [`${down.title} ↓ ${across.title} →`, ...across.levels].map((word) => make("th", { scope: "col" }, word));
  $("#pair").replaceChildren(make("thead", {}, make("tr", {}, ...heads)),
    make("tbody", {}, ...down.levels.map((low, line) => make("tr", {}, make("th", { scope: "row" }, low), ...cells[line].map(cell)))));
};
for (const menu of $$("[id^='pair-']")) {
  menu.onchange = () => {
    pair();
    remember();
  };
}
