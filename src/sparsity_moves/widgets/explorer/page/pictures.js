// Points and curves on canvases, attention as SVG. Drawn anew each time: all rows take a few milliseconds.

const MANY = 60; // selected runs; beyond it a mean and a range for each arm
const SIDES = { left: 46, right: 10, top: 8, bottom: 34 };

// A canvas sharp on every screen, cleared; its size in CSS pixels.
function fresh(canvas) {
  const width = canvas.clientWidth || 320, height = canvas.clientHeight || 280, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

export function ticks(low, high) {
  const rough = (high - low) / 4 || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

const short = (v) => (Math.abs(v) >= 1e5 ? `${Number((v / 1e6).toPrecision(3))}M` : Math.abs(v) >= 1e4 ? `${v / 1e3}k` : String(Number(v.toPrecision(4))));

// Of the values of some models, times their unit, with a margin; shares stay about within 0 and 100.
export function extent(values, which, unit) {
  let low = Infinity, high = -Infinity;
  for (const i of which) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  if (low > high) return [0, unit];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1 / unit;
  return [low - room, high + room].map((v) => v * unit);
}

function frame({ pen, width, height }, ink, [x0, x1], [y0, y1], xName, yName) {
  const { left, right, top, bottom } = SIDES;
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - top - bottom);
  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.fillStyle = pen.strokeStyle = ink;
  for (const [values, along] of [[ticks(x0, x1), true], [ticks(y0, y1), false]])
    for (const v of values) {
      pen.globalAlpha = 0.18;
      pen.beginPath();
      if (along) pen.moveTo(x(v), top), pen.lineTo(x(v), height - bottom);
      else pen.moveTo(left, y(v)), pen.lineTo(width - right, y(v));
      pen.stroke();
      pen.globalAlpha = 1;
      pen.textAlign = along ? "center" : "right";
      pen.fillText(short(v), along ? x(v) : left - 5, along ? height - bottom + 14 : y(v) + 4);
    }
  pen.textAlign = "right";
  pen.fillText(xName, width - right, height - 4);
  pen.textAlign = "left";
  pen.fillText(yName, left + 4, top + 12);
  return { x, y, back: { x: (p) => x0 + ((p - left) / (width - left - right)) * (x1 - x0), y: (p) => y0 + ((height - bottom - p) / (height - top - bottom)) * (y1 - y0) } };
}

// One symbol's outline around (x, y), by Vega's names or as a path of straight lines.
function symbol(pen, shape, x, y, r) {
  const path = (...points) => {
    points.forEach(([a, b], i) => (i ? pen.lineTo(x + a * r, y + b * r) : pen.moveTo(x + a * r, y + b * r)));
    pen.closePath();
  };
  if (shape === "square") path([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]);
  else if (shape === "diamond") path([0, -1.3], [1, 0], [0, 1.3], [-1, 0]);
  else if (shape === "cross") path([-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]);
  else if (shape === "triangle-down") path([-1.1, -0.9], [1.1, -0.9], [0, 1.1]);
  else if (shape === "triangle-left") path([-1.1, 0], [0.9, -1.1], [0.9, 1.1]);
  else if (shape === "triangle-right") path([1.1, 0], [-0.9, -1.1], [-0.9, 1.1]);
  else if (shape[0] === "M") path(...shape.slice(1, -1).split("L").map((point) => point.split(",").map(Number)));
  else if (shape === "arrow") path([0, -1.3], [0.9, 0], [0.3, 0], [0.3, 1.2], [-0.3, 1.2], [-0.3, 0], [-0.9, 0]);
  else if (shape === "triangle-up") path([0, -1.1], [1.1, 0.9], [-1.1, 0.9]);
  else {
    pen.moveTo(x + r, y);
    pen.arc(x, y, r, 0, 7);
  }
}

// A symbol for a list: SVG, since each canvas is a layer of its own to the browser, and a hundred hold up the page.
export function sample({ colour, shape }) {
  const steps = [], pen = {
    moveTo: (x, y) => steps.push(`M${x} ${y}`), lineTo: (x, y) => steps.push(`L${x} ${y}`), closePath: () => steps.push("Z"),
    arc: (x, y, r) => steps.push(`A${r} ${r} 0 0 0 ${x - r} ${y}A${r} ${r} 0 0 0 ${x + r} ${y}`),
  };
  symbol(pen, shape, 14, 14, 9);
  return s("svg", { viewBox: "0 0 28 28", class: "runs-sample", "aria-hidden": true }, s("path", { d: steps.join(""), fill: colour }));
}

// Every shown model; those outside of the brush faint, the reader's own with a rim, picked ones ringed. Gives the scales back.
export function points(canvas, models, view, found, names, ink) {
  const place = fresh(canvas), { pen } = place, { xs, ys, sx, sy } = found;
  const scale = frame(place, ink, extent(xs, found.shown, sx), extent(ys, found.shown, sy), names[0], names[1]);
  const inside = new Set(found.brushed);
  const layers = new Map();
  for (const i of found.shown) {
    const key = `${models.arm[i]} ${models.source[i]} ${inside.has(i)}`;
    if (!layers.has(key)) layers.set(key, []);
    layers.get(key).push(i);
  }
  const dense = Number(/\d+/.exec(ink)) > 127 ? 0.9 : 0.65; // on a dark page, what is half transparent is half as bright
  const ordered = [...layers.values()].sort((a, b) => inside.has(a[0]) - inside.has(b[0]));
  for (const each of ordered) {
    const { colour, shape } = models.arms.get(models.arm[each[0]]), own = models.source[each[0]] === "own";
    pen.globalAlpha = inside.has(each[0]) ? (own ? 1 : dense) : 0.16;
    pen.fillStyle = colour;
    pen.beginPath();
    for (const i of each) symbol(pen, shape, scale.x(xs[i] * sx), scale.y(ys[i] * sy), own ? 5.5 : 3.6);
    pen.fill();
    if (own) {
      pen.strokeStyle = ink;
      pen.lineWidth = 1.4;
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = ink;
  pen.lineWidth = 2;
  pen.beginPath();
  for (const i of found.shown) {
    if (!view.picks.includes(models.id[i])) continue;
    pen.moveTo(scale.x(xs[i] * sx) + 8, scale.y(ys[i] * sy));
    pen.arc(scale.x(xs[i] * sx), scale.y(ys[i] * sy), 8, 0, 7);
  }
  pen.stroke();
  if (view.box) {
    const within = (v, least, most) => Math.min(most, Math.max(least, v));
    const xs = view.box.slice(0, 2).map((v) => within(scale.x(v), SIDES.left, place.width - SIDES.right));
    const ys = view.box.slice(2).map((v) => within(scale.y(v), SIDES.top, place.height - SIDES.bottom)), at = [xs[0], ys[1], xs[1] - xs[0], ys[0] - ys[1]];
    pen.setLineDash([5, 3]);
    pen.lineWidth = 1.5;
    pen.strokeRect(...at);
    pen.setLineDash([]);
    pen.globalAlpha = 0.08;
    pen.fillRect(...at);
    pen.globalAlpha = 1;
  }
  return scale;
}

// The brushed models' curves, as far as they are there: each a line, or beyond `MANY` mean and range of each arm.
export function curves(canvas, models, view, found, name, ink) {
  const place = fresh(canvas), { pen } = place, share = view.curve !== "loss", unit = share ? 100 : 1;
  const lines = [];
  let last = 1, low = Infinity, high = -Infinity;
  for (const i of found.brushed) {
    const one = models.curve(models.curveKey(view.task, i), i), values = one && drawn(one.group, view.curve);
    if (!values) continue;
    const { steps } = one.group, from = one.at * steps.length;
    lines.push({ i, values, steps, from });
    last = Math.max(last, steps.at(-1));
    if (!share)
      for (let k = 0; k < steps.length; k++) {
        const v = Math.log10(Math.max(values[from + k], 1e-9));
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
  }
  const range = share ? [0, 100] : low > high ? [-3, 1] : [low, high + (high - low) * 0.1 + 0.1];
  const scale = frame(place, ink, [0, last], range, "Training step", share ? `${name} (%)` : `${name} (log10)`);
  const up = share ? (v) => scale.y(v * unit) : (v) => scale.y(Math.log10(Math.max(v, 1e-9)));
  const groups = lines.length > MANY ? summaries(lines, models) : lines.map((one) => ({ ...one, mean: one.values.subarray(one.from, one.from + one.steps.length), n: 1 }));
  for (const { i, steps, mean, least, most } of groups) {
    pen.strokeStyle = pen.fillStyle = models.arms.get(models.arm[i]).colour;
    if (least) {
      pen.globalAlpha = 0.12;
      pen.beginPath();
      steps.forEach((step, k) => pen.lineTo(scale.x(step), up(most[k])));
      for (let k = steps.length - 1; k >= 0; k--) pen.lineTo(scale.x(steps[k]), up(least[k]));
      pen.fill();
    }
    const picked = view.picks.includes(models.id[i]) && !least;
    pen.globalAlpha = least || picked ? 1 : 0.6;
    pen.lineWidth = least ? 2.5 : picked ? 4 : 1.4;
    pen.setLineDash(models.source[i] === "own" ? [6, 3] : []);
    pen.beginPath();
    steps.forEach((step, k) => (Number.isNaN(mean[k]) ? null : pen.lineTo(scale.x(step), up(mean[k]))));
    pen.stroke();
  }
  pen.setLineDash([]);
  pen.globalAlpha = 1;
  return { there: lines.length, summed: lines.length > MANY };
}

function summaries(lines, models) {
  const sums = new Map();
  for (const { i, values, steps, from } of lines) {
    const key = `${models.arm[i]} ${models.source[i]} ${steps.length} ${steps[0]} ${steps.at(-1)}`;
    let own = sums.get(key);
    if (!own) {
      const many = steps.length;
      sums.set(key, (own = { i, steps, n: 0, mean: new Float64Array(many), least: new Float64Array(many).fill(Infinity), most: new Float64Array(many).fill(-Infinity) }));
    }
    own.n++;
    for (let k = 0; k < steps.length; k++) {
      const v = values[from + k];
      own.mean[k] += v;
      if (v < own.least[k]) own.least[k] = v;
      if (v > own.most[k]) own.most[k] = v;
    }
  }
  for (const own of sums.values()) for (let k = 0; k < own.steps.length; k++) own.mean[k] /= own.n;
  return [...sums.values()];
}

// Each head's mean pattern: a row an answer, a column a token.
export function patterns({ heads, tokens, answers, data }) {
  const cell = 26, columns = tokens.length, rows = answers.length, weights = numbers({ kind: "share", data });
  return Array.from({ length: heads }, (_, head) => {
    const at = (r, t) => weights[(head * rows + r) * columns + t];
    const said = answers.map((answer, r) => {
      const row = tokens.map((_, t) => at(r, t)), most = Math.max(...row);
      return `at ${answer} mostly ${tokens[row.indexOf(most)]}, ${percent(most)}`;
    });
    const picture = s("svg", { viewBox: `0 0 ${(columns + 1.9) * cell} ${(rows + 1) * cell}`, role: "img", "aria-label": `Head ${head + 1}: ${said.join("; ")}.` });
    tokens.forEach((word, t) => picture.append(s("text", { x: (t + 2.3) * cell, y: cell * 0.7, "text-anchor": "middle" }, word)));
    for (let r = 0; r < rows; r++) {
      picture.append(s("text", { x: cell * 1.6, y: (r + 1.65) * cell, "text-anchor": "end" }, answers[r]));
      for (let t = 0; t < columns; t++)
        picture.append(s("rect", { class: "runs-cell", x: (t + 1.8) * cell, y: (r + 1) * cell, width: cell - 1, height: cell - 1, "fill-opacity": at(r, t).toFixed(3) }));
    }
    return h("figure", {}, picture, h("figcaption", {}, `Head ${head + 1}`));
  });
}
