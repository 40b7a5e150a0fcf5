// The bench: two trained models side by side, the same changes in both, and what is left of them.

const DRAG = 60; // milliseconds that a control must rest before it is heard
const PRESETS = [["Without FFN", { ffn: "z" }], ["Without attention", { attention: "z" }], ["FFN at its mean", { ffn: "m" }], ["All as trained", {}]];

// Builds the bench inside of `el`. `given`: {load(name), links, measured(choice, rows)}; `load` promises a model's numbers
// as text. Returns how to end it.
export function mount(el, given) {
  const why = obstacle(" Taking models apart needs a current browser; the chapters have what is left of each without its parts.");
  let choice = firstChoice(), notice = "", waiting = 0, coming = 0, told = "", drawn = new Map();
  const opened = why ? [] : [new Opened(given.load, soon), new Opened(given.load, soon)];

  const status = h("p", { class: "lab-state" });
  const spoken = h("p", { class: "lab-hidden", role: "status" });
  const fields = h("div", { class: "bench-choices" });
  const knobs = h("fieldset", {}), routeHint = h("p", {});
  const problem = h("p", { role: "alert", class: "lab-problem" });
  const link = given.links ? h("a", {}, "Link to this setting") : null;
  const typed = (name) => h("input", { type: "text", name, size: 14, maxlength: 40, autocomplete: "off", spellcheck: "false", oninput: type });
  const input = typed("input"), donor = typed("donor");
  const scroll = (label, place) => h("div", { class: "lab-scroll", tabindex: 0, role: "region", "aria-label": label }, place);
  const places = Object.fromEntries(["accuracy", "places", "answers"].map((name) => [name, h("div", {})]));
  const heads = [h("div", { class: "lab-heads" }), h("div", { class: "lab-heads" })];
  const headTitles = [h("h3", {}), h("h3", {})];
  const placesPanel = panel("Digit by digit", scroll("Digit by digit", places.places));

  el.replaceChildren(h("style", {}, CSS), h("div", { class: "lab bench" },
    why && h("p", { class: "lab-why" }, why),
    fields, knobs,
    h("div", { class: "lab-actions" }, ...PRESETS.map(([word, change]) => h("button", { type: "button", onclick: () => choose({ ...choice, ...untouched(choice.task), ...change }) }, word)), link),
    status, spoken,
    h("div", { class: "lab-panels" },
      panel("What is left, on all inputs", places.accuracy),
      panel("One input", h("div", { class: "lab-typed" }, h("label", {}, "Input ", input), h("label", {}, "Donor ", donor)), problem, scroll("Answers", places.answers),
        h("p", {}, "A part \u201cfrom the donor\u201d is what it is in the untouched model's run on the donor, at the same position.")),
      placesPanel),
    panel("Where each head looks, for this input", h("div", { class: "bench-looks" }, ...headTitles.map((title, i) => h("div", {}, title, heads[i]))),
      h("p", {}, "With one layer, attention looks at the symbols themselves: nothing that is changed here changes where it looks."))));

  const group = (...children) => h("div", { class: "bench-knobs" }, ...children);
  const select = (name, label, options, wide) => h("label", { class: wide ? "bench-wide" : null }, label,
    h("select", { name, onchange: (event) => picked(name, event.target.value) }, ...options.map(([key, word]) => h("option", { value: key }, word))));

  // The controls are made anew where the task changes, else only set.
  function controls(fresh) {
    const { task } = choice, own = CONFIG.models.filter((model) => model.task === task).map((model) => [model.name, model.label]);
    const ways = Object.entries(WAYS), several = (name, many, label) => Array.from({ length: many }, (_, i) => select(`${name}-${i}`, `${label} ${i + 1}`, ways));
    if (fresh) {
      fields.replaceChildren(
        select("task", "Task", Object.keys(CONFIG.tasks).map((name) => [name, name.replace("_", " ").replace("add7", "add-7")])),
        select("model", "Model", own), select("beside", "Beside it", own));
      knobs.replaceChildren(h("legend", {}, "Change, in both"),
        group(select("attention", "Attention", ways), select("ffn", "FFN", ways),
          expertsOf(task) ? select("router", "Router sends", Object.entries(routes(expertsOf(task))), true) : null),
        group(...several("heads", headsOf(task), "Head")), group(...several("experts", expertsOf(task), "Expert")),
        routeHint);
    }
    for (const field of [...fields.querySelectorAll("select"), ...knobs.querySelectorAll("select")]) {
      const [name, i] = field.name.split("-");
      field.value = i === undefined ? choice[name] : choice[name][Number(i)];
    }
    shown().forEach((facts, i) => (headTitles[i].textContent = facts.label));
    const dense = shown().filter((model) => model.setup[6] === 1).map((model) => model.short);
    routeHint.textContent = expertsOf(task) && dense.length ? `${[...new Set(dense)].join(" and ")}: no experts and no router, so those two kinds of switches leave ${dense.length > 1 ? "them" : "it"} whole.` : "";
    if (document.activeElement !== input) input.value = choice.input;
    if (document.activeElement !== donor) donor.value = choice.donor;
  }

  const shown = () => [modelNamed(choice.model), modelNamed(choice.beside)];

  function picked(name, value) {
    const [field, i] = name.split("-");
    if (field === "task") return choose(firstChoice(value));
    if (i === undefined) return choose({ ...choice, [field]: value });
    const letters = [...choice[field]];
    letters[Number(i)] = value;
    choose({ ...choice, [field]: letters.join("") });
  }

  function choose(wanted, fresh = wanted.task !== choice.task) {
    choice = wanted;
    notice = "";
    problem.textContent = "";
    controls(fresh);
    link?.setAttribute("href", `#bench=${writeChoice(choice)}`);
    clearTimeout(coming);
    coming = setTimeout(ask, DRAG);
    soon();
  }

  function ask() {
    coming = 0;
    told = "";
    const read = [choice.input, choice.donor].map((text) => readInput(choice.task, text));
    const { attention, ffn, heads: ofHeads, experts, router } = choice;
    shown().forEach((facts, i) => opened[i]?.ask(facts, concerns(choice, facts) ? { attention, ffn, heads: ofHeads, experts, router } : null, ...read));
    soon();
  }

  function type() {
    const read = [input, donor].map((field) => readInput(choice.task, field.value));
    const wrong = read.find((one) => one.problem);
    if (wrong) return (problem.textContent = wrong.problem);
    choose({ ...choice, input: input.value, donor: donor.value });
  }

  // What is known of a model that is chosen; nothing while another's numbers are still there.
  function current(model, i) {
    if (model.asked !== shown()[i]) return {};
    const { tokens } = readInput(choice.task, choice.input), { untouched, changed, wish } = model;
    return { untouched, changed, wish, look: String(model.look?.tokens) === String(tokens) ? model.look : null };
  }

  function rows() {
    const names = shown().map((facts) => facts.short), same = names[0] === names[1] ? shown().map((facts) => facts.label) : names;
    return opened.map(current).flatMap((model, i) => {
      const changed = isChanged(choice) ? [{ name: same[i], model: shown()[i].name, kind: "changed", count: model.wish?.change ? model.changed : model.untouched, look: model.wish?.change ? model.look?.changed : model.look?.untouched }] : [];
      return [{ name: same[i], model: shown()[i].name, kind: "whole", count: model.untouched, look: model.look?.untouched }, ...changed];
    });
  }

  function soon() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      draw();
    });
  }

  // Redraws only what says something else than before.
  function put(place, key, make) {
    const now = JSON.stringify(key);
    if (drawn.get(place) === now) return;
    drawn.set(place, now);
    place.replaceChildren(...[make()].flat());
  }

  function draw() {
    if (why) return;
    const task = CONFIG.tasks[choice.task], all = rows(), trouble = opened.find((model) => model.problem)?.problem;
    const counts = all.map((row) => row.count), every = counts.find(Boolean)?.every;
    const done = every ? Math.min(...counts.map((count) => count?.done ?? 0)) : 0, settled = !coming && opened.every((model) => model.settled);
    const sentence = all.map((row) => `${kindOf(row)} ${percent(share(row.count, task.scored))}`).join("; ");
    if (notice) status.textContent = notice;
    else if (trouble) status.textContent = trouble;
    else if (!every) status.textContent = "Loading the models.";
    else if (settled) status.textContent = `Measured on all ${every} inputs.`;
    else status.textContent = `Measured on ${done} of ${every} inputs so far.`;
    if ((settled || trouble) && told !== sentence + trouble) {
      told = sentence + trouble;
      spoken.textContent = trouble ?? `On all ${every} inputs, right answers: ${sentence}.`;
      if (!trouble) given.measured?.(choice, all.map((row) => ({ model: row.model, changed: row.kind === "changed", inputs: every, accuracy: share(row.count, task.scored), exact_match: row.count.exact / every })));
    }
    put(places.accuracy, [choice.task, all.map((row) => [row.name, row.kind, row.count])], () => accuracyTable(all, task));
    placesPanel.hidden = choice.task !== "add7";
    if (!placesPanel.hidden) put(places.places, all.map((row) => [row.name, row.kind, row.count]), () => placesTable(all, task));
    const { targets, words } = readInput(choice.task, choice.input);
    put(places.answers, [choice.task, targets, all.map((row) => [row.name, row.kind, row.look?.answers, row.look?.experts])], () => answersTable(all, targets, choice.task));
    opened.forEach((model, i) => {
      const look = current(model, i).look?.untouched, facts = shown()[i];
      put(heads[i], [choice.task, words, look?.pattern], () => look ? patternPictures(look, words, { ...task, heads: facts.setup[4] }, targets.map((target) => answerWord(choice.task, target))) : h("p", {}, "…"));
    });
  }

  function followLink() {
    if (!given.links || !location.hash.startsWith("#bench=")) return false;
    const wanted = readChoice(location.hash.slice(7));
    if (wanted && writeChoice(wanted) === writeChoice(choice)) return false;
    if (wanted) choose(wanted);
    else {
      choose(choice);
      notice = spoken.textContent = "The link asks for something that the bench does not have, so nothing was changed.";
    }
    return true;
  }

  choose(choice, true);
  followLink();
  addEventListener("hashchange", followLink);
  return () => {
    removeEventListener("hashchange", followLink);
    clearTimeout(coming);
    opened.forEach((model) => model.end());
  };
}

// In JupyterLab the kernel sends the models' numbers, and is told what was measured on all inputs.
export default {
  render({ model, el }) {
    const asked = new Map();
    model.on("msg:custom", ({ name, text }) => asked.get(name)?.(text));
    const load = (name) => new Promise((resolve) => {
      asked.set(name, resolve);
      model.send({ load: name });
    });
    const measured = (choice, rows) => {
      model.set("choice", choice);
      model.set("rows", rows);
      model.save_changes();
    };
    return mount(el, { load, measured, links: false });
  },
};
