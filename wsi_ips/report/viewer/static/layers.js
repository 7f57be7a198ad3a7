// The panel of the map: which one, how strong, from where on, in which colours, and the legend that says what is shown.

import { byId, el, shown, toast } from "./dom.js";
import { getJson, slideUrl } from "./api.js";

const KINDS = [["attention", "Attention"], ["evidence", "Evidence"], ["evidence_bag", "Evidence, all tiles"], ["head", "Single heads"], ["selected", "Tiles used"]];

// What tells a map from others of its kind; the legend has its whole title.
function shortTitle(info) {
  const text = info.kind === "head" ? info.title.replace(/^.*, head/, "head") : info.title.replace(/^.* towards /, "");
  return info.kind.startsWith("evidence") && info.part < 0 ? `${text} (the call)` : text;
}

export class Layers {
  constructor(stage, onChange) {
    this.stage = stage;
    this.onChange = onChange;
    this.settings = { map: "attention", scale: "uniform", opacity: 0.7, threshold: 0, showsMap: true, unused: true, outline: false, frames: false };
    this.colours = { signed: "PuOr", plain: "viridis" };
    this.told = null;
    this.task = 0;
    this.legend = null;
    this.timer = 0;
    this.build();
  }

  build() {
    const select = (id, label, onchange) => {
      const box = el("select", { id, onchange: (event) => onchange(event.target.value) });
      return [el("label", { class: "field", for: id }, el("span", { text: label }), box), box];
    };
    const slider = (id, label, oninput) => {
      const input = el("input", { id, type: "range", min: 0, max: 100, step: 1, oninput: (event) => oninput(Number(event.target.value) / 100) });
      const value = el("output", { id: `${id}-value`, for: id, class: "number" });
      return [el("div", { class: "field slider" }, el("label", { for: id, text: label }), value, input), input, value];
    };
    const check = (id, label, name, apply) => {
      const input = el("input", { id, type: "checkbox", onchange: (event) => { this.settings[name] = event.target.checked; apply(); } });
      return [el("label", { class: "check" }, input, el("span", { text: label })), input];
    };
    [this.taskField, this.taskBox] = select("map-task", "Task", (value) => this.choose({ task: Number(value) }));
    [this.kindField, this.kindBox] = select("map-kind", "Map", (value) => this.choose({ kind: value }));
    [this.partField, this.partBox] = select("map-part", "Towards", (value) => this.setMap(value));
    [this.scaleField, this.scaleBox] = select("map-scale", "Scale", (value) => { this.settings.scale = value; this.refresh(); });
    this.scaleBox.append(el("option", { value: "uniform", text: "× uniform, logarithmic" }), el("option", { value: "percentile", text: "percentile rank" }));
    [this.colourField, this.colourBox] = select("map-colours", "Colours", (value) => { this.colours[this.legend?.is_signed ? "signed" : "plain"] = value; this.refresh(); });
    [this.opacityField, this.opacityBox, this.opacityValue] = slider("opacity", "Opacity", (value) => this.setOpacity(value));
    [this.thresholdField, this.thresholdBox, this.thresholdValue] = slider("threshold", "Hide below", (value) => this.setThreshold(value));
    [this.showField, this.showBox] = check("show-map", "Show map", "showsMap", () => this.applyOpacity());
    [this.unusedField, this.unusedBox] = check("show-unused", "Grey over tiles not used", "unused", () => this.refresh());
    [this.outlineField, this.outlineBox] = check("show-outline", "Tissue outline", "outline", () => this.applyOutline());
    [this.framesField, this.framesBox] = check("show-frames", "Frames of the top tiles", "frames", () => this.applyFrames());
    this.bar = el("canvas", { class: "legend-bar", width: 600, height: 28, role: "img" });
    this.ticks = el("div", { class: "legend-ticks" });
    this.label = el("p", { class: "legend-label", id: "legend-label" });
    this.detail = el("p", { class: "quiet small" });
    this.swatch = el("p", { class: "legend-unused small" }, el("i"), el("span", { text: "grey = not used for the label" }));
    this.body = el("div", { class: "layers" }, this.taskField, this.kindField, this.partField, el("div", { class: "legend" }, this.label, this.bar, this.ticks, this.swatch, this.detail),
      this.opacityField, this.thresholdField, this.scaleField, this.colourField, el("div", { class: "checks" }, this.unusedField, this.outlineField, this.framesField));
    this.empty = el("p", { class: "quiet" });
    byId("layers").append(el("div", { class: "card-head" }, el("h2", { id: "layers-title", text: "Map" }), this.showField), this.empty, this.body);
  }

  // Takes a slide; wanted: map, scale and opacity of a link, where it names them.
  open(told, wanted) {
    this.told = told;
    this.legend = null;
    const has = told.maps.length > 0;
    this.body.hidden = !has;
    this.showField.hidden = !has;
    this.empty.hidden = has;
    this.empty.textContent = told.map_trouble || "There is no map of this slide.";
    if (wanted.opacity !== null) this.settings.opacity = wanted.opacity;
    if (wanted.scale) this.settings.scale = wanted.scale;
    if (has) {
      const names = told.maps.map((info) => info.name);
      this.settings.map = names.find((name) => name === wanted.map) ?? names.find((name) => name === this.settings.map) ?? names[0];
      this.refresh();
      this.applyOutline();
      this.applyFrames();
    }
    this.show();
  }

  info() {
    return this.told?.maps.find((info) => info.name === this.settings.map);
  }

  choose(change) {
    const now = { task: this.task, kind: this.info().kind, ...change };
    const maps = this.told.maps;
    this.task = now.task;
    const found = maps.find((i) => i.kind === now.kind && (i.task === now.task || i.kind === "selected")) ?? maps.find((i) => i.task === now.task);
    this.setMap(found.name);
  }

  setMap(name) {
    this.settings.map = name;
    this.refresh();
  }

  step(by) {
    if (!this.info()) return;
    const names = this.told.maps.map((info) => info.name);
    this.setMap(names[(names.indexOf(this.settings.map) + by + names.length) % names.length]);
    toast(this.info().title);
  }

  setOpacity(value) {
    this.settings.opacity = Math.max(0, Math.min(1, Math.round(value * 100) / 100));
    this.applyOpacity();
  }

  setThreshold(value) {
    this.settings.threshold = value;
    this.show();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), 140); // not a map for every px of the slider's way
  }

  toggle() {
    this.settings.showsMap = !this.settings.showsMap;
    this.applyOpacity();
  }

  applyOpacity() {
    this.stage.setOpacity(this.settings.opacity, this.settings.showsMap);
    this.show();
    this.onChange();
  }

  async applyOutline() {
    const { told } = this;
    this.stage.rings = null;
    if (this.settings.outline && told?.maps.length) {
      try {
        told.rings ??= (await getJson(slideUrl(told.slide_id, "/outline"))).rings;
      } catch (error) {
        toast(error.message, true);
        return;
      }
      if (told === this.told) this.stage.rings = told.rings;
    }
    this.stage.draw();
  }

  applyFrames() {
    this.stage.frames = this.settings.frames && this.told ? this.told.tiles : [];
    this.stage.draw();
  }

  query() {
    const { settings: s } = this;
    const isSigned = this.info().kind.startsWith("evidence");
    const query = new URLSearchParams({ map: s.map, colormap: isSigned ? this.colours.signed : this.colours.plain, threshold: s.threshold, v: this.told.version });
    if (["attention", "head"].includes(this.info().kind)) query.set("scale", s.scale);
    if (!s.unused) query.set("unused", "0");
    return query.toString();
  }

  async refresh() {
    const { told } = this;
    if (!this.info()) return;
    if (this.info().kind !== "selected") this.task = this.info().task;
    const query = this.query();
    this.stage.setMap(query);
    this.stage.setOpacity(this.settings.opacity, this.settings.showsMap);
    this.show();
    this.onChange();
    try {
      const legend = await getJson(slideUrl(told.slide_id, `/legend?${query}`));
      if (told === this.told && query === this.query()) this.legend = legend;
    } catch (error) {
      toast(error.message, true);
    }
    this.show();
  }

  show() {
    const { settings: s, told } = this;
    const info = this.info();
    if (!info) return;
    const tasks = told.tasks.map((task) => task.name);
    this.fill(this.taskBox, this.taskField, tasks.map((name, i) => [String(i), name]), String(this.task));
    const ofTask = told.maps.filter((i) => i.task === this.task || i.kind === "selected");
    const kinds = KINDS.filter(([kind]) => ofTask.some((i) => i.kind === kind));
    this.fill(this.kindBox, this.kindField, kinds, info.kind, 1);
    const parts = ofTask.filter((i) => i.kind === info.kind);
    this.fill(this.partBox, this.partField, parts.map((i) => [i.name, shortTitle(i)]), info.name);
    this.partField.firstElementChild.textContent = info.kind === "head" ? "Head" : "Towards";
    this.scaleField.hidden = !["attention", "head"].includes(info.kind);
    this.scaleBox.value = s.scale;
    this.opacityBox.value = Math.round(s.opacity * 100);
    this.opacityValue.textContent = `${Math.round(s.opacity * 100)} %`;
    this.thresholdBox.value = Math.round(s.threshold * 100);
    this.showBox.checked = s.showsMap;
    this.unusedBox.checked = s.unused;
    this.outlineBox.checked = s.outline;
    this.framesBox.checked = s.frames;
    this.unusedField.hidden = !["evidence", "selected"].includes(info.kind);
    if (this.legend) this.showLegend(info);
  }

  showLegend(info) {
    const { legend } = this;
    const chosen = this.colours[legend.is_signed ? "signed" : "plain"];
    this.fill(this.colourBox, this.colourField, legend.colormaps.map((name) => [name, name]), chosen);
    this.thresholdValue.textContent = this.thresholdText(info);
    this.label.textContent = legend.label.replace(/\s+/g, " ");
    this.detail.textContent = legend.has_unused ? "" : legend.detail; // grey has its own line
    this.swatch.hidden = !legend.has_unused || !this.settings.unused;
    this.swatch.firstElementChild.style.backgroundColor = `rgba(${legend.unused.join(",")})`;
    this.bar.setAttribute("aria-label", `${legend.label}, from ${shown(legend.low)} to ${shown(legend.high)}`);
    this.ticks.replaceChildren(...legend.ticks.map(({ text, position }, i) => {
      const tick = el("span", { text, class: i === 0 ? "first" : i === legend.ticks.length - 1 ? "last" : "" });
      tick.style.left = `${position * 100}%`;
      return tick;
    }));
    const pen = this.bar.getContext("2d");
    const { width, height } = this.bar;
    pen.clearRect(0, 0, width, height);
    legend.stops.forEach(([r, g, b, a], i) => {
      const t = (i + 0.5) / legend.stops.length;
      const strength = legend.is_signed ? Math.abs(2 * t - 1) : t;
      if (strength < this.settings.threshold) return;
      pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${a})`;
      const left = Math.round((i * width) / legend.stops.length);
      pen.fillRect(left, 0, Math.round(((i + 1) * width) / legend.stops.length) - left, height);
    });
  }

  // The threshold in the map's own units.
  thresholdText(info) {
    const { legend, settings: { threshold: t } } = this;
    if (t === 0) return "nothing hidden";
    if (legend.is_signed) return `|evidence| < ${shown(legend.high * t)}`;
    if (info.kind === "selected") return `all but the first ${Math.round((1 - t) * 100)} %`;
    if (legend.is_log) return `< ${shown(legend.low * (legend.high / legend.low) ** t)} × uniform`;
    return `< ${shown(legend.low + (legend.high - legend.low) * t)}th percentile`;
  }

  fill(box, field, options, value, least = 2) {
    field.hidden = options.length < least;
    const key = JSON.stringify(options);
    if (box.dataset.options !== key) {
      box.replaceChildren(...options.map(([name, text]) => el("option", { value: name, text })));
      box.dataset.options = key;
    }
    box.value = value;
  }
}
