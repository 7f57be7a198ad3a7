// Deep links: #slide=ID&x=..&y=..&zoom=..&map=..&opacity=..
// x, y: level-0 px of the centre of the view; zoom: screen px per level-0 px.

const number = (text) => (text === null || text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));

export function readLink(hash = location.hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const opacity = number(query.get("opacity"));
  const zoom = number(query.get("zoom"));
  return {
    slide: query.get("slide") || "",
    x: number(query.get("x")),
    y: number(query.get("y")),
    zoom: zoom !== null && zoom > 0 ? zoom : null,
    map: query.get("map") || "",
    scale: ["uniform", "percentile"].includes(query.get("scale")) ? query.get("scale") : "",
    opacity: opacity === null ? null : Math.max(0, Math.min(1, opacity)),
  };
}

export const slideLink = (slideId) => `#slide=${encodeURIComponent(slideId)}`;

export function writeLink(view) {
  const parts = [["slide", view.slide]];
  if (view.place) parts.push(["x", view.place.x.toFixed(1)], ["y", view.place.y.toFixed(1)], ["zoom", Number(view.place.zoom.toPrecision(5))]);
  if (view.map) parts.push(["map", view.map]);
  if (view.scale && view.scale !== "uniform") parts.push(["scale", view.scale]);
  if (view.opacity !== undefined) parts.push(["opacity", view.opacity]);
  return "#" + parts.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
}
