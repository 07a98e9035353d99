// One panel a metric: its histogram before and after the bounds, and the two sliders that bound it.

const view = { set: -1, compare: false }; // of which source set the histograms are (-1: all), or all side by side

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
let colours = {};
function readColours() {
  for (const name of ["pale", "accent", "soft", "ink", "paper", "line"]) colours[name] = css(`--${name}`);
  colours.sets = facts.sets.map((_, place) => (place < 6 ? css(`--set-${place}`) : colours.soft));
}

class Panel {
  constructor(column) {
    this.column = column;
    this.dirty = true;
    this.visible = false;
    const { fact, top } = column;
    this.layBins();
    this.canvas = make("canvas", { role: "img" });
    this.low = this.slider("least", -1, (mark) => this.move({ mark, strict: 0 }, column.high));
    this.high = this.slider("greatest", top, (mark) => this.move(column.low, { mark, strict: 0 }));
    if (fact.parts.length) this.low.hidden = true; // "the least of the largest" is no bound on columns
    this.bound = make("b");
    this.note = make("span");
    const unit = [fact.unit, fact.source].filter(Boolean).join(" · ");
    const meaning = make("p", { class: "meaning" }, fact.meaning);
    this.node = make(
      "article",
      { class: "panel", "data-metric": fact.name },
      make("h4", {}, fact.name, make("small", {}, unit)),
      meaning,
      this.canvas,
      make("div", { class: "range" }, this.low, this.high),
      make("div", { class: "read" }, make("span", {}, this.bound), this.note),
    );
    if (fact.known < N) {
      const gaps = make("summary", {}, `${whole.format(N - fact.known)} without a value`);
      this.node.append(make("details", { class: "gaps" }, gaps, fact.why.join("; ") || "no reason is recorded"));
    }
    this.canvas.addEventListener("pointermove", (event) => this.readAt(event.offsetX / this.canvas.clientWidth));
    this.canvas.addEventListener("pointerleave", () => this.readAt(null));
  }

  slider(which, start, act) {
    const { name, top } = this.column;
    const node = make("input", { type: "range", min: -1, max: top, step: 1, "aria-label": `${which} ${name}` });
    node.value = start;
    node.addEventListener("input", () => {
      act(Number(node.value));
      changed();
    });
    return node;
  }

  // An end that would pass the other one stops there.
  move(low, high) {
    const { column } = this;
    const least = { ...low, mark: Math.min(low.mark, column.top - 1, low === column.low ? Infinity : high.mark) };
    const most = { ...high, mark: Math.max(high.mark, 0, least.mark) };
    clips.bound(column, least, most);
    this.show();
  }

  show() {
    const { low, high, top, marks } = this.column;
    this.low.value = low.mark;
    this.high.value = high.mark;
    this.low.classList.toggle("set", low.mark >= 0);
    this.high.classList.toggle("set", high.mark < top);
    this.low.style.zIndex = low.mark > top / 2 ? 1 : 0;
    const least = low.mark < 0 ? "" : `${low.strict ? ">" : "≥"} ${marks[low.mark]}`;
    const greatest = high.mark >= top ? "" : `${high.strict ? "<" : "≤"} ${marks[high.mark]}`;
    this.low.setAttribute("aria-valuetext", least || "no bound");
    this.high.setAttribute("aria-valuetext", greatest || "no bound");
    this.bound.textContent = [least, greatest].filter(Boolean).join("  ");
    this.dirty = true;
  }

  // Bins are whole numbers of steps wide, so that none gets more steps than its neighbours.
  layBins() {
    const { fact, marks, top } = this.column;
    const { first, count, step, bar: width } = fact.scale;
    const steps = count - 1;
    this.single = fact.whole && step === 1 && width === 1; // a bar for each whole number
    this.bins = this.single ? count : steps / width;
    this.binOf = new Uint16Array(2 * top + 1);
    for (let code = 0; code <= 2 * top; code++) {
      const mark = Math.max(0, (code - 1) >> 1);
      const bin = Math.floor((marks[mark] / step - first) / width + 1e-6);
      this.binOf[code] = Math.max(0, Math.min(this.bins - 1, bin));
    }
    const shift = this.single ? 0.5 : 0;
    const indexOf = new Map(marks.map((mark, index) => [mark, index]));
    const digits = fact.scale.digits;
    this.edges = Array.from({ length: this.bins + 1 }, (_, bin) => {
      const mark = Number(((first + Math.min(bin * width, steps)) * step).toFixed(digits));
      return indexOf.get(mark) - shift + (this.single && bin > steps ? 1 : 0);
    });
  }

  // From a place among the marks to a share of the width: where the slider's thumb is.
  x(place) {
    return (place + 1) / (this.column.top + 1);
  }

  binned(counts) {
    const bins = new Uint32Array(this.bins);
    for (let code = 0; code < counts.length; code++) bins[this.binOf[code]] += counts[code];
    return bins;
  }

  median(counts) {
    const half = counts.reduce((sum, count) => sum + count, 0) / 2;
    let sum = 0;
    for (let code = 0; code < counts.length; code++) {
      sum += counts[code];
      if (half && sum >= half) return this.column.value(code);
    }
    return NaN;
  }

  draw() {
    this.dirty = false;
    const { canvas, column } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const floor = height - 16;
    const all = column.count(view.set, false);
    const kept = column.count(view.set, true);
    this.before = this.binned(all);
    this.after = this.binned(kept);
    if (view.compare) {
      facts.sets.forEach((_, set) => this.line(pen, this.binned(column.count(set, true)), width, floor, colours.sets[set]));
    } else {
      const most = Math.max(1, ...this.before);
      this.bars(pen, this.before, most, width, floor, colours.pale);
      this.bars(pen, this.after, most, width, floor, colours.accent);
      const share = Math.max(...this.after) / most;
      if (share > 0 && share < 0.25) this.line(pen, this.after, width, floor, colours.accent); // too low to be seen
    }
    this.edge(pen, column.low.mark, column.low.mark >= 0, width, floor);
    this.edge(pen, column.high.mark, column.high.mark < column.top, width, floor);
    this.axis(pen, width, floor);
    this.medians = [this.median(all), this.median(kept)];
    this.readAt(null);
  }

  bars(pen, bins, most, width, floor, colour) {
    pen.fillStyle = colour;
    bins.forEach((count, bin) => {
      if (!count) return;
      const left = this.x(this.edges[bin]) * width;
      const right = this.x(this.edges[bin + 1]) * width;
      const tall = Math.max(1, ((floor - 4) * count) / most);
      pen.fillRect(left, floor - tall, Math.max(1, right - left - (right - left > 4 ? 1 : 0.3)), tall);
    });
  }

  line(pen, bins, width, floor, colour) {
    const most = Math.max(1, ...bins);
    pen.strokeStyle = colour;
    pen.lineWidth = 1.4;
    pen.beginPath();
    bins.forEach((count, bin) => {
      const y = floor - ((floor - 4) * count) / most;
      pen.lineTo(this.x(this.edges[bin]) * width, y);
      pen.lineTo(this.x(this.edges[bin + 1]) * width, y);
    });
    pen.stroke();
  }

  edge(pen, mark, bounded, width, floor) {
    if (!bounded) return;
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 1;
    pen.setLineDash([2, 2]);
    pen.beginPath();
    pen.moveTo(this.x(mark) * width, 0);
    pen.lineTo(this.x(mark) * width, floor);
    pen.stroke();
    pen.setLineDash([]);
  }

  axis(pen, width, floor) {
    const { marks, top } = this.column;
    pen.fillStyle = colours.line;
    pen.fillRect(0, floor, width, 1);
    pen.fillStyle = colours.soft;
    pen.font = `11px ${css("--sans")}`;
    const span = marks[top - 1] - marks[0];
    const rough = span / Math.max(2, Math.floor(width / 75));
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const apart = this.single ? Math.max(1, step) : step;
    for (let k = Math.ceil(marks[0] / apart - 1e-9); k * apart <= marks[top - 1] + 1e-9 * span; k++) {
      const value = k * apart;
      const next = Math.max(1, marks.findIndex((known) => known >= value - 1e-9 * span));
      const x = this.x(next - 1 + (value - marks[next - 1]) / (marks[next] - marks[next - 1])) * width;
      const label = plain(value, 4);
      const half = pen.measureText(label).width / 2;
      pen.fillRect(x, floor, 1, 3);
      pen.fillText(label, Math.max(0, Math.min(width - 2 * half, x - half)), floor + 14);
    }
  }

  // The line below: the bin under the pointer, or the medians.
  readAt(share) {
    if (share === null || !this.before) {
      const [before, after] = this.medians ?? [NaN, NaN];
      const moved = clips.kept !== N;
      this.note.textContent = `median ${plain(before)}${moved ? ` → ${plain(after)}` : ""}`;
      const kept = moved ? `, ${plain(after)} of what is kept` : "";
      this.canvas.setAttribute("aria-label", `Histogram of ${this.column.name}: median ${plain(before)}${kept}`);
      return;
    }
    const place = share * (this.column.top + 1) - 1;
    let bin = this.edges.findIndex((edge) => edge > place) - 1;
    if (bin < 0) bin = place > this.edges[0] ? this.bins - 1 : 0;
    const { marks, top } = this.column;
    const from = marks[Math.max(0, Math.ceil(this.edges[bin]))];
    const to = marks[Math.min(top - 1, Math.floor(this.edges[bin + 1]))];
    const range = this.single ? plain(from, 4) : `${plain(from, 4)} – ${plain(to, 4)}`;
    this.note.textContent = `${range}: ${whole.format(this.before[bin])} clips, ${whole.format(this.after[bin])} kept`;
  }
}
