// A table of any length: only the rows in view exist. It knows rows by number and nothing of data.

const TALLEST = 6e6; // pixels: browsers draw no element much taller

const GAP = 14; // pixels between columns, as in the style sheet

const STEPS = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };

/**
 * Rows in view of a table of `count` rows.
 *
 * Columns: {key, title, hint, width (pixels), grow (a share of the rest), numeric, sortable, make(cell), fill(cell, row)}. `make` builds
 * a cell once, `fill` puts the row into it: both work with text and never with markup.
 */
export class Table {
  #drawn = [];
  #top = 0; // first row in view, a fraction

  constructor({ label, rowHeight = 44, onOpen, onPick, onSort }) {
    Object.assign(this, { rowHeight, onOpen, onPick, onSort });
    this.order = new Uint32Array(0);
    this.picked = -1; // place in the order
    this.element = made("div", "grid", { role: "grid", tabindex: "0", "aria-label": label });
    this.head = this.element.appendChild(made("div", "grid-head", { role: "row", "aria-rowindex": "1" }));
    this.room = this.element.appendChild(made("div", "grid-room", { role: "rowgroup" }));
    this.window = this.room.appendChild(made("div", "grid-window", { role: "presentation" }));
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => this.fit()).observe(this.element);
  }

  /** Show other rows or columns. `sort` is {key, descending}. */
  show({ order, columns, sort, picked }) {
    const other = columns.map(({ key, title }) => key + title).join("\n");
    if (other !== this.shape) {
      this.shape = other;
      this.#drawn.splice(0).forEach(({ element }) => element.remove());
    }
    const fresh = order !== this.order;
    Object.assign(this, { order, columns, sort });
    this.element.setAttribute("aria-rowcount", String(order.length + 1));
    this.element.setAttribute("aria-colcount", String(columns.length));
    const tracks = columns.map(({ width, grow }) => (grow ? `minmax(${width}px, ${grow}fr)` : `${width}px`));
    this.element.style.setProperty("--columns", tracks.join(" "));
    this.element.style.setProperty("--least", `${columns.reduce((sum, { width }) => sum + width + GAP, GAP)}px`);
    this.#drawHead();
    const height = this.#height();
    this.room.style.height = `${Math.min(height, TALLEST)}px`;
    const at = picked ?? -1;
    if (fresh || at !== this.picked) {
      this.picked = at;
      this.wish = at >= 0 ? () => this.reveal(at) : fresh ? () => this.scrollTo(0) : null;
    }
    this.stale = true;
  }

  /** Draw what `show` was given, once the table has its place and size on the page. */
  fit() {
    if (!this.stale && this.element.clientHeight === this.drawnHeight) return;
    this.stale = false;
    if (Math.abs(this.element.scrollTop - this.#place()) > 1) this.scrollTo(this.#top); // it was taken out and put back
    this.wish?.();
    this.wish = null;
    this.draw();
  }

  reveal(place) {
    const inView = this.#inView();
    if (place < this.#top) this.scrollTo(place);
    else if (place > this.#top + inView - 1) this.scrollTo(place - inView + 1);
  }

  /** Put a row (a fraction counts) at the top. */
  scrollTo(row) {
    this.#top = Math.min(Math.max(row, 0), Math.max(this.order.length - this.#inView(), 0));
    this.ours = this.#place();
    this.element.scrollTop = this.ours;
    this.draw();
  }

  draw() {
    this.drawnHeight = this.element.clientHeight;
    if (!this.columns || !this.drawnHeight) return;
    const first = Math.floor(this.#top);
    const last = Math.min(Math.ceil(this.#top + this.#inView()) + 1, this.order.length);
    while (this.#drawn.length < last - first) this.#drawn.push(this.#makeRow());
    const start = this.element.scrollTop - (this.#top - first) * this.rowHeight;
    this.#drawn.forEach((row, i) => {
      const place = first + i;
      const shown = place < last;
      row.element.hidden = !shown;
      if (shown) this.#fill(row, place);
    });
    this.window.style.transform = `translateY(${start}px)`;
    const active = this.picked >= first && this.picked < last ? `${this.#id()}-${this.picked - first}` : "";
    this.element.setAttribute("aria-activedescendant", active);
  }

  #drawHead() {
    this.head.replaceChildren(...this.columns.map(({ key, title, hint, numeric, sortable = true }) => {
      const cell = made("div", numeric ? "cell numeric" : "cell", { role: "columnheader" });
      const chosen = this.sort?.key === key;
      cell.setAttribute("aria-sort", chosen ? (this.sort.descending ? "descending" : "ascending") : "none");
      if (!sortable || !title) {
        cell.textContent = title;
      } else {
        const button = cell.appendChild(made("button", "", { type: "button", "data-key": key, tabindex: "-1" }));
        button.textContent = chosen ? `${title} ${this.sort.descending ? "↓" : "↑"}` : title;
        button.addEventListener("click", () => this.onSort(key));
      }
      if (hint) cell.title = hint;
      return cell;
    }));
  }

  #makeRow() {
    const element = made("div", "grid-row", { role: "row" });
    element.id = `${this.#id()}-${this.#drawn.length}`;
    element.style.height = `${this.rowHeight}px`;
    const row = { element, place: -1 };
    row.cells = this.columns.map((column) => {
      const cell = element.appendChild(made("div", column.numeric ? "cell numeric" : "cell", { role: "gridcell" }));
      column.make?.(cell);
      return cell;
    });
    element.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      this.#pick(row.place);
      this.onOpen?.(this.order[row.place], event);
    });
    this.window.append(element);
    return row;
  }

  #fill(row, place) {
    row.place = place;
    row.element.setAttribute("aria-rowindex", String(place + 2));
    row.element.classList.toggle("picked", place === this.picked);
    row.element.setAttribute("aria-selected", String(place === this.picked));
    this.columns.forEach((column, c) => column.fill(row.cells[c], this.order[place]));
  }

  #pick(place) {
    this.picked = place;
    this.reveal(place);
    this.draw();
    this.onPick?.(this.order[place]);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const last = this.order.length - 1;
    const jumps = { Home: -Infinity, End: Infinity, PageDown: this.#inView() - 1, PageUp: 1 - this.#inView() };
    const step = STEPS[event.key] ?? (event.key in jumps ? Math.trunc(jumps[event.key]) : null);
    if (step !== null && last >= 0) {
      this.#pick(Math.min(Math.max(this.picked < 0 && step === 1 ? 0 : Math.max(this.picked, 0) + step, 0), last));
    } else if (event.key === "Enter" && this.picked >= 0 && !event.target.closest("button")) {
      this.onOpen?.(this.order[this.picked], event);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** Where the scroll bar is a proportion, the wheel still moves by rows. */
  #wheel(event) {
    if (this.#height() <= TALLEST || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return;
    event.preventDefault();
    this.scrollTo(this.#top + event.deltaY / this.rowHeight);
  }

  #scrolled() {
    const at = this.element.scrollTop;
    if (Math.abs(at - (this.ours ?? -9)) > 1) {
      const most = this.#height() - this.#space();
      const room = Math.min(this.#height(), TALLEST) - this.#space();
      this.#top = most > 0 && room > 0 ? ((at / room) * most) / this.rowHeight : 0;
    }
    this.ours = undefined;
    this.draw();
  }

  /** The scroll position of the row at the top. */
  #place() {
    const most = this.#height() - this.#space();
    const room = Math.min(this.#height(), TALLEST) - this.#space();
    return most > 0 ? ((this.#top * this.rowHeight) / most) * room : 0;
  }

  #space() {
    return Math.max(this.element.clientHeight - this.head.offsetHeight, this.rowHeight);
  }

  #inView() {
    return this.#space() / this.rowHeight;
  }

  #height() {
    return this.order.length * this.rowHeight;
  }

  #id() {
    this.name ??= `grid-${Math.random().toString(36).slice(2)}`;
    return this.name;
  }
}

export function made(tag, name = "", attributes = {}) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
