// Keyboard shortcuts, blur, focus and accessible names. A letter clicks the button of the visible tab that shows it.
(() => {
  const KEYS = {
    j: ["judge"], a: ["agree"], c: ["correct"], s: ["skip"], g: ["next"], w: ["why"], e: ["look"], y: ["write"],
    x: ["cancel"], escape: ["cancel"], r: ["refresh"],
  };
  const PARTS = ["check", "review", "history", "figures"];
  let on = true;
  const visible = (element) => element && element.getClientRects().length > 0;
  const typing = (element) =>
    element && (element.isContentEditable || element.tagName === "TEXTAREA" || element.tagName === "SELECT" ||
      (element.tagName === "INPUT" && !["radio", "checkbox", "button", "submit", "file"].includes(element.type)));

  const button = (names) => {
    for (const part of PARTS) for (const name of names) {
      const found = document.getElementById(`${part}-${name}`);
      if (visible(found) && !found.disabled) return found;
    }
    return null;
  };

  const unblur = (toggle) => {
    const shown = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", String(shown));
    const around = toggle.closest("[data-turn]");
    const which = toggle.dataset.unblur === "main" ? "[data-main]" : "[data-near]";
    around.querySelectorAll(which).forEach((picture) => picture.classList.toggle("ra-clear", shown));
  };

  document.addEventListener("click", (event) => {
    const toggle = event.target.closest("[data-unblur]");
    if (toggle) unblur(toggle);
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-ra-keys]")) on = event.target.checked;
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (key !== "escape" && (!on || typing(event.target))) return;
    if (key === "u" || key === "n") {
      const which = key === "u" ? "main" : "near";
      const toggle = [...document.querySelectorAll(`[data-unblur=${which}]`)].find(visible);
      if (toggle) { event.preventDefault(); unblur(toggle); }
      return;
    }
    const found = KEYS[key] && button(KEYS[key]);
    if (found) { event.preventDefault(); found.click(); }
  });

  // An image pasted anywhere on the page is uploaded as a dropped one.
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    const input = document.querySelector("#check-upload input[type=file]");
    if (!files.length || !input || !visible(document.getElementById("check-upload"))) return;
    event.preventDefault();
    const list = new DataTransfer();
    list.items.add(files[0]);
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // Moves the focus into an element that a response has just added: its first field, or its heading.
  window.raFocus = (name) => {
    const go = (left) => {
      const place = document.getElementById(name);
      const wanted = "input, [tabindex='-1'], .ra-said";
      const target = place && (place.querySelector("input:checked") || place.querySelector(wanted));
      if (visible(target)) {
        if (target.matches(".ra-said")) target.tabIndex = -1;
        target.focus();
      } else if (left) setTimeout(() => go(left - 1), 50);
    };
    go(20);
  };

  // Accessibility attributes that Gradio's markup lacks.
  const mend = () => {
    // Gradio gives the class to a block, which also shows progress, and to its content, which is the message.
    document.querySelectorAll(".ra-live.prose:not([aria-live])").forEach((region) => {
      region.setAttribute("aria-live", "polite");
      region.setAttribute("role", "status");
    });
    // Gradio measures its tabs with invisible buttons that the keyboard would reach.
    document.querySelectorAll("[aria-hidden=true] button:not([tabindex='-1'])").forEach((hidden) => {
      hidden.tabIndex = -1;
    });
    document.querySelectorAll(".overflow-menu > button:not([aria-label])").forEach((more) => {
      more.setAttribute("aria-label", "More tabs");
    });
    const main = document.querySelector(".gradio-container main, .gradio-container .main");
    if (main && main.tagName !== "MAIN" && !main.hasAttribute("role")) main.setAttribute("role", "main");
  };
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
})();
