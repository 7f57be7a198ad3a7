// Marks: agree, disagree, unsure, with a note. A mark is stored at once; the latest one counts.

import { byId, el, markBadge, toast } from "./dom.js";
import { postJson, slideUrl } from "./api.js";

const MARKS = [["agree", "✓ Agree", "1"], ["disagree", "✕ Disagree", "2"], ["unsure", "? Unsure", "3"]];

export class ReviewPanel {
  constructor(run, onStored) {
    this.run = run;
    this.onStored = onStored;
    this.told = null;
    this.note = el("textarea", { id: "review-note", rows: 2, maxlength: 2000, placeholder: "Stored with the mark" });
    this.name = el("input", { id: "review-name", type: "text", maxlength: 80, autocomplete: "off", placeholder: "Name or initials" });
    this.name.value = remembered("wsi-ips-reviewer");
    this.buttons = MARKS.map(([mark, text, key]) =>
      el("button", { type: "button", class: `button mark-button ${mark}`, "aria-pressed": "false", title: `${text.slice(2)} with the call (${key})`, onclick: () => this.store(mark) }, text, " ", el("kbd", { text: key })));
    this.latest = el("div", { id: "review-latest" });
    this.history = el("ul", { class: "history small" });
    this.more = el("details", {}, el("summary", { text: "Earlier marks" }), this.history);
    const who = run.reviewer ? el("p", { class: "quiet small", text: `Marks are stored for ${run.reviewer}.` }) : el("label", { class: "field", for: "review-name" }, el("span", { text: "Reviewer" }), this.name);
    byId("review").append(
      el("h2", { id: "review-title", text: "Your review of the call" }),
      el("div", { class: "mark-buttons", role: "group", "aria-labelledby": "review-title" }, ...this.buttons),
      el("label", { class: "field tall", for: "review-note" }, el("span", { text: "Note" }), this.note), who, this.latest, this.more);
  }

  open(told) {
    this.told = told;
    this.note.value = "";
    byId("review").hidden = !told.calls.length;
    this.show();
  }

  show() {
    const reviews = [...this.told.reviews].reverse();
    const [latest, ...earlier] = reviews;
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(latest?.mark === MARKS[i][0])));
    this.latest.replaceChildren(latest ? line(latest) : el("p", { class: "quiet small", text: "No mark yet." }));
    this.more.hidden = !earlier.length;
    this.history.replaceChildren(...earlier.map((review) => el("li", {}, line(review))));
  }

  async store(mark) {
    const { told } = this;
    if (!told?.calls.length) return;
    if (!this.run.reviewer) remember("wsi-ips-reviewer", this.name.value);
    this.buttons.forEach((button) => { button.disabled = true; });
    try {
      const stored = await postJson(slideUrl(told.slide_id, "/reviews"), { mark, note: this.note.value, reviewer: this.name.value });
      told.reviews.push(stored);
      this.onStored(told.slide_id, stored);
      toast(`Stored: ${told.slide_id} ${mark}`);
      if (told === this.told) {
        this.note.value = "";
        this.show();
      }
    } catch (error) {
      toast(error.message, true);
    } finally {
      this.buttons.forEach((button) => { button.disabled = false; });
    }
  }
}

function line(review) {
  const when = review.time.replace("T", " ").replace(/:\d\dZ$/, " UTC");
  return el("div", { class: "review-line" }, markBadge(review), el("span", { class: "quiet small", text: [review.reviewer, when].filter(Boolean).join(" · ") }),
    review.note ? el("p", { class: "note", text: review.note }) : null);
}

function remembered(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // a browser that keeps nothing asks again
  }
}
