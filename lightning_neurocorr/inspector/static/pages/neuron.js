// One neuron: what it survived, what it sees, when it appeared.

import { html, nothing } from "../vendor/lit-html.js";
import { bars, interval, lineChart, numbers } from "../charts.js";
import { NONE, OUTCOMES, OUTCOME_WORDS, STATE_WORDS, columnText, count, ends, known, missing, ordinal, plain, scaled, signed } from "../format.js";
import { tileCanvas } from "../images.js";
import { ANSWER_WORDS, MARKS, answer, epochName, goTo, isClass, layerClause, loading, missingNote, nameOf, neuronName, neuronOf, noTable, otherEpoch, sampleTile, sentence, stateOf, unkept } from "./pieces.js";
import { currentOrder, currentR } from "./neuron_table.js";
import { neuronOfStudies } from "./study.js";

const PICTURES = "pictures"; // the study whose findings about a neuron are beside its picture

export function neuronPage(app) {
  const { frame, meta, state } = app;
  const neuron = neuronOf(state.neuron);
  if (frame === undefined) return loading();
  const row = frame && !meta.message ? frame.row(neuron.layer, neuron.unit) : -1;
  if (row < 0) return absent(app, neuron);
  frame.want(neededParts(frame));
  app.series.items("pictures");
  const bits = frame.get("claims")?.[row];
  const missed = unkept(app, neuron, row, currentR(app));
  return html`${title(app, neuron, row)}${otherEpoch(app, `${missed ? `Of this epoch there is no r: ${missed.why}.` : "Its r is shown."} All other numbers here are of`)}
    <div class="row three">${frame.index.claims.map((claim) => claimCard(app, claim, neuron, row, bits))}</div>
    <div class="row sees">${sees(app, neuron, row)}
      <div class="stack">${appeared(app, neuron, row)}${groups(app, row)}${rank(app, neuron, row)}</div></div>
    <div class="row studied">${neuronOfStudies(app, row, picturesOf(app, row).length ? [PICTURES] : [])}</div>
    ${everything(app, row)}`;
}

/** Everything that the page shows, to be asked for at once. */
function neededParts(frame) {
  const { claims } = frame.index;
  const columns = claims.flatMap(({ column, low, high, controls }) => [column, low, high, ...controls.flatMap((control) => control.columns ?? [])]);
  const others = ["std", "contrast_t", "rank_before", "risen_at", ...OUTCOMES.map((name) => `mean_${name}`)];
  const samples = ["position", "target", "model", "baseline", "outcome", "tile", "id"].map((name) => `s/${name}`);
  return ["claims", "verdict", "e/any", "e/only_model", "e/matched", "a/any", "a/only_model", ...samples, ...[...columns, ...others].map((name) => `c/${name}`)];
}

function absent(app, neuron) {
  const { meta, series, frame } = app;
  const sized = series.metas.filter(({ layers }) => layers.some(({ name, size }) => name === neuron.layer && neuron.unit >= 0 && neuron.unit < size));
  const watched = sized.includes(meta);
  if (meta.message) return unsaid(app, neuron, sized);
  const why = frame === null ? noTable(app)
    : sized.length ? `Its layer was not watched then. It was at ${sized.length === 1 ? epochName(sized[0]) : `${epochName(sized[0])} to ${epochName(sized.at(-1))}`}.`
      : "No layer of this run has such a neuron.";
  const name = neuron.unit < 0 ? html`<bdi>${app.state.neuron || "No neuron"}</bdi>` : neuronName(neuron);
  return html`<section class="card hero"><h1>${name}</h1>
    <p class="message"><b>${watched ? "Nothing was kept of this neuron" : `This neuron is not there at ${epochName(meta)}`}.</b> ${why}</p>
    <p>${sized.length && !watched ? goTo(app, { step: String(sized.at(-1).step) }, `Go to ${epochName(sized.at(-1))}`, "button") : nothing}
      ${goTo(app, { page: "overview", filter: null }, "All neurons", "button")}</p></section>`;
}

/** At an epoch with a message nothing is said of a neuron; another epoch may have more. */
function unsaid(app, neuron, sized) {
  const { meta } = app;
  const distance = (one) => Math.abs(one.step - meta.step);
  const near = sized.filter(({ message, full }) => full && !message).sort((a, b) => distance(a) - distance(b))[0];
  return html`<section class="card hero"><h1>${neuronName(neuron)}</h1>
    <p class="message"><b>Nothing is said of neurons at ${epochName(meta)}.</b> ${meta.message}</p>
    <p>${near ? goTo(app, { step: String(near.step) }, `Go to ${epochName(near)}`, "button") : nothing}
      ${goTo(app, { page: "overview", filter: null }, "Overview", "button")}</p></section>`;
}

function title(app, neuron, row) {
  const { frame } = app;
  const order = currentOrder(app)?.rows;
  const at = order ? order.indexOf(row) : -1;
  const walk = (step, words, key) => {
    const other = at >= 0 ? order[at + step] : undefined;
    return other === undefined ? html`<span class="button off" aria-disabled="true">${words}</span>`
      : goTo(app, { neuron: nameOf(frame.neuron(other)) }, words, `button ${key}`);
  };
  const verdict = frame.index.verdicts[frame.get("verdict")?.[row]] ?? "";
  return html`<header class="page-title"><div><h1>${neuronName(neuron)}</h1>
      <p class="verdict">${verdict ? sentence(verdict) : ""}</p></div>
    <nav aria-label="Other neurons"><span>${at >= 0 ? `${count(at + 1)} of ${count(order.length)}` : order ? "not in the table as filtered" : ""}</span>
      ${walk(-1, "← previous", "previous")}${walk(1, "next →", "next")}</nav></header>`;
}

// --- claims --------------------------------------------------------------------------------------

const valueOf = (app, name, row) => (name ? app.frame.column(name)?.[row] : undefined);

function claimCard(app, claim, neuron, row, bits) {
  const { frame, meta, frameMeta } = app;
  const found = bits === undefined ? "unknown" : answer(bits, claim);
  const column = frame.columns.get(claim.column) ?? { name: claim.column };
  const ofR = claim.column === "r";
  const value = ofR ? currentR(app)?.[row] : valueOf(app, claim.column, row);
  const moved = ofR && frame.step !== meta.step; // r is of this epoch, its interval would be of another
  const [low, high] = [claim.low, claim.high].map((name) => (moved ? NaN : valueOf(app, name, row)));
  const chance = ofR ? meta.layers.find(({ name }) => name === neuron.layer)?.chance : undefined;
  const state = known(value) ? null : (ofR ? unkept(app, neuron, row, currentR(app)) : null) ?? stateOf(frameMeta, claim.column, neuron.layer);
  const words = state ? STATE_WORDS[state.state] : "not known";
  return html`<section class="card claim" data-claim=${claim.name} aria-label=${claim.title}>
    <h2>${claim.title} <span class="badge ${found}">${found === "unknown" ? words : ANSWER_WORDS[found]}</span></h2>
    <p class="question">${claim.question}</p>
    ${known(value) ? html`<p class="value">${ofR ? "r " : ""}<b>${columnText(column, value)}</b> <small>${claim.unit}</small></p>
      ${interval({ value, low, high, chance, title: `${claim.title}: ${columnText(column, value)}${known(low) ? `, interval ${ends(low, high).join(" to ")}` : ""}` })}
      <p class="interval-words">${[known(low) ? `95 % interval ${ends(low, high).join(" to ")}` : "", known(chance) ? `grey: chance, up to ${chance.toFixed(3)}` : ""].filter(Boolean).join(" · ")}</p>`
      : html`<p class="value none">${NONE}</p>${missingNote(state, "no value")}`}
    ${known(value) || ofR ? html`<ul class="controls">${claim.controls.map((control) => controlLine(app, control, row, bits))}</ul>` : nothing}
  </section>`;
}

function controlLine(app, control, row, bits) {
  const found = bits === undefined ? "unknown" : answer(bits, control);
  const shown = (control.columns ?? []).map((name) => [app.frame.columns.get(name), valueOf(app, name, row)]).filter(([column, value]) => column && known(value));
  return html`<li class=${found}><span class="mark" role="img" aria-label=${{ yes: "passed", no: "failed", unknown: "not known" }[found]}>${MARKS[found]}</span>
    <span>${control.title}${shown.length ? ": " : ""}${shown.map(([column, value], i) => html`${i ? ", " : ""}<span class="with" title=${column.meaning || column.name}>${shortTitle(column)} <b data-column=${column.name}>${columnText(column, value)}</b></span>`)}</span></li>`;
}

const shortTitle = ({ name, title }) => (/^q_|_q$/.test(name) ? "q" : /^p_|_p$/.test(name) ? "p" : title || name.replaceAll("_", " "));

// --- what it sees --------------------------------------------------------------------------------

const ROWS = [
  ["e/any", "a/any", "drive it most", "of all samples"],
  ["e/only_model", "a/only_model", "only the model right", "drive it most among these"],
  ["e/matched", null, "same classes, both right", "what differs from the row above is advantage"],
];

function sees(app, neuron, row) {
  const { frame, frameMeta } = app;
  const K = frame.index.K;
  const lines = ROWS.map(([part, activation, name, about]) => {
    const rows = frame.get(part);
    const strength = activation ? frame.get(activation) : null;
    if (rows === undefined || strength === undefined) return html`<div class="seen"><div><b>${name}</b></div>${loading("")}</div>`;
    const mine = rows ? [...rows.subarray(row * K, row * K + K)] : [];
    if (!mine.some((sample) => sample >= 0)) return nothing;
    return html`<div class="seen" data-group=${part.slice(2)}><div><b>${name}</b><small>${about}</small></div><div class="tiles">${mine.map((sample, k) => sample < 0 ? nothing
      : sampleTile(app, frame, sample, { size: K > 6 ? 56 : 64, caption: (one) => captioned(frame, one, strength?.[row * K + k]) }))}</div></div>`;
  });
  const some = lines.some((line) => line !== nothing);
  if (frame.column("std")?.[row] === 0) {
    return html`<section class="card" aria-label="What it sees"><h2>What it sees</h2><p class="empty">It is the same on every sample: none drives it more than another.</p></section>`;
  }
  const evidence = frameMeta.evidence;
  return html`<section class="card" aria-label="What it sees"><h2>What it sees</h2>
    ${some ? lines : missingNote(frame.get("e/any") ? { state: "not_chosen", why: "of very many neurons samples are kept for the strongest only" } : evidence.exemplars, "no samples were kept")}
    ${some && !frame.index.tile ? missingNote(evidence.thumbnails, null, "images") : nothing}
    ${made(app, row)}</section>`;
}

const captioned = (frame, sample, activation) => html`<span>${isClass(frame, sample)}</span>${known(activation) ? html`<span class="number">${plain(activation)}</span>` : nothing}`;

function made(app, row) {
  const { frame, frameMeta, series } = app;
  const mine = picturesOf(app, row);
  if (!mine.length) {
    return html`<div class="seen"><div><b>made to drive it</b></div>${missingNote(frameMeta.evidence.pictures?.state === "measured" ? { state: "not_chosen", why: "pictures are made of the top neurons only" } : frameMeta.evidence.pictures, "no picture")}</div>`;
  }
  return mine.map((picture) => html`<div class="seen" data-group="picture"><div><b>${toStudy(app, picture.sign < 0 ? "made to silence it" : "made to drive it")}</b>
      <small>${STRENGTHS.filter(([name]) => known(picture[name])).map(([name, word]) => `${plain(picture[name])}× ${word}`).join(", ")}</small></div>
    ${picture.tile === null ? missingNote(null, picture.note || "no picture") : html`<div class="made">${tileCanvas(series.picture(frame, picture), 132, "picture made for the neuron")}
      <p>${picture.readable ? "It drives the neuron at least as much as real images do." : "Do not read this picture: real images drive the neuron more."}
        ${STARTS[picture.start] ?? ""} ${picture.note ? sentence(picture.note) : ""}</p></div>`}</div>`);
}

const STRENGTHS = [["ratio", "real p99"], ["best", "best real image"], ["moved", "when moved"]];
const STARTS = { exemplar: "It started from the strongest real image.", noise: "It started from noise." };

const picturesOf = ({ frame }, row) => frame.index.pictures.filter((picture) => picture.row === row);

/** The words, as a link to the study that made the pictures. */
const toStudy = (app, words) => (app.frame.index.studies?.some(({ name }) => name === PICTURES) ? goTo(app, { page: "study", study: PICTURES }, words) : words);

// --- over the epochs -----------------------------------------------------------------------------

function appeared(app, neuron, row) {
  const { series, meta, frame } = app;
  const { metas } = series;
  const values = series.curve(neuron.layer, neuron.unit);
  if (values === undefined) return html`<section class="card">${loading("Loading the history")}</section>`;
  const chance = metas.map(({ layers }) => layers.find(({ name }) => name === neuron.layer)?.chance ?? NaN);
  // the table knows r of its own epoch also where history has not kept it
  const shown = Float32Array.from(metas, ({ step }, i) => (known(values?.[i]) || step !== frame.step ? values?.[i] ?? NaN : frame.column("r")?.[row] ?? NaN));
  const attribution = series.curve(neuron.layer, neuron.unit, "attribution");
  const labels = metas.map(epochName);
  const options = { labels, at: metas.indexOf(meta), onPick: (i) => app.goEpoch(i), zero: true, format: (tick, digits) => scaled(tick, Math.max(digits, 2)), wide: true };
  const some = Array.from(shown).some(known);
  const sparse = Boolean(series.history(neuron.layer)?.units);
  return html`<section class="card" aria-label="r over the epochs"><h2>When did it appear? <small>r over the epochs, grey: chance</small></h2>
    ${some ? lineChart([{ name: "r", label: "r", values: shown }], { ...options, band: chance, title: `r of ${nameOf(neuron)} over the epochs` })
      : html`<p class="empty">${sparse ? "Its r was not kept." : "It has no r at any epoch."}</p>`}
    ${sparse && Array.from(shown).some((value) => !known(value)) ? html`<p class="about">Of very many neurons only the strongest have a history.</p>` : nothing}
    ${attribution && Array.from(attribution).filter(known).length > 1
      ? html`<h2>Attribution <small>over the epochs</small></h2>${lineChart([{ name: "attribution", label: "attribution", values: attribution }], { ...options, title: "attribution over the epochs" })}` : nothing}
    ${numbers([["", "r", "chance", "attribution"], ...metas.map((one, i) => [epochName(one), signed(shown[i]), known(chance[i]) ? chance[i].toFixed(3) : NONE, signed(attribution?.[i])])])}
  </section>`;
}

function groups({ frame }, row) {
  const values = OUTCOMES.map((name) => ({ name, label: OUTCOME_WORDS[name], value: frame.column(`mean_${name}`)?.[row] }));
  if (!values.some(({ value }) => known(value))) return nothing;
  const t = frame.column("contrast_t")?.[row];
  return html`<section class="card" aria-label="Mean activation"><h2>Mean activation by who was right</h2>${bars(values)}
    ${known(t) ? html`<p class="about">Smallest t of “only the model right” against each other group: <b data-column="contrast_t">${signed(t, 1)}</b></p>` : nothing}</section>`;
}

function rank(app, neuron, row) {
  const { frame } = app;
  const r = currentR(app);
  if (!r || !known(r[row])) return nothing;
  const at = frame.layerAt.get(neuron.layer);
  const { size } = frame.index.layers[at];
  if (frame.step !== app.meta.step && app.series.history(neuron.layer)?.units) return nothing; // r of the others is not known
  let above = 0;
  for (let i = frame.starts[at]; i < frame.starts[at] + size; i++) if (r[i] > r[row] || (r[i] === r[row] && i < row)) above++;
  const [before, risen] = ["rank_before", "risen_at"].map((name) => (frame.step === app.meta.step ? frame.column(name)?.[row] : NaN));
  return html`<section class="card"><h2>Place in its layer</h2><p class="place"><b>${ordinal(above + 1)}</b> of ${count(size)} by r in
      ${goTo(app, { page: "overview", filter: layerClause(neuron.layer) }, html`<bdi>${neuron.layer}</bdi>`)}${known(before) ? `, ${ordinal(before)} at the validation before` : ""}.
    ${known(risen) ? html`Kept at least half of this r since step ${risen}.` : nothing}</p></section>`;
}

function everything(app, row) {
  const { frame } = app;
  return html`<details class="card all-numbers" @toggle=${(event) => app.open("numbers", event.currentTarget.open)} ?open=${app.opened.numbers}><summary>All numbers of this neuron</summary>
    ${app.opened.numbers ? html`<dl class="pairs">${[...frame.columns.values()].map((column) => {
      const value = valueOf(app, column.name, row);
      const state = known(value) ? null : stateOf(app.frameMeta, column.name, frame.neuron(row).layer);
      return html`<dt title=${column.meaning}>${column.title || column.name}</dt><dd data-column=${column.name}>${known(value) ? columnText(column, value) : missing(state) ?? NONE} <small>${column.meaning}</small></dd>`;
    })}</dl>` : nothing}</details>`;
}

