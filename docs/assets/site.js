// Tables and code blocks that are wider than the page scroll; the keyboard reaches them too.
function reachable() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .md-typeset math[display=block]")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("load", () => {
  reachable();
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
});
window.addEventListener("resize", reachable);
