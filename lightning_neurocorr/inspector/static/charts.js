// Small charts in SVG, each with a name for those who cannot see it. No scale of ours is a threshold.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { known, plain, scaled, signed } from "./format.js";

const finite = (values) => Array.from(values).filter(known);

/** A round number that is at least `value`. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const ten = 10 ** Math.floor(Math.log10(value));
  return ten * [1, 1.5, 2, 3, 5, 7.5, 10].find((step) => step * ten >= value * (1 - 1e-9));
}

/** Round numbers between two, and how many digits after the point tell them apart. */
function ticks(low, high, wanted = 3) {
  const raw = (high - low) / wanted;
  const ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * [1, 2, 2.5, 5, 10].find((one) => one * ten >= raw * (1 - 1e-9));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  }
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) + (Math.abs(step / ten - 2.5) < 1e-6 ? 1 : 0);
  return { found, digits };
}

/** The numbers behind a chart, folded away. `rows` are arrays of texts, the first the head. */
export function numbers([head, ...rows]) {
  return html`<details class="numbers"><summary>numbers</summary><div class="scroll"><table>
    <thead><tr>${head.map((cell) => html`<th>${cell}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div></details>`;
}

/**
 * Lines over epochs.
 *
 * @param lines [{values, label, name}]; `name` is a class of the style sheet
 * @param options labels: text per point; at: index that is shown; onPick(index); band: values of a
 *   grey band around 0 (chance), one per point; format(tick, digits) of
 *   the ticks
 */
export function lineChart(lines, options) {
  const { labels, at, onPick, band, format = plain, title, zero = false, wide = false } = options;
  const width = innerWidth < 760 ? 330 : wide ? 600 : 440;
  const height = 210;
  const pad = { left: 52, right: 82, top: 14, bottom: 26 };
  const all = [...lines.flatMap(({ values }) => finite(values)), ...(zero ? [0] : [])];
  if (!all.length) return html`<p class="empty">No numbers yet.</p>`;
  let low = Math.min(...all);
  let high = Math.max(...all);
  if (band) {
    const chance = Math.max(...finite(band), 0);
    if (chance < 4 * Math.max(Math.abs(low), Math.abs(high))) [low, high] = [Math.min(low, -chance * 0.35), Math.max(high, chance)];
  }
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - margin, high + margin];
  const size = labels.length;
  const x = (i) => pad.left + ((width - pad.left - pad.right) * i) / Math.max(size - 1, 1);
  const y = (value) => pad.top + ((height - pad.top - pad.bottom) * (high - value)) / (high - low);
  const clamp = (value) => Math.min(Math.max(value, low), high);
  const pick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const position = ((event.clientX - box.left) / box.width) * width;
    const i = Math.round(((position - pad.left) / (width - pad.left - pad.right)) * (size - 1));
    onPick(Math.min(Math.max(i, 0), size - 1));
  };
  const { found, digits } = ticks(low, high);
  const ends = spread(lines.map(({ values }) => y(clamp(lastKnown(values) ?? low))), pad.top + 4, height - pad.bottom);
  return html`<svg class="chart lines" viewBox="0 0 ${width} ${height}" role="img" aria-label=${title}
      @click=${onPick && size > 1 ? pick : nothing}>
    ${band ? svg`<path class="band" d=${bandPath(band, x, (value) => y(clamp(value)))}></path>` : nothing}
    ${found.map((tick) => svg`<line class="rule" x1=${pad.left} x2=${width - pad.right} y1=${y(tick)} y2=${y(tick)}></line>
      <text class="tick" x=${pad.left - 8} y=${y(tick) + 4} text-anchor="end">${tick === 0 ? "0" : format(tick, digits)}</text>`)}
    ${known(at) && at >= 0 ? svg`<line class="now" x1=${x(at)} x2=${x(at)} y1=${pad.top} y2=${height - pad.bottom}></line>` : nothing}
    ${lines.map(({ values, name, label }, i) => svg`<path class="line ${name}" d=${path(values, x, y)}></path>
      ${values.length === 1 || known(values[at]) ? svg`<circle class="dot ${name}" r="4" cx=${x(Math.max(at, 0))} cy=${y(known(values[at]) ? values[at] : low)}></circle>` : nothing}
      <text class="label ${name}" x=${width - pad.right + 10} y=${ends[i] + 4}>${label}</text>`)}
    <text class="tick" x=${pad.left} y=${height - 6}>${labels[0]}</text>
    ${size > 1 ? svg`<text class="tick" x=${width - pad.right} y=${height - 6} text-anchor="end">${labels[size - 1]}</text>` : nothing}
  </svg>`;
}

const lastKnown = (values) => Array.from(values).filter(known).at(-1);

/** Labels at the ends of lines, moved apart where they would lie on each other. */
function spread(wanted, low, high) {
  const order = wanted.map((at, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [...wanted];
  order.forEach((i, n) => {
    if (n) placed[i] = Math.max(placed[i], placed[order[n - 1]] + 15);
  });
  const over = Math.max(0, (placed[order.at(-1)] ?? 0) - high);
  return placed.map((at) => Math.max(at - over, low));
}

function path(values, x, y) {
  let pen = false;
  let found = "";
  for (let i = 0; i < values.length; i++) {
    if (!known(values[i])) {
      pen = false;
      continue;
    }
    found += `${pen ? "L" : "M"}${x(i).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    if (!pen && !known(values[i + 1])) found += "h0.1"; // a lone point
    pen = true;
  }
  return found;
}

function bandPath(band, x, y) {
  const points = Array.from(band, (value, i) => [i, value]).filter(([, value]) => known(value));
  if (!points.length) return "";
  const above = points.map(([i, value]) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}`);
  const below = points.map(([i, value]) => `${x(i).toFixed(1)} ${y(-value).toFixed(1)}`).reverse();
  return `M${[...above, ...below].join("L")}Z`;
}

/** An end of an axis: a round number, written without zeros at its end. */
const axis = (value) => (Math.abs(value) < 10 ** -3 ? scaled(value, Infinity) : scaled(value, 4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));

/** A value on a line with its interval and the grey of chance; 0 is marked. */
export function interval({ value, low, high, chance, reach, title, format = axis }) {
  const width = 400;
  const values = [value, low, high, chance].filter(known).map(Math.abs);
  const end = roundUp(Math.max(...values, reach ?? 0) * 1.02);
  const x = (at) => 20 + (width - 40) * ((Math.min(Math.max(at, -end), end) + end) / (2 * end));
  return html`<svg class="chart interval" viewBox="0 0 ${width} 46" role="img" aria-label=${title}>
    ${known(chance) ? svg`<rect class="band" x=${x(-chance)} width=${x(chance) - x(-chance)} y="3" height="20" rx="2"></rect>` : nothing}
    <line class="axis" x1="20" x2=${width - 20} y1="13" y2="13"></line>
    <line class="zero" x1=${x(0)} x2=${x(0)} y1="2" y2="24"></line>
    ${known(low) && known(high) ? svg`<line class="reach" x1=${x(low)} x2=${x(high)} y1="13" y2="13"></line>` : nothing}
    ${known(value) ? svg`<circle class="point" cx=${x(value)} cy="13" r="6"></circle>` : nothing}
    <text class="tick" x="20" y="42">${format(-end)}</text>
    <text class="tick" x=${x(0)} y="42" text-anchor="middle">0</text>
    <text class="tick" x=${width - 20} y="42" text-anchor="end">${format(end)}</text>
  </svg>`;
}

/** Counts of r in bins, the chance level in grey behind them; the axis goes from −end to end. */
export function histogram({ counts, range, end, chance, title, name = "" }) {
  const width = 280;
  const height = 44;
  const [low, high] = range;
  const most = Math.max(...counts, 1);
  const x = (value) => width * (0.5 + value / (2 * end || 1));
  const step = (x(high) - x(low)) / counts.length;
  const middle = (i) => low + ((i + 0.5) * (high - low)) / counts.length;
  const side = (i) => (!known(chance) || Math.abs(middle(i)) <= chance ? "inside" : middle(i) > 0 ? "above" : "below");
  return html`<svg class="chart histogram ${name}" viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label=${title}>
    ${known(chance) ? svg`<rect class="band" x=${Math.max(x(-chance), 0)} width=${Math.min(x(chance), width) - Math.max(x(-chance), 0)} y="0" height=${height}></rect>` : nothing}
    ${counts.map((size, i) => size ? svg`<rect class=${side(i)} x=${x(low) + i * step} width=${Math.max(step * 0.86, 0.8)}
      y=${height - Math.max(2, Math.sqrt(size / most) * height)} height=${Math.max(2, Math.sqrt(size / most) * height)}></rect>` : nothing)}
    <line class="zero" x1=${x(0)} x2=${x(0)} y1="0" y2=${height}></line>
  </svg>`;
}

/** One bar per group: [{label, value, name}]. Bars start at 0. */
export function bars(groups, format = plain) {
  const values = finite(groups.map(({ value }) => value));
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const place = (value) => (100 * (value - low)) / (high - low || 1);
  return html`<div class="bars" role="list">${groups.map(({ label, value, name }) => html`
    <div role="listitem"><span class="bar-label">${label}</span>
      <span class="bar-room">${known(value) ? html`<span class="bar ${name}"
        style="left:${Math.min(place(0), place(value))}%;width:${Math.max(Math.abs(place(value) - place(0)), 0.5)}%"></span>` : nothing}</span>
      <b class="number">${format(value)}</b></div>`)}</div>`;
}

/** The path of a line without axes, for a cell of a table; 0 is inside. */
export function sparkPath(values, width, height) {
  const all = finite(values);
  const low = Math.min(0, ...all);
  const high = Math.max(0, ...all);
  const x = (i) => 2 + ((width - 4) * i) / Math.max(values.length - 1, 1);
  const y = (value) => 2 + ((height - 4) * (high - value)) / (high - low || 1);
  return { line: path(values, x, y), zero: y(0) };
}

/** Draw one value against another on a canvas; returns the point below a place on it. */
export function scatter(canvas, { a, b, marked }) {
  const size = 420;
  const sharp = Math.min(globalThis.devicePixelRatio || 1, 2);
  canvas.width = canvas.height = size * sharp;
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  const style = getComputedStyle(canvas);
  const ink = (name) => style.getPropertyValue(name).trim();
  let end = 0;
  for (let i = 0; i < a.length; i++) if (known(a[i]) && known(b[i])) end = Math.max(end, Math.abs(a[i]), Math.abs(b[i]));
  end = roundUp(end);
  const at = (value) => size / 2 + (value / end) * (size / 2 - 26);
  pen.strokeStyle = ink("--line");
  for (const [x0, y0, x1, y1] of [[26, size / 2, size - 26, size / 2], [size / 2, 26, size / 2, size - 26], [26, size - 26, size - 26, 26]]) {
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }
  const draw = (i, radius) => {
    if (!known(a[i]) || !known(b[i])) return;
    pen.beginPath();
    pen.arc(at(a[i]), size - at(b[i]), radius, 0, 2 * Math.PI);
    pen.fill();
  };
  pen.fillStyle = ink("--accent");
  pen.globalAlpha = a.length > 2000 ? 0.25 : 0.55;
  for (let i = 0; i < a.length; i++) draw(i, a.length > 20000 ? 1.2 : 3);
  pen.globalAlpha = 1;
  pen.fillStyle = ink("--above");
  for (const i of marked) draw(i, 4);
  pen.fillStyle = ink("--muted");
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(`A ${signed(end, 2)}`, size - 62, size / 2 + 18);
  pen.fillText(`B ${signed(end, 2)}`, size / 2 + 6, 22);
  return (x, y) => {
    let best = -1;
    let least = 12 ** 2;
    for (let i = 0; i < a.length; i++) {
      const distance = (at(a[i]) - x) ** 2 + (size - at(b[i]) - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  };
}
