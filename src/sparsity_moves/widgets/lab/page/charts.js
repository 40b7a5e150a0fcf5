// The pictures. Each is given all it shows and draws it anew; a run is {rows, name}, rows as `Session.row` gives them.

export const SERIES = [
  { key: "accuracy", label: "Full model", mark: "full" },
  { key: "noFfn", label: "Without FFN", mark: "no-ffn" },
  { key: "noAttention", label: "Without attention", mark: "no-attention" },
];
const HELD_OUT = { key: "test", label: "Held-out inputs", mark: "test" };

export const GROKKED = 0.99;
export const grokkedAt = (rows) => rows.find((row) => row.test !== null && row.test > GROKKED)?.step ?? null;

const line = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// Lines over the training steps. `runs` are drawn in this order, the last one boldest.
function lines(runs, series, { top, low, high, ticks, label, width, tickText, steps, mark }) {
  const height = 190, left = 40, right = 8, bottom = 26, upper = 8;
  const x = (step) => left + ((width - left - right) * step) / steps;
  const y = (value) => upper + (height - bottom - upper) * (1 - (Math.min(high, Math.max(low, top(value))) - low) / (high - low));
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks)
    picture.append(
      s("line", { class: "lab-grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      s("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    );
  for (const step of [0, steps / 2, steps])
    picture.append(s("text", { x: x(step), y: height - 8, "text-anchor": step === 0 ? "start" : step === steps ? "end" : "middle" }, step ? `${step}` : "step 0"));
  if (mark !== null && mark !== undefined)
    picture.append(
      s("line", { class: "lab-moment", x1: x(mark), x2: x(mark), y1: upper, y2: height - bottom }),
      s("text", { x: x(mark) + (mark > steps * 0.7 ? -4 : 4), y: height - bottom - 6, "text-anchor": mark > steps * 0.7 ? "end" : "start" }, `grokked, step ${mark}`),
    );
  for (const run of runs)
    for (const one of series) {
      const points = run.rows.filter((row) => Number.isFinite(row[one.key])).map((row) => [x(row.step), y(row[one.key])]);
      if (points.length) picture.append(s("path", { class: `lab-line lab-${one.mark} lab-run-${run.kind}`, d: line(points) }));
    }
  return picture;
}

export function accuracyChart(runs, steps, width, heldOut) {
  const series = heldOut ? [...SERIES, HELD_OUT] : SERIES, own = runs.at(-1), last = own?.rows.at(-1);
  const spoken = last ? series.map((one) => `${one.label} ${percent(last[one.key])}`).join(", ") : "no run yet";
  const options = { top: (v) => v, low: 0, high: 1, ticks: [0, 0.5, 1], tickText: (t) => `${100 * t}%`, width, steps };
  return lines(runs, series, { ...options, label: `Accuracy over training. Step ${last?.step ?? 0}: ${spoken}.`, mark: own && heldOut ? grokkedAt(own.rows) : null });
}

export function lossChart(runs, steps, width) {
  const last = runs.at(-1)?.rows.at(-1);
  const options = { top: (v) => Math.log10(Math.max(v, 1e-9)), low: -5, high: 1, ticks: [10, 0.1, 0.001, 0.00001], tickText: (t) => (t < 0.001 ? "1e-5" : String(t)), width, steps };
  return lines(runs, [{ key: "loss", mark: "full" }], { ...options, label: `Cross-entropy over training, logarithmic; now ${last?.loss?.toPrecision(3) ?? "none yet"}.` });
}

// Which line is which, in words: drawn with the same strokes as the charts.
export function legend(heldOut, runs) {
  const sample = (mark, kind) => s("svg", { viewBox: "0 0 26 10", class: "lab-sample", "aria-hidden": true }, s("path", { class: `lab-line lab-${mark} lab-run-${kind}`, d: "M1 5L25 5" }));
  const series = heldOut ? [...SERIES, HELD_OUT] : SERIES;
  return h("p", { class: "lab-legend" },
    ...series.map((one) => h("span", {}, sample(one.mark, "own"), one.label)),
    ...runs.map((run) => h("span", {}, sample("plain", run.kind), run.name)));
}

// Full model, without FFN, without attention: now, and in the runs to compare with. Chance lines stand in each bar.
export function ablationTable(runs, chance) {
  const names = Object.keys(chance), others = runs.slice(0, -1), own = runs.at(-1);
  const bar = (value) => h("div", { class: "lab-bar" },
    h("div", { class: "lab-fill", style: `width:${100 * (value ?? 0)}%` }),
    ...names.map((name) => h("i", { class: "lab-chance", style: `left:${100 * chance[name]}%` })));
  return h("table", { class: "lab-ablation" },
    h("caption", {}, `Share of right answers; the thin lines are chance: ${names.map((n) => `${n} ${percent(chance[n])}`).join(", ")}.`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), h("td", {}), h("th", { scope: "col" }, own?.name ?? ""), ...others.map((run) => h("th", { scope: "col" }, run.name)))),
    h("tbody", {}, ...SERIES.map((one) => {
      const value = own?.rows.at(-1)?.[one.key];
      return h("tr", { class: `lab-${one.mark}` }, h("th", { scope: "row" }, one.label), h("td", {}, bar(value)), h("td", {}, percent(value)),
        ...others.map((run) => h("td", {}, percent(run.rows.at(-1)?.[one.key]))));
    })));
}

// How many answers each expert computed in the last measurement.
export function loadBars(loads) {
  const whole = loads.reduce((a, b) => a + b, 0) || 1;
  const bars = loads.map((load) =>
    h("li", {}, h("div", { class: "lab-bar" }, h("div", { class: "lab-fill", style: `width:${(100 * load) / whole}%` }), h("i", { class: "lab-chance", style: `left:${100 / loads.length}%` })), h("span", {}, percent(load / whole))));
  return [h("ol", { class: "lab-loads", start: 1 }, ...bars), h("p", {}, "Share of the answers that each expert computes; the thin line is an even load.")];
}

// How many tokens every node of every tree has seen in the last measurement: a row a level, the root on top.
export function treePictures(visits, depth) {
  const nodes = 2 ** (depth + 1) - 1, wide = 64, tall = 9, first = 2 ** depth - 1;
  const trees = Array.from({ length: visits.length / nodes }, (_, tree) => visits.slice(tree * nodes, (tree + 1) * nodes));
  const idle = trees.flatMap((seen) => seen.slice(first)).filter((count) => !count).length, leaves = trees.length * 2 ** depth;
  const box = h("div", { class: "lab-trees" }, ...trees.map((seen, tree) => {
    const most = Math.max(...seen.slice(first)) / seen[0];
    const picture = s("svg", { viewBox: `0 0 ${wide} ${tall * (depth + 1)}`, role: "img", "aria-label": `Tree ${tree + 1}: its fullest leaf has ${percent(most)} of the answers.` });
    for (let level = 0, node = 0; level <= depth; level++)
      for (let i = 0; i < 2 ** level; i++, node++) {
        const width = wide / 2 ** level;
        picture.append(s("rect", { class: "lab-cell", x: i * width, y: level * tall, width: width - 0.5, height: tall - 0.5, "fill-opacity": (seen[node] / seen[0]).toFixed(3) }));
      }
    return picture;
  }));
  return [box, h("p", {}, `A row is a level of a tree, its root on top; the darker a node, the more answers pass through it. ${idle} of ${leaves} leaves are reached by none.`)];
}

// Each head's attention: a row an answer, a column a token that it may look at.
export function patternPictures(look, words, task, answers) {
  const cell = 22, heads = task.heads, columns = task.length, rows = task.readOut.length;
  const style = `font-size: ${columns > 6 ? 13 : 11}px`; // of many tokens the picture is the smaller, and a token short
  return Array.from({ length: heads }, (_, head) => {
    const weight = (r, t) => look.pattern[(r * heads + head) * columns + t];
    const strongest = answers.map((name, r) => {
      const row = Array.from({ length: columns }, (_, t) => weight(r, t)), most = Math.max(...row);
      return `answer ${name} looks at position ${row.indexOf(most)} (${words[row.indexOf(most)]}) ${percent(most)}`;
    });
    const picture = s("svg", { viewBox: `0 0 ${(columns + 1.4) * cell} ${(rows + 1) * cell}`, style, role: "img", "aria-label": `Head ${head + 1}: ${strongest.join("; ")}.` });
    words.forEach((word, t) => picture.append(s("text", { x: (t + 1.9) * cell, y: cell * 0.7, "text-anchor": "middle" }, word)));
    for (let r = 0; r < rows; r++) {
      picture.append(s("text", { x: cell * 1.2, y: (r + 1.7) * cell, "text-anchor": "end" }, answers[r]));
      for (let t = 0; t < columns; t++)
        picture.append(s("rect", { class: "lab-cell", x: (t + 1.4) * cell, y: (r + 1) * cell, width: cell - 1, height: cell - 1, "fill-opacity": weight(r, t).toFixed(3) }));
    }
    return h("figure", { class: "lab-head" }, picture, h("figcaption", {}, `Head ${head + 1}`));
  });
}

// What the model answers to one input, whole and with parts taken out; a wrong answer is struck through.
export function predictionTable(look, targets, taskName, answers) {
  const kinds = [["full", "Full model"], ["noFfn", "Without FFN"], ["noAttention", "Without attention"], ["switched", "With your switches"]];
  const row = ([key, label]) => look.predictions[key] && h("tr", {}, h("th", { scope: "row" }, label), ...look.predictions[key].map((p, i) => {
    const right = p === targets[i], word = answerWord(taskName, p);
    return right ? h("td", {}, word) : h("td", { class: "lab-wrong" }, h("s", {}, word), h("span", { class: "lab-hidden" }, " (wrong)"));
  }));
  return h("table", { class: "lab-predictions" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Right answer"), ...answers.map((word) => h("th", { scope: "col" }, word)))),
    h("tbody", {}, ...kinds.map(row), look.experts && h("tr", {}, h("th", { scope: "row" }, "Experts"), ...targets.map((_, i) => {
      const k = look.experts.length / targets.length;
      return h("td", {}, look.experts.slice(i * k, (i + 1) * k).map((e) => e + 1).join(", "));
    }))));
}

// Share of a unit's power at each frequency, averaged over the units that are not constant.
export function spectrumChart(spectrum, width) {
  const height = 130, left = 40, bottom = 24, many = spectrum.share.length, most = Math.max(0.05, ...spectrum.share);
  const strong = spectrum.share.map((v, k) => [v, k + 1]).sort((a, b) => b[0] - a[0]).slice(0, 5).map(([v, k]) => `${k}: ${percent(v)}`);
  const step = (width - left - 8) / many;
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Fourier spectrum of the FFN's units; strongest frequencies ${strong.join(", ")}.` });
  spectrum.share.forEach((value, k) => {
    const tall = ((height - bottom - 10) * value) / most;
    picture.append(s("rect", { class: "lab-cell", x: left + k * step, y: height - bottom - tall, width: Math.max(1, step - 1), height: tall }));
    if (k % 5 === 4 || k === 0) picture.append(s("text", { x: left + (k + 0.5) * step, y: height - 7, "text-anchor": "middle" }, String(k + 1)));
  });
  picture.append(s("text", { x: left - 5, y: 14, "text-anchor": "end" }, percent(most)));
  return picture;
}

// Every measurement as numbers, for those who would rather read than look.
export function numbers(rows, heldOut) {
  const columns = [["step", "Step", String], ["loss", "Loss", (v) => v?.toPrecision(3) ?? "–"], ...[...SERIES, ...(heldOut ? [HELD_OUT] : [])].map((one) => [one.key, one.label, percent]), ["exact", "All answers right", percent]];
  return h("table", {}, h("thead", {}, h("tr", {}, ...columns.map(([, label]) => h("th", { scope: "col" }, label)))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...columns.map(([key, , word]) => h("td", {}, word(row[key])))))));
}
