// Making elements. Text always goes in as text: nothing in here, or anywhere in these pages, parses HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const byId = (id) => document.getElementById(id);

// Three digits that matter, no exponent below a million.
export function shown(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

// Two digits that matter and a sign; small differences with an exponent, so that they fit under a tile.
export function signed(value) {
  const size = Math.abs(value);
  const text = size > 0 && size < 0.001 ? size.toExponential(1).replace("-", "−") : shown(Number(size.toPrecision(2)));
  return (value > 0 ? "+" : value < 0 ? "−" : "") + text;
}

let toastTimer = 0;
export function toast(text, isBad = false) {
  const node = byId("toast");
  node.textContent = text;
  node.className = `toast shown${isBad ? " bad" : ""}`;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => node.classList.remove("shown"), isBad ? 8000 : 2500);
}

export function banner(text) {
  const node = byId("banner");
  node.hidden = !text;
  node.firstElementChild.textContent = text;
}

const STATUSES = new Set(["ok", "ok_with_warnings", "no_tissue", "failed", "not_run"]);
export const badge = (status) =>
  el("span", { class: `status ${STATUSES.has(status) ? status : "not_run"}`, text: status.replaceAll("_", " ") || "unknown" });

const MARK_SIGNS = { agree: "✓", disagree: "✕", unsure: "?" };
export const markBadge = (review) =>
  review ? el("span", { class: `mark ${review.mark in MARK_SIGNS ? review.mark : "unsure"}`, title: markTitle(review), text: `${MARK_SIGNS[review.mark] ?? ""} ${review.mark}` }) : null;

const markTitle = (review) => [review.time, review.reviewer, review.note].filter(Boolean).join(" · ");

// A probability as a bar with the threshold on it.
export function probabilityBar(value, threshold, isCalled = true) {
  const fill = el("i");
  fill.style.width = `${Math.max(0, Math.min(1, value)) * 100}%`;
  const bar = el("span", { class: `bar${isCalled ? "" : " other"}`, "aria-hidden": "true" }, fill);
  if (threshold !== null && threshold !== undefined) {
    const tick = el("u", { title: `threshold ${threshold}` });
    tick.style.left = `${threshold * 100}%`;
    bar.append(tick);
  }
  return bar;
}
