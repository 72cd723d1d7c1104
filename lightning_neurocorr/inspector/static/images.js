// Cuts a tile out of a page of tiles and draws it large or small.

const SHARP_BELOW = 48; // pixels: smaller images are shown with their pixels, not blurred

/** A canvas with a tile; an empty box while it is on its way or where there is none. */
export function tileCanvas(tile, size, label = "") {
  const canvas = document.createElement("canvas");
  canvas.className = "tile";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  drawTile(canvas, tile, size);
  return canvas;
}

export function drawTile(canvas, tile, size) {
  const { w, h } = tile ?? { w: 1, h: 1 };
  const scale = size / Math.max(w, h);
  canvas.style.width = `${Math.round(w * scale)}px`;
  canvas.style.height = `${Math.round(h * scale)}px`;
  canvas.classList.toggle("blank", !tile);
  canvas.classList.toggle("pixels", Boolean(tile) && Math.max(w, h) < SHARP_BELOW);
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, w, h);
  if (tile) pen.drawImage(tile.image, tile.x, tile.y, w, h, 0, 0, w, h);
}
