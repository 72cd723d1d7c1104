// The whole validation on one page: who was right, what was found, every layer, every neuron.

import { html, nothing } from "../vendor/lit-html.js";
import { histogram, lineChart, numbers } from "../charts.js";
import { count, fixed, known, missing, percent, plural, scaled, signed } from "../format.js";
import { epochName, goTo, layerClause, loading, noTable, ofThisEpoch, otherEpoch, outcomeTable, prose, stateWord } from "./pieces.js";
import { neuronTable } from "./neuron_table.js";

const CARDS = 6; // layers that get a card each; more get a line each

export function overviewPage(app) {
  const { meta, frame } = app;
  return html`
    <div class="row three">${headline(app)}${who(app)}${overTime(app)}</div>
    ${notes(meta)}
    ${studies(app)}
    ${meta.layers.length && !meta.message ? layers(app) : nothing}
    ${meta.message ? nothing : frame ? html`${otherEpoch(app, ofThisEpoch(app))}${neuronTable(app)}`
      : frame === null ? html`<p class="card empty">${noTable(app)}</p>` : loading("Loading the table")}`;
}

function headline(app) {
  const { meta } = app;
  if (meta.message) {
    return html`<section class="card hero"><h1>Nothing to show at ${epochName(meta)}</h1><p class="message">${meta.message}</p>${compared(meta)}</section>`;
  }
  const { neurons, evidence } = meta;
  return html`<section class="card hero"><h1>${meta.headline}</h1>
    <dl class="facts">
      ${fact(app, "is:encodes", ...told(neurons.encodes, neurons.encodes === 1 ? "encodes the advantage" : "encode the advantage", known(neurons.encodes) ? null : evidence.samples, "encodes"))}
      ${fact(app, "is:used", ...told(neurons.used, `${are(neurons.used)} used`, evidence.attribution, "used"))}
      ${fact(app, "is:needed", ...told(neurons.needed, `of ${count(neurons.silenced)} silenced ${are(neurons.needed)} needed`, evidence.ablation, "needed"))}
      ${fact(app, "", count(neurons.all), `${neurons.all === 1 ? "neuron" : "neurons"} watched`)}
    </dl>${compared(meta)}</section>`;
}

const are = (number) => (number === 1 ? "is" : "are");

const told = (value, words, state, word) =>
  state && state.state !== "measured" ? ["–", `${word}: ${stateWord(state)}`, missing(state)] : [count(value), words];

const fact = (app, filter, value, words, why) => html`<div title=${why ?? ""}>
  <dt>${words}</dt><dd>${goTo(app, { filter: filter || null }, value)}</dd></div>`;

function compared(meta) {
  const rows = Object.entries(meta.provenance ?? {});
  return html`<p class="about">Baseline: <bdi>${meta.baseline || "not named"}</bdi>. ${plural(meta.n, "sample")}.
      Advantage: <bdi>${meta.advantage}</bdi>.</p>
    ${meta.placebo ? html`<p class="about">${meta.placebo}</p>` : nothing}
    ${rows.length ? html`<details class="about"><summary>What was compared</summary><dl class="pairs">
      ${rows.map(([what, words]) => html`<dt>${what}</dt><dd>${words}</dd>`)}</dl></details>` : nothing}`;
}

function who(app) {
  const { meta } = app;
  return html`<section class="card" aria-label="Who was right"><h2>Who was right? <small>A cell shows its samples</small></h2>
    ${outcomeTable(app, meta.outcomes)}
    ${meta.outcomes ? nothing : goTo(app, { page: "samples", cell: "all" }, "All samples", "button")}</section>`;
}

function overTime(app) {
  const { series, meta } = app;
  const { metas } = series;
  const labels = metas.map(epochName);
  const at = metas.indexOf(meta);
  const onPick = (i) => app.goEpoch(i);
  const right = metas.some(({ outcomes }) => outcomes);
  const lines = right
    ? [{ name: "model", label: "model", values: metas.map(({ outcomes }) => outcomes?.model) },
      { name: "baseline", label: "baseline", values: metas.map(({ outcomes }) => outcomes?.baseline) }]
    : [{ name: "r", label: "largest r", values: metas.map(({ layers }) => Math.max(...layers.map(({ max_r: r }) => r ?? -Infinity))) }];
  const title = right ? "Share of right answers over the epochs" : "Largest r over the epochs";
  const format = right ? (tick, digits) => percent(tick, Math.max(digits - 2, 0)) : (tick, digits) => scaled(tick, Math.max(digits, 2));
  const band = right ? undefined : metas.map(({ layers }) => Math.max(...layers.map(({ chance }) => chance ?? NaN)));
  return html`<section class="card" aria-label=${title}>
    <h2>${title} <small>${metas.length > 1 ? "Choose one" : "One validation so far"}</small></h2>
    ${lineChart(lines, { labels, at, onPick, title, format, band })}
    ${numbers([["", ...lines.map(({ label }) => label)], ...metas.map((one, i) => [epochName(one), ...lines.map(({ values }) => (right ? percent(values[i]) : signed(values[i])))])])}
  </section>`;
}

function notes(meta) {
  const states = Object.entries(meta.evidence ?? {}).map(([what, state]) => [what, missing(state)]).filter(([, text]) => text);
  if (!meta.notes?.length && !states.length) return nothing;
  return html`<details class="card notes" ?open=${Boolean(meta.message)}><summary>Good to know <small>${count((meta.notes?.length ?? 0) + states.length)}</small></summary><ul>
    ${meta.notes.map((note) => html`<li>${prose(note)}</li>`)}
    ${states.map(([what, text]) => html`<li><b>${what.replaceAll("_", " ")}</b>: ${prose(text)}</li>`)}</ul></details>`;
}

function studies(app) {
  const found = app.frame?.index.studies ?? [];
  if (!found.length) return nothing;
  return html`<nav class="studies" aria-label="Studies"><span>Studies</span>${found.map(({ name, title }) =>
    goTo(app, { page: "study", study: name }, title || name, "chip"))}</nav>`;
}

// --- layers --------------------------------------------------------------------------------------

function layers(app) {
  const all = app.meta.layers;
  if (all.length <= CARDS) return html`<div class="layers cards">${all.map((layer) => layerCard(app, layer))}</div>`;
  const groups = new Map();
  for (const layer of all) {
    const name = layer.name.split(".")[0];
    groups.set(name, [...(groups.get(name) ?? []), layer]);
  }
  const grouped = groups.size > 1 && groups.size < all.length;
  return html`<section class="card layers lines" aria-label="Layers"><h2>${count(all.length)} layers <small>A line filters the table</small></h2>
    <div class="layer-room">${grouped ? [...groups].map(([name, some]) => html`<h3><bdi>${name}</bdi></h3>${some.map((layer) => layerLine(app, layer))}`)
      : all.map((layer) => layerLine(app, layer))}</div></section>`;
}

const filterTo = ({ name }) => ({ filter: layerClause(name) });

function counts(layer) {
  const used = layer.attribution?.state === "measured" ? `${count(layer.used)} used` : null;
  const needed = layer.ablation?.state === "measured" ? `${count(layer.needed)} of ${count(layer.silenced)} needed` : null;
  return [`${count(layer.encodes)} encode`, used, needed, layer.dead ? `${count(layer.dead)} dead` : null].filter(Boolean).join(" · ");
}

const reach = (layer) => `largest r ${fixed(layer.max_r)}, chance ${known(layer.chance) ? layer.chance.toFixed(2) : "–"}`;

/** All layers on one scale, so that they can be compared. */
function drawn(app, layer, name) {
  if (!layer.hist || !layer.hist_range) return nothing;
  const end = Math.max(...app.meta.layers.flatMap(({ hist_range: range, chance }) => [...(range ?? []), chance ?? 0]).map(Math.abs));
  return histogram({ counts: layer.hist, range: layer.hist_range, end, chance: layer.chance, name, title: `r of ${layer.name}: ${reach(layer)}` });
}

function layerCard(app, layer) {
  return goTo(app, filterTo(layer), html`<span class="layer-title"><b title=${layer.name}><bdi>${layer.name}</bdi></b> <small>${plural(layer.size, "neuron")}</small></span>
    ${drawn(app, layer, "tall")}<small>${counts(layer)}</small><small>${reach(layer)}</small>${readAt(layer)}`, "card layer-card");
}

const readAt = (layer) => layer.read_at && layer.read_at !== layer.name ? html`<small>read at <bdi>${layer.read_at}</bdi></small>` : nothing;

function layerLine(app, layer) {
  return goTo(app, filterTo(layer), html`<b class="name" title=${layer.name}><bdi>${layer.name}</bdi></b><small>${count(layer.size)}</small>
    <span class="hist">${drawn(app, layer, "flat")}</span><small class="counts">${counts(layer)}</small><small class="reach">${reach(layer)}</small>`, "layer-line");
}

