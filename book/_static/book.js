"use strict";

// From file://, a page may not read another page, so search shows titles without excerpts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What scrolls sideways can be scrolled with the keyboard.
function makeScrollable() {
  for (const box of document.querySelectorAll(".math, .pst-scrollable-table-container, div.highlight pre, .output pre")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}
const typeset = () => window.MathJax?.startup?.promise ?? Promise.resolve();
addEventListener("load", () => typeset().then(() => document.fonts.ready).then(makeScrollable)); // fonts change widths

// The figure of the first page. Without this script it is a picture; with it, a decoder to play with.
function startExplorer(figure) {
  const SIDE = 25, LIMIT = 2.4, TILE = 28; // as in tools/draw_book_art.py
  const picture = figure.querySelector("img");
  const stage = document.createElement("div");
  stage.className = "stage";
  stage.innerHTML = `
    <div class="plane"><span class="point"></span></div>
    <div class="panel">
      <canvas width="${TILE}" height="${TILE}" role="img"></canvas>
      <label>z₀ <input type="range" min="${-LIMIT}" max="${LIMIT}" step="0.05" value="-0.8"></label>
      <label>z₁ <input type="range" min="${-LIMIT}" max="${LIMIT}" step="0.05" value="-0.4"></label>
      <p>Drag over the grid, or move a slider.</p>
    </div>`;
  figure.prepend(stage);
  const plane = stage.querySelector(".plane"), point = stage.querySelector(".point");
  const canvas = stage.querySelector("canvas"), sliders = stage.querySelectorAll("input");
  plane.prepend(picture);
  picture.draggable = false;

  // Four neighbours of the grid, each with its share of the image.
  function draw() {
    const z = [...sliders].map((slider) => Number(slider.value));
    const column = ((z[0] + LIMIT) / (2 * LIMIT)) * (SIDE - 1);
    const row = ((LIMIT - z[1]) / (2 * LIMIT)) * (SIDE - 1);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, TILE, TILE);
    context.globalCompositeOperation = "lighter";
    for (const i of [Math.floor(row), Math.floor(row) + 1]) {
      for (const j of [Math.floor(column), Math.floor(column) + 1]) {
        context.globalAlpha = Math.max(0, 1 - Math.abs(row - i)) * Math.max(0, 1 - Math.abs(column - j));
        if (context.globalAlpha) context.drawImage(picture, j * TILE, i * TILE, TILE, TILE, 0, 0, TILE, TILE);
      }
    }
    point.style.left = `${((column + 0.5) / SIDE) * 100}%`;
    point.style.top = `${((row + 0.5) / SIDE) * 100}%`;
    canvas.ariaLabel = `What the decoder draws at z₀ = ${z[0].toFixed(2)}, z₁ = ${z[1].toFixed(2)}`;
  }

  function follow(event) {
    const box = plane.getBoundingClientRect();
    const at = (share) => ((share * SIDE - 0.5) / (SIDE - 1)) * 2 * LIMIT - LIMIT;
    sliders[0].value = at((event.clientX - box.left) / box.width);
    sliders[1].value = -at((event.clientY - box.top) / box.height);
    draw();
  }
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    follow(event);
  });
  plane.addEventListener("pointermove", (event) => event.buttons && follow(event));
  for (const slider of sliders) slider.addEventListener("input", draw);
  picture.decode().then(draw);
}
document.querySelectorAll("figure.explorer").forEach(startExplorer);
