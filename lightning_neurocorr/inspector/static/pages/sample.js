// One sample: the image, what each says, and the neurons that it drives most.

import { html, nothing } from "../vendor/lit-html.js";
import { OUTCOME_WORDS, count, ordinal, plain, signed } from "../format.js";
import { tileCanvas } from "../images.js";
import { goTo, loading, missingNote, neuronLink, noTable, otherEpoch, sampleAt, sampleName } from "./pieces.js";
import { currentR } from "./neuron_table.js";

const SHOWN = 60;

export function samplePage(app) {
  const { frame, frameMeta, state } = app;
  if (frame === undefined) return loading();
  const row = frame ? rowOf(frame, state.sample ?? "") : -1;
  if (row === undefined) return loading("Loading the sample");
  const sample = row < 0 ? null : sampleAt(frame, row);
  if (sample === undefined) return loading("Loading the sample");
  if (!sample) {
    return html`<section class="card hero"><h1>No such sample</h1><p class="message">${frame ? "The table of this epoch has no sample at this place." : noTable(app)}</p>
      ${goTo(app, { page: "samples" }, "All samples", "button")}</section>`;
  }
  const tile = app.series.thumbnail(sample.tile ?? -1);
  const said = (word, value, right) => html`<dt>${word}</dt><dd class="said">${value === undefined || value < 0 ? "not known" : html`<bdi>${frame.className(value)}</bdi>`} ${right === null ? nothing : html`<span class="badge ${right ? "yes" : "no"}">${right ? "✓ right" : "✕ wrong"}</span>`}</dd>`;
  const right = (names) => (sample.outcome === null ? null : names.includes(sample.outcome));
  return html`<header class="page-title"><div><h1><bdi>${sampleName(sample)}</bdi></h1>
      <p class="verdict">${sample.outcome ? html`${goTo(app, { page: "samples", cell: sample.outcome }, OUTCOME_WORDS[sample.outcome])}` : "This sample is in no outcome group."}</p></div></header>
    ${otherEpoch(app)}
    <div class="row one-sample"><section class="card" aria-label="Sample">
      <div class="large ${sample.outcome ?? ""}">${tile === null ? missingNote(frame.index.tile ? { state: "not_chosen", why: "no thumbnail of this sample was kept" } : frameMeta.evidence.thumbnails, "none", "image") : tileCanvas(tile, 280, sampleName(sample))}</div>
      <dl class="pairs large-type">${sample.target === undefined ? nothing : html`<dt>truth</dt><dd><b><bdi>${sample.target < 0 ? "not known" : frame.className(sample.target)}</bdi></b></dd>`}
        ${sample.model === undefined ? nothing : said("model", sample.model, right(["both", "only_model"]))}
        ${sample.baseline === undefined ? nothing : said("baseline", sample.baseline, right(["both", "only_baseline"]))}
        ${sample.position >= 0 ? html`<dt>position</dt><dd>${count(sample.position)}</dd>` : nothing}
        ${sample.id === undefined || sample.id === null ? nothing : html`<dt>id</dt><dd><bdi>${String(sample.id)}</bdi></dd>`}</dl></section>
    <section class="card" aria-label="Neurons it drives most"><h2>Neurons it drives most <small>it is among their strongest samples</small></h2>${driven(app, row)}</section></div>`;
}

/** The row of a sample by its position, or by itself; undefined while on its way. */
function rowOf(frame, text) {
  const positions = frame.get("s/position");
  if (positions === undefined) return undefined;
  if (text.startsWith("row")) return Number(text.slice(3)) < (positions?.length ?? 0) ? Number(text.slice(3)) : -1;
  return positions && /^\d+$/.test(text) ? positions.indexOf(Number(text)) : -1;
}

/** Neurons that have a sample among their exemplars: {row, k, group}, the first places first. */
function found(frame, exemplars, sample, group) {
  const places = [];
  const K = frame.index.K;
  for (let i = exemplars.indexOf(sample); i >= 0; i = exemplars.indexOf(sample, i + 1)) places.push({ row: Math.floor(i / K), k: i % K, at: i, group });
  return places.sort((a, b) => a.k - b.k || a.row - b.row);
}

function driven(app, sample) {
  const { frame, frameMeta } = app;
  const any = frame.get("e/any");
  const only = frame.get("e/only_model");
  const strengths = { any: frame.get("a/any"), only_model: frame.get("a/only_model") };
  const r = currentR(app);
  if (any === undefined || only === undefined || Object.values(strengths).includes(undefined)) return loading("Loading");
  if (!any) return missingNote(frameMeta.evidence.exemplars, "strongest samples were not kept");
  const std = frame.column("std");
  if (std === undefined) return loading("Loading");
  const moves = ({ row }) => std?.[row] !== 0; // one that never changes has no strongest sample
  const first = found(frame, any, sample, "any").filter(moves);
  const seen = new Set(first.map(({ row }) => row));
  const more = only ? found(frame, only, sample, "only_model").filter((one) => moves(one) && !seen.has(one.row)) : [];
  const all = [...first, ...more];
  if (!all.length) return html`<p class="empty">It is among the ${count(frame.index.K)} strongest samples of no neuron.</p>`;
  return html`<div class="scroll"><table class="list"><thead><tr><th>neuron</th><th>its place</th><th class="numeric">activation</th><th class="numeric">r</th><th>verdict</th></tr></thead>
    <tbody>${all.slice(0, SHOWN).map(({ row, k, at, group }) => html`<tr><td>${neuronLink(app, frame.neuron(row))}</td>
      <td>${ordinal(k + 1)} ${group === "any" ? "of all" : "where only the model is right"}</td><td class="numeric">${plain(strengths[group]?.[at])}</td>
      <td class="numeric">${signed(r?.[row])}</td><td class="words">${frame.index.verdicts[frame.get("verdict")?.[row]] ?? ""}</td></tr>`)}</tbody></table></div>
    ${all.length > SHOWN ? html`<p class="about">${count(SHOWN)} of ${count(all.length)} neurons.</p>` : nothing}`;
}
