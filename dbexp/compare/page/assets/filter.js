// Which runs are seen, and the address that says so.
const runs = Object.keys(data.runs);
const ticked = () => new Set($$(".choose:checked").map((box) => box.value));
// "scarf, dino > 0.5 or rank = 16": every part of one way must hold, of a column, of a parameter or of the row's text.
const rowOfRun = new Map($$("#runs tr[data-run], .failed [data-run]").map((row) => [row.dataset.run, row]));
const headings = $$("#runs thead th").map((heading) => heading.textContent.replace(/[↑↓]/g, "").trim().toLowerCase());
const tests = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b, "!=": (a, b) => a !== b };
const holds = (row, part) => {
  const [, name, sign, wanted] = part.match(/^([^<>=!]+?)\s*(<=|>=|!=|<|>|=)\s*(.+)$/) ?? [];
  const place = headings.indexOf(name);
  if (place < 0) return row.textContent.toLowerCase().includes(part);
  if (!row.children[place]) return false;
  const here = value(row.children[place]);
  return tests[sign](typeof here === "number" ? here : here.toLowerCase(), Number.isNaN(Number(wanted)) ? wanted : Number(wanted));
};
const search = $("#find");
const matches = (run) => {
  const parts = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);
  const ways = (search?.value ?? "").toLowerCase().split(/\s+or\s+/).map(parts).filter((way) => way.length);
  return !ways.length || (rowOfRun.has(run) && ways.some((way) => way.every((part) => holds(rowOfRun.get(run), part))));
};
const filter = (except = null) => {
  const off = $$("#filter button[aria-pressed='false']").map((button) => button.dataset);
  const chosen = ticked();
  for (const group of [filtered, hidden, hiddenElsewhere]) group.clear();
  for (const run of runs) {
    const isOff = off.some(({ factor, level }) => data.runs[run][factor] === level) || !matches(run);
    const isPassed = chosen.size > 0 && !chosen.has(run);
    if (isOff || isOutside(run)) filtered.add(run);
    if (isOff || isPassed) hiddenElsewhere.add(run);
    if (filtered.has(run) || isPassed) hidden.add(run);
  }
  $$("[data-run]").forEach((node) => {
    const stays = node.closest("#runs"); // a run that cannot be seen cannot be ticked
    node.hidden = (stays ? filtered : hidden).has(node.dataset.run);
    node.classList.toggle("aside", hidden.has(node.dataset.run));
  });
  $$("[data-runs]").forEach((node) => { node.hidden = node.dataset.runs.split(" ").every((run) => hidden.has(run)); });
  $("#count").textContent = hidden.size ? `${runs.length - hidden.size} of ${runs.length} runs shown` : "";
  $("#clear").hidden = !hidden.size;
  pair();
  allPlots().filter((node) => node !== except).forEach(refresh);
  remember();
};
for (const button of $$("#filter button")) {
  button.onclick = () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    filter();
  };
}
$$(".choose").forEach((box) => { box.onchange = () => filter(); });
if (search) search.oninput = () => filter();
$("#clear").onclick = () => {
  $$("#filter button").forEach((button) => button.setAttribute("aria-pressed", true));
  $$(".choose").forEach((box) => { box.checked = false; });
  if (search) search.value = "";
  for (const { reset } of views) reset?.();
  filter();
};

// What is shown stands in the address, so that a view can be sent.
const remember = () => {
  const view = new URLSearchParams();
  for (const { dataset } of $$("#filter button[aria-pressed='false']")) view.append("hide", `${dataset.factor}=${dataset.level}`);
  for (const run of ticked()) view.append("run", run);
  if (search?.value) view.append("find", search.value);
  for (const menu of $$("select")) {
    const first = menu.options[0]?.value;
    if (menu.value !== first) view.append("menu", `${menu.id || menu.dataset.chart}=${menu.value}`);
  }
  for (const { save } of views) save(view);
  history.replaceState(null, "", view.size ? `#${view}` : location.pathname + location.search);
};
const recall = () => {
  const view = new URLSearchParams(location.hash.slice(1));
  const [hide, ticks] = ["hide", "run"].map((name) => new Set(view.getAll(name)));
  for (const button of $$("#filter button")) {
    button.setAttribute("aria-pressed", !hide.has(`${button.dataset.factor}=${button.dataset.level}`));
  }
  $$(".choose").forEach((box) => { box.checked = ticks.has(box.value); });
  if (search) search.value = view.get("find") ?? "";
  const menus = new Map(view.getAll("menu").map((text) => text.split(/=(.*)/s).slice(0, 2)));
  for (const menu of $$("select")) {
    const options = [...menu.options].map((option) => option.value);
    const value = menus.get(menu.id || menu.dataset.chart);
    const next = options.includes(value) ? value : options[0];
    if (next !== undefined && next !== menu.value) {
      menu.value = next;
      menu.onchange?.();
    }
  }
  for (const { load } of views) load(view);
  filter();
};
