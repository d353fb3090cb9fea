// All that is on record of one run: what was set, what came out, what it took, how to make it again, its pictures.
const card = $("#run-card");
const openRun = (run) => {
  const about = data.about[run];
  const row = rowOfRun.get(run);
  const heads = $$("#runs thead th").slice(1 + data.factors.length).map((heading) => heading.textContent.trim());
  const cells = row?.closest("table") ? [...row.children].slice(1 + data.factors.length).map((cell) => cell.textContent.replace(/\s+/g, " ").trim()) : [];
  const listed = (pairs) => make("dl", {}, ...pairs.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  const part = (title, content) => make("section", {}, make("h3", {}, title), content);
  const parts = [
    part("set", listed(data.factors.map((factor) => [factor.name, data.runs[run][factor.name]]))),
    ...(cells.length ? [part("measured", listed(heads.map((name, place) => [name, cells[place]]).filter(([, text]) => text !== "–")))] : []),
    ...(about.costs.length ? [part("took", listed(about.costs))] : []),
  ];
  const shown = data.sheets.find((sheet) => sheet.columns.some((column) => column.run === run));
  const column = shown?.columns.find((other) => other.run === run);
  const shots = column ? column.images.flatMap((images, line) => Object.keys(images).slice(0, 1).map((number) => shot(shown, number, line, column))) : [];
  const code = make("code", {}, about.command);
  const copy = make("button", { type: "button", class: "copy", "aria-label": "copy the command" }, "copy");
  copy.onclick = () => copied(copy);
  $("#run-about").replaceChildren(
    make("h2", {}, about.title),
    make("p", { class: "quiet small" }, make("a", { href: about.folder }, "its folder"), ...(about.lora ? [" · ", make("a", { href: about.lora }, "its LoRA")] : []),
      ...(about.error ? [` · ${about.status}: ${about.error}`] : [])),
    ...(about.command ? [make("p", { class: "use small" }, make("span", { class: "quiet" }, "made with "), code, " ", copy)] : []),
    make("div", { class: "parts" }, ...parts),
    make("div", { class: "strip" }, ...shots));
  if (!card.open) card.showModal();
  card.scrollTop = 0;
};
card.onclick = (event) => { if (event.target === card) card.close(); };
$("#run-close").onclick = () => card.close();
for (const button of $$(".open")) button.onclick = () => openRun(button.textContent);
