// Pictures in tables: sheets, the opening, extremes, copies.
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
  if (src) button.append(sharp(make("img", { src, alt: words })));
  button.onclick = () => {
    const shots = row();
    enlarge(shots, Math.max(0, shots.findIndex(([other]) => other === image)), turn);
  };
  return button;
};

const strip = (images, words) => {
  const row = () => images.map((image) => [image, caption(image)]);
  return images.map((image) => make("figure", {}, thumbnail(image, caption(image), row), make("figcaption", {}, ...breakable(words(image)))));
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
// A table of settings whose last rows are pictures: photograph, base model, settings, best first.
const opening = (node) => {
  const { rows, columns, best, lines } = data.opening;
  const chosen = data.sheets[0];
  const [number] = Object.keys(chosen.columns.at(-1).images.find((images) => Object.keys(images).length) ?? { 0: null });
  const shown = columns.map((about) => ({ about, column: chosen.columns.find(({ run }) => run === about.run) }));
  const first = shown.find(({ about }) => about.run !== "base");
  const photographs = chosen.real.map((image) => [image, "a photograph of the subject"]);
  const photograph = (line) => {
    const image = first?.column.images[line][number];
    const file = (image && nearest(image))?.picture;
    const place = chosen.real.findIndex(({ picture }) => picture === file);
    return make("td", {}, thumbnail(photographs[Math.max(0, place)][0], photographs[0][1], () => photographs));
  };
  const real = (...cells) => (photographs.length ? cells : []);
  const several = shown.filter(({ about }) => about.run !== "base").length > 1;
  const rank = ({ about }, place) => {
    if (about.run === "base") return "base model";
    if (!several) return "trained";
    return about.is_recommended ? "take" : `${place + (shown[0] === first)}`;
  };
  const heads = shown.map((each, place) => make("th", { scope: "col", title: each.about.title, ...(each.about.is_recommended ? { class: "take" } : {}) },
    rank(each, place)));
  const words = rows.map((name, row) => make("tr", {}, make("th", { scope: "row" }, name), ...real(make("td")),
    ...shown.map(({ about }) => make("td", about.cells[row] === best[row] && about.run !== "base" ? { class: "best" } : {}, ...breakable(about.cells[row])))));
  const pictured = lines.map((line) => make("tr", { class: "drawn" }, make("th", { scope: "row" }, chosen.prompts[line]),
    ...real(...(photographs.length ? [photograph(line)] : [])), ...shown.map(({ column }) => cell(chosen, number, line, column))));
  node.style.setProperty("--columns", shown.length + 1);
  node.replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("td", {}, several ? "place" : ""), ...real(make("th", { scope: "col" }, "photograph")), ...heads)),
    make("tbody", {}, ...words, ...pictured)));
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
