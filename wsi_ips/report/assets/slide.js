"use strict";
// Switches the maps over the slide; without it the first one shows.
(function () {
  const view = document.getElementById("mapview");
  if (!view) return;
  const parts = Array.from(view.querySelectorAll("[data-map]"));
  const opacity = document.getElementById("opacity");

  function show(name) {
    parts.forEach((part) => { part.hidden = part.dataset.map !== name; });
  }
  view.querySelectorAll("input[type=radio]").forEach((radio) => {
    radio.addEventListener("change", () => show(radio.value));
    if (radio.checked) show(radio.value); // a browser may remember the choice
  });
  function fade() {
    view.querySelectorAll("img.layer").forEach((layer) => { layer.style.opacity = opacity.value / 100; });
  }
  opacity.addEventListener("input", fade);
  fade();
})();
