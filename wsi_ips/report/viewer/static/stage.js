// The stage: slide, map, outline and frames, and the arithmetic between screen and level-0 px.
//
// Frames: level-0 px (x0, y0); viewport units of OpenSeadragon, 1 = width of the slide's bounds; screen px.
// zoom is screen px per level-0 px.

import { byId, shown } from "./dom.js";
import { slideUrl } from "./api.js";

const FRAME_COLOUR = "#00a3d9";

function source(frame, url) {
  const deepest = frame.highest_shift;
  return {
    width: frame.width0, height: frame.height0, tileSize: frame.tile_px, tileOverlap: 0, minLevel: 0, maxLevel: deepest,
    getTileUrl: (level, column, row) => url(deepest - level, column, row),
  };
}

// OpenSeadragon would put a style sheet into the page, which the page's policy forbids, unless it finds this one.
function keepPolicy() {
  const inert = document.createElementNS("urn:inert", "style");
  inert.setAttribute("data-openseadragon-mobile-css", "true");
  document.head.append(inert);
}

const nextFrame = () => new Promise((resolve) => requestAnimationFrame(() => resolve()));

export class Stage {
  constructor(onMove) {
    this.onMove = onMove;
    this.isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    keepPolicy();
    this.viewer = OpenSeadragon({
      element: byId("osd"), drawer: "canvas", prefixUrl: "static/", showNavigationControl: false, keyboardNavEnabled: false,
      showNavigator: true, navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.18, navigatorAutoFade: false, navigatorOpacity: 1,
      animationTime: this.isCalm ? 0 : 0.35, springStiffness: 9, zoomPerScroll: 1.35,
      maxZoomPixelRatio: 8, minZoomImageRatio: 0.6, visibilityRatio: 0.3, imageLoaderLimit: 6, maxImageCacheCount: 400,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false },
      blendTime: 0, // a map tile fading in over a coarser one would show a colour that is not on the scale
      loadTilesWithAjax: false, crossOriginPolicy: false, showSequenceControl: false,
    });
    const canvas = this.viewer.canvas;
    canvas.setAttribute("aria-label", "Slide; arrow keys move, plus and minus zoom");
    this.overlay = document.createElement("canvas");
    this.overlay.className = "overlay";
    this.viewer.canvas.append(this.overlay);
    this.frame = null;
    this.mapItem = null;
    this.pendingItem = null;
    this.mapRequest = 0;
    this.opacity = 0.7;
    this.showsMap = true;
    this.rings = null;
    this.frames = [];
    this.current = null;
    const redraw = () => this.draw();
    for (const name of ["update-viewport", "resize", "open"]) this.viewer.addHandler(name, redraw);
    this.viewer.addHandler("animation", () => this.onMove());
    this.viewer.addHandler("animation-finish", () => this.onMove());
    new OpenSeadragon.MouseTracker({ element: canvas, moveHandler: (event) => this.point(event.position), leaveHandler: () => this.point(null) });
  }

  // Opens the ground of a slide; resolves when the view can be placed.
  async open(told) {
    this.close();
    this.frame = told.frame;
    this.slideId = told.slide_id;
    if (!told.frame) return;
    this.showTools(true);
    const { frame } = told;
    this.hasSlide = told.has_slide;
    const url = (shift, column, row) => slideUrl(told.slide_id, `/pixels/${shift}/${column}_${row}.jpg?v=${told.version}`);
    // without the slide there is an empty ground of the same size, so that the map lies where it would
    const ground = told.has_slide ? source(frame, url) : { ...source(frame, url), tileExists: () => false };
    await nextFrame(); // the stage has its size only after the page is laid out
    if (this.frame !== frame) return;
    this.viewer.forceResize();
    await new Promise((resolve) => {
      this.viewer.addOnceHandler("open", () => resolve());
      this.viewer.addOnceHandler("open-failed", () => resolve());
      this.viewer.open({ tileSource: ground });
    });
    await nextFrame();
    if (this.frame === frame) this.viewer.viewport.goHome(true);
  }

  close() {
    this.mapRequest += 1;
    this.mapItem = null;
    this.pendingItem = null;
    this.frame = null;
    this.rings = null;
    this.frames = [];
    this.current = null;
    this.viewer.close();
    this.overlay.getContext("2d").clearRect(0, 0, this.overlay.width, this.overlay.height);
    this.showTools(false);
  }

  showTools(isOpen) {
    if (!isOpen) byId("scale").hidden = true;
    document.querySelector(".stage-tools").hidden = !isOpen;
    this.viewer.navigator.element.hidden = !isOpen;
  }

  // Lays a map over the slide; the old one stays until the new one is there, but not for long.
  setMap(query) {
    const request = ++this.mapRequest;
    this.drop("pendingItem");
    const url = (shift, column, row) => slideUrl(this.slideId, `/map/${shift}/${column}_${row}.png?${query}`);
    this.viewer.addTiledImage({
      tileSource: source(this.frame, url), opacity: 0, preload: true,
      success: ({ item }) => {
        if (request !== this.mapRequest) {
          this.viewer.world.removeItem(item);
          return;
        }
        this.pendingItem = item;
        const swap = () => {
          if (this.pendingItem !== item) return;
          this.pendingItem = null;
          this.drop("mapItem");
          this.mapItem = item;
          this.applyOpacity();
        };
        if (!this.mapItem) swap();
        else {
          item.whenFullyLoaded(swap);
          setTimeout(swap, 450);
        }
      },
    });
  }

  drop(name) {
    if (this[name]) this.viewer.world.removeItem(this[name]);
    this[name] = null;
  }

  setOpacity(opacity, showsMap) {
    this.opacity = opacity;
    this.showsMap = showsMap;
    this.applyOpacity();
  }

  applyOpacity() {
    this.mapItem?.setOpacity(this.showsMap ? this.opacity : 0);
  }

  // Where the view is: level-0 px of its centre, and zoom.
  place() {
    if (!this.frame || !this.viewer.world.getItemCount()) return null;
    const centre = this.viewer.viewport.getCenter(false);
    return { x: this.frame.x0 + centre.x * this.frame.width0, y: this.frame.y0 + centre.y * this.frame.width0, zoom: this.zoom(false) };
  }

  zoom(current = true) {
    return (this.viewer.viewport.getZoom(current) * this.width()) / this.frame.width0;
  }

  width() {
    return this.viewer.viewport.getContainerSize().x;
  }

  goTo(x, y, zoom, immediately = this.isCalm) {
    if (!this.frame) return;
    const { viewport } = this.viewer;
    if (zoom) viewport.zoomTo((zoom * this.frame.width0) / this.width(), null, immediately);
    viewport.panTo(new OpenSeadragon.Point((x - this.frame.x0) / this.frame.width0, (y - this.frame.y0) / this.frame.width0), immediately);
    viewport.applyConstraints(immediately);
    this.onMove();
  }

  showTile(tile) {
    this.current = tile;
    const size = this.viewer.viewport.getContainerSize();
    const zoom = Math.min(8, (0.42 * Math.min(size.x, size.y)) / Math.max(tile.width0, tile.height0));
    this.goTo(tile.x0 + tile.width0 / 2, tile.y0 + tile.height0 / 2, zoom);
    this.draw();
  }

  home() {
    if (this.frame) this.viewer.viewport.goHome(this.isCalm);
  }

  zoomBy(factor) {
    if (!this.frame) return;
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  panBy(dx, dy) {
    if (!this.frame) return;
    const step = 0.18 / this.viewer.viewport.getZoom(true);
    this.viewer.viewport.panBy(new OpenSeadragon.Point(dx * step, dy * step));
    this.viewer.viewport.applyConstraints();
  }

  point(position) {
    const text = byId("scale-place");
    if (!position || !this.frame) {
      text.textContent = this.frame ? this.zoomText() : "";
      return;
    }
    const at = this.viewer.viewport.pointFromPixel(position, true);
    const x = Math.floor(this.frame.x0 + at.x * this.frame.width0), y = Math.floor(this.frame.y0 + at.y * this.frame.width0);
    text.textContent = `${this.zoomText()}   x ${x.toLocaleString("en-US")}  y ${y.toLocaleString("en-US")} px`;
  }

  zoomText() {
    const um = this.frame.mpp_x / this.zoom();
    return Number.isFinite(um) ? `${shown(um)} µm per screen px` : "";
  }

  // Outline, frames and scale bar follow the view.
  draw() {
    const size = this.viewer.viewport?.getContainerSize();
    if (!size || !this.frame || !this.viewer.world.getItemCount()) return;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(size.x * dense), Math.round(size.y * dense)];
    if (this.overlay.width !== width || this.overlay.height !== height) [this.overlay.width, this.overlay.height] = [width, height];
    const pen = this.overlay.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    const zoom = this.zoom();
    const corner = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const [dx, dy] = [corner.x - this.frame.x0 * zoom, corner.y - this.frame.y0 * zoom];
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    if (!this.hasSlide) this.drawGround(pen, dx, dy, zoom);
    if (this.rings) this.drawRings(pen, dx, dy, zoom);
    for (const tile of this.frames) this.drawFrame(pen, tile, dx, dy, zoom, 1.5, "rgba(20, 24, 32, .75)");
    if (this.current) this.drawFrame(pen, this.current, dx, dy, zoom, 3, FRAME_COLOUR);
    this.drawScale(zoom);
  }

  drawGround(pen, dx, dy, zoom) {
    const f = this.frame;
    pen.strokeStyle = "#8a929e";
    pen.setLineDash([6, 4]);
    pen.strokeRect(f.x0 * zoom + dx, f.y0 * zoom + dy, f.width0 * zoom, f.height0 * zoom);
    pen.setLineDash([]);
  }

  drawRings(pen, dx, dy, zoom) {
    pen.beginPath();
    for (const ring of this.rings) {
      ring.forEach(([x, y], i) => pen[i ? "lineTo" : "moveTo"](x * zoom + dx, y * zoom + dy));
    }
    pen.lineJoin = "round";
    for (const [line, colour] of [[3.5, "rgba(255, 255, 255, .65)"], [1.5, "#20262f"]]) {
      pen.lineWidth = line;
      pen.strokeStyle = colour;
      pen.stroke();
    }
  }

  drawFrame(pen, tile, dx, dy, zoom, line, colour) {
    const box = [tile.x0 * zoom + dx, tile.y0 * zoom + dy, tile.width0 * zoom, tile.height0 * zoom];
    if (line > 2) {
      pen.lineWidth = line + 2.5;
      pen.strokeStyle = "rgba(255, 255, 255, .9)";
      pen.strokeRect(...box);
    }
    pen.lineWidth = line;
    pen.strokeStyle = colour;
    pen.strokeRect(...box);
  }

  drawScale(zoom) {
    const um = this.frame.mpp_x / zoom; // per screen px
    byId("scale").hidden = !Number.isFinite(um);
    if (!Number.isFinite(um)) return;
    const longest = 180 * um;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((s) => s * power).find((s) => s <= longest * (1 + 1e-9));
    byId("scale-bar").style.width = `${length / um}px`;
    byId("scale-text").textContent = length >= 1000 ? `${Number((length / 1000).toPrecision(3))} mm` : `${Number(length.toPrecision(3))} µm`;
    if (!byId("scale-place").textContent.includes("x ")) byId("scale-place").textContent = this.zoomText();
  }
}
