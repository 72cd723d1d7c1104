// Two epochs or two runs: who was right, which neurons rose and fell, r against r.

import { html, nothing } from "../vendor/lit-html.js";
import { numbers, scatter } from "../charts.js";
import { NONE, OUTCOMES, OUTCOME_WORDS, count, known, plural, signed } from "../format.js";
import { everyRow, sorted } from "../order.js";
import { Table, made } from "../table.js";
import { answer, epochName, fillName, loading, makeName, nameOf, neuronLink, outcomeTable } from "./pieces.js";

const LISTED = 10;

export function comparePage(app) {
  const { state } = app;
  const series = state.other === undefined ? app.series : app.seriesOf(state.other, state.othername);
  if (series === undefined) return loading("Loading the other run");
  if (series === null) return html`<section class="card hero"><h1>No such run</h1><p class="message">There is no run “<bdi>${state.other}</bdi>” here.</p></section>`;
  const meta = state.otherstep === undefined ? (series === app.series ? series.metas[0] : series.metas.at(-1)) : series.meta(Number(state.otherstep));
  const a = { series, meta, letter: "A" };
  const b = { series: app.series, meta: app.meta, letter: "B" };
  return html`<header class="page-title"><div><h1>What changed from A to B?</h1><p class="verdict">Neurons are matched by layer and unit. Risen: r is higher in B.</p></div></header>
    ${series === app.series && series.metas.length === 1 ? html`<p class="note"><b>There is one validation so far.</b> A and B are the same.</p>` : nothing}
    <div class="row two">${side(app, a, chooser(app, a))}${side(app, b, html`<p class="chosen"><b><bdi>${b.series.run}</bdi></b>, ${epochName(b.meta)} <small>as the slider says</small></p>`)}</div>
    ${warnings(a, b)}${a.meta.message || b.meta.message ? html`<p class="card empty">${a.meta.message || b.meta.message}</p>` : neurons(app, a, b)}`;
}

function chooser(app, { series, meta }) {
  const runs = app.all;
  const at = series.metas.indexOf(meta);
  return html`<div class="chooser">${runs.length > 1 ? html`<label>run <select aria-label="Run of A" @change=${({ target }) => app.go({ other: runs[target.value].run, othername: runs[target.value].name, otherstep: null })}>
      ${runs.map((one, i) => html`<option value=${i} ?selected=${one.run === series.run && one.name === series.name}>${app.runLabel(one)}</option>`)}</select></label>` : nothing}
    <label>epoch <input type="range" aria-label="Epoch of A" min="0" max=${series.metas.length - 1} .value=${String(at)} ?disabled=${series.metas.length < 2}
      @input=${({ target }) => app.go({ other: series.run, othername: series.name, otherstep: String(series.metas[target.value].step) }, { replace: true })}> <b>${meta.epoch}</b></label></div>`;
}

function side(app, { series, meta, letter }, head) {
  return html`<section class="card side" data-side=${letter} aria-label=${letter}><h2><span class="letter">${letter}</span></h2>${head}
    ${outcomeTable(app, meta.outcomes, { series, step: String(meta.step) })}
    <p class="about">${plural(meta.n, "sample")}. ${known(meta.neurons.encodes) ? `${count(meta.neurons.encodes)} encode` : "encodes: not kept"}, ${meta.evidence.attribution?.state === "measured" ? `${count(meta.neurons.used)} used` : "used: not measured"},
      ${meta.evidence.ablation?.state === "measured" ? `${count(meta.neurons.needed)} of ${count(meta.neurons.silenced)} needed` : "needed: not measured"}.</p></section>`;
}

function warnings(a, b) {
  const found = [];
  if (a.meta.baseline !== b.meta.baseline) found.push(html`The baselines differ: <bdi>${a.meta.baseline}</bdi> and <bdi>${b.meta.baseline}</bdi>. An advantage over one is not one over the other.`);
  if (a.meta.advantage !== b.meta.advantage) found.push(html`The advantages differ: <bdi>${a.meta.advantage}</bdi> and <bdi>${b.meta.advantage}</bdi>.`);
  if (a.meta.n !== b.meta.n) found.push(html`A has ${count(a.meta.n)} samples, B ${count(b.meta.n)}. Chance reaches a different r: ${chances(a, b)}.`);
  return found.length ? html`<div class="note" role="alert"><b>Careful.</b> ${found.map((text) => html`<p>${text}</p>`)}</div>` : nothing;
}

const chances = (a, b) => [a, b].map(({ meta, letter }) => {
  const all = meta.layers.map(({ chance }) => chance).filter(known);
  return `${letter} up to ${all.length ? Math.max(...all).toFixed(3) : NONE}`;
}).join(", ");

// --- neurons -------------------------------------------------------------------------------------

/** r of every layer of a validation, by name; undefined while on its way. */
function layersOf({ series, meta }) {
  const frame = series.frame(meta.step);
  if (frame === undefined) return undefined;
  if (frame?.step === meta.step) {
    const r = frame.column("r");
    return r === undefined ? undefined : new Map(frame.index.layers.map(({ name, size }, i) => [name, r?.subarray(frame.starts[i], frame.starts[i] + size) ?? new Float32Array(size).fill(NaN)]));
  }
  const histories = meta.layers.map(({ name }) => series.history(name));
  if (histories.includes(undefined)) return undefined;
  return new Map(meta.layers.map(({ name, size }, l) => {
    const history = histories[l];
    const at = history?.at.get(meta.step);
    const values = new Float32Array(size).fill(NaN);
    if (at !== undefined) for (let i = 0; i < history.width; i++) values[history.units ? history.units[i] : i] = history.r[at * history.width + i];
    return [name, values];
  }));
}

/** r of the neurons that both have: {a, b, change, neuron(i), matched, total}. */
function matchedNeurons(app, a, b) {
  const key = [a.series.key, a.meta.step, b.series.key, b.meta.step].join("\n");
  if (app.matched?.key === key) return app.matched;
  const [ofA, ofB] = [layersOf(a), layersOf(b)];
  if (!ofA || !ofB) return undefined;
  const layers = [...ofB].filter(([name]) => ofA.has(name)).map(([name, r]) => ({ name, size: Math.min(r.length, ofA.get(name).length) }));
  const size = layers.reduce((sum, layer) => sum + layer.size, 0);
  const found = { key, a: new Float32Array(size), b: new Float32Array(size), change: new Float32Array(size), starts: [], layers };
  let start = 0;
  for (const { name, size: width } of layers) {
    found.starts.push(start);
    found.a.set(ofA.get(name).subarray(0, width), start);
    found.b.set(ofB.get(name).subarray(0, width), start);
    start += width;
  }
  for (let i = 0; i < size; i++) found.change[i] = found.b[i] - found.a[i];
  found.neuron = (i) => {
    let at = found.starts.length - 1;
    while (found.starts[at] > i) at--;
    return { layer: layers[at].name, unit: i - found.starts[at] };
  };
  const all = (of) => [...of.values()].reduce((sum, r) => sum + r.length, 0);
  found.total = Math.max(all(ofA), all(ofB));
  found.order = sorted(found.change, everyRow(size), true);
  found.known = found.order.findIndex((i) => !known(found.change[i]));
  if (found.known < 0) found.known = size;
  app.matched = found;
  return found;
}

function neurons(app, a, b) {
  const found = matchedNeurons(app, a, b);
  if (!found) return loading("Loading the neurons");
  const size = found.a.length;
  if (!size) return html`<p class="card empty">No neuron of A has the layer and unit of one of B.</p>`;
  const top = found.order.subarray(0, Math.min(LISTED, found.known)).filter((i) => found.change[i] > 0);
  const low = found.order.slice(Math.max(found.known - LISTED, 0), found.known).reverse().filter((i) => found.change[i] < 0);
  return html`<p class="note plain">${count(size)} of ${plural(found.total, "neuron")} match${found.known < size ? `, ${count(found.known)} of these have an r in both` : ""}. Chance: ${chances(a, b)}.</p>
    <div class="row three-even"><section class="card" data-list="risen"><h2>Risen most</h2>${list(app, found, top, "No neuron rose.")}</section>
      <section class="card" data-list="fallen"><h2>Fallen most</h2>${list(app, found, low, "No neuron fell.")}</section>
      <section class="card"><h2>r in A (across) against r in B (up)</h2>${points(app, found, [...top, ...low])}</section></div>
    ${claimsChanged(app, a, b, found)}${allMatched(app, found)}`;
}

function list(app, found, rows, nothingHere) {
  if (!rows.length) return html`<p class="empty">${nothingHere}</p>`;
  return html`<table class="list tight"><thead><tr><th>neuron</th><th class="numeric">A</th><th class="numeric">B</th><th class="numeric">change</th></tr></thead><tbody>
    ${Array.from(rows, (i) => html`<tr><td>${neuronLink(app, found.neuron(i))}</td><td class="numeric">${signed(found.a[i])}</td><td class="numeric">${signed(found.b[i])}</td><td class="numeric"><b>${signed(found.change[i])}</b></td></tr>`)}</tbody></table>`;
}

function points(app, found, marked) {
  const canvas = (app.scatter ??= made("canvas", "scatter", { role: "img" }));
  canvas.setAttribute("aria-label", `r in A against r in B of ${count(found.a.length)} neurons; the numbers are in the table below`);
  requestAnimationFrame(() => {
    const below = scatter(canvas, { a: found.a, b: found.b, marked });
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return below(((event.clientX - box.left) / box.width) * 420, ((event.clientY - box.top) / box.height) * 420);
    };
    canvas.onmousemove = (event) => {
      const i = at(event);
      canvas.title = i < 0 ? "" : `${nameOf(found.neuron(i))}: ${signed(found.a[i])} to ${signed(found.b[i])}`;
    };
    canvas.onclick = (event) => {
      const i = at(event);
      if (i >= 0) app.follow(event, { page: "neuron", neuron: nameOf(found.neuron(i)) });
    };
  });
  return canvas;
}

function claimsChanged(app, a, b, found) {
  const [before, after] = [a, b].map(({ series, meta }) => {
    const frame = series.frame(meta.step);
    return frame && frame.step === meta.step && frame.get("claims") ? frame : null;
  });
  if (!before || !after) return html`<p class="note plain">Which claims were gained and lost is known where both epochs have a full table.</p>`;
  const lines = after.index.claims.map((claim) => {
    const old = before.index.claims.find(({ name }) => name === claim.name);
    const gained = [];
    const lost = [];
    for (let i = 0; old && i < found.a.length; i++) {
      const neuron = found.neuron(i);
      const was = answer(before.get("claims")[before.row(neuron.layer, neuron.unit)], old) === "yes";
      const is = answer(after.get("claims")[after.row(neuron.layer, neuron.unit)], claim) === "yes";
      if (is && !was) gained.push(neuron);
      if (was && !is) lost.push(neuron);
    }
    return { claim, gained, lost };
  });
  const some = (all) => (all.length ? html`<b>${count(all.length)}</b> <span class="some">${all.slice(0, LISTED).map((one) => html`${neuronLink(app, one)} `)}${all.length > LISTED ? "…" : ""}</span>` : html`<b>0</b>`);
  return html`<section class="card"><h2>Claims gained and lost</h2><div class="scroll"><table class="list claims-changed"><thead><tr><th></th><th>gained in B</th><th>lost since A</th></tr></thead>
    <tbody>${lines.map(({ claim, gained, lost }) => html`<tr data-claim=${claim.name}><th scope="row">${claim.title}</th><td>${some(gained)}</td><td>${some(lost)}</td></tr>`)}</tbody></table></div>${outcomesChanged(a, b)}</section>`;
}

function outcomesChanged(a, b) {
  if (!a.meta.outcomes || !b.meta.outcomes) return nothing;
  return numbers([["", "A", "B", "change"], ...OUTCOMES.map((name) => {
    const [was, is] = [a.meta.outcomes[name], b.meta.outcomes[name]];
    return [OUTCOME_WORDS[name], count(was), count(is), signed(is - was, 0)];
  })]);
}

function allMatched(app, found) {
  const by = app.state.by || "-change";
  const key = by.replace(/^-/, "");
  const descending = by.startsWith("-");
  const table = (app.tables.compare ??= new Table({
    label: "Neurons of A and B",
    onOpen: (row, event) => app.follow(event, { page: "neuron", neuron: nameOf(app.matched.neuron(row)) }),
    onSort: (column) => app.go({ by: (app.state.by || "-change") === `-${column}` ? column : `-${column}` }, { replace: true }),
  }));
  if (found.sortedBy !== by) {
    found.sortedBy = by;
    found.rows = found[key] instanceof Float32Array ? sorted(found[key], everyRow(found.a.length), descending) : everyRow(found.a.length);
  }
  const number = (name, title) => ({ key: name, title, numeric: true, width: 76, grow: 1, fill: (cell, row) => (cell.textContent = signed(found[name][row])) });
  table.show({ order: found.rows, sort: { key, descending }, columns: [
    { key: "neuron", title: "neuron", width: 110, grow: 1, sortable: false,
      make: makeName, fill: (cell, row) => fillName(cell, found.neuron(row)) },
    number("a", "r in A"), number("b", "r in B"), number("change", "change")] });
  return html`<section class="card table-card"><h2>All neurons of both</h2><div class="table-room" style="height:${Math.min(found.rows.length * 44 + 58, Math.max(innerHeight * 0.6, 320))}px">${table.element}</div></section>`;
}

