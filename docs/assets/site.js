// What is wider than the page scrolls by itself; the keyboard reaches it too.
const WIDE = [
  ".md-typeset__scrollwrap",
  ".md-typeset pre > code",
  ".md-typeset math[display=block]",
  ".md-typeset p:has(> img:only-child)",
].join();
function reachable() {
  for (const box of document.querySelectorAll(WIDE)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("load", () => {
  reachable();
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
});
window.addEventListener("resize", reachable);
