// Plots, drawn when the reader comes to them.
const plotly = () => {
  if (!window.Plotly) document.head.append(make("script", {}, $("#plotly").textContent));
  figures ??= read("figures");
};
// A trace is there when its menu shows it and a run of it is not hidden; one that holds all runs loses the hidden ones.
const restricted = (node) => {
  const { figure, choices } = figures[node.dataset.key];
  const menu = $$("select[data-chart]").find((select) => select.dataset.chart === node.dataset.key);
  const chosen = menu ? new Set(choices[menu.value]) : null;
  return figure.data.map((trace, index) => {
    const copy = structuredClone(trace);
    const members = trace.meta?.runs ?? (trace.meta?.run === undefined ? [] : [trace.meta.run]);
    copy.visible = (chosen ? chosen.has(index) : true) && !(members.length && members.every((run) => hidden.has(run)));
    if (trace.meta?.smooths !== undefined) copy.y = smooth(figure.data[trace.meta.smooths].y, Number($("#smoothing").value));
    const each = trace.meta?.each;
    if (each) {
      const keep = (values) => values.filter((_, place) => !hidden.has(each[place]));
      if (copy.dimensions) {
        copy.dimensions.forEach((dimension) => { dimension.values = keep(dimension.values); });
        copy.line.color = keep(copy.line.color);
      } else {
        copy.x = keep(copy.x);
        copy.z = copy.z.map(keep);
      }
    }
    return copy;
  });
};
const smooth = (values, width) => values.map((_, i) => {
  const part = values.slice(Math.max(0, i - (width >> 1)), i + (width >> 1) + 1);
  return part.reduce((sum, each) => sum + each, 0) / part.length;
});
if ($("#smoothing")) $("#smoothing").oninput = () => $$(".plot.js-drawn[data-key='loss']").forEach((node) => restrict(node));
const restrict = (node) => Plotly.react(node, restricted(node), themed(figures[node.dataset.key].figure.layout));
const chart = (node) => {
  plotly();
  const { figure } = figures[node.dataset.key];
  // nothing hovers over a touch screen, so the buttons would lie on the plot's legend for good
  const displayModeBar = matchMedia("(hover: none)").matches ? false : "hover";
  Plotly.newPlot(node, restricted(node), themed(figure.layout), { responsive: true, displaylogo: false, displayModeBar });
  node.classList.add("js-drawn");
};
for (const menu of $$("select[data-chart]")) {
  menu.onchange = () => {
    const node = $$(".plot").find((plot) => plot.dataset.key === menu.dataset.chart);
    if (node.classList.contains("js-drawn")) restrict(node);
    remember();
  };
}
