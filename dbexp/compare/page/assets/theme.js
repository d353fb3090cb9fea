// Light and dark, of the page and of its plots.
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = (name) => {
  document.documentElement.dataset.theme = name;
  $$(".plot.js-drawn").forEach((node) => Plotly.relayout(node, themed(figures[node.dataset.key].figure.layout)));
};
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
$("#theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

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
