// Plots, drawn when the reader comes to them.
const plotly = () => {
  if (!window.Plotly) document.head.append(make("script", {}, $("#plotly").textContent));
  figures ??= read("figures");
};
const allPlots = () => $$(".plot.js-drawn");
const menuOf = (node) => $$("select[data-chart]").find((select) => select.dataset.chart === node.dataset.key);
const smooth = (values, width) => values.map((_, i) => {
  const part = values.slice(Math.max(0, i - (width >> 1)), i + (width >> 1) + 1);
  return part.reduce((sum, each) => sum + each, 0) / part.length;
});
// The columns on x and y, and whether these are the first ones, which all that is drawn belongs to.
const axesOf = (node) => {
  const names = Object.keys(figures[node.dataset.key].axes);
  if (!names.length) return null;
  const [x, y] = ["x", "y"].map((axis, place) => $(`[data-axis="${axis}"]`, node.closest("section"))?.value ?? names[place]);
  return { x, y, areFirst: x === names[0] && y === names[1] };
};
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/\$/g, "&#36;");
const DASHES = ["solid", "dash", "dot", "dashdot"];
// The parameter that lines are coloured by; none where they look as they came.
const colouring = (node) => data.factors[($("[data-colour]", node.closest("section"))?.selectedIndex ?? 0) - 1];
const recolour = (trace, factor) => {
  const level = data.runs[trace.meta.run][factor.name];
  const place = factor.levels.indexOf(level);
  trace.name = trace.legendgroup = `${escaped(factor.title)}=${escaped(level)}`;
  trace.legendrank = 1000 + place; // 1000 is that of all others
  trace.line.color = data.palette[place % data.palette.length];
  if (trace.line.dash) trace.line.dash = DASHES[Math.floor(place / data.palette.length) % DASHES.length];
};
// A trace is there when its menu shows it and a run of it is not hidden; one that holds all runs loses the hidden ones.
const restricted = (node) => {
  const { figure, choices } = figures[node.dataset.key];
  const menu = menuOf(node);
  const chosen = menu ? new Set(choices[menu.value]) : null;
  const axes = axesOf(node);
  const named = new Set();
  return figure.data.map((trace, index) => {
    const copy = structuredClone(trace);
    const { runs: several, run, values, smooths, each } = trace.meta ?? {};
    const members = several ?? (run === undefined ? [] : [run]);
    copy.visible = (chosen ? chosen.has(index) : true) && !(members.length && members.every((member) => hidden.has(member)));
    if (axes && values) [copy.x, copy.y] = [[values[axes.x]], [values[axes.y]]];
    else if (axes && !axes.areFirst) copy.visible = false;
    if (node.dataset.key === "loss" && colouring(node)) recolour(copy, colouring(node));
    if (smooths !== undefined) {
      copy.y = smooth(figure.data[smooths].y, Number($("#smoothing").value));
      copy.showlegend = copy.visible && !named.has(copy.name); // the first of a setting speaks for its seeds
      if (copy.visible) named.add(copy.name);
    }
    if (copy.dimensions) {
      const keep = (list) => list.filter((_, place) => !hiddenElsewhere.has(each[place]));
      for (const dimension of copy.dimensions) {
        dimension.values = keep(dimension.values);
        if (brush.has(dimension.label)) dimension.constraintrange = brush.get(dimension.label);
      }
      const column = trace.dimensions.find(({ label }) => label === $("#parallel-colour").value) ?? null;
      if (column) copy.line.colorbar.title.text = column.label;
      copy.line.color = keep(column?.values ?? copy.line.color);
    } else if (each) {
      const keep = (list) => list.filter((_, place) => !hidden.has(each[place]));
      copy.x = keep(copy.x);
      copy.z = copy.z.map(keep);
    }
    return copy;
  });
};
const MOST_NAMES = 12; // of a legend
const layoutOf = (node, traces) => {
  const layout = themed(figures[node.dataset.key].figure.layout);
  const { axes: titles } = figures[node.dataset.key];
  const axes = axesOf(node);
  if (axes) for (const axis of ["x", "y"]) layout[`${axis}axis`].title = { text: titles[axes[axis]] };
  if (node.dataset.key === "cost" && menuOf(node)) layout.xaxis.title = { text: menuOf(node).value };
  const lines = traces.filter(({ meta, visible }) => meta?.smooths !== undefined && visible).flatMap(({ y }) => y);
  if (lines.length) { // the frame is that of the smooth lines: what they are made from is noise
    const isLog = $("#logarithmic").checked;
    const [low, high] = [Math.min, Math.max].map((end) => end(...lines)).map((end) => (isLog ? Math.log10(end) : end));
    const rest = 0.05 * (high - low || 1);
    layout.showlegend = new Set(traces.filter(({ showlegend }) => showlegend).map(({ name }) => name)).size <= MOST_NAMES;
    if ($("#at-step").checked) layout.hovermode = "x unified";
    Object.assign(layout.yaxis, { type: isLog ? "log" : "linear", range: [low - rest, high + rest] });
  }
  if (document.fullscreenElement?.contains(node)) delete layout.height; // it has as much as its place has
  return layout;
};
// Words beside points go where no other word is: above, below, right, left.
const SIDES = [["top center", 0, -14], ["bottom center", 0, 14], ["middle right", 0.62, 0], ["middle left", -0.62, 0]];
const placeWords = (node, traces, layout) => {
  const points = traces.filter(({ visible, mode }) => visible && mode?.includes("text")).flatMap((trace) => trace.x.map((x, place) => ({ trace, x, y: trace.y[place], text: trace.text[place] })));
  if (!points.some(({ text }) => text)) return;
  const size = { x: Math.max(200, node.clientWidth - 160), y: (layout.height ?? node.clientHeight) - 90 };
  const at = (axis, point) => {
    const values = points.map((other) => other[axis]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (size[axis] * (point[axis] - low)) / (high - low || 1);
  };
  const boxes = points.map((point) => ({ x: at("x", point), y: -at("y", point), width: 14, height: 14 })); // the points themselves
  const overlaps = (a, b) => Math.abs(a.x - b.x) < (a.width + b.width) / 2 && Math.abs(a.y - b.y) < (a.height + b.height) / 2;
  points.forEach(({ trace, text }, place) => {
    const width = 6.4 * text.replace(/&[^;]*;/g, "-").length + 6;
    const box = ([, right, down]) => ({ x: boxes[place].x + right * (width + 10), y: boxes[place].y + down, width, height: 14 });
    const side = SIDES.find((other) => !boxes.some((taken, index) => index !== place && overlaps(box(other), taken))) ?? SIDES[0];
    boxes.push(box(side));
    if (!Array.isArray(trace.textposition)) trace.textposition = [];
    trace.textposition.push(side[0]);
  });
};
const ready = (node) => {
  const traces = restricted(node);
  const layout = layoutOf(node, traces);
  placeWords(node, traces, layout);
  return [traces, layout];
};
const restrict = (node) => Plotly.react(node, ...ready(node));
// Hundreds of lines take a second, so a plot that nobody sees waits until somebody does.
const isNear = ({ top, bottom }) => bottom > -200 && top < innerHeight + 200;
const refresh = (node) => {
  if (isNear(node.getBoundingClientRect())) restrict(node);
  else node.dataset.stale = "yes";
};
const renew = (node) => {
  if (!node.dataset.stale) return;
  delete node.dataset.stale;
  restrict(node);
};
const watchStale = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) renew(target);
}, { rootMargin: "200px" });
// The line under the pointer stands out: all others of its plot fade.
const emphasise = (node, run) => {
  if ($("#at-step").checked) return;
  const traces = node.data;
  const opacities = traces.map(({ meta, opacity }, index) => {
    const usual = figures[node.dataset.key].figure.data[index].opacity ?? 1;
    return run === null || meta?.run === run ? usual : 0.15 * usual;
  });
  if (traces.some(({ opacity = 1 }, index) => opacity !== opacities[index])) Plotly.restyle(node, { opacity: opacities });
};
const chart = (node) => {
  plotly();
  const [traces, layout] = ready(node);
  // nothing hovers over a touch screen, so the buttons would lie on the plot's legend for good
  const displayModeBar = matchMedia("(hover: none)").matches ? false : "hover";
  Plotly.newPlot(node, traces, layout, { responsive: true, displaylogo: false, displayModeBar });
  node.classList.add("js-drawn");
  watchStale.observe(node);
  const runAt = ({ points }) => points?.[0]?.data?.meta?.run;
  node.on("plotly_click", (event) => { if (runAt(event) !== undefined) openRun(runAt(event)); });
  if (traces.some(({ meta }) => meta?.smooths !== undefined)) {
    node.on("plotly_hover", (event) => emphasise(node, runAt(event)));
    node.on("plotly_unhover", () => emphasise(node, null));
  }
  if (traces[0].dimensions) node.on("plotly_restyle", () => readBrush(node));
};
for (const menu of $$("select[data-chart], select[data-axis], select[data-colour]")) {
  menu.onchange = () => {
    const section = menu.closest("section");
    const node = $(".plot", section);
    if (node.classList.contains("js-drawn")) restrict(node);
    if (menu.dataset.axis) {
      const [y, x] = $$("[data-axis]", section);
      $(".title", section).textContent = [y, x].map((each) => each.selectedOptions[0].text.replace(/ [↑↓]$/, "")).join(" against ");
      const note = $(".note", section);
      if (note) note.hidden = y.selectedIndex + x.selectedIndex > 0;
    }
    remember();
  };
}
const loss = [$("#smoothing"), $("#logarithmic"), $("#at-step")].filter(Boolean);
if (loss.length) {
  const usual = $("#smoothing").value;
  const redraw = () => allPlots().filter((node) => node.dataset.key === "loss").forEach(restrict);
  for (const input of loss) {
    input.oninput = redraw;
    input.onchange = () => remember();
  }
  views.push({
    save: (view) => {
      if ($("#smoothing").value !== usual) view.append("smoothing", $("#smoothing").value);
      for (const box of ["logarithmic", "at-step"]) if ($(`#${box}`).checked) view.append("loss", box);
    },
    load: (view) => {
      $("#smoothing").value = view.get("smoothing") ?? usual;
      for (const box of ["logarithmic", "at-step"]) $(`#${box}`).checked = view.getAll("loss").includes(box);
    },
  });
}

// ------------------------------------------------------- parallel axes: what is drawn along one chooses runs everywhere
const pairs = (range) => (Array.isArray(range[0]) ? range : [range]);
const parallel = () => {
  figures ??= read("figures");
  return figures.parallel.figure.data[0];
};
const isOutside = (run) => {
  if (!brush.size) return false;
  const { dimensions, meta } = parallel();
  const place = meta.each.indexOf(run);
  return place < 0 || dimensions.some(({ label, values }) => brush.has(label) && !pairs(brush.get(label)).some(([low, high]) => low <= values[place] && values[place] <= high));
};
const readBrush = (node) => {
  brush.clear();
  for (const { label, constraintrange } of node.data[0].dimensions) if (constraintrange?.length) brush.set(label, constraintrange);
  filter(node); // its lines are grey already, and keep the order that the reader gave to the axes
};
if ($(".plot[data-key='parallel']")) {
  const redraw = () => allPlots().filter((node) => node.dataset.key === "parallel").forEach(restrict);
  views.push({
    save: (view) => {
      for (const [label, range] of brush) view.append("brush", `${label}:${pairs(range).flat().map((end) => Number(end.toPrecision(6)))}`);
    },
    load: (view) => {
      const labels = view.has("brush") ? parallel().dimensions.map(({ label }) => label) : [];
      brush.clear();
      for (const text of view.getAll("brush")) {
        const [, label, ends] = text.match(/^(.*):([^:]*)$/s) ?? [];
        const numbers = (ends ?? "").split(",").map(Number);
        if (!labels.includes(label) || numbers.length % 2 || numbers.some(Number.isNaN)) continue;
        brush.set(label, numbers.flatMap((low, place) => (place % 2 ? [] : [[low, numbers[place + 1]]])));
      }
    },
    reset: () => brush.clear(),
  });
}

// --------------------------------------------------------------------------------------------------- the whole screen
for (const button of $$(".whole")) {
  button.hidden = !document.fullscreenEnabled;
  button.onclick = () => (document.fullscreenElement ? document.exitFullscreen() : button.closest("section").requestFullscreen());
}
addEventListener("fullscreenchange", () => allPlots().forEach(restrict));
