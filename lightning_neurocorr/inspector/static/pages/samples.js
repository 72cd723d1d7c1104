// The samples of an outcome group: truth by answer, then the samples themselves.

import { html, nothing } from "../vendor/lit-html.js";
import { OUTCOMES, OUTCOME_WORDS, count, plural } from "../format.js";
import { goTo, loading, missingNote, noTable, otherEpoch, sampleAt, sampleKey, sampleName, sampleTile, textKind } from "./pieces.js";

const PER_PAGE = 120;
const MOST_CLASSES = 20; // of a table; more are listed as pairs

export function samplesPage(app) {
  const { frame, meta, frameMeta, state } = app;
  if (frame === undefined) return loading();
  const outcomes = frame?.get("s/outcome");
  if (outcomes === undefined && frame) return loading("Loading the samples");
  if (!outcomes) {
    return html`<header class="page-title"><h1>Samples</h1></header><section class="card">${missingNote(frame ? meta.evidence.samples : null, noTable(app))}</section>`;
  }
  const parts = ["target", "model", "baseline"].map((name) => frame.get(`s/${name}`));
  if (parts.includes(undefined)) return loading("Loading the samples");
  const [target, model, baseline] = parts.map((values) => (values?.some((one) => one >= 0) ? values : null)); // labels may have no class
  const grouped = outcomes.some((code) => code < OUTCOMES.length);
  const cell = OUTCOMES.includes(state.cell) && grouped ? state.cell : grouped ? "only_model" : "all";
  const answers = cell === "only_baseline" ? { name: "model", values: model } : { name: "baseline", values: baseline };
  const code = OUTCOMES.indexOf(cell);
  const inCell = [];
  for (let i = 0; i < outcomes.length; i++) if (cell === "all" || outcomes[i] === code) inCell.push(i);
  const truth = numberOf(state.truth);
  const said = numberOf(state.answer);
  const rows = inCell.filter((i) => (truth === null || target?.[i] === truth) && (said === null || answers.values?.[i] === said));
  const sizes = OUTCOMES.map((name, i) => outcomes.reduce((sum, one) => sum + (one === i), 0));
  const words = cell === "all" ? "" : `: ${OUTCOME_WORDS[cell]}`;
  const asked = [truth === null ? "" : `class ${frame.className(truth)}`, said === null ? "" : `${answers.name} says ${frame.className(said)}`].filter(Boolean).join(", ");
  return html`<header class="page-title"><div><h1>${plural(rows.length, "sample")}${words}</h1>
      <p class="verdict">${asked ? html`${asked}. ${goTo(app, { truth: null, answer: null, from: null }, "Show all of them")}` : "All of them, in the order of the data set."}</p></div></header>
    ${otherEpoch(app, elsewhere(app, cell, sizes[code]))}
    ${grouped ? html`<nav class="chips wide" aria-label="Outcome groups">${OUTCOMES.map((name, i) => html`${goTo(app, { cell: name, truth: null, answer: null, from: null }, html`<kbd>${i + 1}</kbd> ${OUTCOME_WORDS[name]} <b>${count(sizes[i])}</b>`, `chip ${name} ${name === cell ? "on" : ""}`)}`)}</nav>` : nothing}
    <div class="row ${target ? "cells" : ""}">${target ? html`<section class="card">${crossed(app, frame, { rows: inCell, target, answers, cell, truth, said })}</section>` : nothing}
      <section class="card" aria-label="Samples">
        ${frame.index.tile ? nothing : missingNote(frameMeta.evidence.thumbnails, null, "images")}
        ${gallery(app, frame, rows)}</section></div>`;
}

/** What is said where the list is of another epoch than the count that led here. */
function elsewhere({ meta }, cell, listed) {
  const size = meta.outcomes?.[cell];
  if (size === undefined) return undefined;
  return `${plural(size, "sample")} of epoch ${meta.epoch} ${size === 1 ? "is" : "are"} “${OUTCOME_WORDS[cell]}”; which ones was not kept. These ${count(listed)} are of`;
}

const numberOf = (text) => (text !== undefined && text !== null && /^-?\d+$/.test(text) ? Number(text) : null);

// --- truth by answer -----------------------------------------------------------------------------

function crossed(app, frame, { rows, target, answers, cell, truth, said }) {
  const alone = cell === "both" || !answers.values; // both right: the answer is the truth
  const pairs = new Map();
  for (const i of rows) {
    const key = alone ? `${target[i]}` : `${target[i]},${answers.values[i]}`;
    pairs.set(key, (pairs.get(key) ?? 0) + 1);
  }
  const classes = [...new Set([...pairs.keys()].flatMap((key) => key.split(",").map(Number)))].sort((a, b) => a - b);
  if (!classes.length) return html`<h2>No sample is here</h2>`;
  if (alone || classes.length > MOST_CLASSES) return listed(app, frame, pairs, answers, { alone, truth, said });
  const most = Math.max(...pairs.values());
  const sum = (test) => [...pairs].reduce((total, [key, size]) => total + (test(key.split(",").map(Number)) ? size : 0), 0);
  return html`<h2>Truth (down) by what the ${answers.name} says (across)</h2><div class="scroll"><table class="crossed">
    <thead><tr><td></td>${classes.map((one) => html`<th scope="col" title=${frame.className(one)}><bdi>${frame.className(one)}</bdi></th>`)}</tr></thead>
    <tbody>${classes.filter((row) => sum(([t]) => t === row)).map((row) => html`<tr><th scope="row">${goTo(app, { truth: String(row), answer: null, from: null }, html`<bdi>${frame.className(row)}</bdi>`)}</th>
      ${classes.map((column) => {
        const size = pairs.get(`${row},${column}`) ?? 0;
        if (!size) return html`<td class="zero"></td>`;
        const on = truth === row && said === column;
        return html`<td style="--share:${(size / most).toFixed(3)}">${goTo(app, on ? { truth: null, answer: null, from: null } : { truth: String(row), answer: String(column), from: null }, count(size), on ? "chosen" : "")}</td>`;
      })}</tr>`)}</tbody></table></div>`;
}

function listed(app, frame, pairs, answers, { alone, truth, said }) {
  const all = [...pairs].sort((a, b) => b[1] - a[1]);
  const most = all[0][1];
  return html`<h2>${alone ? "By class" : `Truth, and what the ${answers.name} says`} <small>${all.length > 60 ? `60 of ${count(all.length)}` : ""}</small></h2><ol class="pairs-list">
    ${all.slice(0, 60).map(([key, size]) => {
      const [is, says] = key.split(",");
      const on = truth === Number(is) && (alone || said === Number(says));
      return html`<li>${goTo(app, on ? { truth: null, answer: null, from: null } : { truth: is, answer: alone ? null : says, from: null }, html`<span class="pair"><bdi>${frame.className(Number(is))}</bdi>${alone ? "" : html` → <bdi>${frame.className(Number(says))}</bdi>`}</span>
        <span class="pair-bar" style="--share:${(size / most).toFixed(3)}"></span><b>${count(size)}</b>`, on ? "chosen" : "")}</li>`;
    })}</ol>`;
}

// --- the samples ---------------------------------------------------------------------------------

function gallery(app, frame, rows) {
  if (!rows.length) return html`<p class="empty">No sample is here.</p>`;
  const from = Math.min(Math.max(numberOf(app.state.from) ?? 0, 0), Math.floor((rows.length - 1) / PER_PAGE) * PER_PAGE);
  const shown = rows.slice(from, from + PER_PAGE);
  const turn = (to, words) => (to < 0 || to >= rows.length ? html`<span class="button off">${words}</span>` : goTo(app, { from: to ? String(to) : null }, words, "button"));
  return html`${frame.index.tile ? nothing : words(app, frame, shown)}<div class="gallery" ?hidden=${!frame.index.tile}>${(frame.index.tile ? shown : []).map((row) => sampleTile(app, frame, row, { size: 84, caption: (one) => answers(frame, one) }))}</div>
    ${rows.length > PER_PAGE ? html`<nav class="pager" aria-label="More samples"><span>${count(from + 1)} to ${count(from + shown.length)} of ${count(rows.length)}</span>
      ${turn(from ? 0 : -1, "first")}${turn(from - PER_PAGE, "← previous")}${turn(from + PER_PAGE, "next →")}${turn(from + PER_PAGE >= rows.length ? -1 : Math.floor((rows.length - 1) / PER_PAGE) * PER_PAGE, "last")}</nav>` : nothing}`;
}

/** Samples without images, a line each. */
function words(app, frame, rows) {
  const all = rows.map((row) => sampleAt(frame, row));
  if (all.includes(undefined)) return loading();
  const said = ["target", "model", "baseline"].filter((name) => all.some((one) => one[name] >= 0));
  const kinds = Object.fromEntries(said.map((name) => [name, textKind(all.map((one) => frame.className(one[name])))]));
  return html`<div class="scroll"><table class="list"><thead><tr><th>sample</th>${said.map((name) => html`<th>${name === "target" ? "truth" : name}</th>`)}</tr></thead>
    <tbody>${all.map((one) => html`<tr><td class=${textKind(all.map(sampleName))}>${goTo(app, { page: "sample", sample: sampleKey(one) }, html`<bdi>${sampleName(one)}</bdi>`, "sample-link")}</td>
      ${said.map((name) => html`<td class=${kinds[name]}><bdi>${frame.className(one[name])}</bdi></td>`)}</tr>`)}</tbody></table></div>`;
}

function answers(frame, { target, model, baseline }) {
  const said = (word, value) => (value === undefined || value < 0 ? nothing : html`<span>${word} <bdi>${frame.className(value)}</bdi></span>`);
  return html`${target === undefined || target < 0 ? nothing : html`<b>is <bdi>${frame.className(target)}</bdi></b>`}${said("model", model)}${said("base", baseline)}`;
}
