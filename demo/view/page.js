// Copying works without a secure context too, where the clipboard's own interface is missing.
window.vtcCopy = async (text, button) => {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.appendChild(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  const element = document.getElementById(button);
  if (!element) return;
  const before = element.dataset.label ?? element.textContent;
  element.dataset.label = before;
  element.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => (element.textContent = before), 1500);
};
// The address bar follows the settings, so that it can be shared as it is.
window.vtcLink = (query) => {
  const link = window.location.origin + window.location.pathname + (query ? "?" + query : "");
  window.history.replaceState(null, "", link);
  return link;
};
// Scrolls to an element, where less than a share of another can be seen.
window.vtcScroll = (element, share, to) => {
  const box = element.getBoundingClientRect();
  const seen = Math.min(box.bottom, window.innerHeight) - Math.max(box.top, 0);
  if (seen >= share * Math.min(box.height, window.innerHeight)) return;
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  to.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
};
// Answers are brought into view.
window.vtcShow = () => window.vtcScroll(document.getElementById("vtc-sides"), 0.95, document.getElementById("vtc-results"));
// Of the settings to try, the one that A has is pressed.
window.vtcPress = (spec) =>
  document
    .querySelectorAll("button[data-spec]")
    .forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.spec === spec)));
// A tab that is opened comes into view.
document.addEventListener("click", (event) => {
  if (!event.target.closest("#vtc-tabs [role=tab]")) return;
  const tabs = document.getElementById("vtc-tabs");
  setTimeout(() => window.vtcScroll(tabs, 0.6, tabs), 50);
});
