// What is looked at, as one plain object, and the link that holds it.

const LIST = "+";
export const FAR = 1e30; // an edge of the brush that was left open

export function firstView(index) {
  const task = Object.keys(index.tasks).find((name) => index.keys.some((key) => key.startsWith("runs-") && key.endsWith(`-${name}`)));
  return {
    task, source: "both", x: "no_attention_accuracy", y: "no_ffn_accuracy", moment: "first_best",
    curve: "no_ffn_accuracy", arms: null, seeds: "", box: null, picks: [],
  };
}

export function writeView(view) {
  const { arms, box, picks, ...plain } = view;
  const parts = Object.entries(plain).filter(([, value]) => value !== "");
  if (arms) parts.push(["arms", [...arms].join(LIST)]);
  if (box) parts.push(["box", box.map((v) => String(Number(v.toPrecision(5))).replace("e+", "e")).join(LIST)]);
  if (picks.length) parts.push(["picks", picks.join(LIST)]);
  return parts.map(([name, value]) => `${name}:${value}`).join(";").replaceAll(" ", "").replaceAll(",", LIST);
}

// The view of a link; null where any part of it is not one that this page knows.
export function readView(text, index) {
  if (typeof text !== "string" || text.length > 6000) return null;
  const view = firstView(index);
  const one = { task: index.tasks, x: axes(index), y: axes(index), moment: index.moments, curve: index.drawn, source: { both: 1, ...index.sources } };
  for (const part of text.split(";")) {
    const [, name, value] = /^([a-z]+):([\w.+-]*)$/.exec(part) ?? [];
    if (name === undefined) return null;
    const values = value === "" ? [] : value.split(LIST);
    if (Object.hasOwn(one, name)) {
      if (!Object.hasOwn(one[name], value)) return null;
      view[name] = value;
    } else if (name === "arms") view.arms = new Set(values);
    else if (name === "seeds") {
      view.seeds = values.join(",");
      if (!readSeeds(view.seeds)) return null;
    } else if (name === "box") {
      view.box = values.map(Number);
      if (view.box.length !== 4 || !view.box.every(Number.isFinite)) return null;
    } else if (name === "picks") {
      if (!values.every((id) => /^[0-9a-f]{16}$/.test(id))) return null;
      view.picks = values;
    } else return null;
  }
  return view;
}

export const axes = (index) => ({ ...index.measures, ...index.settings });

// "0-19, 42" as a test of a seed; null where it is none. Nothing is every seed.
export function readSeeds(text) {
  const parts = text.split(/[\s,]+/).filter(Boolean).map((part) => /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(part));
  if (parts.some((part) => !part)) return null;
  const ranges = parts.map(([, from, to]) => [Number(from), Number(to ?? from)]);
  return (seed) => !ranges.length || ranges.some(([from, to]) => from <= seed && seed <= to);
}

// The models in view, and those of them within the brush; numbers of models.
export function chosen(models, view, index) {
  const seeds = readSeeds(view.seeds) ?? (() => true);
  const arms = view.arms ?? new Set(index.first.some((arm) => models.arms.has(arm)) ? index.first : models.arms.keys());
  const xs = models.column(view.x, view.moment), ys = models.column(view.y, view.moment);
  const [sx, sy] = [view.x, view.y].map((name) => (models.isShare(name, view.moment) ? 100 : 1));
  const shown = [], brushed = [];
  for (let i = 0; i < models.size; i++) {
    if (!arms.has(models.arm[i]) || (view.source !== "both" && view.source !== models.source[i]) || !seeds(models.seed[i])) continue;
    const x = xs[i] * sx, y = ys[i] * sy;
    if (Number.isNaN(x) || Number.isNaN(y)) continue;
    shown.push(i);
    const b = view.box;
    if (!b || (x >= b[0] && x <= b[1] && y >= b[2] && y <= b[3])) brushed.push(i);
  }
  return { shown, brushed, arms, xs, ys, sx, sy };
}
