// One callback of one run: what is known of it by now. Getters answer at once: a value, `null`
// where there is none, `undefined` while it is on its way. `changed` is called when more has come.

import { decoded, decodedHistory, toImage, toJson } from "./data.js";

const FRAMES_KEPT = 6;

/** Values by key that arrive later. */
export class Shelf {
  #places = new Map(); // {value} by key
  pending = 0;
  faults = new Map();

  constructor(changed) {
    this.changed = changed;
  }

  get(key, load) {
    if (!this.#places.has(key)) {
      const place = { value: undefined };
      this.#places.set(key, place);
      this.during(
        () => load().then((value) => (place.value = value)),
        (error) => {
          place.value = null;
          if (this.#places.get(key) === place) this.faults.set(key, error.message);
        },
      );
    }
    return this.#places.get(key).value;
  }

  /** Wait for something, and say that more has come. */
  async during(load, failed) {
    this.pending++;
    try {
      await load();
    } catch (error) {
      failed(error);
    }
    this.pending--;
    this.changed();
  }

  /** Ask again for a value when it is next needed; what is on its way comes too late. */
  forget(key) {
    this.#places.delete(key);
    this.faults.delete(key);
  }

  /** Ask again for all that could not be loaded. */
  forgetFaults() {
    for (const key of [...this.faults.keys()]) this.forget(key);
  }
}

/** Where a full table lies on the shelf, and what could not be loaded of it. */
const frameKey = (step) => `frame/${step}`;

/** A full table at one step. */
export class Frame {
  #parts = new Map();
  #asked = null;

  constructor(series, step, keys, index) {
    Object.assign(this, { series, step, keys, index });
    this.size = index.layers.reduce((sum, { size }) => sum + size, 0);
    this.starts = [];
    this.layerAt = new Map();
    let start = 0;
    index.layers.forEach(({ name, size }, i) => {
      this.starts.push(start);
      this.layerAt.set(name, i);
      start += size;
    });
    this.columns = new Map(index.columns.map((column) => [column.name, column]));
    this.classes = new Map(index.classes);
  }

  /** A part; all that are asked for in one go come with one request. */
  get(name) {
    if (this.#parts.has(name)) return this.#parts.get(name);
    const at = this.index.order.indexOf(name);
    if (at < 0) return null;
    this.#parts.set(name, undefined);
    if (!this.#asked) {
      this.#asked = [];
      const { shelf } = this.series;
      shelf.during(() => Promise.resolve().then(() => this.#load()), (error) => shelf.faults.set(frameKey(this.step), error.message));
    }
    this.#asked.push({ name, key: this.keys[at + 1] });
    return undefined;
  }

  async #load() {
    const { source, about } = this.series;
    const asked = this.#asked;
    this.#asked = null;
    try {
      const blobs = await source.blobs(about, "parts", asked.map(({ key }) => key));
      const parts = await Promise.all(asked.map(({ name }, i) => decoded(blobs[i], this.index.parts[name])));
      asked.forEach(({ name }, i) => this.#parts.set(name, parts[i]));
    } catch (error) {
      for (const { name } of asked) this.#parts.set(name, null);
      throw error;
    }
  }

  /** Ask for parts that will be needed, so that they come with one request. */
  want(names) {
    for (const name of names) this.get(name);
  }

  column(name) {
    return this.get(`c/${name}`);
  }

  /** Index of the layer that a row belongs to. */
  layer(row) {
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= row) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** {layer, unit} of a row. */
  neuron(row) {
    const at = this.layer(row);
    return { layer: this.index.layers[at].name, unit: row - this.starts[at] };
  }

  /** The row of a neuron, -1 where it is not in this table. */
  row(layer, unit) {
    const at = this.layerAt.get(layer);
    if (at === undefined || !(unit >= 0 && unit < this.index.layers[at].size)) return -1;
    return this.starts[at] + unit;
  }

  className(id) {
    if (id === undefined || id < 0) return "unknown";
    return this.classes.get(id) ?? String(id);
  }
}

export class Series {
  metas = [];

  constructor(source, about, changed) {
    Object.assign(this, { source, about });
    this.run = about.run;
    this.name = about.name;
    this.key = JSON.stringify([about.run, about.name]);
    this.shelf = new Shelf(changed);
  }

  /** Load what is new, and again what could not be loaded. */
  refresh(about = this.about) {
    this.about = about;
    this.shelf.forgetFaults();
    return this.shelf.during(() => this.#grow(), (error) => this.shelf.faults.set("meta", error.message));
  }

  /** Later metas take the place of earlier ones of the same validation. */
  async #grow() {
    const since = this.metas.length ? Math.max(...this.metas.map(({ step }) => step)) : null;
    const fresh = await this.source.meta(this.about, since);
    if (!fresh.length && since !== null) return;
    const by = new Map(this.metas.map((meta) => [meta.validation, meta]));
    for (const meta of fresh) by.set(meta.validation, meta);
    this.metas = [...by.values()].sort((a, b) => a.validation - b.validation);
    for (const kind of ["parts", "tiles", "pictures"]) this.shelf.forget(`items/${kind}`);
    for (const layer of this.layerNames()) this.shelf.forget(`history/${layer}`);
    this.shelf.forget("tiles");
  }

  /** Names of all layers that were ever watched. */
  layerNames() {
    return [...new Set(this.metas.flatMap(({ layers }) => layers.map(({ name }) => name)))];
  }

  meta(step) {
    return this.metas.find((meta) => meta.step === step) ?? this.metas.at(-1);
  }

  items(kind) {
    return this.shelf.get(`items/${kind}`, () => this.source.items(this.about, kind));
  }

  /** The full table at a step or the one nearest to it; null where none was written. */
  frame(step) {
    const all = this.items("parts");
    if (!all) return all;
    const empty = new Set(this.metas.filter(({ message }) => message).map((meta) => meta.step));
    const items = all.filter((item) => item.step === step || !empty.has(item.step)); // those have samples, but no neurons
    if (!items.length) return null;
    const distance = (item) => Math.abs(item.step - step);
    const item = items.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    const key = frameKey(item.step);
    this.framesUsed = [key, ...(this.framesUsed ?? []).filter((used) => used !== key)];
    for (const old of this.framesUsed.splice(FRAMES_KEPT)) this.shelf.forget(old);
    return this.shelf.get(key, async () => {
      const [bytes] = await this.source.blobs(this.about, "parts", [item.keys[0]]);
      return new Frame(this, item.step, item.keys, toJson(bytes));
    });
  }

  /** r and attribution of a layer over all validations. */
  history(layer) {
    if (!Object.hasOwn(this.about.history, layer)) return null;
    return this.shelf.get(`history/${layer}`, async () => {
      const bytes = await this.source.history(this.about, layer);
      return decodedHistory(bytes);
    });
  }

  /** r of a neuron at each of `metas`, NaN where unknown; undefined while on its way. */
  curve(layer, unit, what = "r") {
    const history = this.history(layer);
    if (!history) return history;
    const place = history.place ? history.place.get(unit) : unit;
    return Float32Array.from(this.metas, ({ step }) => {
      const at = history.at.get(step);
      return at === undefined || place === undefined ? NaN : history[what][at * history.width + place];
    });
  }

  // --- images ------------------------------------------------------------------------------------

  /** Where a thumbnail is: {image, x, y, w, h}. */
  thumbnail(tile) {
    if (tile === undefined || tile < 0) return null;
    const pages = this.#tilePages();
    if (!pages) return pages;
    const page = pages.find(({ first, count }) => first <= tile && tile < first + count);
    return page ? this.#tile("tiles", page.key, page.tile, tile - page.first) : null;
  }

  /** Where a made picture is. */
  picture(frame, picture) {
    const shape = frame.index.picture;
    const items = shape && this.items("pictures");
    if (!items) return shape ? items : null;
    const key = items.find(({ step }) => step === shape.step)?.keys[picture.page];
    return key === undefined ? null : this.#tile("pictures", key, shape, picture.tile);
  }

  #tilePages() {
    const items = this.items("tiles");
    if (!items) return items;
    return this.shelf.get("tiles", async () => {
      const heads = items.map(({ keys }) => keys[0]);
      const bytes = heads.length ? await this.source.blobs(this.about, "tiles", heads) : [];
      return bytes.map(toJson).flatMap(({ tile, pages }, s) =>
        pages.map((page, p) => ({ ...page, tile, key: items[s].keys[p + 1] })));
    });
  }

  #tile(kind, key, { w, h, per_row: perRow }, place) {
    const image = this.shelf.get(`image/${kind}/${key}`, async () => {
      const [bytes] = await this.source.blobs(this.about, kind, [key]);
      return toImage(bytes);
    });
    return image && { image, x: (place % perRow) * w, y: Math.floor(place / perRow) * h, w, h };
  }
}
