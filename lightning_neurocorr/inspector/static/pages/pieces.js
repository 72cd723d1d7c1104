// What several pages show: names of neurons, claims, samples, the outcome table, what is missing.

import { html, nothing } from "../vendor/lit-html.js";
import { NONE, OUTCOMES, OUTCOME_WORDS, STATE_WORDS, count, known, missing, percent, plain } from "../format.js";
import { tileCanvas } from "../images.js";
import { made } from "../table.js";

export const nameOf = ({ layer, unit }) => `${layer}:${unit}`;

/** {layer, unit} of a name; the unit is what follows the last colon. */
export function neuronOf(name) {
  const at = (name ?? "").lastIndexOf(":");
  const unit = at > 0 && /^\d+$/.test(name.slice(at + 1)) ? Number(name.slice(at + 1)) : -1;
  return { layer: name?.slice(0, Math.max(at, 0)) ?? "", unit };
}

/** A neuron's name that may shrink at the front of its layer, where names are alike, never in its unit. */
export const neuronName = ({ layer, unit }) =>
  html`<span class="neuron-name" title=${nameOf({ layer, unit })}><span class="layer"><bdi>${layer}</bdi></span><span class="unit">:${unit}</span></span>`;

/** The same for a cell of a long table, which is filled again and again. */
export function makeName(cell) {
  const layer = made("span", "layer");
  layer.append(made("bdi"));
  cell.append(layer, made("span", "unit"));
  cell.classList.add("neuron-name");
}

export function fillName(cell, { layer, unit }) {
  cell.children[0].firstChild.textContent = layer;
  cell.children[1].textContent = `:${unit}`;
  cell.title = nameOf({ layer, unit });
}

export const goTo = (app, changes, content, name = "") => html`<a class=${name} href=${app.link(changes)}
  @click=${(event) => app.follow(event, changes)}>${content}</a>`;

export const neuronLink = (app, neuron) =>
  goTo(app, { page: "neuron", neuron: nameOf(neuron) }, neuronName(neuron), "neuron-link");

/** The filter that keeps the neurons of one layer. */
export function layerClause(name) {
  if (name.includes('"')) return `layer:"${name.replaceAll('"', "*")}"`;
  return /\s/.test(name) ? `layer:"=${name}"` : `layer:=${name}`;
}

export const loading = (what = "Loading") => html`<p class="loading" role="status">${what} …</p>`;

const SHORT = 24; // characters that a cell may have in one line

/** How texts lie in a column of a table: only long ones need room. */
export const textKind = (texts) => (texts.some((text) => String(text ?? "").length > SHORT) ? "words" : "short");

// --- what is missing -----------------------------------------------------------------------------

const FAMILIES = [
  ["attribution", /^attribution/],
  ["ablation", /^ablation/],
  ["second_pass", /^(auroc|spearman|p_max_t)/],
];

/** Why a column has no number: the state of its evidence, of the layer where that is known. */
export function stateOf(meta, column, layer) {
  const family = FAMILIES.find(([, names]) => names.test(column))?.[0];
  if (!family) return null;
  const ofLayer = meta?.layers.find(({ name }) => name === layer)?.[family];
  const state = ofLayer ?? meta?.evidence[family] ?? null;
  // measured in this layer, but not for this neuron: it was not among those chosen
  if (state?.state === "measured" && family !== "attribution") return { state: "not_chosen", why: "" };
  return state;
}

export const stateWord = (state) => (state ? STATE_WORDS[state.state] ?? state.state : STATE_WORDS.measured);

export const missingNote = (state, otherwise, what = "") => {
  const why = missing(state) ?? otherwise;
  const text = why && what ? `${what}: ${why}` : why;
  return text ? html`<p class="missing">${prose(sentence(text))}</p>` : nothing;
};

// Names of arguments and columns, as sentences of ours have them; a name that someone gave stays as it is.
const IN_TICKS = /(?<![^\s(])`([A-Za-z_]\w*(?:[.=]\w+)*(?:\([^`()]*\))?)`(?![\w`])/;

/** A sentence with its `names` set as code. */
export const prose = (text) => text?.split(IN_TICKS).map((part, i) => (i % 2 ? html`<code>${part}</code>` : part)) ?? nothing;

/** A text with a capital first and a full stop. */
export const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** Why there is no table at all. */
export const noTable = ({ series }) => (series.shelf.faults.size ? "The table could not be loaded: see above." : "No table was written for this run.");

// --- claims --------------------------------------------------------------------------------------

export const MARKS = { yes: "✓", no: "✕", unknown: NONE };

/** Whether a claim or control holds: yes, no or unknown. */
export const answer = (bits, { bit, known: knownBit }) =>
  (bits >>> knownBit) & 1 ? ((bits >>> bit) & 1 ? "yes" : "no") : "unknown";

export const ANSWER_WORDS = { yes: "yes", no: "not shown", unknown: "not known" };

// --- samples -------------------------------------------------------------------------------------

/** What is known of a sample, or undefined while it is on its way. */
export function sampleAt(frame, row) {
  const parts = Object.fromEntries(["position", "target", "model", "baseline", "outcome", "tile", "id"].map((name) => [name, frame.get(`s/${name}`)]));
  if (Object.values(parts).includes(undefined)) return undefined;
  const at = (name) => parts[name]?.[row];
  return { row, ...Object.fromEntries(Object.keys(parts).map((name) => [name, at(name)])), outcome: OUTCOMES[at("outcome")] ?? null };
}

export function sampleName({ id, position, row }) {
  if (id !== undefined && id !== null) return String(id);
  return position >= 0 ? `sample ${position}` : `row ${row}`;
}

/** How a sample is linked: by its position where it has one, which other epochs share. */
export const sampleKey = ({ position, row }) => (position >= 0 ? `${position}` : `row${row}`);

/** A thumbnail that leads to the sample's page, with what it is below. */
export function sampleTile(app, frame, row, { size = 64, caption } = {}) {
  const sample = sampleAt(frame, row);
  if (!sample) return html`<span class="sample-tile"></span>`;
  const tile = app.series.thumbnail(sample.tile ?? -1);
  const label = sampleName(sample);
  const said = [["is", "target"], ["model", "model"], ["baseline", "baseline"]].map(([word, name]) => (sample[name] >= 0 ? `${word} ${frame.className(sample[name])}` : ""));
  const words = [label, sample.outcome ? OUTCOME_WORDS[sample.outcome] : "", ...said].filter(Boolean).join(", "); // below it, long names are cut
  const width = tile === null ? Math.max(size, 96) : size; // words need more room than an image
  const box = tile === null
    ? html`<span class="tile words" style="width:${width}px;min-height:${Math.min(size, 56)}px"><bdi>${label}</bdi></span>`
    : tileCanvas(tile, size, words);
  return html`<a class="sample-tile ${sample.outcome ?? ""}" style="width:${width}px" title=${words} href=${app.link({ page: "sample", sample: sampleKey(sample) })}
    @click=${(event) => app.follow(event, { page: "sample", sample: sampleKey(sample) })}>${box}<span class="caption">${caption?.(sample) ?? nothing}</span></a>`;
}

export const isClass = (frame, sample) => (known(sample.target) && sample.target >= 0 ? `is ${frame.className(sample.target)}` : "");

// --- outcomes ------------------------------------------------------------------------------------

/** Who was right, two by two; a cell leads to its samples. */
export function outcomeTable(app, outcomes, { chosen, series = app.series, step } = {}) {
  if (!outcomes) return html`<p class="empty">Nothing is right or wrong here, so there are no outcome groups.</p>`;
  const cell = (name) => html`<td>${goTo(app, { page: "samples", cell: name, run: series.run, name: series.name, ...(step === undefined ? {} : { step }) },
    html`<b>${count(outcomes[name])}</b><span>${OUTCOME_WORDS[name]}</span>`, `cell ${name} ${chosen === name ? "chosen" : ""}`)}</td>`;
  return html`<table class="outcomes">
    <thead><tr><td></td><th scope="col">baseline right<small>${percent(outcomes.baseline)}</small></th><th scope="col">baseline wrong</th></tr></thead>
    <tbody><tr><th scope="row">model right<small>${percent(outcomes.model)}</small></th>${cell("both")}${cell("only_model")}</tr>
      <tr><th scope="row">model wrong</th>${cell("only_baseline")}${cell("neither")}</tr></tbody></table>`;
}

// --- epochs --------------------------------------------------------------------------------------

/** The step of a validation; it may be stored at a later one. */
export const loggedAt = ({ logged, step }) => logged ?? step;

export const epochName = (meta) => `epoch ${plain(meta.epoch)}`;

/** A note where the table is of another epoch than the one that is looked at; `own` is what is of this one. */
export function otherEpoch(app, own = "All that is shown here is of") {
  const { frame, meta } = app;
  if (!frame || frame.step === meta.step) return nothing;
  return html`<p class="note" role="note"><b>Epoch ${plain(meta.epoch)} has no full table.</b> ${own}
    ${goTo(app, { step: String(frame.step) }, `epoch ${plain(frame.index.epoch)}`)}, the nearest one that was written.</p>`;
}

/** Why r of a neuron is not known at this epoch, though it is in the table; null where it is known or undefined. */
export function unkept(app, neuron, row, r) {
  const { frame, meta } = app;
  if (frame.step === meta.step || known(r?.[row]) || !known(frame.column("r")?.[row])) return null;
  return meta.layers.some(({ name }) => name === neuron.layer)
    ? { state: "not_kept", why: "of very many neurons only the strongest have a history" }
    : { state: "not_watched", why: `this layer was not watched at ${epochName(meta)}` };
}

/** Whether r of all neurons is known at this epoch. */
const keepsAll = ({ frame, series, meta }) => frame.step === meta.step || !frame.index.layers.some(({ name }) => series.history(name)?.units);

export const ofThisEpoch = (app) => (keepsAll(app) ? "Its r is shown. All other numbers here are of" : "Its r is shown for the strongest neurons. All other numbers here are of");
