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
addEventListener("hashchange", recall);
addEventListener("beforeprint", () => $$("[data-lazy]:not([data-filled])").forEach(fill));
if (document.documentElement.dataset.running) {
  const again = () => (box.open ? setTimeout(again, 5000) : location.reload());
  setTimeout(again, 30000);
}
// figures and pictures lie below this script, so that tables can be sorted before they are read
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
