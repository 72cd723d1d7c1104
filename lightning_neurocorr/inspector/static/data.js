// Where the data comes from: TensorBoard's routes, or the file itself. One face for both, and
// bytes to typed arrays. docs/microscope_data.md is the contract.

export const SCHEMA = 1;

const MOST_KEYS = 64; // in one answer of /parts

// --- sources -------------------------------------------------------------------------------------

/** The routes of the TensorBoard plugin. */
export class TensorBoard {
  growing = true;
  #stamps = new Map(); // when a blob was written, by key: the browser keeps what has one

  /** @param base address of the plugin's routes, ends with a slash */
  constructor(base) {
    this.base = base;
  }

  /** Every callback of every run: [{run, name, last_step, tags, history}]. */
  async runs() {
    return readable(await this.#json("runs")).runs;
  }

  async meta(series, since = null) {
    const query = { run: series.run, tag: series.tags.meta };
    return (await this.#json("meta", since === null ? query : { ...query, since })).map(readable);
  }

  async history(series, layer) {
    return this.#bytes("history", { run: series.run, tag: series.history[layer] });
  }

  /** [{step, keys}] of a blob tag; kind is parts, tiles or pictures. */
  async items(series, kind) {
    const tag = series.tags[kind];
    const steps = tag ? readable(await this.#json("index", { run: series.run, tag })).steps : [];
    for (const { keys, stamp = "" } of steps) for (const key of keys) this.#stamps.set(key, stamp);
    return steps;
  }

  /** Blobs by their keys, unpacked, in order; few requests. */
  async blobs(series, kind, keys) {
    const stamp = [...new Set(keys.map((key) => this.#stamps.get(key)))].filter(Boolean).join(",");
    const where = { run: series.run, tag: series.tags[kind], ...(stamp && { stamp }) };
    if (keys.length === 1) return [await this.#bytes("part", { ...where, key: keys[0] })];
    const found = [];
    for (let i = 0; i < keys.length; i += MOST_KEYS) {
      const some = keys.slice(i, i + MOST_KEYS).join(",");
      found.push(...(await Promise.all(apart(await this.#bytes("parts", { ...where, keys: some })).map(unpacked))));
    }
    return found;
  }

  exported(series) {
    const query = series ? new URLSearchParams({ run: series.run, tag: series.tags.meta }) : "";
    return `${this.base}export${series ? "?" : ""}${query}`;
  }

  async #answer(route, query = {}) {
    const text = new URLSearchParams(query).toString();
    const answer = await fetch(this.base + route + (text && `?${text}`)).catch((error) => {
      throw new Error(`TensorBoard does not answer (${error.message}). Is it still running?`);
    });
    if (!answer.ok) throw new Error(`${route}: ${(await answer.text()).slice(0, 300) || answer.status}`);
    return answer;
  }

  async #json(route, query) {
    return (await this.#answer(route, query)).json();
  }

  async #bytes(route, query) {
    return new Uint8Array(await (await this.#answer(route, query)).arrayBuffer());
  }
}

/** The data inside this very file. */
export class Embedded {
  growing = false;

  constructor(manifest, blobText) {
    this.manifest = readable(manifest);
    this.blobText = blobText;
    this.all = this.manifest.series.map((one, at) => ({
      at, run: one.run, name: one.name, last_step: one.meta.at(-1)?.step ?? 0, history: one.history,
    }));
  }

  async runs() {
    return this.all;
  }

  async meta(series, since = null) {
    const all = this.manifest.series[series.at].meta.map(readable);
    return since === null ? all : all.filter(({ step }) => step > since);
  }

  async history(series, layer) {
    return this.#blob(this.manifest.series[series.at].history[layer]);
  }

  async items(series, kind) {
    const items = this.manifest.series[series.at][kind === "parts" ? "frames" : kind] ?? [];
    return items.map(({ step, blobs }) => ({ step, keys: blobs }));
  }

  async blobs(series, kind, keys) {
    return Promise.all(keys.map((key) => this.#blob(key)));
  }

  exported() {
    return null;
  }

  async #blob(i) {
    return unpacked(fromBase64(this.blobText(i)));
  }
}

function readable(json) {
  if (json.schema > SCHEMA) {
    throw new Error(
      `This data has schema ${json.schema}, but this page reads up to ${SCHEMA}. ` +
        "A newer lightning_neurocorr wrote it: open it with that version.",
    );
  }
  return json;
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

// --- bytes ---------------------------------------------------------------------------------------

/** The blobs of one answer of /parts. */
export function apart(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const size = view.getUint32(0, true);
  const found = [];
  let at = 4 + 4 * size;
  for (let i = 0; i < size; i++) {
    const length = view.getUint32(4 + 4 * i, true);
    found.push(bytes.subarray(at, at + length));
    at += length;
  }
  return found;
}

/** What was packed with gzip, unpacked; other bytes as they are. */
export async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export const toJson = (bytes) => readable(JSON.parse(new TextDecoder().decode(bytes)));

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array };

/** A part as the index describes it: a typed array, what JSON holds, or an image that is being made. */
export function decoded(bytes, { type }) {
  if (type === "image") return toImage(bytes);
  if (type === "json") return JSON.parse(new TextDecoder().decode(bytes));
  const array = ARRAYS[type];
  if (!array) throw new Error(`unknown type of a part: ${type}`);
  return new array(unshuffled(bytes, array.BYTES_PER_ELEMENT).buffer);
}

/** Numbers whose first bytes came first, then their second bytes, and so on. */
function unshuffled(bytes, width) {
  const size = bytes.length / width;
  const found = new Uint8Array(bytes.length);
  for (let b = 0; b < width; b++) {
    for (let i = 0, at = b; i < size; i++, at += width) found[at] = bytes[b * size + i];
  }
  return found;
}

/** r and attribution of a layer at every validation. */
export function decodedHistory(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const head = toJson(bytes.subarray(4, 4 + length));
  const width = head.units ? head.units.length : head.size;
  const halves = bytes.slice(4 + length);
  const numbers = fromHalf(new Uint16Array(halves.buffer));
  const half = head.steps.length * width;
  return {
    ...head,
    width,
    at: new Map(head.steps.map((step, i) => [step, i])),
    place: head.units && new Map(head.units.map((unit, i) => [unit, i])),
    r: numbers.subarray(0, half),
    attribution: numbers.subarray(half, 2 * half),
  };
}

let halfValues = null;

function fromHalf(bits) {
  halfValues ??= Float32Array.from({ length: 65536 }, (_, i) => halfValue(i));
  const found = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) found[i] = halfValues[bits[i]];
  return found;
}

function halfValue(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** An image, its type told by its first bytes and by nothing else. */
export async function toImage(bytes) {
  const begins = (...codes) => codes.every((code, i) => bytes[i] === code);
  const type = begins(0x89, 0x50, 0x4e, 0x47) ? "image/png" : begins(0x52, 0x49, 0x46, 0x46) ? "image/webp" : null;
  if (!type) throw new Error("a page of pictures is neither PNG nor WebP");
  return createImageBitmap(new Blob([bytes], { type }));
}
