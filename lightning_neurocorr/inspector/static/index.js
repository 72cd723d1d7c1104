// The tab in TensorBoard: its data comes from the plugin's routes.

import { App } from "./app.js";
import { TensorBoard } from "./data.js";
import { OwnHash, TensorBoardHash } from "./place.js";
import { ownTheme, tensorBoardTheme } from "./theme.js";

export async function render() {
  const base = new URL("../", import.meta.url);
  const style = document.createElement("link");
  Object.assign(style, { rel: "stylesheet", href: new URL("static/style.css", base).href });
  const styled = new Promise((resolve) => style.addEventListener("load", resolve));
  document.head.append(style);
  const root = document.createElement("main");
  root.id = "app";
  document.body.append(root);
  await styled;
  const inside = insideTensorBoard();
  const redraw = () => app.redraw();
  const app = new App({
    root,
    source: new TensorBoard(base.href),
    place: inside ? new TensorBoardHash() : new OwnHash(),
    theme: inside ? tensorBoardTheme(redraw) : ownTheme(redraw),
  });
  await app.start();
}

/** Whether the address and the look of TensorBoard are ours to read. */
function insideTensorBoard() {
  try {
    return parent !== window && parent.document.body !== null && typeof parent.location.hash === "string";
  } catch {
    return false;
  }
}
