// Light and dark, of the page and of its plots.
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = (name) => {
  document.documentElement.dataset.theme = name;
  $$(".plot.js-drawn").forEach((node) => refresh(node));
};
const system = () => (dark.matches ? "dark" : "light");
// A choice outlives the page, where a browser lets a file remember anything.
const onStorage = (change) => {
  try {
    return change(localStorage);
  } catch {
    return null;
  }
};
const THEME = "dbexp-theme";
theme(onStorage((storage) => storage.getItem(THEME)) ?? system());
dark.addEventListener("change", () => theme(system()));
$("#theme").onclick = () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  onStorage((storage) => (next === system() ? storage.removeItem(THEME) : storage.setItem(THEME, next)));
  theme(next);
};

const themed = (layout) => {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const copy = structuredClone(layout);
  const font = { color: ink, family: getComputedStyle(document.body).fontFamily, size: 12 };
  Object.assign(copy, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, autosize: true });
  copy.margin ??= { l: 60, r: 20, t: 20, b: 50 };
  for (const name of new Set([...Object.keys(layout), "xaxis", "yaxis"])) {
    if (/^[xy]axis\d*$/.test(name)) {
      copy[name] = { zeroline: false, gridcolor: rule, linecolor: rule, automargin: true, ...copy[name] };
    }
  }
  return copy;
};
