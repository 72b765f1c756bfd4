// The desk: keys, blur, and decisions without loading the page again. Every form works without this script too.
(() => {
  "use strict";
  const SETTLE_MS = 400; // keys do nothing for a meme that has been on the screen for less
  const body = document.body;
  const root = body.dataset.root;
  const keys = JSON.parse(body.dataset.keys || "{}");
  const actionOf = Object.fromEntries(Object.entries(keys).map(([action, key]) => [key, action]));
  let shownAt = performance.now();
  let busy = false;
  let chosen = null; // the label button whose reason is asked for

  const caseElement = () => document.getElementById("case");
  const settled = () => performance.now() - shownAt >= SETTLE_MS;

  // ------------------------------------------------------------------------------------------ pictures
  const sheet = new CSSStyleSheet();
  const grey = body.dataset.grey === "true" ? " grayscale(1)" : "";
  sheet.replaceSync(`.picture:not([aria-pressed=true]) img { filter: blur(${Number(body.dataset.blur)}px)${grey}; }`);
  document.adoptedStyleSheets = [sheet];

  const toggle = (picture) => {
    const shown = picture.getAttribute("aria-pressed") !== "true";
    picture.setAttribute("aria-pressed", String(shown));
    const image = picture.querySelector("img");
    if (shown && image.dataset.large) image.src = image.dataset.large;
  };

  const dropMissing = () => document.querySelectorAll("img[data-optional]").forEach((image) => {
    const drop = () => image.closest("button")?.remove();
    if (image.complete && !image.naturalWidth) drop();
    else image.addEventListener("error", drop, { once: true });
  });

  // ------------------------------------------------------------------------------------------ decisions
  const replace = (html) => {
    const old = caseElement();
    const before = old?.dataset.case;
    const holder = document.createElement("template");
    holder.innerHTML = html;
    old.replaceWith(holder.content);
    chosen = null;
    if (caseElement().dataset.case !== before) {
      shownAt = performance.now();
      caseElement().querySelector("h1")?.focus({ preventScroll: true }); // is read aloud
      scrollTo(0, 0);
    }
    dropMissing();
    loadEffect();
  };

  const send = async (url, fields) => {
    if (busy) return;
    busy = true;
    try {
      const answer = await fetch(url, {
        method: fields ? "POST" : "GET", body: fields, headers: { "X-Desk-Fragment": "1" }, credentials: "same-origin",
      });
      if (answer.status === 401) location.assign(`${root}/login`);
      else if (answer.ok) replace(await answer.text());
      else tell((await answer.json().catch(() => ({}))).detail || `${answer.status}`);
    } catch {
      tell(body.dataset.away);
    } finally {
      busy = false;
    }
  };

  const tell = (words) => {
    const line = document.querySelector("#case .line");
    const said = document.createElement("p");
    said.className = "problem";
    said.textContent = words;
    line.replaceChildren(said);
  };

  const decide = (button) => {
    const form = button.form;
    const fields = new URLSearchParams(new FormData(form));
    const agrees = "allLabels" in button.dataset ? fields.getAll("label").join() === caseElement().dataset.label
      : button.dataset.agrees === "true";
    const reason = form.querySelector("[name=reason]:checked") || form.querySelector("[name=words]").value.trim();
    if (!agrees && !reason) {
      chosen = button;
      const reasons = document.getElementById("reasons");
      reasons.classList.add("asked");
      reasons.querySelector("input").focus();
      loadEffect(button);
      return;
    }
    if (button.name) fields.append(button.name, button.value);
    send(form.action, fields);
  };

  document.addEventListener("submit", (event) => {
    const form = event.target;
    const button = event.submitter;
    if (!form.dataset.act) return;
    event.preventDefault();
    if (form.dataset.act === "decide" && button?.matches("[name=label], [data-all-labels]")) decide(button);
    else send(button?.getAttribute("formaction") || form.action, new URLSearchParams(new FormData(form)));
  });

  document.addEventListener("click", (event) => {
    const picture = event.target.closest(".picture");
    if (picture) toggle(picture);
    const next = event.target.closest("a[data-action=next]");
    if (next) {
      event.preventDefault();
      send(next.href);
    }
    if (event.target.closest("[data-close-pause]")) restartPause();
  });

  // ------------------------------------------------------------------------------------------ effect of a correction
  // Of the other label where there are two, of the label that was chosen where there are more.
  const loadEffect = async (label = null) => {
    const shown = caseElement();
    const place = document.getElementById("effect");
    const labels = shown?.querySelectorAll("[data-agrees]") ?? [];
    const chosenLabel = label || (labels.length === 2 ? shown.querySelector("[data-agrees=false]") : null);
    if (!place || !chosenLabel) return;
    const answer = await fetch(`${root}/cases/${shown.dataset.case}/effect?label=${chosenLabel.value}`,
      { headers: { "X-Desk-Fragment": "1" } }).catch(() => null);
    if (answer?.ok && caseElement() === shown) place.innerHTML = await answer.text();
  };

  // ------------------------------------------------------------------------------------------ keys
  const typing = (element) => element && (element.isContentEditable || element.matches("textarea, select") ||
    (element.matches("input") && !["radio", "checkbox", "button", "submit"].includes(element.type)));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !caseElement()) return;
    const key = event.key.toLowerCase();
    if (key === "escape" && chosen) {
      chosen = null;
      document.getElementById("reasons").classList.remove("asked");
      document.activeElement?.blur();
      return;
    }
    if (key === "enter" && event.target.name === "words" && caseElement().contains(event.target)) {
      event.preventDefault();
      if (chosen) decide(chosen);
      else press("[data-action=note]")();
      return;
    }
    if (typing(event.target)) return;
    const all = key === "enter" && !event.target.matches("a, button, summary") && document.querySelector("[data-all-labels]");
    if (all) {
      event.preventDefault();
      if (settled() && !busy) all.click();
      return;
    }
    const act = /^[1-9]$/.test(key) ? () => digit(key) : ACTIONS[actionOf[key]];
    if (!act) return;
    event.preventDefault();
    if (settled() && !busy) act();
  });

  const digit = (key) => {
    if (chosen) {
      const reason = document.querySelector(`[data-reason-key="${key}"]`);
      if (!reason) return;
      reason.checked = true;
      decide(chosen);
      return;
    }
    document.querySelector(`[data-label-key="${key}"]`)?.click();
  };
  const press = (selector) => () => document.querySelector(selector)?.click();
  const ACTIONS = {
    show: () => document.querySelectorAll("[data-picture=main]").forEach(toggle),
    near: () => document.querySelectorAll("[data-picture=near]").forEach(toggle),
    escalate: press("[data-action=escalate]"),
    skip: press("[data-action=skip]"),
    next: press("[data-action=next]"),
    undo: press("[data-act=undo] button"),
    effect: press("#effect summary"),
    note: () => {
      const words = document.querySelector("[name=words]");
      if (words?.value.trim()) press("[data-action=note]")();
      else words?.focus();
    },
  };

  // ------------------------------------------------------------------------------------------ pauses
  const minutes = Number(body.dataset.pause);
  let pause = null;
  const restartPause = () => {
    document.getElementById("pause").hidden = true;
    clearTimeout(pause);
    if (minutes) pause = setTimeout(() => { document.getElementById("pause").hidden = false; }, minutes * 60000);
  };

  body.classList.add("scripted");
  restartPause();
  dropMissing();
  loadEffect();
})();
