// A picture at its full size: arrow keys flip through its row, and to the rows above and below.
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
