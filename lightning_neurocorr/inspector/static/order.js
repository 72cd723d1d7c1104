// Sort and filter rows over typed arrays; no page, no threshold of our own.

const RADIX = 11;
const BUCKETS = 1 << RADIX;

/**
 * Rows in the order of a column; equals keep their order, NaN comes last either way.
 * A radix sort of the bits of a float: three passes of 11 bits.
 */
export function sorted(column, rows, descending = false) {
  const keys = floatKeys(column, rows, descending);
  let from = Uint32Array.from(rows);
  let to = new Uint32Array(from.length);
  let keysTo = new Uint32Array(from.length);
  let keysFrom = keys;
  for (let shift = 0; shift < 33; shift += RADIX) {
    const starts = new Uint32Array(BUCKETS + 1);
    for (let i = 0; i < keysFrom.length; i++) starts[((keysFrom[i] >>> shift) & (BUCKETS - 1)) + 1]++;
    for (let b = 0; b < BUCKETS; b++) starts[b + 1] += starts[b];
    for (let i = 0; i < keysFrom.length; i++) {
      const at = starts[(keysFrom[i] >>> shift) & (BUCKETS - 1)]++;
      to[at] = from[i];
      keysTo[at] = keysFrom[i];
    }
    [from, to] = [to, from];
    [keysFrom, keysTo] = [keysTo, keysFrom];
  }
  return from;
}

/** One unsigned integer per row that orders as its float does; NaN is the largest. */
function floatKeys(column, rows, descending) {
  const floats = new Float32Array(rows.length);
  for (let i = 0; i < rows.length; i++) floats[i] = column[rows[i]] + 0; // −0 + 0 is 0
  const keys = new Uint32Array(floats.buffer);
  for (let i = 0; i < keys.length; i++) {
    if (floats[i] !== floats[i]) {
      keys[i] = 0xffffffff;
      continue;
    }
    const bits = keys[i];
    const up = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    keys[i] = descending ? ~up : up;
  }
  return keys;
}

/** Rows in the order of texts (an array of strings); equals keep their order. */
export function sortedByText(texts, rows, descending = false) {
  const ranks = new Map([...new Set(texts)].sort().map((text, i) => [text, i]));
  const column = Float32Array.from(texts, (text) => ranks.get(text));
  return sorted(column, rows, descending);
}

export const everyRow = (size) => Uint32Array.from({ length: size }, (_, i) => i);

// --- filter expressions --------------------------------------------------------------------------

const COMPARED = /^([A-Za-z_][\w ]*?)(>=|<=|!=|>|<|=)(.+)$/;
const NAMED = /^(layer|verdict|unit|is|not):(.*)$/;
const SHORT = { q: "q_value", p: "p_value", class: "r_within_class", replicated: "r_replicated" };

/** The clauses of a filter: words apart by spaces; quotes keep words together. */
export function clauses(text) {
  const words = text.match(/(?:[^\s"]+|"[^"]*"?)+/g) ?? [];
  return words.map((word) => word.replaceAll('"', "")).filter(Boolean);
}

/**
 * A filter that is ready to run.
 *
 * @param text what was typed: r>0.05 layer:features verdict:used is:encodes conv1:17
 * @param names `columns` and `claims` that exist, arrays of strings
 * @returns `tests` to run, `columns` they need, and `faults`: clauses not understood, in words
 */
export function parsed(text, names) {
  const found = { tests: [], columns: [], faults: [] };
  for (const clause of clauses(text)) {
    const compared = COMPARED.exec(clause);
    const named = NAMED.exec(clause);
    if (named) addNamed(found, named[1], named[2], names);
    else if (compared) addCompared(found, compared, names);
    else found.tests.push({ kind: "name", text: clause.toLowerCase() });
  }
  return found;
}

function addNamed(found, kind, text, names) {
  const negated = kind === "not";
  if (kind === "is" || negated) {
    if (names.claims.includes(text)) found.tests.push({ kind: "claim", claim: text, negated });
    else found.faults.push(`There is no claim “${text}”. There are ${names.claims.join(", ")}.`);
  } else if (kind === "unit") {
    if (/^\d+$/.test(text)) found.tests.push({ kind: "unit", unit: Number(text) });
    else found.faults.push(`“unit:${text}” needs a whole number.`);
  } else {
    found.tests.push({ kind, text: text.toLowerCase() });
  }
}

function addCompared(found, [clause, left, operator, right], names) {
  const column = names.columns.includes(left) ? left : SHORT[left];
  const value = Number(right.replace("\u2212", "-"));
  if (!names.columns.includes(column)) {
    found.faults.push(`There is no column “${left}”.`);
  } else if (Number.isNaN(value)) {
    found.faults.push(`“${clause}” needs a number.`);
  } else {
    found.columns.push(column);
    found.tests.push({ kind: "number", column, operator, value });
  }
}

/**
 * The rows that pass every test, in their order.
 *
 * @param tests from `parsed`
 * @param table `size`, `layers` [{name, size}], `starts`, `column(name)`, `claims` and `bits` by
 *   name, `verdict` codes and `verdicts` sentences
 */
export function passing(tests, table) {
  const mask = new Uint8Array(table.size).fill(1);
  for (const test of tests) RUN[test.kind](mask, test, table);
  let kept = 0;
  for (let i = 0; i < mask.length; i++) kept += mask[i];
  const rows = new Uint32Array(kept);
  for (let i = 0, at = 0; i < mask.length; i++) if (mask[i]) rows[at++] = i;
  return rows;
}

const COMPARE = {
  ">": (a, b) => a > b,
  "<": (a, b) => a < b,
  ">=": (a, b) => a >= b,
  "<=": (a, b) => a <= b,
  "=": (a, b) => a === b,
  "!=": (a, b) => a === a && a !== b,
};

const RUN = {
  number(mask, { column, operator, value }, table) {
    const values = table.column(column);
    const compare = COMPARE[operator];
    const bound = operator === "=" || operator === "!=" ? Math.fround(value) : value;
    for (let i = 0; i < mask.length; i++) if (mask[i] && !compare(values[i], bound)) mask[i] = 0;
  },
  claim(mask, { claim, negated }, { claims, bits }) {
    const bit = bits[claim];
    for (let i = 0; i < mask.length; i++) if (((claims[i] >>> bit) & 1) === Number(negated)) mask[i] = 0;
  },
  unit(mask, { unit }, { layers, starts }) {
    layers.forEach(({ size }, l) => {
      for (let u = 0; u < size; u++) if (u !== unit) mask[starts[l] + u] = 0;
    });
  },
  layer(mask, { text }, { layers, starts }) {
    const matches = globbed(text);
    layers.forEach(({ name, size }, l) => {
      if (!matches(name.toLowerCase())) mask.fill(0, starts[l], starts[l] + size);
    });
  },
  verdict(mask, { text }, { verdict, verdicts }) {
    const hit = verdicts.map((sentence) => sentence.toLowerCase().includes(text));
    for (let i = 0; i < mask.length; i++) if (!hit[verdict[i]]) mask[i] = 0;
  },
  name(mask, { text }, { layers, starts }) {
    layers.forEach(({ name, size }, l) => {
      const layer = name.toLowerCase();
      if (layer.includes(text)) return;
      for (let u = 0; u < size; u++) {
        if (mask[starts[l] + u] && !`${layer}:${u}`.includes(text)) mask[starts[l] + u] = 0;
      }
    });
  },
};

/** Whole names where there is a star or a "=" in front, parts of names otherwise. */
function globbed(text) {
  if (text.startsWith("=")) return (name) => name === text.slice(1);
  if (!text.includes("*")) return (name) => name.includes(text);
  const parts = text.split("*");
  return (name) => {
    if (!name.startsWith(parts[0])) return false;
    let at = parts[0].length;
    for (const part of parts.slice(1, -1)) {
      const found = name.indexOf(part, at);
      if (found < 0) return false;
      at = found + part.length;
    }
    return name.length - parts.at(-1).length >= at && name.endsWith(parts.at(-1));
  };
}
