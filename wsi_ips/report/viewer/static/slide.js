// One slide: the stage, and the panels that tell about it.

import { badge, byId, el, probabilityBar, shown, signed } from "./dom.js";
import { getJson, slideUrl } from "./api.js";
import { Layers } from "./layers.js";
import { ReviewPanel } from "./review.js";
import { Stage } from "./stage.js";

export class SlideView {
  constructor(run, onMove, onStored) {
    this.onMove = onMove;
    this.told = null;
    this.request = 0;
    this.tile = -1;
    this.stage = new Stage(() => this.moved());
    this.layers = new Layers(this.stage, () => this.changed());
    this.review = new ReviewPanel(run, onStored);
    byId("zoom-in").addEventListener("click", () => this.stage.zoomBy(1.5));
    byId("zoom-out").addEventListener("click", () => this.stage.zoomBy(1 / 1.5));
    byId("go-home").addEventListener("click", () => this.stage.home());
  }

  // Shows a slide, at the place that a link names. Throws what the server answers.
  async open(wanted) {
    const request = ++this.request;
    if (this.told?.slide_id !== wanted.slide) {
      this.told = null;
      this.stage.close();
      byId("stage-message").hidden = true;
      byId("stage-note").hidden = true;
      byId("slide-view").setAttribute("aria-busy", "true");
      let told;
      try {
        told = await getJson(slideUrl(wanted.slide));
      } finally {
        byId("slide-view").removeAttribute("aria-busy");
      }
      if (request !== this.request) return;
      byId("strip").hidden = !told.tiles.length; // before the stage is measured
      await this.stage.open(told);
      if (request !== this.request) return;
      this.told = told;
      this.show();
      this.layers.open(told, wanted);
    } else if (wanted.map || wanted.opacity !== null || wanted.scale) {
      this.layers.open(this.told, wanted);
    }
    if (wanted.x !== null && wanted.y !== null) this.stage.goTo(wanted.x, wanted.y, wanted.zoom, true);
    this.moved();
  }

  close() {
    this.request += 1;
    this.told = null;
    this.stage.close();
  }

  moved() {
    if (this.told) this.onMove();
  }

  changed() {
    if (this.told && this.task !== this.layers.task) this.showTiles();
    this.moved();
  }

  // What a link to this view says.
  view() {
    const hasMap = this.told.maps.length > 0;
    const { map, scale, opacity } = this.layers.settings;
    return { slide: this.told.slide_id, place: this.stage.place(), ...(hasMap ? { map, scale, opacity } : {}) };
  }

  show() {
    const { told } = this;
    byId("slide-badges").replaceChildren(badge(told.status));
    this.showCall();
    this.tile = -1;
    this.showTiles();
    byId("tiles").scrollLeft = 0;
    this.review.open(told);
    const facts = [...told.facts, ["model", told.model]];
    byId("facts").replaceChildren(el("h2", { text: "Facts" }), el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { class: name === "model" ? "mono" : "", text: value })])));
    const message = byId("stage-message");
    message.hidden = Boolean(told.frame);
    message.replaceChildren(el("strong", { text: told.status === "no_tissue" ? "No tissue was found" : "Nothing to show" }),
      ...[[told.reason, told.message].filter(Boolean).join(": "), told.slide_trouble, told.status.startsWith("ok") ? told.map_trouble : ""].filter(Boolean).map((text) => el("p", { text })));
    const note = byId("stage-note");
    const trouble = told.frame && !told.has_slide ? `${told.slide_trouble} The map stands alone.` : "";
    note.hidden = !trouble;
    note.textContent = trouble;
  }

  showCall() {
    const { told } = this;
    const parts = told.tasks.map((task) => el("div", { class: "task" },
      el("div", { class: "call-line" }, el("span", { class: "quiet", text: task.name }), el("strong", { text: task.call })),
      el("ul", { class: "probabilities" }, ...task.probabilities.map(({ name, value }, i) => el("li", {},
        el("span", { class: "name", text: name }),
        probabilityBar(value, task.kind === "multilabel" || (task.kind === "binary" && i === 1) ? task.threshold : null, task.kind === "multilabel" ? value >= task.threshold : name === task.call),
        el("span", { class: "number", text: value.toFixed(3) })))),
      task.faithfulness ? el("p", { class: "faithful small", text: task.faithfulness }) : null));
    if (!parts.length) {
      parts.push(el("div", { class: "call-line" }, el("strong", { text: told.status === "no_tissue" ? "no call: no tissue" : "no call" })));
    }
    const warned = [...told.notes];
    if (!told.notes.length && (told.reason || told.message)) warned.push([told.reason, told.message]);
    const notes = warned.length ? el("ul", { class: "notes small" }, ...warned.map(([code, text]) => el("li", {}, el("span", { class: "mono", text: code }), " ", text))) : null;
    byId("call").replaceChildren(el("h2", { text: "Call" }), ...parts, ...(notes ? [notes] : []));
  }

  showTiles() {
    const { told } = this;
    this.task = Math.min(this.layers.task, told.tasks.length - 1);
    const t = this.task;
    const towards = told.tasks[t]?.towards ?? "";
    byId("strip-detail").textContent = told.tiles.length ? `best first · attention × uniform · evidence towards ${towards}` : "none";
    const items = told.tiles.map((tile, i) => {
      const title = `Tile ${tile.rank}: ${shown(tile.attention[t])} × uniform, evidence ${signed(tile.evidence[t])} towards ${towards}`;
      const picture = told.has_slide
        ? el("img", { loading: "lazy", alt: "", width: 96, height: 96, src: slideUrl(told.slide_id, `/tiles/${tile.rank}.jpg?v=${told.version}`) })
        : el("span", { class: "gone", text: "no slide" });
      const evidence = tile.evidence[t];
      return el("li", {}, el("button", { type: "button", class: "tile", title, "aria-label": title, onclick: () => this.goToTile(i) }, picture,
        el("span", { class: "tile-text" }, el("b", { text: tile.rank }), el("span", { text: `${shown(tile.attention[t])} ×` })),
        el("span", { class: "tile-text" }, el("span", { class: "quiet", text: "ev." }), el("span", { class: evidence > 0 ? "for" : evidence < 0 ? "against" : "", text: signed(evidence) }))));
    });
    byId("tiles").replaceChildren(...items);
    this.markTile();
  }

  goToTile(i) {
    const { tiles } = this.told ?? { tiles: [] };
    if (!tiles.length) return;
    this.tile = Math.max(0, Math.min(tiles.length - 1, i));
    this.markTile();
    byId("tiles").children[this.tile].scrollIntoView({ block: "nearest", inline: "nearest" });
    this.stage.showTile(tiles[this.tile]);
  }

  markTile() {
    [...byId("tiles").children].forEach((item, k) => item.firstElementChild.setAttribute("aria-current", String(k === this.tile)));
  }

  stepTile(by) {
    this.goToTile(this.tile < 0 ? 0 : this.tile + by);
  }
}
