// Numbers and names as people read them. A minus is a minus sign, a missing number a dash.

export const NONE = "–";

const MINUS = "\u2212";

const typeset = (text) => text.replace(/-/g, MINUS);

export const known = (value) => typeof value === "number" && Number.isFinite(value);

const withSign = (text, value, plus) => typeset((value < 0 && Number(text) !== 0 ? "-" : plus && Number(text) !== 0 ? "+" : "") + text);

/** So many digits after the point, with a sign: an end of an interval or of an axis. */
export const fixed = (value, digits = 2) => (known(value) ? withSign(Math.abs(value).toFixed(digits), value, true) : NONE);

const exponent = (value, digits) => Math.abs(value).toExponential(digits).replace("e+", "e");

/** The same where the digits are not too many; an exponent where they are. */
export const scaled = (value, digits) => (digits <= 4 ? fixed(value, digits) : withSign(exponent(Number(value.toPrecision(3))), value, true));

/** The ends of an interval with the same digits: two, more where these would be of no help. */
export function ends(low, high) {
  const reach = Math.max(Math.abs(low), Math.abs(high));
  const digits = reach > 0 ? Math.max(2, 1 - Math.floor(Math.log10(reach))) : 2;
  return [low, high].map((end) => (end === 0 ? "0" : scaled(end, digits)));
}

/** With its sign and three digits after the point; an exponent where that would show nothing. */
export function signed(value, digits = 3) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0 || (size >= 0.5 * 10 ** -digits && size < 1e4)) return fixed(value, digits);
  return withSign(exponent(value, 0), value, true);
}

const LEAST = 1e-37; // about the least number that single precision keeps all digits of

/** A p or q: two digits that count. */
export function small(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size < LEAST) return `<${exponent(LEAST, 0).replace("-", MINUS)}`;
  return withSign(size === 0 || (size >= 1e-4 && size < 100) ? String(Number(size.toPrecision(2))) : exponent(value, 1), value);
}

/** Three digits that count, without an exponent where that is short. */
export function plain(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return withSign(size.toLocaleString("en"), value);
  if (size >= 1e-4 && size < 1e5) return withSign(size >= 1000 ? size.toFixed(0) : size.toPrecision(3), value);
  return withSign(exponent(value, 2), value);
}

export const count = (value) => (known(value) ? value.toLocaleString("en") : NONE);

export const percent = (value, digits = 1) =>
  known(value) ? `${withSign(Math.abs(100 * value).toFixed(digits), value)}%` : NONE;

const WRITTEN = {
  number: plain, signed, small, count: (value) => count(Math.round(value)), share: (value) => percent(value), step: (value) => String(Math.round(value)),
  yes_no: (value) => (value ? "yes" : "no"),
};

/** A number as its column says that it is written. */
export const formatted = (value, format = "number") => (known(value) ? (WRITTEN[format] ?? plain)(value) : NONE);

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
  not_kept: "not kept",
  not_watched: "not watched",
};

/** A state as a sentence; null where there is nothing to say. */
export function missing(state) {
  if (!state || state.state === "measured") return null;
  const word = STATE_WORDS[state.state] ?? state.state;
  return state.why ? `${word}: ${state.why}` : word;
}

export const columnText = ({ format }, value) => formatted(value, format);

/** Whether the small values of a column are those one looks for first: p, q, a step, a rank. */
export const smallFirst = (column) => column?.format === "small" || column?.format === "step" || column?.unit === "rank";
