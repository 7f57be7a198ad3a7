// The page: which view is shown, the link in the address, and what keys do.

import { banner, byId, toast } from "./dom.js";
import { getJson } from "./api.js";
import { SlideList } from "./list.js";
import { SlideView } from "./slide.js";
import { buildHelp, listen } from "./keys.js";
import { readLink, slideLink, writeLink } from "./link.js";

let list = null;
let view = null;
let shownSlide = "";
let linkTimer = 0;

function showList() {
  view.close();
  const before = shownSlide;
  shownSlide = "";
  byId("slide-view").hidden = true;
  byId("slide-nav").hidden = true;
  byId("list-view").hidden = false;
  document.body.classList.remove("in-slide");
  document.title = "wsi-ips viewer";
  if (before) list.focus(before);
}

async function showSlide(wanted) {
  const isNew = shownSlide !== wanted.slide;
  shownSlide = wanted.slide;
  const isFromList = byId("slide-view").hidden;
  byId("list-view").hidden = true;
  byId("slide-view").hidden = false;
  byId("slide-nav").hidden = false;
  document.body.classList.add("in-slide");
  document.title = `${wanted.slide} – wsi-ips viewer`;
  byId("slide-title").textContent = wanted.slide;
  const order = orderAround(wanted.slide);
  byId("slide-position").textContent = `${order.indexOf(wanted.slide) + 1} / ${order.length}`;
  if (isNew) byId("slide-badges").replaceChildren();
  if (isFromList) byId("slide-title").focus({ preventScroll: true });
  await view.open(wanted);
}

// The list as it is searched and sorted; all slides where the one shown is not among those.
function orderAround(slideId) {
  const order = list.order();
  return order.includes(slideId) ? order : list.rows.map((row) => row.slide_id);
}

async function route() {
  const wanted = readLink();
  clearTimeout(linkTimer);
  banner("");
  if (!wanted.slide) {
    showList();
    return;
  }
  if (!list.rows.some((row) => row.slide_id === wanted.slide)) {
    showList();
    banner(`This run has no slide “${wanted.slide.slice(0, 120)}”. Choose one from the list.`);
    return;
  }
  try {
    await showSlide(wanted);
  } catch (error) {
    banner(error.status ? error.message : "The viewer does not answer. Is `wsi-ips view` still running?");
  }
}

function stepSlide(by) {
  if (!shownSlide) return;
  const order = orderAround(shownSlide);
  const next = order[order.indexOf(shownSlide) + by];
  if (next === undefined) toast(by > 0 ? "This is the last slide." : "This is the first slide.");
  else location.hash = slideLink(next);
}

function keepLink() {
  clearTimeout(linkTimer);
  linkTimer = setTimeout(() => {
    if (!view.told || view.told.slide_id !== shownSlide) return;
    if (readLink().slide !== shownSlide) return; // on the way elsewhere: the browser tells of a new link a moment later
    history.replaceState(null, "", writeLink(view.view()));
  }, 150);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("wsi-ips-theme", theme);
  } catch {
    // not kept: the next page follows the system again
  }
}

function theme() {
  try {
    const kept = localStorage.getItem("wsi-ips-theme");
    if (kept) return kept;
  } catch {
    // as below
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function actions() {
  const always = {
    "?": () => byId("help").showModal(), d: () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
    "/": () => { if (shownSlide) location.hash = ""; byId("search").focus(); }, l: () => { location.hash = ""; },
  };
  if (!shownSlide) return { ...always, ArrowDown: () => list.step(1), ArrowUp: () => list.step(-1) };
  const { stage, layers, review } = view;
  const check = (box) => box.click();
  return {
    ...always, n: () => stepSlide(1), p: () => stepSlide(-1), ".": () => view.stepTile(1), ",": () => view.stepTile(-1),
    "]": () => layers.setOpacity(layers.settings.opacity + 0.1), "[": () => layers.setOpacity(layers.settings.opacity - 0.1),
    h: () => layers.toggle(), m: () => layers.step(1), "Shift m": () => layers.step(-1), 0: () => stage.home(), Home: () => stage.home(),
    o: () => check(layers.outlineBox), f: () => check(layers.framesBox),
    "+": () => stage.zoomBy(1.5), "=": () => stage.zoomBy(1.5), "-": () => stage.zoomBy(1 / 1.5),
    ArrowLeft: () => stage.panBy(-1, 0), ArrowRight: () => stage.panBy(1, 0), ArrowUp: () => stage.panBy(0, -1), ArrowDown: () => stage.panBy(0, 1),
    1: () => review.store("agree"), 2: () => review.store("disagree"), 3: () => review.store("unsure"),
  };
}

async function start() {
  setTheme(theme());
  buildHelp();
  byId("banner").lastElementChild.addEventListener("click", () => banner(""));
  let run;
  try {
    run = await getJson("api/run");
  } catch (error) {
    banner(error.status ? error.message : "The viewer does not answer. Is `wsi-ips view` still running?");
    return;
  }
  byId("research").textContent = run.research_use;
  byId("model-name").textContent = `model ${run.model}`;
  list = new SlideList(run);
  view = new SlideView(run, keepLink, (slideId, review) => list.setReview(slideId, review));
  byId("previous-slide").addEventListener("click", () => stepSlide(-1));
  byId("next-slide").addEventListener("click", () => stepSlide(1));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("theme").addEventListener("click", () => actions().d());
  listen(actions);
  window.addEventListener("hashchange", route);
  await route();
  if (run.reviews_trouble) banner(run.reviews_trouble);
}

start();
