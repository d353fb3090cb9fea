"use strict";
// Sorting, filtering, theme, and everything that is drawn when the reader comes to it.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse($(`#${id}`).textContent);
  const data = read("data");
  let figures = null;
  let pictures = null;
  const filtered = new Set(); // runs that the values chosen above leave out
  const hidden = new Set(); // these, and the runs that are not ticked while others are

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

  // ------------------------------------------------------------------------------------------------- filtering
  const runs = Object.keys(data.runs);
  const ticked = () => new Set($$(".choose:checked").map((box) => box.value));
  // "scarf, dino > 0.5, rank = 16": every part must hold, of a column, of a parameter or of the row's text.
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
    const parts = (search?.value ?? "").toLowerCase().split(",").map((part) => part.trim()).filter(Boolean);
    return parts.every((part) => rowOfRun.has(run) && holds(rowOfRun.get(run), part));
  };
  const filter = () => {
    const off = $$("#filter button[aria-pressed='false']").map((button) => button.dataset);
    const chosen = ticked();
    filtered.clear();
    hidden.clear();
    for (const run of runs) {
      if (off.some(({ factor, level }) => data.runs[run][factor] === level) || !matches(run)) filtered.add(run);
      if (filtered.has(run) || (chosen.size && !chosen.has(run))) hidden.add(run);
    }
    $$("[data-run]").forEach((node) => {
      const stays = node.closest("#runs"); // a run that cannot be seen cannot be ticked
      node.hidden = (stays ? filtered : hidden).has(node.dataset.run);
      node.classList.toggle("aside", hidden.has(node.dataset.run));
    });
    $$("[data-runs]").forEach((node) => { node.hidden = node.dataset.runs.split(" ").every((run) => hidden.has(run)); });
    const count = $("#count");
    if (count) count.textContent = hidden.size ? `${runs.length - hidden.size} of ${runs.length} runs shown` : "";
    $("#clear") && ($("#clear").hidden = !chosen.size);
    $$(".plot.js-drawn").forEach(restrict);
    remember();
  };
  for (const button of $$("#filter button")) {
    button.onclick = () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      filter();
    };
  }
  $$(".choose").forEach((box) => { box.onchange = filter; });
  if (search) search.oninput = filter;
  if ($("#clear")) $("#clear").onclick = () => { $$(".choose").forEach((box) => { box.checked = false; }); filter(); };

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
    filter();
  };

  // ----------------------------------------------------------------------------------------------------- plots
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

  // -------------------------------------------------------------------------------------------------- pictures
  const source = (index) => (index === null ? null : (pictures ??= read("pictures"))[index]);
  const sharp = (image) => {
    image.onload = () => image.classList.toggle("blocks", image.naturalWidth <= 128); // every pixel a sharp block
    return image;
  };
  const caption = ({ title, prompt, number, scores }) => [title, prompt, `picture ${number + 1}`, scores].filter(Boolean).join(" · ");
  // A thumbnail opens the row that it belongs to: `row()` lists what the arrow keys flip through.
  const thumbnail = (image, words, row = () => [[image, words]], turn = null) => {
    const button = make("button", { type: "button", class: "shot", title: words });
    const src = source(image.picture);
    if (src) button.append(sharp(make("img", { src, alt: words, loading: "lazy" })));
    button.onclick = () => {
      const shots = row();
      enlarge(shots, Math.max(0, shots.findIndex(([other]) => other === image)), turn);
    };
    return button;
  };

  const box = $("#large");
  let open = { shots: [], index: 0, turn: null };
  const into = (figure, image, words) => {
    const node = sharp($("img", figure));
    const src = source(image.picture);
    if (src) node.src = src;
    else node.removeAttribute("src");
    node.alt = words;
    $("figcaption", figure).replaceChildren(words, " ", make("a", { href: image.file }, "the file"));
  };
  const nearest = (image) => (image.nearest === undefined ? null : data.photographs[image.nearest]);
  const enlarge = (shots, index, turn) => {
    open = { shots, index, turn };
    const [image, words] = shots[index];
    const photograph = nearest(image);
    box.classList.remove("swapped");
    into($("#shown", box), image, words);
    $("#nearest", box).hidden = !photograph;
    if (photograph) into($("#nearest", box), photograph, `nearest photograph · DINO ${image.alike}`);
    $$("[data-step]", box).forEach((button) => { button.hidden = shots.length < 2; });
    $$("[data-line]", box).forEach((button) => { button.hidden = !turn; });
    $(".count", box).textContent = shots.length > 1 ? `${index + 1} of ${shots.length}` : "";
    if (!box.open) box.showModal();
  };
  const flip = (step) => enlarge(open.shots, (open.index + step + open.shots.length) % open.shots.length, open.turn);
  const turn = (step) => {
    const next = open.turn?.(step);
    if (next) enlarge(next.shots, Math.min(open.index, next.shots.length - 1), next.turn);
  };
  box.onclick = (event) => { if (!event.target.closest("a, .controls, #nearest")) box.close(); };
  const swap = () => { if (!$("#nearest", box).hidden) box.classList.toggle("swapped"); };
  $("#nearest img", box).onclick = swap;
  $$("[data-step]", box).forEach((button) => { button.onclick = () => flip(Number(button.dataset.step)); });
  $$("[data-line]", box).forEach((button) => { button.onclick = () => turn(Number(button.dataset.line)); });
  box.onkeydown = (event) => {
    const move = { ArrowLeft: () => flip(-1), ArrowRight: () => flip(1), ArrowUp: () => turn(-1), ArrowDown: () => turn(1), p: swap }[event.key];
    if (move) {
      event.preventDefault();
      move();
    }
  };

  const strip = (images, words) => {
    const row = () => images.map((image) => [image, caption(image)]);
    return images.map((image) => make("figure", {}, thumbnail(image, caption(image), row), make("figcaption", {}, words(image))));
  };

  // One prompt and one seed: the photograph nearest to one of its pictures, the base model, the runs that can be seen.
  const rowOf = (chosen, number, line, to) => {
    const { columns, prompts, real } = chosen;
    const from = columns.find(({ run }) => run === to)?.images[line][number];
    const photograph = from && nearest(from);
    const words = ["a photograph of the subject", ...(photograph ? [`nearest to ${from.title}`] : [])].join(" · ");
    return {
      shots: [
        ...(photograph ? [photograph] : real.slice(0, 1)).map((image) => [image, words]),
        ...columns.filter((column) => !hidden.has(column.run)).flatMap((column) => {
          const image = column.images[line][number];
          return image ? [[image, caption(image)]] : [];
        }),
      ],
      turn: (step) => rowOf(chosen, number, (line + step + prompts.length) % prompts.length, to),
    };
  };
  const shot = (chosen, number, line, column) => {
    const image = column.images[line][number];
    const row = () => rowOf(chosen, number, line, column.run);
    return image ? thumbnail(image, caption(image), () => row().shots, (step) => row().turn(step)) : "–";
  };
  const ofRun = ({ run }) => (run === "base" ? {} : { "data-run": run });
  const cell = (chosen, number, line, column) => make("td", ofRun(column), shot(chosen, number, line, column));

  const currentSheet = () => data.sheets[Number($("#sheet-choice")?.value ?? 0)];
  const table = (heads, rows) => make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => (head.tagName ? head : make("th", { scope: "col" }, head))))),
    make("tbody", {}, ...rows.map(([head, ...cells]) => make("tr", {}, make("th", { scope: "row" }, head), ...cells))));
  // A row per prompt and a column per run.
  const byPrompt = (chosen, number) => table(
    [make("th"), ...chosen.columns.map((column) => make("th", { scope: "col", ...ofRun(column) }, ...breakable(column.title)))],
    chosen.prompts.map((prompt, line) => [prompt, ...chosen.columns.map((column) => cell(chosen, number, line, column))]));
  // One prompt: a row and a column per value of two parameters; what differs beyond these stands side by side in a cell.
  const byValues = (chosen, number, down, across) => {
    const line = Number($("#prompt-choice").value);
    const levels = (factor) => factor.levels.filter((level) => chosen.columns.some(({ run }) => data.runs[run]?.[factor.name] === level));
    const at = (low, high) => chosen.columns.filter(({ run }) => data.runs[run]?.[down.name] === low && data.runs[run][across.name] === high);
    const base = chosen.columns.find(({ run }) => run === "base");
    const others = data.factors.filter((factor) => factor !== down && factor !== across && levels(factor).length > 1);
    const rest = ({ run }) => others.map((factor) => `${factor.title}=${data.runs[run][factor.name]}`).join(" ");
    const corner = make("th", {}, ...(base ? ["base model", shot(chosen, number, line, base)] : []));
    return table([corner, ...levels(across).map((level) => `${across.title}=${level}`)],
      levels(down).map((low) => [`${down.title}=${low}`, ...levels(across).map((high) => make("td", {}, make("div", { class: "strip" },
        ...at(low, high).map((column) => make("figure", ofRun(column), shot(chosen, number, line, column), make("figcaption", {}, rest(column)))))))]));
  };
  const sheet = (node) => {
    const chosen = currentSheet();
    const number = $("#seed-choice").value;
    const axes = $("#axes-choice")?.value.split(" ").filter(Boolean).map((place) => data.factors[place]) ?? [];
    if ($("#prompt-label")) $("#prompt-label").hidden = !axes.length;
    node.replaceChildren(axes.length ? byValues(chosen, number, ...axes) : byPrompt(chosen, number));
    const photographs = () => chosen.real.map((image) => [image, "a photograph of the subject"]);
    $("#real").replaceChildren(...chosen.real.map((image) => thumbnail(image, "a photograph of the subject", photographs)));
    filter();
  };
  const opening = (node) => {
    const chosen = data.sheets[0];
    const [number] = Object.keys(chosen.columns.at(-1).images.find((images) => Object.keys(images).length) ?? { 0: null });
    const base = chosen.columns.find((column) => column.run === "base");
    const shown = data.opening.columns.map((about) => ({ about, column: chosen.columns.find(({ run }) => run === about.run) }));
    if (base) shown.unshift({ about: { title: "base model", scores: data.opening.base }, column: base });
    const words = (title, scores) => make("th", { scope: "col" },
      ...title.split(" ").map((word) => make("span", { class: "word" }, ...breakable(word))), ...scores.map((text) => make("small", {}, text)));
    const first = shown.find(({ column }) => column.run !== "base");
    const photographs = chosen.real.map((image) => [image, "a photograph of the subject"]);
    const photograph = (line) => {
      const image = first?.column.images[line][number];
      const file = (image && nearest(image))?.picture;
      const place = chosen.real.findIndex(({ picture }) => picture === file);
      return make("td", {}, thumbnail(photographs[Math.max(0, place)][0], photographs[0][1], () => photographs));
    };
    const rows = data.opening.lines.map((line) => make("tr", {}, make("th", { scope: "row" }, chosen.prompts[line]),
      ...(photographs.length ? [photograph(line)] : []), ...shown.map(({ column }) => cell(chosen, number, line, column))));
    const heads = [make("th"), ...(photographs.length ? [words("photograph", [])] : []), ...shown.map(({ about }) => words(about.title, about.scores))];
    node.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
    $$("[data-run]", node).forEach((part) => part.removeAttribute("data-run")); // it stays whole, whatever is filtered
  };
  const seeds = () => {
    const numbers = new Set(currentSheet().columns.flatMap((column) => column.images.flatMap((images) => Object.keys(images))));
    $("#seed-choice").replaceChildren(...[...numbers].map((n) => make("option", { value: n }, `${Number(n) + 1}`)));
    $("#prompt-choice")?.replaceChildren(...currentSheet().prompts.map((prompt, n) => make("option", { value: n }, prompt)));
  };
  if (data.sheets.length) {
    const redraw = () => sheet($("[data-lazy='sheet']"));
    seeds();
    for (const name of ["#seed-choice", "#axes-choice", "#prompt-choice"]) if ($(name)) $(name).onchange = redraw;
    $("#size").oninput = (event) => document.documentElement.style.setProperty("--cell", `${event.target.value}px`);
    if ($("#sheet-choice")) $("#sheet-choice").onchange = () => { seeds(); redraw(); };
  }
  const extremes = (node) => {
    const [best, worst] = data.extremes[$("#extreme-choice").value];
    const line = (name, images) => [make("h3", {}, name),
      make("div", { class: "strip" }, ...strip(images, (image) => `${image.value} · ${image.title} ${image.prompt}`))];
    node.replaceChildren(...line("best", best), ...line("worst", worst));
  };
  if ($("#extreme-choice")) $("#extreme-choice").onchange = () => { extremes($("[data-lazy='extremes']")); remember(); };
  const copies = (node) => node.replaceChildren(...data.copies.map(({ sample, original, similarity }) => {
    const row = () => [[sample, caption(sample)], [original, "the photograph"]];
    return make("figure", { class: "pair" }, thumbnail(sample, caption(sample), row), thumbnail(original, "the photograph", row),
      make("figcaption", {}, `${similarity} · ${sample.title}`));
  }));

  // ------------------------------------------------------------------------------------------------------ lazy
  const draw = { chart, sheet, opening, extremes, copies };
  const fill = (target) => {
    watch.unobserve(target);
    draw[target.dataset.lazy](target);
    target.dataset.filled = "yes";
  };
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) fill(target);
  }, { rootMargin: "200px" });
  const start = () => {
    recall();
    $$("[data-lazy]").forEach((node) => watch.observe(node));
    document.documentElement.dataset.ready = "yes";
  };
  addEventListener("hashchange", recall);
  addEventListener("beforeprint", () => $$("[data-lazy]:not([data-filled])").forEach(fill));
  if (document.documentElement.dataset.running) {
    const again = () => (box.open ? setTimeout(again, 5000) : location.reload());
    setTimeout(again, 30000);
  }
  // figures and pictures lie below this script, so that tables can be sorted before they are read
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
