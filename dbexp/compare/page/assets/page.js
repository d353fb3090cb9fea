"use strict";
// Sorting, filtering, theme, and everything that is drawn when the reader comes to it.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse($(`#${id}`).textContent);
  const data = read("data");
  let figures = null;
  let pictures = null;
  const hidden = new Set(); // runs that the filter leaves out

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") node.onclick = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const breakable = (title) => title.split(/(?<=[=_])/).flatMap((part) => [part, make("wbr")]); // rank=16, not rank=1 6

  // ---------------------------------------------------------------------------------------------------- theme
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

  // --------------------------------------------------------------------------------------------------- sorting
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
  const more = $("#more");
  if (more) {
    more.onclick = () => {
      const all = $("#runs").classList.toggle("all");
      more.setAttribute("aria-pressed", all);
    };
  }

  // ------------------------------------------------------------------------------------------------- filtering
  const filter = () => {
    const off = $$("#filter button[aria-pressed='false']").map((button) => button.dataset);
    hidden.clear();
    for (const [run, settings] of Object.entries(data.runs)) {
      if (off.some(({ factor, level }) => settings[factor] === level)) hidden.add(run);
    }
    $$("[data-run]").forEach((node) => { node.hidden = hidden.has(node.dataset.run); });
    $$("[data-runs]").forEach((node) => { node.hidden = node.dataset.runs.split(" ").every((run) => hidden.has(run)); });
    const shown = Object.keys(data.runs).length - hidden.size;
    const count = $("#count");
    if (count) count.textContent = hidden.size ? `${shown} of ${Object.keys(data.runs).length} runs shown` : "";
    $$(".plot.js-drawn").forEach(visible);
  };
  for (const button of $$("#filter button")) {
    button.onclick = () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      filter();
    };
  }
  const visible = (node) => {
    const traces = figures[node.dataset.key].figure.data;
    const indices = traces.map((_, index) => index).filter((index) => traces[index].meta?.run !== undefined);
    if (indices.length) {
      Plotly.restyle(node, { visible: indices.map((index) => !hidden.has(traces[index].meta.run)) }, indices);
    }
  };

  // ----------------------------------------------------------------------------------------------------- plots
  const plotly = () => {
    if (!window.Plotly) document.head.append(make("script", {}, $("#plotly").textContent));
    figures ??= read("figures");
  };
  const chart = (node) => {
    plotly();
    const { figure } = figures[node.dataset.key];
    // nothing hovers over a touch screen, so the buttons would lie on the plot's legend for good
    const displayModeBar = matchMedia("(hover: none)").matches ? false : "hover";
    Plotly.newPlot(node, structuredClone(figure.data), themed(figure.layout), { responsive: true, displaylogo: false, displayModeBar });
    node.classList.add("js-drawn");
    visible(node);
  };
  for (const menu of $$("select[data-chart]")) {
    menu.onchange = () => {
      plotly();
      const { figure, choices } = figures[menu.dataset.chart];
      const visible = new Set(choices[menu.value]);
      const node = $$(".plot").find((plot) => plot.dataset.key === menu.dataset.chart);
      if (node.classList.contains("js-drawn")) Plotly.restyle(node, { visible: figure.data.map((_, index) => visible.has(index)) });
    };
  }

  // -------------------------------------------------------------------------------------------------- pictures
  const source = (index) => (index === null ? null : (pictures ??= read("pictures"))[index]);
  const sharp = (image) => {
    image.onload = () => image.classList.toggle("blocks", image.naturalWidth <= 128); // every pixel a sharp block
    return image;
  };
  const thumbnail = ({ picture, file }, caption) => {
    const button = make("button", { type: "button", class: "shot", title: caption });
    const src = source(picture);
    if (src) button.append(sharp(make("img", { src, alt: caption, loading: "lazy" })));
    button.onclick = () => enlarge(src, caption, file);
    return button;
  };
  const enlarge = (src, caption, file) => {
    const box = $("#large");
    const image = sharp($("img", box));
    if (src) image.src = src;
    else image.removeAttribute("src");
    $("figcaption", box).replaceChildren(caption, " ", make("a", { href: file }, "the file"));
    box.onclick = (event) => { if (event.target.tagName !== "A") box.close(); };
    box.showModal();
  };
  const caption = ({ title, prompt, number, scores }) => [title, prompt, `picture ${number + 1}`, scores].filter(Boolean).join(" · ");
  const figure = (image, text) => make("figure", {}, thumbnail(image, caption(image)), make("figcaption", {}, text));

  const currentSheet = () => data.sheets[Number($("#sheet-choice")?.value ?? 0)];
  const sheet = (node) => {
    const { columns, prompts, real } = currentSheet();
    const number = $("#seed-choice").value;
    const cells = (line) => columns.map((column) => {
      const image = column.images[line][number];
      return make("td", column.run === "base" ? {} : { "data-run": column.run }, image ? thumbnail(image, caption(image)) : "–");
    });
    const headings = columns.map((column) =>
      make("th", { scope: "col", ...(column.run === "base" ? {} : { "data-run": column.run }) }, ...breakable(column.title)));
    const rows = prompts.map((prompt, line) => make("tr", {}, make("th", { scope: "row" }, prompt), ...cells(line)));
    node.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("th"), ...headings)), make("tbody", {}, ...rows)));
    $("#real").replaceChildren(...real.map((image) => thumbnail(image, "photograph of the subject")));
    filter();
  };
  const seeds = () => {
    const numbers = new Set(currentSheet().columns.flatMap((column) => column.images.flatMap((images) => Object.keys(images))));
    $("#seed-choice").replaceChildren(...[...numbers].map((n) => make("option", { value: n }, `${Number(n) + 1}`)));
  };
  if (data.sheets.length) {
    const redraw = () => sheet($("[data-lazy='sheet']"));
    seeds();
    $("#seed-choice").onchange = redraw;
    $("#size").oninput = (event) => document.documentElement.style.setProperty("--cell", `${event.target.value}px`);
    if ($("#sheet-choice")) $("#sheet-choice").onchange = () => { seeds(); redraw(); };
  }
  const extremes = (node) => {
    const [best, worst] = data.extremes[$("#extreme-choice").value];
    const line = (name, images) => [make("h3", {}, name),
      make("div", { class: "strip" }, ...images.map((image) => figure(image, `${image.value} · ${image.title} ${image.prompt}`)))];
    node.replaceChildren(...line("best", best), ...line("worst", worst));
  };
  if ($("#extreme-choice")) $("#extreme-choice").onchange = () => extremes($("[data-lazy='extremes']"));
  const copies = (node) => node.replaceChildren(...data.copies.map(({ sample, original, similarity }) =>
    make("figure", { class: "pair" }, thumbnail(sample, caption(sample)), thumbnail(original, "the photograph"),
      make("figcaption", {}, `${similarity} · ${sample.title}`))));

  // ------------------------------------------------------------------------------------------------------ lazy
  const draw = { chart, sheet, extremes, copies };
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        watch.unobserve(target);
        draw[target.dataset.lazy](target);
      }
    }
  }, { rootMargin: "200px" });
  const start = () => {
    $$("[data-lazy]").forEach((node) => watch.observe(node));
    document.documentElement.dataset.ready = "yes";
  };
  // figures and pictures lie below this script, so that tables can be sorted before they are read
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
