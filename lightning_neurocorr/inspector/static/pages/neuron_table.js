// The table of all neurons: filter, columns to choose, rows. The neuron page walks in its order.

import { html, nothing } from "../vendor/lit-html.js";
import { sparkPath } from "../charts.js";
import { NONE, columnText, count, fixed, known, missing, plural, signed, smallFirst } from "../format.js";
import { drawTile } from "../images.js";
import { everyRow, parsed, passing, sorted } from "../order.js";
import { Table, made } from "../table.js";
import { MARKS, answer, fillName, loading, makeName, nameOf, stateOf, stateWord, unkept } from "./pieces.js";

const FIRST = ["r", "evidence", "interval", "q_value", "r_within_class", "attribution", "ablation", "epochs", "verdict"];
const TITLES = { q_value: "q", r_within_class: "in class", r_replicated: "replicated" };
const NO_EXEMPLARS_ABOVE = 131072;

const narrow = () => innerWidth < 760;

/** r of the neurons of the table at the epoch that is looked at, from history where need be. */
export function currentR(app) {
  const { frame, meta, series } = app;
  if (frame.step === meta.step) return frame.column("r") ?? (frame.column("r") === null ? new Float32Array(frame.size).fill(NaN) : undefined);
  const key = `${series.key}/${frame.step}/${meta.step}`;
  if (app.movedR?.key === key) return app.movedR.values;
  const histories = frame.index.layers.map(({ name }) => series.history(name));
  if (histories.includes(undefined)) return undefined;
  const values = new Float32Array(frame.size).fill(NaN);
  histories.forEach((history, l) => {
    const at = history?.at.get(meta.step);
    if (at === undefined) return;
    for (let i = 0; i < history.width; i++) {
      const unit = history.units ? history.units[i] : i;
      if (unit < frame.index.layers[l].size) values[frame.starts[l] + unit] = history.r[at * history.width + i];
    }
  });
  app.movedR = { key, values };
  return values;
}

const columnOf = (app, name) => (name === "r" ? currentR(app) : app.frame.column(name));

export function sortOf(state) {
  const text = state.sort || "-r";
  return { key: text.replace(/^-/, ""), descending: text.startsWith("-") };
}

/** Rows in the order of the table, as the link says; undefined while numbers are on their way. */
export function currentOrder(app) {
  const { frame, state, meta, series } = app;
  const sort = sortOf(state);
  const filter = filterOf(app);
  const needed = [...filter.columns, sort.key].filter((name) => name === "r" || frame.columns.has(name));
  const arrays = Object.fromEntries(needed.map((name) => [name, columnOf(app, name)]));
  const claims = frame.get("claims");
  const verdict = frame.get("verdict");
  const waits = Object.values(arrays).includes(undefined) || claims === undefined || verdict === undefined;
  if (waits) return undefined;
  const key = [series.key, frame.step, meta.step, state.filter, state.sort].join("\n");
  if (app.order?.key === key) return app.order;
  const rows = filter.tests.length
    ? passing(filter.tests, {
      size: frame.size, layers: frame.index.layers, starts: frame.starts, claims, verdict, verdicts: frame.index.verdicts,
      bits: Object.fromEntries(frame.index.claims.map(({ name, bit }) => [name, bit])),
      column: (name) => arrays[name],
    })
    : everyRow(frame.size);
  const ordered = sort.key === "neuron" ? (sort.descending ? rows.slice().reverse() : rows)
    : arrays[sort.key] ? sorted(arrays[sort.key], rows, sort.descending) : rows;
  app.order = { key, rows: ordered, faults: filter.faults };
  return app.order;
}

function filterOf({ frame, state }) {
  return parsed(state.filter ?? "", {
    columns: ["r", ...frame.columns.keys()],
    claims: frame.index.claims.map(({ name }) => name),
  });
}

export function chosenColumns({ frame, state }) {
  const names = state.columns ? state.columns.split(",") : FIRST;
  const special = new Set(["interval", "epochs", "evidence", "verdict"]);
  return names.filter((name) => (special.has(name) ? name !== "interval" || frame.columns.has("r_low") : frame.columns.has(name)));
}

export function neuronTable(app) {
  const { frame, state } = app;
  if (hasImages(app)) app.series.thumbnail(0); // asks for the list of tiles while the columns come
  const found = currentOrder(app);
  const table = (app.tables.neurons ??= new Table({
    label: "Neurons", rowHeight: 44,
    onOpen: (row, event) => app.follow(event, { page: "neuron", neuron: nameOf(app.frame.neuron(row)) }),
    onPick: (row) => app.pick(nameOf(app.frame.neuron(row))),
    onSort: (key) => {
      const sort = sortOf(app.state);
      const descending = sort.key === key ? !sort.descending : key !== "neuron" && !smallFirst(app.frame.columns.get(key));
      app.go({ sort: (descending ? "-" : "") + key }, { replace: true });
    },
  }));
  if (found) {
    const picked = app.picked ? frame.row(app.picked.layer, app.picked.unit) : -1;
    table.show({ order: found.rows, columns: tableColumns(app), sort: sortOf(state), picked: picked < 0 ? -1 : found.rows.indexOf(picked) });
  }
  return html`<section class="card table-card" aria-label="All neurons">
    <div class="tools">
      <input type="search" id="filter" aria-label="Filter" placeholder="Filter: r>0.05  layer:conv*  is:used   ( / )" .value=${state.filter ?? ""}
        @input=${(event) => app.go({ filter: event.target.value }, { replace: true })}>
      <span class="chips">${frame.index.claims.map(({ name, title }) => claimChip(app, name, title))}${verdictChoice(app)}</span>
      ${columnChoice(app)}
      <span class="found" aria-live="polite">${found ? (found.rows.length === frame.size ? `${plural(frame.size, "neuron")}` : `${count(found.rows.length)} of ${plural(frame.size, "neuron")}`) : "…"}</span>
    </div>
    ${found?.faults.map((fault) => html`<p class="fault" role="alert">${fault}</p>`)}
    ${found ? nothing : loading("Loading the table")}
    ${found && !found.rows.length ? html`<p class="empty">No neuron passes this filter. <button type="button" @click=${() => app.go({ filter: null }, { replace: true })}>Show all</button></p>` : nothing}
    <div class="table-room" style="height:${Math.min((found?.rows.length ?? 0) * 44 + 58, Math.max(innerHeight * 0.78, 380))}px" ?hidden=${!found?.rows.length}>${table.element}</div>
  </section>`;
}

function claimChip(app, name, title) {
  const text = app.state.filter ?? "";
  const clause = `is:${name}`;
  const on = text.split(/\s+/).includes(clause);
  const other = on ? text.split(/\s+/).filter((word) => word !== clause).join(" ") : `${text} ${clause}`.trim();
  return html`<button type="button" class="chip" aria-pressed=${String(on)} @click=${() => app.go({ filter: other }, { replace: true })}>${title.toLowerCase()}</button>`;
}

/** Filter by a verdict as a whole: the page knows no parts of sentences. */
function verdictChoice(app) {
  const { frame, state } = app;
  const codes = frame.get("verdict");
  if (!codes) return nothing;
  if (frame.verdictCounts === undefined) {
    frame.verdictCounts = new Uint32Array(frame.index.verdicts.length);
    for (let i = 0; i < codes.length; i++) frame.verdictCounts[codes[i]]++;
  }
  const listed = frame.index.verdicts.map((text, i) => [text, frame.verdictCounts[i]])
    .filter(([text, size]) => size && !text.includes('"')).sort((a, b) => b[1] - a[1]).slice(0, 24);
  const others = (state.filter ?? "").replace(/(^|\s)verdict:("[^"]*"?|\S*)/g, "").trim();
  const now = /(?:^|\s)verdict:"([^"]*)"/.exec(state.filter ?? "")?.[1] ?? "";
  return html`<select class="chip ${now ? "on" : ""}" aria-label="Verdict" .value=${now}
    @change=${({ target: { value } }) => app.go({ filter: `${others} ${value ? `verdict:"${value}"` : ""}`.trim() }, { replace: true })}>
    <option value="" ?selected=${!now}>any verdict</option>
    ${listed.map(([text, size]) => html`<option value=${text} ?selected=${text === now}>${text.length > 90 ? `${text.slice(0, 90)}…` : text} (${count(size)})</option>`)}
  </select>`;
}

function columnChoice(app) {
  const { frame } = app;
  const chosen = chosenColumns(app);
  const all = [...frame.columns.keys()].map((name) => [name, frame.columns.get(name).title || name, frame.columns.get(name).meaning]);
  all.unshift(["interval", "95 % interval of r", ""], ["epochs", "r over the epochs", ""], ["evidence", "evidence", ""], ["verdict", "verdict", ""]);
  const toggle = (name) => {
    const next = chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name];
    app.go({ columns: next.join(",") === FIRST.join(",") ? null : next.join(",") || "verdict" }, { replace: true });
  };
  return html`<details class="choice" @keydown=${(event) => event.key === "Escape" && (event.currentTarget.open = false)}><summary class="chip">columns</summary><div class="menu">
    ${all.map(([name, title, meaning]) => html`<label title=${meaning || title}><input type="checkbox" .checked=${chosen.includes(name)} @change=${() => toggle(name)}><span>${title}</span></label>`)}
    <button type="button" @click=${() => app.go({ columns: null }, { replace: true })}>as at first</button></div></details>`;
}

// --- cells ---------------------------------------------------------------------------------------

function tableColumns(app) {
  const found = [{ key: "neuron", title: "neuron", width: narrow() ? 108 : 146, grow: 1.3, make: makeName, fill: (cell, row) => fillName(cell, app.frame.neuron(row)) }];
  if (hasImages(app)) found.unshift({ key: "pic", title: "", width: narrow() ? 34 : 40, sortable: false, make: makePicture, fill: (cell, row) => fillPicture(app, cell, row) });
  return [...found, ...chosenColumns(app).map((name) => SPECIAL[name]?.(app) ?? numberColumn(app, name))];
}

const SPECIAL = {
  r: (app) => ({ key: "r", title: "r", numeric: true, width: narrow() ? 60 : 122, hint: app.frame.columns.get("r")?.meaning,
    make: (cell) => cell.append(made("span", "tiny-bar"), made("b")),
    fill: (cell, row) => fillR(app, cell, row) }),
  interval: (app) => ({ key: "interval", title: "95 % interval", numeric: true, sortable: false, width: 112,
    fill: (cell, row) => {
      const moved = app.frame.step !== app.meta.step; // r is of this epoch, its interval would be of another
      const [low, high] = ["r_low", "r_high"].map((name) => (moved ? NaN : app.frame.column(name)?.[row]));
      cell.textContent = known(low) ? `${fixed(low)} to ${fixed(high)}` : NONE;
    } }),
  epochs: (app) => ({ key: "epochs", title: "over epochs", sortable: false, width: 90, make: makeSpark, fill: (cell, row) => fillSpark(app, cell, row) }),
  evidence: (app) => ({ key: "evidence", title: "evidence", sortable: false, width: 216,
    make: (cell) => app.frame.index.claims.forEach(() => cell.append(made("span", "badge"))),
    fill: (cell, row) => fillEvidence(app, cell, row) }),
  verdict: (app) => ({ key: "verdict", title: "verdict", sortable: false, width: 160, grow: 2,
    make: (cell) => cell.classList.add("lines"),
    fill: (cell, row) => {
      const text = app.frame.index.verdicts[app.frame.get("verdict")?.[row]] ?? "";
      cell.textContent = text;
      cell.title = text;
    } }),
};

function numberColumn(app, name) {
  const column = app.frame.columns.get(name);
  return { key: name, title: TITLES[name] ?? (column.title || name), hint: column.meaning, numeric: true, width: 78,
    fill: (cell, row) => {
      const value = columnOf(app, name)?.[row];
      const state = known(value) ? null : stateOf(app.frameMeta, name, app.frame.neuron(row).layer);
      cell.textContent = known(value) ? columnText(column, value) : state ? stateWord(state) : NONE;
      cell.classList.toggle("none", !known(value));
      cell.title = known(value) ? "" : missing(state) ?? "no value";
    } };
}

function fillR(app, cell, row) {
  const value = currentR(app)?.[row];
  const [bar, text] = cell.children;
  const part = Math.min(Math.abs(known(value) ? value : 0) / app.mostR, 1) * 50;
  bar.style.setProperty("--from", `${value < 0 ? 50 - part : 50}%`);
  bar.style.setProperty("--width", `${part}%`);
  bar.className = `tiny-bar ${value < 0 ? "below" : "above"}`;
  const state = known(value) ? null : unkept(app, app.frame.neuron(row), row, currentR(app));
  text.textContent = state ? stateWord(state) : signed(value);
  text.className = state ? "none" : "";
  cell.title = missing(state) ?? "";
}

function fillEvidence(app, cell, row) {
  const { claims } = app.frame.index;
  const bits = app.frame.get("claims")?.[row] ?? 0;
  claims.forEach((claim, i) => {
    const found = answer(bits, claim);
    const badge = cell.children[i];
    badge.className = `badge ${found}`;
    badge.textContent = `${MARKS[found]} ${claim.name}`;
    const state = found === "unknown" ? stateOf(app.frameMeta, claim.column, app.frame.neuron(row).layer) : null;
    badge.title = found === "unknown" ? missing(state) ?? "not known" : "";
  });
}

const SVG = "http://www.w3.org/2000/svg";

function makeSpark(cell) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 84 26");
  picture.setAttribute("class", "spark");
  picture.setAttribute("aria-hidden", "true");
  for (const name of ["zero", "line"]) {
    const path = picture.appendChild(document.createElementNS(SVG, "path"));
    path.setAttribute("class", name);
  }
  cell.append(picture);
}

function fillSpark(app, cell, row) {
  const { layer, unit } = app.frame.neuron(row);
  const values = app.series.metas.length > 1 ? app.series.curve(layer, unit) : null;
  const { line, zero } = values ? sparkPath(values, 84, 26) : { line: "", zero: 13 };
  const [base, path] = cell.firstChild.children;
  base.setAttribute("d", values ? `M0 ${zero.toFixed(1)}H84` : "");
  path.setAttribute("d", line);
}

// --- the picture of a row: what was made for the neuron, or else what drives it most -----------------

const hasImages = ({ frame }) => Boolean(frame.index.picture || frame.index.tile);

function makePicture(cell) {
  cell.append(made("canvas", "tile blank", { width: 1, height: 1, "aria-hidden": "true" }));
}

function fillPicture(app, cell, row) {
  drawTile(cell.firstChild, neuronTile(app, row), 34);
}

export function neuronTile(app, row) {
  const { frame, series } = app;
  frame.pictureOf ??= new Map(frame.index.pictures.filter(({ tile }) => tile !== null).map((picture) => [picture.row, picture]));
  const picture = frame.pictureOf.get(row);
  if (picture) return series.picture(frame, picture);
  if (!frame.index.tile || frame.size > NO_EXEMPLARS_ABOVE) return null;
  const exemplars = frame.get("e/any");
  const tiles = frame.get("s/tile");
  const sample = exemplars?.[row * frame.index.K] ?? -1;
  return tiles && sample >= 0 ? series.thumbnail(tiles[sample]) : null;
}
