// Keyboard shortcuts, and the list of them that `?` shows.

import { byId, el } from "./dom.js";

const HELP = [
  ["Slides", [["N / P", "next, previous slide"], ["L", "back to the list"], ["/", "search the list"], ["↑ ↓", "move in the list"]]],
  ["View", [["← → ↑ ↓", "move"], ["+ / −", "zoom in, out"], ["0", "whole slide"], [". / ,", "next, previous top tile"]]],
  ["Map", [["H", "show or hide the map"], ["M / Shift M", "next, previous map"], ["] / [", "more, less opaque"], ["O", "tissue outline"], ["F", "frames of the top tiles"]]],
  ["Review", [["1", "agree"], ["2", "disagree"], ["3", "unsure"]]],
  ["Page", [["D", "light or dark"], ["?", "this list"], ["Esc", "close; leave a field"]]],
];

export function buildHelp() {
  const dialog = byId("help");
  const close = el("button", { type: "button", class: "button icon", "aria-label": "Close", text: "×", onclick: () => dialog.close() });
  dialog.append(el("div", { class: "dialog-head" }, el("h2", { id: "help-title", text: "Keyboard shortcuts" }), close),
    el("div", { class: "help-columns" }, ...HELP.map(([title, keys]) => el("section", {}, el("h3", { text: title }),
      el("dl", {}, ...keys.flatMap(([key, text]) => [el("dt", {}, el("kbd", { text: key })), el("dd", { text })]))))));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// actions: by key, for the view that is shown; returns undefined where a key means nothing there
export function listen(actionsOf) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    const isText = target.matches?.("textarea, select, input:not([type=range], [type=checkbox])");
    if (isText || byId("help").open) {
      if (event.key === "Escape" && isText) target.blur();
      return;
    }
    const usesArrows = target.matches?.("input[type=range]");
    if (usesArrows && (event.key.startsWith("Arrow") || event.key === "Home")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = actionsOf()[event.shiftKey && /^[a-z]$/.test(key) ? `Shift ${key}` : key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
