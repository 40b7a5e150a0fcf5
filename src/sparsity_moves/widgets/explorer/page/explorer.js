// All the runs: choices above, points and their curves side by side, the brushed runs' attention and table below.

const REST = 150; // milliseconds without a change after which table, attention and sentence follow
const ROWS = 40; // of the table at a time
const PATTERNS = 2; // models whose attention is shown

// Builds the view inside of `el`. `given`: {index, load(key) → chunk, links, selected(ids)}. Returns how to end it.
export function mount(el, given) {
  const { index } = given, names = { ...axes(index), ...index.drawn };
  let view = firstView(index), models = null, found = null, scale = null, drag = null, turn = 0, waiting = 0, resting = 0, changed = false, rows = ROWS, notice = "";
  const parts = new Map(); // chunk key → what it holds, or a promise of it

  const pick = (name, options) => h("select", { name, onchange: (e) => change({ [name]: e.target.value, ...(["task", "x", "y", "moment"].includes(name) ? { box: null } : {}) }) }, ...Object.entries(options).map(([value, word]) => h("option", { value }, word)));
  const fields = {
    task: pick("task", Object.fromEntries(Object.entries(index.tasks).filter(([task]) => index.keys.some((key) => key.startsWith("runs-") && key.endsWith(`-${task}`))))),
    source: pick("source", { both: "both", ...index.sources }),
    moment: pick("moment", index.moments), x: pick("x", axes(index)), y: pick("y", axes(index)), curve: pick("curve", index.drawn),
  };
  const labels = { task: "Task", source: "Runs of", moment: "At", x: "Across", y: "Up", curve: "Over training" };
  const seeds = h("input", { name: "seeds", size: 12, maxlength: 200, placeholder: "all", autocomplete: "off", spellcheck: "false", oninput: typed });
  const problem = h("p", { role: "alert" });
  const edges = ["from", "to", "from ", "to "].map((word, i) => h("input", { type: "number", step: "any", "aria-label": `${i < 2 ? "across" : "up"}, ${word.trim()}`, oninput: edged }));
  const clear = h("button", { type: "button", onclick: () => change({ box: null }) }, "Clear the brush");
  const armBoxes = h("div", { class: "runs-arms", tabindex: 0, role: "group", "aria-label": "Arms" });
  const armTitle = h("summary", {}, "Arms");
  const state = h("p", { class: "runs-state" }), spoken = h("p", { class: "runs-hidden", role: "status" });
  // Their names before there is anything to draw; with the runs, what is drawn.
  const scatter = h("canvas", { class: "runs-points", role: "img", "aria-label": "Every run" }), lines = h("canvas", { role: "img", "aria-label": "Over training" });
  const curveNote = h("p", {}), heads = h("div", {}), table = h("div", { class: "runs-scroll", tabindex: 0, role: "region", "aria-label": "The brushed runs" });
  const csv = h("a", { download: "runs.csv", href: "#" }, "Data of these runs (CSV)"), link = given.links ? h("a", { href: "#" }, "Link to this view") : null;
  const choose = (which) => () => change({ arms: which() });

  el.replaceChildren(h("style", {}, CSS), h("div", { class: "runs" },
    h("div", { class: "runs-choices" }, ...Object.entries(fields).map(([name, field]) => h("label", {}, labels[name], field)), h("label", {}, "Seeds, as in 0-9, 42", seeds)),
    problem,
    h("details", {}, armTitle, h("div", { class: "runs-actions" },
      h("button", { type: "button", onclick: choose(() => new Set(models?.arms.keys())) }, "All arms"), h("button", { type: "button", onclick: choose(() => null) }, "Those of the first result"), h("button", { type: "button", onclick: choose(() => new Set()) }, "None")), armBoxes),
    h("fieldset", {}, h("legend", {}, "Brush: drag over the points (by touch: begin sideways), or type its edges"),
      h("div", { class: "runs-brush" }, ...edges.map((field, i) => h("label", {}, h("span", { "aria-hidden": true }, `${i < 2 ? "Across" : "Up"}, ${i % 2 ? "to" : "from"}`), field)), clear)),
    state, spoken,
    h("div", { class: "runs-pictures" }, h("div", {}, h("h2", {}, "Every run"), scatter), h("div", {}, h("h2", {}, "Over training"), lines, curveNote)),
    h("h2", {}, "Attention"), heads, h("h2", {}, "The brushed runs"), h("div", { class: "runs-actions" }, csv, link), table));

  function change(some) {
    if ("task" in some && some.task !== view.task) some = { arms: null, picks: [], ...some };
    view = { ...view, ...some };
    rows = ROWS;
    notice = "";
    show();
  }

  // The fields as the view has them; loads what the view needs.
  async function show() {
    const mine = ++turn;
    for (const [name, field] of Object.entries(fields)) field.value = view[name];
    if (document.activeElement !== seeds) seeds.value = view.seeds;
    edges.forEach((field, i) => { if (document.activeElement !== field) field.value = view.box && Math.abs(view.box[i]) < FAR ? Number(view.box[i].toPrecision(4)) : ""; });
    if (models?.task !== view.task) {
      models = found = scale = drag = null; // nothing of another task is brushed, saved or pointed at
      state.textContent = "Loading the runs.";
      try {
        const keys = index.keys.filter((key) => key.startsWith("runs-") && key.endsWith(`-${view.task}`)).sort().reverse();
        const got = await Promise.all(keys.map(async (key) => ({ source: key.split("-")[1], chunk: await given.load(key) })));
        if (mine !== turn) return;
        models = Object.assign(new Models(got), { task: view.task });
      } catch (error) {
        state.textContent = String(error.message ?? error);
        return;
      }
    }
    listArms();
    soon();
  }

  function listArms() {
    const wanted = chosen(models, view, index).arms;
    const flip = (arm) => (e) => {
      const arms = new Set(wanted);
      e.target.checked ? arms.add(arm) : arms.delete(arm);
      change({ arms });
    };
    armTitle.textContent = `Arms: ${[...models.arms.keys()].filter((arm) => wanted.has(arm)).length} of ${models.arms.size}`;
    const held = document.activeElement?.name;
    armBoxes.replaceChildren(...[...models.arms].map(([arm, style]) => h("label", {}, h("input", { type: "checkbox", name: `arm ${arm}`, checked: wanted.has(arm), onchange: flip(arm) }), sample(style), style.label)));
    if (held?.startsWith("arm ")) armBoxes.querySelector(`[name="${CSS_ESCAPE(held)}"]`)?.focus();
  }

  function typed() {
    const read = readSeeds(seeds.value);
    problem.textContent = read ? "" : "Seeds are numbers and ranges, as in 0-9, 42.";
    if (read) change({ seeds: seeds.value });
  }

  function edged() {
    const values = edges.map((field) => (field.value === "" ? NaN : Number(field.value)));
    if (values.every(Number.isNaN)) return change({ box: null });
    const wide = [-FAR, FAR, -FAR, FAR];
    change({ box: values.map((v, i) => (Number.isNaN(v) ? wide[i] : v)) });
  }

  // What is slower to read follows the picture when the brush rests: never before it, since frames may be late and
  // stand still behind another tab, while clocks go on.
  function soon() {
    clearTimeout(resting);
    changed = true;
    picture();
  }

  function picture() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      draw();
      if (changed) resting = setTimeout(rest, REST);
      changed = false;
    });
  }

  function draw() {
    if (!models) return;
    const ink = getComputedStyle(el).color;
    found = chosen(models, view, index);
    const named = (name, unit) => names[name] + (unit === 100 ? " (%)" : "");
    scale = points(scatter, models, view, found, [named(view.x, found.sx), named(view.y, found.sy)], ink);
    const there = curves(lines, models, view, found, names[view.curve], ink);
    curveNote.textContent = there.summed ? "Line and band: mean and whole range of an arm's brushed runs; dashed: this computer." : "One line a run; dashed: this computer.";
    if (there.there < found.brushed.length) curveNote.textContent += ` ${there.there} of ${found.brushed.length} curves are loaded.`;
    state.textContent = notice || (models.size ? `${count(found.brushed.length)} of ${count(models.size)} runs brushed.` : "");
  }

  function rest() {
    if (!found) return;
    const of = {};
    for (const i of found.brushed) of[models.arm[i]] = (of[models.arm[i]] ?? 0) + 1;
    const arms = Object.entries(of).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([arm, n]) => `${models.arms.get(arm).label} ${n}`);
    spoken.textContent = `${state.textContent} ${arms.join(", ")}.`;
    scatter.setAttribute("aria-label", `${names[view.y]} against ${names[view.x]}, ${index.moments[view.moment]}: ${found.shown.length} points, ${found.brushed.length} brushed: ${arms.join(", ") || "none"}.`);
    lines.setAttribute("aria-label", `${names[view.curve]} over training steps, of the brushed runs.`);
    list();
    if (link) link.setAttribute("href", `#runs=${writeView(view)}`);
    given.selected?.(found.brushed.map((i) => models.id[i]));
    for (const i of found.brushed) fetchCurves(models.curveKey(view.task, i));
    attend();
  }

  function fetchCurves(key) {
    if (models.curves.has(key)) return;
    models.curves.set(key, null);
    const mine = models;
    given.load(key).then((chunk) => {
      mine.takeCurves(key, chunk);
      if (mine === models) picture();
    }, (error) => (curveNote.textContent = error.message));
  }

  async function attend() {
    const mine = turn, of = models, task = view.task;
    const all = found.brushed.filter((i) => of.attends(i));
    const some = [...all.filter((i) => view.picks.includes(of.id[i])), ...all.filter((i) => !view.picks.includes(of.id[i]))].slice(0, PATTERNS);
    let built;
    try {
      built = await Promise.all(some.map(async (i) => {
        const key = `attention-${of.source[i]}-${task}`;
        if (!parts.has(key)) parts.set(key, given.load(key));
        const own = (await parts.get(key))[of.place[i]];
        return h("section", { class: "runs-attention" }, h("p", {}, `${of.name(i)}, ${index.sources[of.source[i]]}, at ${index.moments[own.moment]}`), h("div", { class: "runs-heads" }, ...patterns(own)));
      }));
    } catch (error) {
      built = [h("p", {}, error.message)];
    }
    if (mine !== turn) return;
    const why = all.length > PATTERNS ? `${all.length} of the brushed runs have their parameters stored; tick runs in the table to see theirs.` : "The mean over inputs: a row an answer, a column the token it looks at.";
    heads.replaceChildren(h("p", {}, all.length ? why : "Of none of the brushed runs are the parameters stored, so there is no attention to show."), ...built);
  }

  const value = (v, unit) => (unit === 100 ? percent(v) : String(Number(v.toPrecision(5))));
  const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

  function list() {
    const first = [...found.brushed].sort((a, b) => view.picks.includes(models.id[b]) - view.picks.includes(models.id[a])).slice(0, rows);
    const flip = (id) => (e) => change({ picks: e.target.checked ? [...view.picks, id].slice(-20) : view.picks.filter((one) => one !== id) });
    const settings = (i) => models.varied.filter((name) => name in models.settings[i]).map((name) => `${name} ${models.settings[i][name]}`).join(", ");
    const head = ["Run", "Of", names[view.x], names[view.y], "Attention", "Study", "Settings"];
    const held = document.activeElement?.name;
    const more = found.brushed.length > rows && h("button", { type: "button", onclick: () => { rows += ROWS; list(); } }, `Show more of the ${count(found.brushed.length)} runs`);
    table.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, ...head.map((word) => h("th", { scope: "col" }, word)))),
      h("tbody", {}, ...first.map((i) => h("tr", {},
        h("td", {}, h("label", {}, h("input", { type: "checkbox", name: models.id[i], checked: view.picks.includes(models.id[i]), onchange: flip(models.id[i]) }), sample(models.arms.get(models.arm[i])), models.name(i))),
        h("td", {}, index.sources[models.source[i]]), h("td", {}, value(found.xs[i], found.sx)), h("td", {}, value(found.ys[i], found.sy)),
        h("td", {}, models.attends(i) ? "stored" : "–"), h("td", {}, models.study[i]), h("td", {}, settings(i)))))), more || "");
    if (/^[0-9a-f]{16}$/.test(held ?? "")) table.querySelector(`[name="${held}"]`)?.focus();
  }

  // The selection as a file, made when it is asked for, also where it is not drawn yet.
  csv.addEventListener("click", (e) => {
    if (!models) return e.preventDefault(); // no runs yet
    if (csv.href.startsWith("blob:")) URL.revokeObjectURL(csv.href);
    csv.href = URL.createObjectURL(new Blob([table_of(models, view, chosen(models, view, index), index)], { type: "text/csv" }));
  });

  const at = (e) => {
    const box = scatter.getBoundingClientRect();
    return [e.clientX - box.left, e.clientY - box.top];
  };
  scatter.addEventListener("pointerdown", (e) => {
    if (!scale || e.button) return;
    drag = { from: at(e), before: view.box, moved: false };
    scatter.setPointerCapture(e.pointerId);
  });
  scatter.addEventListener("pointermove", (e) => {
    if (!drag) return;
    const [a, b] = drag.from, [x, y] = at(e);
    if (Math.hypot(x - a, y - b) < 4 && !drag.moved) return;
    drag.moved = true;
    const xs = [scale.back.x(a), scale.back.x(x)].sort((p, q) => p - q), ys = [scale.back.y(b), scale.back.y(y)].sort((p, q) => p - q);
    view = { ...view, box: [...xs, ...ys] };
    soon();
  });
  scatter.addEventListener("pointerup", (e) => {
    const ended = drag;
    drag = null;
    if (!ended) return;
    if (ended.moved) return change({ box: view.box });
    const [x, y] = at(e), near = nearest(x, y);
    if (near === null) return change({ box: null });
    const id = models.id[near];
    change({ picks: view.picks.includes(id) ? view.picks.filter((one) => one !== id) : [...view.picks, id].slice(-20) });
  });
  scatter.addEventListener("pointercancel", () => { // the finger scrolls the page
    if (drag) change({ box: drag.before });
    drag = null;
  });

  function nearest(x, y) {
    let best = null, least = 12;
    for (const i of found.shown) {
      const far = Math.hypot(scale.x(found.xs[i] * found.sx) - x, scale.y(found.ys[i] * found.sy) - y);
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  async function followLink() {
    if (!given.links || !location.hash.startsWith("#runs=")) return show();
    let text = "";
    try { text = decodeURIComponent(location.hash.slice(6)); } catch { /* not an address: refused below */ }
    const wanted = readView(text, index);
    if (wanted) view = wanted;
    await show();
    const strange = [...(wanted?.arms ?? [])].filter((arm) => models && !models.arms.has(arm));
    if (wanted && !strange.length) return;
    notice = "The link asks for something that this page does not have, so it shows its own view.";
    if (wanted) view = firstView(index);
    const kept = notice;
    await show();
    notice = kept;
    soon();
  }

  followLink();
  addEventListener("hashchange", followLink);
  const resized = new ResizeObserver(soon), themed = new MutationObserver(soon), dark = matchMedia("(prefers-color-scheme: dark)");
  resized.observe(scatter);
  themed.observe(document.documentElement, { attributes: true });
  dark.addEventListener("change", soon);
  return () => {
    removeEventListener("hashchange", followLink);
    resized.disconnect();
    themed.disconnect();
    dark.removeEventListener("change", soon);
  };
}

const CSS_ESCAPE = (text) => globalThis.CSS.escape(text);

// Brushed runs as CSV: what they are, every measure at the moment, every setting.
export function table_of(models, view, found, index) {
  const measures = Object.keys(index.measures), settings = [...new Set(found.brushed.flatMap((i) => Object.keys(models.settings[i])))];
  const cell = (v) => (v === undefined || v === null || Number.isNaN(v) ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v));
  const six = (v) => (Number.isInteger(v) ? v : Number(v.toPrecision(6)));
  const lines = found.brushed.map((i) => [models.id[i], models.source[i], view.task, models.arm[i], models.seed[i], models.study[i], view.moment,
    ...measures.map((name) => six(models.column(name, view.moment)[i])), ...settings.map((name) => models.settings[i][name])]);
  return [["spec_id", "source", "task", "arm", "seed", "study", "moment", ...measures, ...settings], ...lines].map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

// In JupyterLab the kernel sends the chunks, and is told what is brushed.
export default {
  render({ model, el }) {
    const asked = new Map();
    model.on("msg:custom", ({ key, chunk }) => asked.get(key)?.(chunk));
    const load = (key) => new Promise((resolve) => {
      asked.set(key, resolve);
      model.send({ load: key });
    });
    const selected = (ids) => { model.set("selected", ids); model.save_changes(); };
    return mount(el, { index: model.get("index"), load, selected, links: false });
  },
};
