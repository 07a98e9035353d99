// Every clip's columns as codes, and which clips the bounds keep. Layout and codes: page_data.py, distributions.py.

const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const N = facts.clips;

// An element; strings among the children become text, so that nothing from outside is ever read as HTML.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const whole = new Intl.NumberFormat("en-US");
function plain(value, digits = 3) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100000 || size < 0.0005) return value.toExponential(1);
  return String(Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1)))))).replace("-", "−");
}
function hours(seconds) {
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${whole.format(Number((seconds / 3600).toFixed(1)))} h`;
}

class Column {
  constructor(fact, bytes, at) {
    this.fact = fact;
    this.name = fact.name;
    const { first, count, step, digits, further } = fact.scale;
    const regular = Array.from({ length: count }, (_, k) => Number(((first + k) * step).toFixed(digits)));
    this.marks = [...new Set([...regular, ...further])].sort((a, b) => a - b);
    this.top = this.marks.length;
    this.codes = new Uint16Array(N);
    for (let i = 0; i < N; i++) this.codes[i] = bytes[at + i] | (bytes[at + N + i] << 8);
    this.broken = new Uint8Array(65536); // code -> 1 where it breaks the bounds
    this.low = { mark: -1, strict: 0 }; // no lower bound
    this.high = { mark: this.top, strict: 0 }; // no upper bound
    this.counted = new Map();
  }

  get bounded() {
    return this.low.mark >= 0 || this.high.mark < this.top;
  }

  // The value in the middle of a code.
  value(code) {
    if (code === 0) return this.marks[0];
    const mark = (code - 1) >> 1;
    return code & 1 || mark + 1 >= this.top ? this.marks[mark] : (this.marks[mark] + this.marks[mark + 1]) / 2;
  }

  // The bounds as `column>=value`. A metric that is the largest of several columns bounds each of them.
  bounds() {
    const named = this.fact.parts.length ? this.fact.parts : [this.name];
    const found = [];
    for (const name of named) {
      if (this.low.mark >= 0) found.push(`${name}${this.low.strict ? ">" : ">="}${this.marks[this.low.mark]}`);
      if (this.high.mark < this.top) found.push(`${name}${this.high.strict ? "<" : "<="}${this.marks[this.high.mark]}`);
    }
    return found;
  }

  // How many clips of a set (-1: all) have each code; kept: only those that break nothing.
  count(set, kept) {
    if (!kept && this.counted.has(set)) return this.counted.get(set);
    const counts = new Uint32Array(2 * this.top + 1);
    const { codes } = this;
    for (let i = 0; i < N; i++) {
      if (codes[i] === facts.null || (set >= 0 && clips.sets[i] !== set) || (kept && clips.misses[i])) continue;
      counts[codes[i]]++;
    }
    if (!kept) this.counted.set(set, counts);
    return counts;
  }
}

const clips = {
  columns: [],
  sets: null,
  seconds: null,
  rules: [],
  misses: new Uint8Array(N), // how many bounds and rules a clip breaks

  // Set both ends of a column's bound.
  bound(column, low, high) {
    const fresh = new Uint8Array(65536);
    column.low = low;
    column.high = high;
    if (column.bounded) {
      const least = low.mark < 0 ? 0 : 1 + 2 * low.mark + low.strict;
      const greatest = high.mark >= column.top ? 2 * column.top : 1 + 2 * high.mark - high.strict;
      for (let code = 0; code <= 2 * column.top; code++) fresh[code] = code < least || code > greatest ? 1 : 0;
      fresh[facts.null] = 1;
    }
    const { codes, broken } = column;
    for (let i = 0; i < N; i++) this.misses[i] += fresh[codes[i]] - broken[codes[i]];
    column.broken = fresh;
  },

  rule(rule, on) {
    if (rule.on === on) return;
    rule.on = on;
    const by = on ? 1 : -1;
    for (let i = 0; i < N; i++) if (rule.broken[i]) this.misses[i] += by;
  },

  // Kept clips and seconds, of all and per set.
  tally() {
    let kept = 0;
    let seconds = 0;
    const perSet = new Float64Array(facts.sets.length);
    for (let i = 0; i < N; i++) {
      if (this.misses[i]) continue;
      kept++;
      seconds += this.seconds[i];
      perSet[this.sets[i]] += this.seconds[i];
    }
    return { kept, seconds, perSet };
  },

  // What a clip breaks, in words.
  verdict(index) {
    const broken = this.columns.filter((column) => column.broken[column.codes[index]]);
    const rules = this.rules.filter((rule) => rule.on && rule.broken[index]);
    return [...rules.map((rule) => rule.text), ...broken.map((column) => column.bounds().join(", "))];
  },

  async load() {
    const packed = Uint8Array.from(atob(byId("block").textContent), (letter) => letter.charCodeAt(0));
    byId("block").remove();
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    this.columns = facts.metrics.map((fact, place) => new Column(fact, bytes, 2 * N * place));
    let at = 2 * N * facts.metrics.length;
    this.sets = bytes.subarray(at, at + N);
    for (const rule of facts.rules) {
      at += N;
      this.rules.push({ ...rule, on: false, broken: bytes.subarray(at, at + N) });
    }
    at += N;
    this.seconds = new Float32Array(bytes.slice(at, at + 4 * N).buffer);
    this.all = this.seconds.reduce((sum, seconds) => sum + seconds, 0);
  },

  // The bounds that the page came with: the recipe's.
  recipe() {
    for (const column of this.columns) {
      let low = { mark: -1, strict: 0 };
      let high = { mark: column.top, strict: 0 };
      for (const { column: name, sign, value } of facts.edges) {
        if (name !== column.name) continue;
        const edge = { mark: column.marks.indexOf(value), strict: sign.length === 1 ? 1 : 0 };
        const tighter = sign[0] === ">" ? edge.mark - low.mark : high.mark - edge.mark;
        if (tighter < 0 || (tighter === 0 && !edge.strict)) continue;
        if (sign[0] === ">") low = edge;
        else high = edge;
      }
      this.bound(column, low, high);
    }
    for (const rule of this.rules) this.rule(rule, true);
  },
};
