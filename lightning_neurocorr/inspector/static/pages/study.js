// Whatever a study found, drawn from its description alone: texts, tables, and its lines on a neuron.

import { html, nothing, render } from "../vendor/lit-html.js";
import { NONE, count, formatted, known, missing, plain, plural } from "../format.js";
import { tileCanvas } from "../images.js";
import { everyRow, sorted, sortedByText } from "../order.js";
import { Table } from "../table.js";
import { fillName, goTo, loading, makeName, missingNote, nameOf, neuronLink, noTable, otherEpoch, prose, sampleKey, sampleTile, textKind } from "./pieces.js";

const SAID_BY_NAME = new Set(["row", "layer", "unit"]); // of a neuron, by its link
const PLAIN_UP_TO = 100; // rows; longer tables draw only what is in view

export function studyPage(app) {
  const { frame, state } = app;
  if (frame === undefined) return loading();
  const study = frame?.index.studies?.find(({ name }) => name === state.study);
  if (!study) {
    return html`<section class="card hero"><h1>No such study</h1><p class="message">${frame ? "The table of this epoch has no study of this name." : noTable(app)}</p>${goTo(app, { page: "overview" }, "Overview", "button")}</section>`;
  }
  return html`<header class="page-title"><div><h1>${study.title || study.name}</h1><p class="verdict">${prose(study.about)}</p></div></header>
    ${otherEpoch(app)}
    ${missing(study) ? html`<section class="card">${missingNote(study)}</section>` : nothing}
    ${study.headline || known(Object.values(study.numbers ?? {})[0]) ? html`<section class="card hero"><h1>${prose(study.headline)}</h1>${numbersOf(study)}</section>` : nothing}
    ${(study.texts ?? []).map(({ title, text }) => html`<section class="card">${title ? html`<h2>${title}</h2>` : nothing}<p class="text">${prose(text)}</p></section>`)}
    ${(study.tables ?? []).map((table) => html`<section class="card table-card" data-table=${table.name}><h2>${table.title} <small>${table.all > table.rows ? `the first ${count(table.rows)} of ${count(table.all)}` : plural(table.rows, "row")}</small></h2>${tableOf(app, study, table)}${meanings(table)}</section>`)}
    ${(study.pictures ?? []).map(({ name, caption, part }) => html`<figure class="card">${figure(frame.get(part), caption || name)}<figcaption>${caption}</figcaption></figure>`)}`;
}

const numbersOf = ({ numbers, labels }) => (Object.keys(numbers ?? {}).length ? html`<dl class="facts">${Object.entries(numbers).map(([name, value]) => html`<div><dt>${labels?.[name] || name.replaceAll("_", " ")}</dt><dd>${plain(value)}</dd></div>`)}</dl>` : nothing);

function figure(image, label) {
  if (!image) return image === undefined ? loading("") : nothing;
  const { width: w, height: h } = image;
  const canvas = tileCanvas({ image, x: 0, y: 0, w, h }, Math.max(w, h, 200), label);
  canvas.style.height = "auto";
  return canvas;
}

/** The columns of a table with their values; undefined while on their way. */
function valuesOf(frame, table) {
  const columns = table.columns.map((column) => ({ ...column, values: frame.get(column.part) }));
  return columns.some(({ values }) => values === undefined) ? undefined : columns;
}

export function cellText(value, format) {
  if (Array.isArray(value)) return value.map((one) => cellText(one, format)).join(", ");
  if (value === null || value === undefined || value === "" || (typeof value === "number" && !known(value))) return NONE;
  return typeof value === "number" ? formatted(value, format) : String(value);
}

/** What the columns mean, to be opened: it is also said where one points at a title. */
function meanings({ columns }) {
  const said = columns.filter(({ name, meaning }) => meaning && !SAID_BY_NAME.has(name));
  return said.length ? html`<details class="meanings"><summary>What the columns mean</summary><dl class="pairs">${said.map(({ name, title, meaning }) => html`<dt>${title || name}</dt><dd>${prose(meaning)}</dd>`)}</dl></details>` : nothing;
}

/** How the cells of a column lie: numbers end at one edge, only long texts need room. */
const kindOf = (values) => (isText(values) ? textKind(values) : "numeric");

const isText = (values) => Array.isArray(values) && values.some((value) => typeof value !== "number" && value !== null);

function tableOf(app, study, table) {
  if (!table.rows) return html`<p class="empty">Nothing was found.</p>`;
  const { frame, state } = app;
  const all = valuesOf(frame, table);
  if (!all) return loading("Loading the table");
  const rowOf = subjects(frame, table, all);
  const columns = all.filter(({ name }) => !(rowOf && SAID_BY_NAME.has(name)));
  const [sortTable, sortKey] = sortOf(state.by);
  const descending = sortKey.startsWith("-");
  const by = sortTable === table.name ? columns.find(({ name }) => name === sortKey.replace(/^-/, "")) : null;
  const rows = everyRow(table.rows);
  const order = !by ? rows : isText(by.values) ? sortedByText(by.values.map((value) => cellText(value, "")), rows, descending)
    : sorted(Float32Array.from(by.values, (value) => value ?? NaN), rows, descending);
  const sort = (key) => app.go({ by: `${table.name}/${by?.name === key && descending ? "" : "-"}${key}` }, { replace: true });
  if (table.rows > PLAIN_UP_TO) return long(app, study, table, columns, rowOf, order, by && { key: by.name, descending }, sort);
  const kinds = new Map(columns.map(({ name, values }) => [name, kindOf(values)]));
  return html`<div class="scroll"><table class="list">
    <thead><tr>${rowOf ? html`<th>${table.per}</th>` : nothing}${columns.map(({ name, title, meaning, unit }) => html`<th class=${kinds.get(name)} title=${meaning}
      aria-sort=${by?.name === name ? (descending ? "descending" : "ascending") : "none"}><button type="button" @click=${() => sort(name)}>${title || name}${unit ? html` <small>${unit}</small>` : nothing}${by?.name === name ? (descending ? " ↓" : " ↑") : ""}</button></th>`)}</tr></thead>
    <tbody>${Array.from(order, (row) => html`<tr>${rowOf ? html`<td>${subject(app, table, rowOf(row))}</td>` : nothing}
      ${columns.map(({ name, values, format }) => html`<td class=${kinds.get(name)}><div class="clamp">${format === "samples" ? sampleLinks(app, values?.[row]) : cellText(values?.[row], format)}</div></td>`)}</tr>`)}</tbody></table></div>`;
}

/** Names of samples, as links where one sample has the name. */
function sampleLinks(app, text) {
  if (!text) return NONE;
  const places = samplePlaces(app.frame);
  return namesIn(text, places).map((name) => html`<span class="one-of">${places?.get(name) ? goTo(app, { page: "sample", sample: places.get(name) }, html`<bdi>${name}</bdi>`) : html`<bdi>${name}</bdi>`}</span> `);
}

/** The names that ", " stands between. A name may hold it too: the longest that a sample has is taken. */
function namesIn(text, places) {
  const parts = text.split(", ");
  const names = [];
  for (let at = 0; at < parts.length; at += names.at(-1).split(", ").length) {
    const joined = Array.from({ length: parts.length - at }, (_, i) => parts.slice(at, parts.length - i).join(", "));
    names.push(joined.find((name) => places?.has(name)) ?? parts[at]);
  }
  return names;
}

/** The key of each sample by its id, or by its position where it has none; null for a name of several. */
function samplePlaces(frame) {
  const [positions, ids] = ["position", "id"].map((name) => frame.get(`s/${name}`));
  if (!positions || ids === undefined) return null;
  if (!frame.samplePlaces) {
    frame.samplePlaces = new Map();
    positions.forEach((position, row) => {
      const id = ids?.[row] ?? (position >= 0 ? position : null);
      if (id !== null) frame.samplePlaces.set(String(id), frame.samplePlaces.has(String(id)) ? null : sampleKey({ position, row }));
    });
  }
  return frame.samplePlaces;
}

function sortOf(text = "") {
  const at = text.lastIndexOf("/");
  return [text.slice(0, Math.max(at, 0)), text.slice(at + 1)];
}

/** Which neuron or sample a row is about; null where it is about neither. */
function subjects(frame, table, columns) {
  const own = columns.find(({ name }) => name === "row")?.values;
  if (table.per !== "neuron" && table.per !== "sample") return null;
  if (own) return (row) => own[row];
  return table.per === "neuron" && table.rows === frame.size ? (row) => row : null;
}

function subject(app, table, row) {
  if (!known(row) || row < 0) return NONE;
  return table.per === "neuron" ? neuronLink(app, app.frame.neuron(row)) : sampleTile(app, app.frame, row, { size: 48 });
}

function long(app, study, table, columns, rowOf, order, sort, onSort) {
  const key = `study/${study.name}/${table.name}`;
  const grid = (app.tables[key] ??= new Table({
    label: table.title || table.name,
    onSort: (column) => grid.sortBy(column),
    onOpen: (row, event) => grid.openRow?.(row, event),
  }));
  grid.sortBy = onSort;
  const named = rowOf && table.per === "neuron";
  grid.openRow = named ? (row, event) => app.follow(event, { page: "neuron", neuron: nameOf(app.frame.neuron(rowOf(row))) }) : null;
  const first = named ? [{ key: "subject", title: "neuron", width: 150, grow: 1, sortable: false,
    make: makeName, fill: (cell, row) => fillName(cell, app.frame.neuron(rowOf(row))) }] : [];
  if (grid.last?.frame !== app.frame || grid.last.by !== app.state.by) grid.last = { by: app.state.by, frame: app.frame, order };
  grid.show({
    order: grid.last.order,
    sort,
    columns: [...first, ...columns.map(({ name, title, meaning, unit, format, values }) => ({
      key: name, title: headOf(title || name, unit), hint: meaning, numeric: !isText(values), ...(isText(values) ? { width: 150, grow: 2 } : { width: widthOf(headOf(title || name, unit)) }),
      fill: (cell, row) => {
        if (format === "samples") render(html`${sampleLinks(app, values?.[row])}`, cell);
        else cell.textContent = cellText(values?.[row], format);
        cell.title = isText(values) ? cellText(values?.[row], format) : "";
      },
    }))],
  });
  return html`<div class="table-room" style="height:${Math.min(table.rows * 44 + 58, Math.max(innerHeight * 0.7, 360))}px">${grid.element}</div>`;
}

const headOf = (title, unit) => title + (unit ? ` (${unit})` : "");

/** Of a column of numbers, in pixels: as wide as its head with the arrow of a sorted one. */
const widthOf = (head) => Math.min(Math.max(head.length * 7 + 22, 88), 200);

/** What the studies say of one neuron, but those by these names. */
export function neuronOfStudies(app, row, said) {
  const { frame } = app;
  return (frame.index.studies ?? []).filter(({ name }) => !said.includes(name)).map((study) => {
    const lines = (study.tables ?? []).filter(({ per }) => per === "neuron").map((table) => {
      const columns = valuesOf(frame, table);
      if (!columns) return loading("");
      const rowOf = subjects(frame, table, columns);
      const own = columns.find(({ name }) => name === "row")?.values;
      const at = own ? own.indexOf(row) : rowOf ? row : -1;
      if (at < 0) return nothing;
      return html`<dl class="pairs">${columns.filter(({ name }) => !SAID_BY_NAME.has(name)).map(({ name, title, meaning, unit, format, values }) => html`<dt title=${meaning}>${title || name}</dt><dd>${cellText(values?.[at], format)} ${unit}</dd>`)}</dl>`;
    });
    if (lines.every((line) => line === nothing)) return nothing;
    return html`<section class="card" data-study=${study.name}><h2>${goTo(app, { page: "study", study: study.name }, study.title || study.name)}</h2>${lines}</section>`;
  });
}
