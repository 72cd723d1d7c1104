// Numbers and names as people read them. A minus is a minus sign, a missing number a dash.

export const NONE = "–";

const MINUS = "\u2212";

const typeset = (text) => text.replace(/-/g, MINUS);

export const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Three digits after the point with a sign, fewer where that would show nothing: +0.137, −2e−7. */
export function signed(value, digits = 3) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  const plain = size === 0 || (size >= 0.5 * 10 ** -digits && size < 1e4);
  const text = plain ? value.toFixed(digits) : value.toExponential(1);
  return typeset((value >= 0 ? "+" : "") + text);
}

/** An end of an interval or of an axis: always so many digits, +0.00 where it is smaller. */
export function fixed(value, digits = 2) {
  if (!known(value)) return NONE;
  const text = value.toFixed(digits);
  return typeset(Number(text) === 0 ? `+${text.replace("-", "")}` : value > 0 ? `+${text}` : text);
}

/** A p or q: two digits that count. */
export function small(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 0.001 && size < 1000) return typeset(String(Number(value.toPrecision(2))));
  return typeset(value.toExponential(0).replace("e+", "e"));
}

/** A number of which nothing is known but that it is one: three digits that count. */
export function plain(value) {
  if (!known(value)) return NONE;
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return typeset(value.toLocaleString("en"));
  const size = Math.abs(value);
  if (size >= 0.001 && size < 1e6) return typeset(String(Number(value.toPrecision(3))));
  return typeset(value.toExponential(1).replace("e+", "e"));
}

export const count = (value) => (known(value) ? value.toLocaleString("en") : NONE);

export const percent = (value, digits = 1) =>
  known(value) ? `${typeset((100 * value).toFixed(digits))} %` : NONE;

/** A number in a format of Python: "+.3f", ".2g", ".1%", "d". Without one it is `plain`. */
export function formatted(value, format = "") {
  if (!known(value)) return NONE;
  const spec = /^(\+?)(,?)(?:\.(\d+))?([fge%d]?)$/.exec(format);
  if (!format || !spec) return plain(value);
  const [, sign, , digits, kind] = spec;
  if (kind === "%") return (sign && value >= 0 ? "+" : "") + percent(value, Number(digits ?? 0));
  if (kind === "d") return (sign && value >= 0 ? "+" : "") + count(Math.round(value));
  if (kind === "f") {
    return sign ? signed(value, Number(digits ?? 3)) : signed(value, Number(digits ?? 3)).replace("+", "");
  }
  if (kind === "e") return typeset(value.toExponential(Number(digits ?? 1)).replace("e+", "e"));
  return (sign && value >= 0 ? "+" : "") + (Number(digits ?? 3) <= 2 ? small(value) : plain(value));
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** 1st, 2nd, 3rd, 4th … */
export function ordinal(number) {
  const tens = number % 100;
  const ending = tens >= 11 && tens <= 13 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[number % 10] ?? "th");
  return `${count(number)}${ending}`;
}

export const OUTCOMES = ["both", "only_model", "only_baseline", "neither"];

export const OUTCOME_WORDS = {
  both: "both right",
  only_model: "only the model right",
  only_baseline: "only the baseline right",
  neither: "both wrong",
};

/** Why there is no number, in words. */
export const STATE_WORDS = {
  measured: "no value",
  not_asked: "not asked for",
  refused: "refused",
  not_finished: "not finished",
  not_chosen: "not chosen",
};

/** A state as a sentence; null where there is nothing to say. */
export function missing(state) {
  if (!state || state.state === "measured") return null;
  const word = STATE_WORDS[state.state] ?? state.state;
  return state.why ? `${word}: ${state.why}` : word;
}

const IS_SMALL = /^(p|q)_|_(p|q)$/;
const IS_SIGNED = /^(r$|r_|attribution|ablation|contrast_t|spearman|parts_replicated)/;

/** A value of a column of neurons: as the column says, or else as its name suggests. */
export function columnText({ name, format }, value) {
  if (format) return formatted(value, format);
  if (IS_SMALL.test(name)) return small(value);
  return IS_SIGNED.test(name) ? signed(value) : plain(value);
}

/** Whether the small values of a column are those one looks for first. */
export const smallFirst = (name) => IS_SMALL.test(name) || name === "rank_before" || name === "risen_at";
