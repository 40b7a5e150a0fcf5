// Models of one task in columns, from chunks as `data.py` packs them. NaN is none.

function numbers({ kind, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  if (kind === "number") return new Float32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), (v) => (v === 65535 ? NaN : v / 65534));
}

// Chunks as scripts from a folder: what a page from the disk may load.
export function fromFiles(folder) {
  const waiting = new Map();
  globalThis.sparsityMovesRuns = (key, chunk) => waiting.get(key)?.(chunk);
  return (key) => new Promise((resolve, reject) => {
    waiting.set(key, resolve);
    const script = h("script", { src: `${folder}explorer-${key}.js`, onerror: () => reject(new Error(`The file of ${key} is missing.`)) });
    document.head.append(script);
  });
}

export class Models {
  constructor(parts) {
    this.parts = parts; // [{source, chunk}]
    this.arms = new Map(); // name → {label, colour, shape}
    const all = (of) => parts.flatMap(of);
    this.source = all(({ source, chunk }) => chunk.ids.map(() => source));
    this.part = all(({ chunk }, i) => chunk.ids.map(() => i));
    this.place = all(({ chunk }) => chunk.ids.map((_, i) => i));
    this.id = all(({ chunk }) => chunk.ids);
    this.seed = all(({ chunk }) => chunk.seed);
    this.arm = all(({ chunk }) => chunk.arm.map((at) => chunk.arms[at][0]));
    this.study = all(({ chunk }) => chunk.study.map((at) => chunk.studies[at]));
    this.settings = all(({ chunk }) => chunk.setting.map((at) => chunk.settings[at]));
    for (const { chunk } of parts)
      for (const [name, label, colour, shape] of chunk.arms) this.arms.set(name, { label, colour, shape });
    const every = [...new Set(this.settings)];
    const names = [...new Set(every.flatMap((one) => Object.keys(one)))];
    this.varied = names.filter((name) => new Set(every.map((one) => one[name])).size > 1);
    this.columns = new Map();
    this.alike = null; // settings of the models of one source, arm and seed
    this.curves = new Map(); // key → {group, row} of each model of the arm, or null while it comes
  }

  get size() {
    return this.id.length;
  }

  // A model's name: its arm and seed, and in which settings it differs from others of that name.
  name(model) {
    const key = (i) => `${this.source[i]} ${this.arm[i]} ${this.seed[i]}`;
    if (!this.alike) {
      this.alike = new Map();
      this.id.forEach((_, i) => this.alike.set(key(i), [...(this.alike.get(key(i)) ?? []), this.settings[i]]));
    }
    const others = this.alike.get(key(model));
    const own = this.varied.filter((name) => name in this.settings[model] && new Set(others.map((one) => one[name])).size > 1);
    const told = own.map((name) => `, ${name.replaceAll("_", " ")} ${this.settings[model][name]}`).join("");
    return `${this.arms.get(this.arm[model]).label}${told}, seed ${this.seed[model]}`;
  }

  // A measure at a moment, or a setting; one number a model.
  column(name, moment) {
    const key = `${name} ${moment}`;
    if (!this.columns.has(key)) {
      const found = this.parts.map(({ chunk }) => {
        const packed = chunk.moments[moment]?.[name];
        if (packed) return numbers(packed);
        return Float32Array.from(chunk.setting, (at) => Number(chunk.settings[at][name] ?? NaN));
      });
      const joined = new Float32Array(this.size);
      let at = 0;
      for (const each of found) {
        joined.set(each, at);
        at += each.length;
      }
      this.columns.set(key, joined);
    }
    return this.columns.get(key);
  }

  isShare(name, moment) {
    return this.parts.some(({ chunk }) => chunk.moments[moment]?.[name]?.kind === "share");
  }

  attends(model) {
    return this.parts[this.part[model]].chunk.attention.includes(this.place[model]);
  }

  // The key of the chunk with a model's curve.
  curveKey(task, model) {
    const { source, chunk } = this.parts[this.part[model]];
    return `curves-${source}-${task}-${chunk.arm[this.place[model]]}`;
  }

  takeCurves(key, chunk) {
    const rows = [];
    for (const group of chunk.groups) {
      group.decoded = {};
      group.rows.forEach((row, at) => (rows[row] = { group, at }));
    }
    this.curves.set(key, rows);
  }

  // Where a model's curve stands: {group, at}; undefined while its chunk is not there.
  curve(key, model) {
    const { chunk } = this.parts[this.part[model]];
    const first = (chunk.starts ??= chunk.arms.map((_, arm) => chunk.arm.indexOf(arm)))[chunk.arm[this.place[model]]];
    return this.curves.get(key)?.[this.place[model] - first];
  }
}

// One measure of a group's curves, run after run.
export function drawn(group, name) {
  return (group.decoded[name] ??= group.values[name] ? numbers(group.values[name]) : null);
}
