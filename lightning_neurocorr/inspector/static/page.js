// The page in a file of its own: its data is inside.

import { html, render } from "./vendor/lit-html.js";
import { App } from "./app.js";
import { Embedded } from "./data.js";
import { OwnHash } from "./place.js";
import { ownTheme } from "./theme.js";

const root = document.getElementById("app");
try {
  const manifest = JSON.parse(document.getElementById("neurocorr-manifest").textContent);
  const source = new Embedded(manifest, (i) => document.getElementById(`neurocorr-blob-${i}`).textContent);
  const app = new App({ root, source, place: new OwnHash(), theme: ownTheme(() => app.redraw()), notes: manifest.left_out });
  app.start();
} catch (error) {
  render(html`<div class="page"><p class="note fault" role="alert"><b>This page cannot be shown.</b> ${error.message}</p></div>`, root);
}
