(() => {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const tip = document.getElementById("tip");
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip],td[title]");
    if (!mark) return;
    if (mark.title) { mark.dataset.tip = mark.title; mark.removeAttribute("title"); }
    mark.querySelector("title")?.remove();
    tip.textContent = mark.dataset.tip;
    tip.hidden = !mark.dataset.tip;
    const box = mark.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, box.left + box.width / 2 - tip.offsetWidth / 2)) + "px";
    tip.style.top = (box.top > tip.offsetHeight + 12 ? box.top - tip.offsetHeight - 8 : box.bottom + 8) + "px";
  });
  document.addEventListener("pointerout", (event) => {
    if (event.target.closest("[data-tip]")) tip.hidden = true;
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = part.querySelectorAll("tr").length < 80)));
})();
