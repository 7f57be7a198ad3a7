// The list of slides: search, sorting, and the order in which "next slide" goes.

import { badge, byId, el, markBadge, probabilityBar } from "./dom.js";
import { slideUrl } from "./api.js";
import { slideLink } from "./link.js";

const AT_FIRST = 300; // rows; the rest on demand, a page of ten thousand is slow
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const STATUS_ORDER = ["failed", "no_tissue", "ok_with_warnings", "ok", "not_run"];

export class SlideList {
  constructor(run) {
    this.run = run;
    this.rows = run.slides;
    this.sort = { key: "", down: false };
    this.shown = [];
    this.columns = [
      { key: "slide_id", title: "Slide", value: (r) => r.slide_id },
      ...(run.shows_patients ? [{ key: "patient_id", title: "Patient", value: (r) => r.patient_id }] : []),
      { key: "status", title: "Status", value: (r) => STATUS_ORDER.indexOf(r.status) },
      { key: "call", title: "Call", value: (r) => r.calls.map((c) => c.call).join(" ") },
      { key: "value", title: "Probability", value: (r) => r.calls[0]?.value ?? null },
      { key: "mark", title: "Mark", value: (r) => r.review?.mark ?? null },
      { key: "message", title: "Remarks", value: (r) => r.reason || r.message || null },
    ];
    byId("search").addEventListener("input", () => this.render());
    byId("more").firstElementChild.addEventListener("click", () => this.render(true));
    this.renderHead();
    this.render();
  }

  order() {
    return this.found().map((row) => row.slide_id);
  }

  setReview(slideId, review) {
    const row = this.rows.find((r) => r.slide_id === slideId);
    if (row) row.review = review;
    this.render();
  }

  found() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (r) => [r.slide_id, r.patient_id ?? "", r.status.replaceAll("_", " "), r.reason, r.message,
      ...r.calls.map((c) => c.call), r.review ? `${r.review.mark} ${r.review.reviewer} ${r.review.note}` : "unmarked"].join(" ").toLowerCase();
    const rows = this.rows.filter((r) => words.every((word) => text(r).includes(word)));
    const column = this.columns.find((c) => c.key === this.sort.key);
    if (!column) return rows;
    const compare = (a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what has none comes last, either way
      const order = typeof x === "number" ? x - y : collator.compare(x, y);
      return this.sort.down ? -order : order;
    };
    return [...rows].sort(compare);
  }

  renderHead() {
    const cells = this.columns.map((column) => {
      const isSorted = this.sort.key === column.key;
      const direction = !isSorted ? "none" : this.sort.down ? "descending" : "ascending";
      const button = el("button", { type: "button", text: column.title, onclick: () => this.sortBy(column.key) });
      return el("th", { scope: "col", class: `col-${column.key}`, "aria-sort": direction }, button);
    });
    const row = el("tr", {}, el("th", { scope: "col", class: "col-thumb" }, el("span", { class: "hidden-text", text: "Picture" })), ...cells);
    byId("slides").tHead.replaceChildren(row);
  }

  sortBy(key) {
    const first = ["value", "mark"].includes(key); // the most certain ones are asked for first
    this.sort = this.sort.key === key ? { key, down: !this.sort.down } : { key, down: first };
    this.renderHead();
    this.render();
    byId("slides").tHead.querySelector(`.col-${key} button`).focus();
  }

  render(all = false) {
    const rows = this.found();
    this.shown = all ? rows : rows.slice(0, AT_FIRST);
    byId("slides").tBodies[0].replaceChildren(...this.shown.map((row) => this.row(row)));
    byId("more").hidden = this.shown.length === rows.length;
    byId("more").firstElementChild.textContent = `Show all ${rows.length.toLocaleString("en-US")} slides`;
    byId("summary").textContent = this.summary(rows);
    if (!rows.length) {
      const text = this.rows.length ? "No slide matches the search." : "This run holds no slides.";
      byId("slides").tBodies[0].append(el("tr", {}, el("td", { class: "empty", colspan: this.columns.length + 1, text })));
    }
  }

  summary(rows) {
    const all = this.rows;
    const count = (status) => all.filter((r) => r.status === status).length;
    const parts = [rows.length === all.length ? `${all.length} slides` : `${rows.length} of ${all.length} slides`];
    for (const status of ["ok_with_warnings", "no_tissue", "failed", "not_run"]) {
      if (count(status)) parts.push(`${count(status)} ${status.replaceAll("_", " ")}`);
    }
    parts.push(`${all.filter((r) => r.review).length} marked`);
    return parts.join(" · ");
  }

  row(r) {
    const href = slideLink(r.slide_id);
    const thumb = r.has_thumbnail ? el("img", { class: "thumb", loading: "lazy", alt: "", src: slideUrl(r.slide_id, "/thumbnail.jpg") }) : el("span", { class: "thumb none", text: "no picture" });
    const calls = r.calls.map((c) => el("div", { class: "call" }, r.calls.length > 1 ? el("span", { class: "quiet", text: `${c.task}: ` }) : null, el("b", { text: c.call })));
    const bars = r.calls.map((c) => c.value === null ? el("div", { class: "prob" }, el("span", { class: "quiet", text: "—" })) : el("div", { class: "prob", title: `probability of ${c.of}` },
      probabilityBar(c.value, c.threshold), el("span", { class: "number", text: c.value.toFixed(3) }), el("span", { class: "quiet small of", text: c.of })));
    const open = (event) => {
      if (event.target.closest("a, button") || getSelection()?.toString()) return;
      location.hash = href;
    };
    return el("tr", { onclick: open },
      el("td", { class: "col-thumb" }, thumb),
      el("td", { class: "col-slide_id" }, el("a", { href, text: r.slide_id })),
      this.run.shows_patients ? el("td", { text: r.patient_id }) : null,
      el("td", {}, badge(r.status)),
      el("td", { class: "col-call" }, ...(calls.length ? calls : [el("span", { class: "quiet", text: "—" })])),
      el("td", { class: "col-value" }, ...bars),
      el("td", { class: "col-mark" }, markBadge(r.review) ?? el("span", { class: "quiet", text: "—" }), r.review?.note ? el("div", { class: "quiet small clip", text: r.review.note }) : null),
      el("td", { class: "col-message small" }, r.reason ? el("span", { class: "mono", text: r.reason }) : null, r.reason && r.message ? " " : null, el("span", { class: "quiet", text: r.message })));
  }

  focus(slideId) { // where one came from
    const i = this.shown.findIndex((row) => row.slide_id === slideId);
    byId("slides").tBodies[0].rows[i]?.querySelector("a")?.focus();
  }

  step(by) { // moves the focus in the list
    const links = [...byId("slides").querySelectorAll("tbody a")];
    if (!links.length) return;
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))].focus();
  }
}
