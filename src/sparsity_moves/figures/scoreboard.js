// Judges every claim again over the seeds that the reader picks. The rules are those of `studies/verdicts.py`, and the
// critical values of t come from SciPy: here is only averaging, comparing and counting.
(() => {
  function start(board) {
    board.dataset.started = "true";
    const data = JSON.parse(board.querySelector("script").textContent);
    const form = board.querySelector("form");
    const boxes = [...form.querySelectorAll("input[type=checkbox]")];
    const slider = form.querySelector("input[type=range]");
    const items = [...board.querySelectorAll("li.claim")];
    const corrected = data.two[0].length;

    // n, mean and standard error; all equal is no spread.
    function summary(values) {
      const n = values.length;
      const mean = values.reduce((sum, value) => sum + value, 0) / n;
      const square = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
      const equal = values.every((value) => value === values[0]);
      return { n, mean: equal ? values[0] : mean, error: equal ? 0 : Math.sqrt(square / (n - 1) / n) };
    }

    // |t| of a test: of a difference beyond the margin, or of likeness within it.
    function statistic(part, { mean, error }) {
      const above = part.kind === "same" ? part.margin - Math.abs(mean) : Math.abs(mean - part.margin);
      return above === 0 ? 0 : error === 0 ? Math.sign(above) * Infinity : above / error;
    }

    const critical = (part, n, k) => (part.kind === "same" ? data.one : data.two)[n - 2][k - 1];

    // Benjamini and Hochberg: the largest k for which k tests pass the k-th level.
    function rejected(parts) {
      for (let k = corrected; k > 0; k--) {
        const passed = parts.filter((p) => p.found && p.t >= critical(p, p.found.n, k));
        if (passed.length >= k) return new Set(passed);
      }
      return new Set();
    }

    function bounds({ n, mean, error }) {
      const half = data.two[n - 2][corrected - 1] * error;
      return [mean - half, mean + half];
    }

    function outcome(part, sure) {
      if (!part.values.length) return "not yet measured";
      if (!part.found) return "open";
      const { mean, error, n } = part.found;
      if (part.kind === "more") return !sure ? "open" : mean > part.margin ? "holds" : "fails";
      if (sure) return "holds";
      const beyond = Math.abs(mean) - part.margin;
      return beyond > 0 && beyond >= data.two[n - 2][corrected - 1] * error ? "fails" : "open";
    }

    function size(part) {
      if (part.published === null || !part.found) return 0;
      const [low, high] = bounds(part.found);
      return low > part.published + part.wide ? 1 : high < part.published - part.wide ? -1 : 0;
    }

    function verdict(parts, sure) {
      const outcomes = parts.map((part) => outcome(part, sure.has(part)));
      const known = outcomes.filter((each) => each !== "not yet measured");
      if (!known.length) return "not yet measured";
      if (outcomes.every((each) => each === "holds")) {
        const sizes = parts.map(size);
        return sizes.includes(-1) ? "partly" : sizes.includes(1) ? "stronger" : "reproduced";
      }
      if (known.includes("holds")) return "partly";
      return known.includes("fails") ? "not reproduced" : "undecided";
    }

    function judged(number) {
      const { found } = number;
      if (!number.some) return "not yet measured";
      if (!found) return "undecided";
      const [low, high] = bounds(found);
      if (number.p) return (low > 0 || high < 0) === (number.published < data.level) ? "reproduced" : "not reproduced";
      const [from, to] = [number.published - number.margin, number.published + number.margin];
      return from <= low && high <= to ? "reproduced" : high >= from && low <= to ? "partly" : "not reproduced";
    }

    const fixed = (value, digits) => value.toFixed(digits).replace("-", "−").replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
    const signed = (value, digits) => (value < 0 ? "" : "+") + fixed(value, digits);

    function effect({ some, one, found, digits, unit }) {
      if (!some) return "no such seed";
      if (!found) return `${signed(one, digits)}${unit}, one pair`;
      const [low, high] = bounds(found);
      return `${signed(found.mean, digits)}${unit} (95 % CI ${signed(low, digits)} to ${signed(high, digits)}, ${found.n} pairs)`;
    }

    function redraw() {
      const wanted = new Set(boxes.filter((box) => box.checked).map((box) => Number(box.value)));
      const pick = (values) => values.filter((value, i) => value !== null && wanted.has(data.seeds[i]));
      const every = [];
      for (const claim of data.claims) {
        for (const each of [...claim.parts, ...claim.numbers]) {
          const values = pick(each.values);
          each.some = values.length;
          each.found = values.length > 1 ? summary(values) : null;
          each.one = values[0];
        }
        for (const part of claim.parts) {
          part.t = part.found ? statistic(part, part.found) : 0;
          every.push(part);
        }
      }
      const sure = rejected(every);
      const count = {};
      data.claims.forEach((claim, i) => {
        const found = verdict(claim.parts, sure);
        count[found] = (count[found] ?? 0) + 1;
        items[i].dataset.verdict = found;
        items[i].querySelector(".verdict").textContent = `${data.symbols[found]} ${claim.words[found]}`;
        const shown = claim.parts.filter((part) => part.values.length);
        items[i].querySelectorAll(".effect").forEach((place, j) => {
          const said = place.querySelector("abbr") ?? place;
          said.textContent = effect(shown[j]);
          said.title = `${shown[j].some} of ${shown[j].values.filter((value) => value !== null).length} pairs; runs: ${shown[j].runs}`;
        });
        const rows = [...items[i].querySelectorAll("tbody tr")];
        claim.numbers.forEach((number, j) => {
          rows[j].querySelector(".judged").textContent = judged(number);
          const place = rows[j].querySelector(".ours abbr");
          if (!place) return;
          if (!number.found) { place.textContent = number.some ? `${fixed(number.one, number.digits)}, one seed` : "no such seed"; return; }
          const [low, high] = bounds(number.found);
          place.textContent = `${fixed(number.found.mean, number.digits)} (${fixed(low, number.digits)} to ${fixed(high, number.digits)})`;
        });
        const summaryLine = items[i].querySelector("summary");
        if (summaryLine) {
          const said = {};
          for (const number of claim.numbers) { const each = judged(number); said[each] = (said[each] ?? 0) + 1; }
          const parts = Object.keys(data.symbols).filter((each) => said[each]).map((each) => `${said[each]} ${each}`);
          summaryLine.textContent = `${claim.numbers.length} published number${claim.numbers.length === 1 ? "" : "s"}: ${parts.join(", ")}`;
        }
      });
      const both = { reproduced: "reproduced or holding", "not reproduced": "not reproduced or not holding" };
      const words = Object.keys(data.symbols).filter((each) => count[each]).map((each) => `${count[each]} ${both[each] ?? each}`);
      const which = wanted.size === data.seeds.length ? `all ${wanted.size} seeds`
        : `${wanted.size} seed${wanted.size === 1 ? "" : "s"}${wanted.size <= 10 ? ` (${[...wanted].join(", ")})` : ""}`;
      board.querySelector(".scoreboard-said").textContent = `Over ${which}, ${data.claims.length} claims: ${words.join(", ")}.`;
    }

    function choose(seeds) {
      const wanted = new Set(seeds);
      for (const box of boxes) box.checked = wanted.has(Number(box.value));
      redraw();
    }

    function draw() {
      const left = [...data.seeds];
      choose(Array.from({ length: slider.valueAsNumber }, () => left.splice(Math.floor(Math.random() * left.length), 1)[0]));
    }

    const picks = { all: () => choose(data.seeds), paper: () => choose(data.paper), draw };
    for (const button of form.querySelectorAll("[data-pick]")) button.addEventListener("click", picks[button.dataset.pick]);
    slider.addEventListener("input", () => { form.querySelector("output").textContent = slider.value; draw(); });
    for (const box of boxes) box.addEventListener("change", redraw);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
  }

  for (const board of document.querySelectorAll(".scoreboard:not([data-started])")) start(board);
})();
