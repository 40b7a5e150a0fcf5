// The lab: a setting, the run it gives, and pictures of both beside the recorded and the pinned run.

const SPEEDS = [["as fast as it can", 0], ["50 steps a second", 50], ["5 steps a second", 5]];
const DRAG = 60; // milliseconds that a control must rest before its setting is trained
const QUIET = 4000; // milliseconds between two sentences for a screen reader, while it trains

// Builds the lab inside of `el`. `given`: {recorded, setting, links, finished(setting, rows)}. Returns how to end it.
export function mount(el, given) {
  const recorded = given.recorded;
  let setting = given.setting ?? recorded.setting, rows = [], look = null, pinned = null, state = "rest", now = 0;
  let notice = "", typed = null, closedHeads = 0, closedExperts = 0, trainer = null, waiting = 0, spokenAt = 0, coming = 0, wide = 420, inputWaits = 0;
  const why = obstacle();

  const status = h("p", { class: "lab-state" });
  const spoken = h("p", { class: "lab-hidden", role: "status" });
  const play = h("button", { type: "button", onclick: toggle }, "Train");
  const once = h("button", { type: "button", onclick: oneStep }, "Step");
  const again = h("button", { type: "button", onclick: () => begin(false) }, "Reset");
  const pin = h("button", { type: "button", onclick: pinRun, disabled: true }, "Pin this run");
  const speed = h("select", { onchange: () => trainer?.tell("speed", { speed: Number(speed.value) }) }, ...SPEEDS.map(([word, value]) => h("option", { value }, word)));
  const link = given.links ? h("a", {}, "Link to this setting") : null;
  const panelBox = controls(() => setting, (wanted) => choose(wanted, true));
  const input = h("input", { type: "text", size: 12, maxlength: 40, autocomplete: "off", spellcheck: "false", oninput: type });
  const problem = h("p", { role: "alert", class: "lab-problem" });
  const places = Object.fromEntries(["legend", "accuracy", "loss", "bars", "loads", "spectrum", "predictions", "heads", "switches", "numbers"].map((name) => [name, h("div", { class: `lab-${name}` })]));
  const details = h("details", { ontoggle: draw }, h("summary", {}, "All numbers"), h("div", { class: "lab-scroll", tabindex: 0, role: "region", "aria-label": "All numbers" }, places.numbers));
  const loadPanel = panel("Where answers go", places.loads);
  const spectrumPanel = panel("Fourier spectrum of the FFN's units", places.spectrum);

  el.replaceChildren(h("style", {}, CSS), h("div", { class: "lab" },
    why && h("p", { class: "lab-why" }, why),
    panelBox.box,
    h("div", { class: "lab-actions" }, play, once, again, pin, h("label", {}, "Speed ", speed), link),
    status, spoken,
    h("div", { class: "lab-panels" },
      panel("Accuracy", places.legend, places.accuracy),
      panel("Loss", places.loss),
      panel("What is left without a part", places.bars),
      loadPanel, spectrumPanel,
      panel("One input", h("div", { class: "lab-typed" }, h("label", {}, "Input ", input)), problem, h("div", { class: "lab-scroll", tabindex: 0, role: "region", "aria-label": "Predictions" }, places.predictions), places.switches),
      panel("Where each head looks", places.heads)),
    details));

  function choose(wanted, start) {
    const task = setting.task;
    setting = wanted;
    panelBox.show(setting);
    if (link) link.setAttribute("href", `#lab=${writeSetting(setting)}`);
    if (task !== setting.task || !typed) {
      input.value = FIRST_INPUT[setting.task];
      typed = readInput(setting.task, input.value);
      problem.textContent = "";
    }
    closedHeads = closedExperts = 0;
    switches();
    if (start && !why) {
      clear("training");
      trainer?.hush();
      clearTimeout(coming);
      coming = setTimeout(() => begin(state === "training"), DRAG);
    }
    draw();
  }

  function clear(next) {
    rows = [];
    look = null;
    now = 0;
    state = next;
  }

  function begin(playing) {
    if (why) return;
    notice = "";
    clearTimeout(coming);
    coming = 0;
    trainer ??= new Trainer(heard, failed, () => begin(state === "training"));
    clear(playing ? "training" : "paused");
    trainer.start(setting, playing, Number(speed.value), wish());
    draw();
  }

  function toggle() {
    if (state !== "training" && state !== "paused") return begin(true);
    state = state === "training" ? "paused" : "training";
    if (!coming) trainer.tell("play", { play: state === "training" }); // a run yet to begin begins as it is then
    report();
    draw();
  }

  function oneStep() {
    if (!trainer || state === "done" || state === "failed") begin(false);
    state = "paused";
    trainer?.tell("step");
  }

  const wish = () => [typed.tokens, closedHeads, closedExperts];

  function heard(kind, value) {
    if (kind === "row") {
      if (rows.at(-1)?.step !== value.step) rows.push(value);
      now = value.step;
      if (state === "paused") given.finished?.(setting, rows);
    }
    if (kind === "step") {
      now = value;
      return tell();
    }
    if (kind === "look") look = value;
    if (kind === "done") {
      state = "done";
      report();
    }
    soon();
  }

  function failed(sentence) {
    state = "failed";
    trainer?.end();
    trainer = null;
    status.textContent = spoken.textContent = `Training stopped: ${sentence}`;
    soon();
  }

  function type() {
    const read = readInput(setting.task, input.value);
    problem.textContent = read.problem ?? "";
    if (read.problem) return;
    typed = read;
    trainer?.tell("look", { wish: wish() });
    look = trainer ? look : null;
    draw();
  }

  function pinRun() {
    pinned = { rows, setting, kind: "pinned", name: "pinned" };
    spoken.textContent = "This run is pinned; the next is drawn over it.";
    draw();
  }

  // The reader's own switches: single heads and experts, closed for the typed input.
  function switches() {
    const { experts } = runOf(setting), heads = CONFIG.tasks[setting.task].heads;
    const one = (label, flip) => h("label", {}, h("input", { type: "checkbox", onchange: flip }), label);
    const ask = () => trainer?.tell("look", { wish: wish() });
    places.switches.replaceChildren(h("fieldset", { class: "lab-switches" }, h("legend", {}, "Take out, for this input:"),
      ...Array.from({ length: heads }, (_, i) => one(`head ${i + 1}`, () => { closedHeads ^= 1 << i; ask(); })),
      ...(experts > 1 ? Array.from({ length: experts }, (_, i) => one(`expert ${i + 1}`, () => { closedExperts ^= 1 << i; ask(); })) : [])));
  }

  const same = (a, b) => writeSetting(a) === writeSetting(b);

  function report() {
    const last = rows.at(-1) ?? {}, said = { training: "Training", paused: "Paused", done: "Done" }[state];
    spoken.textContent = `${said}, step ${now}: full model ${percent(last.accuracy)}, without FFN ${percent(last.noFfn)}, without attention ${percent(last.noAttention)}.`;
    spokenAt = performance.now();
    if (state !== "training") given.finished?.(setting, rows);
  }

  function soon() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      draw();
    });
  }

  // The runs to show, the reader's last.
  function compared() {
    const shown = [];
    if (recorded.setting.task === setting.task) shown.push({ ...recorded, kind: "recorded", name: same(recorded.setting, setting) ? "recorded" : "recorded, default setting" });
    if (pinned?.setting.task === setting.task) shown.push(pinned);
    if (state !== "rest" || !shown.length) shown.push({ rows, setting, kind: "own", name: "your run" });
    return shown;
  }

  // One sentence on where the training is; all that changes between two measurements.
  function tell() {
    const last = compared().at(-1).rows.at(-1), words = { training: "Training", paused: "Paused", done: "Done" };
    if (state === "failed") return;
    if (notice) status.textContent = notice;
    else if (state !== "rest") status.textContent = `${words[state]}: step ${now} of ${runOf(setting).steps}, all answers right in ${percent(last?.exact)} of the inputs.`;
    else if (last) status.textContent = `A recorded run, step ${last.step}: all answers right in ${percent(last.exact)} of the inputs. Train your own, or move a control.`;
    else status.textContent = "Press Train, or move a control.";
  }

  function draw() {
    const task = CONFIG.tasks[setting.task], heldOut = setting.task === "modular_addition", shown = compared();
    const width = Math.min(560, Math.max(280, wide)), main = shown.at(-1), last = main.rows.at(-1);
    const steps = Math.max(...shown.map((run) => runOf(run.setting).steps));

    play.textContent = state === "training" ? "Pause" : state === "paused" && now ? "Go on" : "Train";
    for (const button of [play, once, again]) button.disabled = Boolean(why);
    speed.disabled = Boolean(why);
    pin.disabled = !rows.length;
    tell();
    if (state === "training" && performance.now() - spokenAt > QUIET) report();

    places.legend.replaceChildren(legend(heldOut, shown));
    places.accuracy.replaceChildren(accuracyChart(shown, steps, width, heldOut));
    places.loss.replaceChildren(lossChart(shown, steps, width));
    places.bars.replaceChildren(ablationTable(shown, task.chance));
    const loads = last?.loads;
    loadPanel.hidden = !(loads?.length > 1);
    if (!loadPanel.hidden) {
      const { treeDepth } = runOf(main.setting);
      places.loads.replaceChildren(...(treeDepth ? treePictures(loads, treeDepth) : loadBars(loads)));
    }
    spectrumPanel.hidden = !last?.spectrum;
    if (last?.spectrum) {
      const { concentration, live } = last.spectrum;
      places.spectrum.replaceChildren(spectrumChart(last.spectrum, width), h("p", {}, `A unit's strongest frequency holds ${percent(concentration)} of its power, on average over the ${live} units that are not constant.`));
    }
    inputWaits ||= requestAnimationFrame(() => {
      inputWaits = 0;
      drawInput();
    });
  }

  // What belongs to the one input, and the numbers: in a frame of their own, so that no frame draws everything.
  function drawInput() {
    const task = CONFIG.tasks[setting.task], main = compared().at(-1);
    const seen = look ?? (main.kind === "recorded" && String(recorded.look.tokens) === String(typed.tokens) ? recorded.look : null);
    const answers = typed.targets.map((target) => answerWord(setting.task, target));
    if (seen && String(seen.tokens) === String(typed.tokens)) {
      places.predictions.replaceChildren(predictionTable(seen, typed.targets, setting.task, answers));
      places.heads.replaceChildren(...patternPictures(seen, typed.words, task, answers));
    } else if (!look) {
      const first = () => h("p", {}, why ? "Only the recorded input can be shown here." : "Train a model to see what it does with this input.");
      places.predictions.replaceChildren(first());
      places.heads.replaceChildren(first());
    }
    if (details.open) places.numbers.replaceChildren(numbers(main.rows, setting.task === "modular_addition"));
  }

  function followLink() {
    if (!given.links || !location.hash.startsWith("#lab=")) return false;
    const wanted = readSetting(location.hash.slice(5));
    if (wanted && same(wanted, setting)) return true;
    notice = wanted ? "" : "The link asks for something that the lab does not have, so nothing was changed.";
    choose(wanted ?? setting, false);
    if (notice) spoken.textContent = notice;
    else if (trainer) begin(true);
    return true;
  }

  choose(setting, false);
  followLink();
  addEventListener("hashchange", followLink);
  const resized = new ResizeObserver(([box]) => { // asked for while drawing, the width would lay the page out an extra time
    wide = box.contentRect.width || wide;
    soon();
  });
  resized.observe(places.accuracy);
  return () => {
    removeEventListener("hashchange", followLink);
    resized.disconnect();
    cancelAnimationFrame(waiting);
    cancelAnimationFrame(inputWaits);
    clearTimeout(coming);
    trainer?.end();
  };
}

// In JupyterLab an anywidget: its traits are the setting, the recorded run and the finished run's rows.
export default {
  render({ model, el }) {
    return mount(el, {
      recorded: model.get("recorded"),
      setting: readSetting(writeSetting(model.get("setting"))),
      links: model.get("links"),
      finished(setting, rows) {
        model.set("setting", setting);
        model.set("rows", rows);
        model.save_changes();
      },
    });
  },
};
