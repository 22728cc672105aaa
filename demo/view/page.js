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
