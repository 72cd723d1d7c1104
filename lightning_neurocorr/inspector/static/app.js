// The page as a whole: state from the link, data for it, the head with its epoch slider, keys.

import { html, nothing, render } from "./vendor/lit-html.js";
import { markEdges, watchEdges } from "./edges.js";
import { OUTCOME_WORDS, plain } from "./format.js";
import { changed, parsedState, queryOf } from "./place.js";
import { Series } from "./series.js";
import { comparePage } from "./pages/compare.js";
import { neuronPage } from "./pages/neuron.js";
import { overviewPage } from "./pages/overview.js";
import { goTo, loading, loggedAt, neuronOf } from "./pages/pieces.js";
import { samplePage } from "./pages/sample.js";
import { samplesPage } from "./pages/samples.js";
import { studyPage } from "./pages/study.js";

const PAGES = { overview: overviewPage, neuron: neuronPage, samples: samplesPage, sample: samplePage, compare: comparePage, study: studyPage };
const LOOK_AGAIN = 20_000; // ms between looks for new validations

const KEYS = [
  ["/", "filter the neurons"], ["j k ↓ ↑", "move in a table"], ["Home End", "first and last row"], ["Enter", "open the neuron"],
  ["Esc", "back to the overview"], ["← →", "previous, next neuron"], ["[ ]", "earlier, later epoch"], ["1 2 3 4", "samples of an outcome group"],
  ["c", "compare"], ["d", "dark or light"], ["?", "this list"],
];

export class App {
  all = []; // what the source has: {run, name, …}
  tables = {};
  opened = {};
  picked = null; // the neuron chosen in the table
  fault = null;
  #series = new Map();
  #queued = false;

  /**
   * @param options root element, source, place (the link), theme {dark, toggle} and notes: sentences about the file
   */
  constructor({ root, source, place, theme, notes = [] }) {
    Object.assign(this, { root, source, place, theme, notes, title: document.title || "Neuron microscope" });
  }

  async start() {
    this.state = parsedState(this.place.read());
    this.place.listen(() => {
      this.state = parsedState(this.place.read());
      this.redraw();
    });
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("resize", () => this.redraw());
    watchEdges(this.root);
    this.#draw();
    await this.refresh();
    if (this.source.growing) setInterval(() => !document.hidden && this.refresh(), LOOK_AGAIN);
  }

  /** Look for runs and validations that were written meanwhile; the place stays. */
  async refresh() {
    try {
      const known = new Map(this.all.map((about) => [keyOf(about), about.last_step]));
      this.all = await this.source.runs();
      this.asked = true;
      const due = this.all.filter((about) => {
        const series = this.#series.get(keyOf(about));
        return series && (series.shelf.faults.size || known.get(keyOf(about)) !== about.last_step);
      });
      await Promise.all(due.map((about) => this.#series.get(keyOf(about)).refresh(about)));
      if (due.length) Object.assign(this, { order: null, movedR: null, matched: null }); // made from what was there
      this.fault = null;
    } catch (error) {
      this.fault = error.message;
    }
    this.redraw();
  }

  // --- where we are ------------------------------------------------------------------------------

  /** A series by its run and name; null where there is none, undefined while on its way. */
  seriesOf(run, name) {
    const about = this.all.find((one) => one.run === run && (name === undefined || one.name === name));
    if (!about) return this.asked ? null : undefined;
    const key = keyOf(about);
    if (!this.#series.has(key)) {
      const series = new Series(this.source, about, () => this.redraw());
      this.#series.set(key, series);
      series.refresh();
    }
    const series = this.#series.get(key);
    return series.metas.length ? series : series.shelf.pending ? undefined : null;
  }

  runLabel({ run, name }) {
    return this.all.some((other) => other.run === run && other.name !== name) ? `${run} · ${name}` : run;
  }

  link(changes) {
    return this.place.href(queryOf(changed(this.state, changes)));
  }

  go(changes, { replace = false } = {}) {
    const before = this.state;
    this.state = changed(before, changes);
    if (before.page === "neuron" && this.state.page === "overview" && !changes.keepPick) this.picked = neuronOf(before.neuron);
    this.place.write(queryOf(this.state), !replace);
    if (this.state.page !== before.page || this.state.sample !== before.sample) scrollTo(0, 0);
    this.redraw();
  }

  /** Follow a link: in place, or as the browser does where a new tab was asked for. */
  follow(event, changes) {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button === 1) {
      if (!event.target.closest?.("a")) open(this.link(changes));
      return;
    }
    event.preventDefault();
    this.go(changes);
  }

  goEpoch(i) {
    const { metas } = this.series;
    const last = i >= metas.length - 1; // no step in the link: it follows a run that goes on
    this.go({ step: last ? null : String(metas[i].step) }, { replace: true });
  }

  pick(name) {
    this.picked = neuronOf(name);
  }

  open(what, on) {
    if (Boolean(this.opened[what]) === on) return;
    this.opened[what] = on;
    this.redraw();
  }

  // --- drawing -----------------------------------------------------------------------------------

  redraw() {
    if (this.#queued) return;
    this.#queued = true;
    queueMicrotask(() => {
      this.#queued = false;
      this.#draw();
    });
  }

  #draw() {
    const { state } = this;
    const about = this.all.find((one) => one.run === state.run && (!state.name || one.name === state.name));
    const first = about ?? (state.run ? null : this.all[0]);
    this.series = first ? this.seriesOf(first.run, first.name) : this.asked ? null : undefined;
    this.broken = first && !this.series ? this.#series.get(keyOf(first)).shelf.faults : new Map();
    this.meta = this.series?.meta(Number(state.step ?? NaN));
    this.frame = this.series && this.series.frame(this.meta.step);
    this.frameMeta = this.frame ? this.series.meta(this.frame.step) : this.meta;
    this.mostR = this.meta ? Math.max(...this.meta.layers.flatMap(({ max_r: a, min_r: b }) => [Math.abs(a ?? 0), Math.abs(b ?? 0)]), 1e-6) : 1;
    document.documentElement.dataset.theme = this.theme.dark() ? "dark" : "light";
    document.title = [state.page === "overview" ? null : this.#crumb(), this.title].filter(Boolean).join(" · ");
    render(html`${this.#head()}<div class="page">${this.#faults()}${this.#body()}</div>${this.opened.help ? this.#help() : nothing}`, this.root);
    const waits = [...this.#series.values()].some(({ shelf }) => shelf.pending) || (!this.asked && !this.fault);
    this.#keepHeight(waits);
    for (const table of Object.values(this.tables)) if (table.element.isConnected) table.fit();
    if (!waits && !this.drawn) performance.mark("neurocorr-drawn"); // for the benchmark: the first page is whole
    this.drawn ||= !waits;
    Object.assign(this.root.dataset, { state: waits ? "loading" : "ready", page: state.page, step: this.meta?.step ?? "" });
  }

  /** As tall as before while data comes: a page that shrinks would lose the place that one looks at. */
  #keepHeight(waits) {
    const room = this.root.querySelector(".page");
    const { page } = this.state;
    room.style.minHeight = waits && this.tall?.page === page ? `${this.tall.height}px` : "";
    requestAnimationFrame(() => {
      markEdges(this.root);
      if (!waits) this.tall = { page, height: room.offsetHeight };
    });
  }

  #body() {
    if (this.series === undefined) return this.fault ? nothing : loading();
    if (!this.series) return this.broken.size ? nothing : this.#nothingHere();
    return PAGES[this.state.page](this);
  }

  #nothingHere() {
    if (this.all.length) {
      return html`<section class="card hero"><h1>No such run</h1><p class="message">There is no run “<bdi>${this.state.run ?? ""}</bdi>” with data here.</p>
        <ul>${this.all.map((about) => html`<li>${goTo(this, { page: "overview", run: about.run, name: about.name, step: null }, this.runLabel(about))}</li>`)}</ul></section>`;
    }
    return html`<section class="card hero"><h1>No data yet</h1><p class="message">Add <code>NeuronAdvantage(baseline)</code> to the callbacks of your Trainer.
      After the first validation its neurons are here.</p></section>`;
  }

  #faults() {
    const shown = this.state.page === "compare" ? [...this.#series.values()] : [this.series].filter(Boolean);
    const found = [this.fault, ...this.broken.values(), ...shown.flatMap(({ shelf }) => [...shelf.faults.values()])].filter(Boolean);
    return html`${[...new Set(found)].map((text) => html`<p class="note fault" role="alert"><b>Something could not be loaded.</b> ${text} ${this.source.growing ? html`<button type="button" @click=${() => this.refresh()}>Try again</button>` : nothing}</p>`)}
      ${this.notes.map((text) => html`<p class="note plain">${text}</p>`)}`;
  }

  #head() {
    const { series, meta, state } = this;
    const at = series ? series.metas.indexOf(meta) : 0;
    return html`<header class="top">
      <nav class="crumbs" aria-label="Where you are">${goTo(this, { page: "overview" }, "Neuron microscope", "brand")}${state.page === "overview" ? nothing : html`<span class="crumb"><span aria-hidden="true">› </span><bdi>${this.#crumb()}</bdi></span>`}</nav>
      <div class="controls-top">
      ${this.all.length > 1 ? html`<label class="run">run <select id="run" aria-label="Run" @change=${({ target }) => this.#chooseRun(this.all[target.value])}>
        ${this.all.map((about, i) => html`<option value=${i} ?selected=${series && about.run === series.run && about.name === series.name}>${this.runLabel(about)}</option>`)}</select></label>`
        : series ? html`<span class="run one" title=${this.runLabel(series)}>run <bdi>${this.runLabel(series)}</bdi></span>` : nothing}
      ${series ? html`<label class="epoch">epoch <input id="epoch" type="range" min="0" max=${Math.max(series.metas.length - 1, 0)} .value=${String(at)} ?disabled=${series.metas.length < 2}
          aria-valuetext=${`epoch ${meta.epoch}, step ${loggedAt(meta)}`} @input=${({ target }) => this.goEpoch(Number(target.value))}>
        <b>${plain(meta.epoch)}</b> <span class="step">step ${loggedAt(meta)}</span></label>` : nothing}
      ${series ? goTo(this, { page: state.page === "compare" ? "overview" : "compare" }, "compare", `button ${state.page === "compare" ? "on" : ""}`) : nothing}
      ${series && this.source.exported(series.about) ? html`<a class="button" id="export" href=${this.source.exported(series.about)} download title="The same page as one file">export</a>
        <button type="button" id="reload" title="Look for new validations" aria-label="Reload" @click=${() => this.refresh()}>⟳</button>` : nothing}
      <button type="button" id="theme" title="Dark or light (d)" aria-label="Dark or light" @click=${() => this.#toggleTheme()}>◐</button>
      <button type="button" id="help" title="Keys (?)" aria-label="Keys" aria-expanded=${String(Boolean(this.opened.help))} @click=${() => this.open("help", !this.opened.help)}>?</button>
      </div></header>`;
  }

  #crumb() {
    const { state, frame } = this;
    if (state.page === "neuron") return state.neuron ?? "";
    if (state.page === "samples") return OUTCOME_WORDS[state.cell] ?? "samples";
    if (state.page === "sample") return `sample ${state.sample ?? ""}`;
    if (state.page === "study") return frame?.index.studies?.find(({ name }) => name === state.study)?.title || state.study || "study";
    return state.page;
  }

  #help() {
    return html`<div class="help" role="dialog" aria-label="Keys"><h2>Keys</h2><dl class="pairs">${KEYS.map(([key, what]) => html`<dt><kbd>${key}</kbd></dt><dd>${what}</dd>`)}</dl>
      <p>A filter is made of words: <code>r&gt;0.05</code>, <code>attribution&lt;=0</code>, <code>layer:conv*</code>, <code>unit:17</code>, <code>is:used</code>, <code>not:encodes</code>, <code>verdict:"is used"</code>, or a part of a name. All of them must hold.</p>
      <button type="button" @click=${() => this.open("help", false)}>Close</button></div>`;
  }

  #chooseRun({ run, name }) {
    this.order = null;
    this.go({ run, name, step: null, ...(this.state.page === "study" || this.state.page === "sample" ? { page: "overview" } : {}) });
  }

  #toggleTheme() {
    this.theme.toggle();
    this.scatter = null;
    this.redraw();
  }

  // --- keys --------------------------------------------------------------------------------------

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input:not([type=range]), select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const act = this.#acts(event)[event.key];
    if (!act || !this.series) return;
    event.preventDefault();
    act();
  }

  #acts(event) {
    const { state } = this;
    const epoch = (by) => this.goEpoch(Math.min(Math.max(this.series.metas.indexOf(this.meta) + by, 0), this.series.metas.length - 1));
    const cell = (name) => () => this.go({ page: "samples", cell: name, truth: null, answer: null, from: null });
    const click = (selector) => () => this.root.querySelector(selector)?.click();
    const acts = {
      "[": () => epoch(-1), "]": () => epoch(1), 1: cell("both"), 2: cell("only_model"), 3: cell("only_baseline"), 4: cell("neither"),
      c: () => this.go({ page: "compare" }), d: () => this.#toggleTheme(), "?": () => this.open("help", !this.opened.help),
      Escape: () => (this.opened.help ? this.open("help", false) : this.go({ page: "overview" })),
      "/": () => this.#toFilter(),
    };
    if (state.page === "neuron" && event.target.type !== "range") Object.assign(acts, { ArrowLeft: click("a.previous"), ArrowRight: click("a.next"), k: click("a.previous"), j: click("a.next") });
    if (state.page === "overview" && this.tables.neurons) {
      const toTable = () => {
        this.tables.neurons.element.focus({ preventScroll: true });
        this.tables.neurons.element.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, bubbles: false }));
      };
      Object.assign(acts, { j: toTable, k: toTable });
    }
    return acts;
  }

  #toFilter() {
    if (this.state.page !== "overview") this.go({ page: "overview" });
    queueMicrotask(() => this.root.querySelector("#filter")?.focus());
  }
}

const keyOf = ({ run, name }) => JSON.stringify([run, name]);

