// The page starts: what the address says, and everything that is drawn when the reader comes to it.
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
// The bar leads to a section without a word in the address, which is the view's, and says which one is read.
const links = $$("#bar a").map((link) => [link, $(link.hash)]);
for (const [link, place] of links) {
  link.onclick = (event) => {
    event.preventDefault();
    // what is drawn on the way would push the section on
    for (const node of $$("[data-lazy]:not([data-filled], .plot)")) if (node.compareDocumentPosition(place) & Node.DOCUMENT_POSITION_FOLLOWING) fill(node);
    (place.closest("section:not(#verdict)") ?? place).scrollIntoView();
  };
}
const mark = () => {
  const above = links.filter(([, place]) => place.getBoundingClientRect().top < innerHeight / 3).at(-1) ?? links[0];
  for (const [link] of links) link.toggleAttribute("aria-current", link === above[0]);
};
let marking = 0;
addEventListener("scroll", () => {
  cancelAnimationFrame(marking);
  marking = requestAnimationFrame(mark);
}, { passive: true });
mark();
addEventListener("hashchange", recall);
// On paper there is no scrolling: everything is drawn, and plots are as wide as a sheet of A4 or Letter has room for.
const PAPER = 690; // CSS pixels
addEventListener("beforeprint", () => {
  $$("[data-lazy]:not([data-filled])").forEach(fill);
  allPlots().forEach(renew);
  allPlots().forEach((node) => Plotly.relayout(node, { width: PAPER }));
});
addEventListener("afterprint", () => allPlots().forEach((node) => Plotly.relayout(node, { width: null, autosize: true })));
if (document.documentElement.dataset.running) {
  const again = () => (box.open || card.open ? setTimeout(again, 5000) : location.reload());
  setTimeout(again, 30000);
}
// figures and pictures lie below this script, so that tables can be sorted before they are read
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
