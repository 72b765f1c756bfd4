// Lists: all pictures shown or blurred at once. The check: a picture that is pasted or dropped.
(() => {
  "use strict";
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-show-all]")) return;
    const pictures = [...document.querySelectorAll("[data-picture=list]")];
    const shown = pictures.every((one) => one.getAttribute("aria-pressed") === "true");
    pictures.filter((one) => shown || one.getAttribute("aria-pressed") !== "true").forEach((one) => one.click());
  });

  const field = document.querySelector("input[type=file][name=image]");
  const place = field?.closest(".drop");
  const take = (files) => {
    const picture = [...files].find((one) => one.type.startsWith("image/"));
    if (!picture) return false;
    const chosen = new DataTransfer();
    chosen.items.add(picture);
    field.files = chosen.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  if (place) {
    document.addEventListener("paste", (event) => { if (take(event.clipboardData?.files || [])) event.preventDefault(); });
    place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
    place.addEventListener("dragleave", () => place.classList.remove("over"));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      place.classList.remove("over");
      take(event.dataTransfer.files);
    });
  }
})();
