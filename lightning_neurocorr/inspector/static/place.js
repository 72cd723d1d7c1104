// What the page shows, as a link: a query in the hash of the file, or in TensorBoard's address.

const COMMON = ["run", "name", "step", "filter", "sort", "columns"];
const OF_PAGE = {
  overview: [],
  neuron: ["neuron"],
  samples: ["cell", "truth", "answer", "from"],
  sample: ["sample"],
  compare: ["other", "othername", "otherstep", "by"],
  study: ["study", "by"],
};

/** The state that a query stands for; unknown keys are dropped. */
export function parsedState(query) {
  const given = new URLSearchParams(query);
  const page = Object.hasOwn(OF_PAGE, given.get("page") ?? "") ? given.get("page") : "overview";
  const state = { page };
  for (const key of [...COMMON, ...OF_PAGE[page]]) if (given.has(key)) state[key] = given.get(key);
  return state;
}

export function queryOf(state) {
  const query = new URLSearchParams();
  if (state.page !== "overview") query.set("page", state.page);
  for (const key of [...COMMON, ...OF_PAGE[state.page]]) {
    if (state[key] !== undefined && state[key] !== null && state[key] !== "") query.set(key, state[key]);
  }
  return query.toString();
}

/** The state after some changes; `null` takes a key away, another page drops the keys of this one. */
export function changed(state, changes) {
  const page = changes.page ?? state.page;
  const kept = page === state.page ? state : Object.fromEntries(COMMON.map((key) => [key, state[key]]));
  return { ...kept, ...changes, page };
}

/** The hash of our own address. */
export class OwnHash {
  #memory = location.hash.slice(1); // where a frame may not change its address

  read() {
    return this.#memory;
  }

  write(query, push) {
    if (query === this.#memory) return;
    this.#memory = query;
    try {
      history[push ? "pushState" : "replaceState"](null, "", this.href(query));
    } catch {
      // an <iframe srcdoc> has no address of its own: the page works without links
    }
  }

  href(query) {
    return `${location.href.split("#")[0]}#${query}`; // whole: TensorBoard's frame has another base
  }

  listen(changed) {
    const look = () => {
      if (location.hash.slice(1) === this.#memory) return;
      this.#memory = location.hash.slice(1);
      changed();
    };
    addEventListener("popstate", look);
    addEventListener("hashchange", look);
  }
}

const PLUGIN = "neurocorr";
const KEY = "p.neurocorr.v";

/** Our own hash, mirrored into the address of TensorBoard, so that it can be sent. */
export class TensorBoardHash {
  #own = new OwnHash();

  constructor() {
    const outer = this.#outer();
    if (outer !== null) this.#own.write(outer, false);
  }

  read() {
    return this.#own.read();
  }

  write(query, push) {
    this.#own.write(query, push);
    this.#mirror();
  }

  href(query) {
    return `${parent.location.pathname}${parent.location.search}#${outerHash(parent.location.hash, query)}`;
  }

  listen(changed) {
    this.#own.listen(() => {
      this.#mirror();
      changed();
    });
    parent.addEventListener("hashchange", () => {
      if (!ours(parent.location.hash)) return;
      const outer = this.#outer();
      if (outer === null) this.#mirror(); // back from another tab, which dropped it
      else if (outer !== this.read()) {
        this.#own.write(outer, false);
        changed();
      }
    });
  }

  #outer() {
    const given = new URLSearchParams(parent.location.hash.slice(1));
    return ours(parent.location.hash) ? given.get(KEY) : null;
  }

  #mirror() {
    if (!ours(parent.location.hash)) return;
    const hash = `#${outerHash(parent.location.hash, this.read())}`;
    if (hash !== parent.location.hash) parent.history.replaceState(parent.history.state, "", hash);
  }
}

const ours = (hash) => hash.slice(1).split("&")[0] === PLUGIN;

function outerHash(hash, query) {
  const others = new URLSearchParams(hash.slice(1));
  for (const key of [...others.keys()]) if (!others.get(key) || key === KEY) others.delete(key);
  others.set(KEY, query);
  return `${PLUGIN}&${others}`;
}
