// The results: a row for each model whole, and one with the reader's changes. A row is {name, kind, count, look}.

const share = (count, scored) => (count?.done ? scored.reduce((sum, r) => sum + count.right[r], 0) / scored.length / count.done : null);
const PLACES = ["ones", "tens", "hundreds", "overflow"];

const rowClass = (row, i) => `bench-${row.kind}${i && row.kind === "whole" ? " bench-next" : ""}`;
const rough = (row) => (row.count && row.count.done < row.count.every ? " bench-rough" : ""); // a sample so far
const kindOf = (row) => `${row.name}${row.kind === "whole" ? ", untouched" : ", changed"}`;

// Accuracy on all inputs, so far; chance lines stand in each bar.
export function accuracyTable(rows, task) {
  const names = Object.keys(task.chance), several = task.scored.length > 1;
  const bar = (value) => h("div", { class: "lab-bar" },
    h("div", { class: "lab-fill", style: `width:${100 * (value ?? 0)}%` }),
    ...names.map((name) => h("i", { class: "lab-chance", style: `left:${100 * task.chance[name]}%` })));
  return h("table", { class: "lab-ablation bench-result" },
    h("caption", {}, `Share of right answers; the thin lines are chance: ${names.map((n) => `${n} ${percent(task.chance[n])}`).join(", ")}.`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), h("td", {}), h("th", { scope: "col" }, "Answers"), several ? h("th", { scope: "col" }, "Whole inputs") : null)),
    h("tbody", {}, ...rows.map((row, i) => {
      const value = share(row.count, task.scored);
      return h("tr", { class: rowClass(row, i) + rough(row) }, h("th", { scope: "row" }, kindOf(row)), h("td", {}, bar(value)), h("td", {}, percent(value)),
        several ? h("td", {}, percent(row.count?.done ? row.count.exact / row.count.done : null)) : null);
    })));
}

// Digit by digit, for add-7.
export function placesTable(rows, task) {
  return h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), ...task.scored.map((r) => h("th", { scope: "col" }, PLACES[r])))),
    h("tbody", {}, ...rows.map((row, i) => h("tr", { class: rowClass(row, i) }, h("th", { scope: "row" }, kindOf(row)),
      ...task.scored.map((r) => h("td", {}, percent(row.count?.done ? row.count.right[r] / row.count.done : null)))))));
}

// What each answers to the typed input, and which experts compute it; a wrong answer is struck through.
export function answersTable(rows, targets, taskName) {
  const words = targets.map((target) => answerWord(taskName, target));
  const answers = (row) => targets.map((target, i) => {
    const given = row.look?.answers[i];
    if (given === undefined) return h("td", {}, "…");
    const word = answerWord(taskName, given);
    return given === target ? h("td", {}, word) : h("td", { class: "lab-wrong" }, h("s", {}, word), h("span", { class: "lab-hidden" }, " (wrong)"));
  });
  const experts = (row) => {
    const chosen = row.look?.experts, k = chosen && chosen.length / targets.length;
    return chosen && h("tr", {}, h("th", { scope: "row" }, `${kindOf(row)}: experts`), ...targets.map((_, i) => h("td", {}, chosen.slice(i * k, (i + 1) * k).map((e) => e + 1).join(", "))));
  };
  return h("table", { class: "lab-predictions" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Right answer"), ...words.map((word) => h("th", { scope: "col" }, word)))),
    h("tbody", {}, ...rows.flatMap((row, i) => [h("tr", { class: rowClass(row, i) }, h("th", { scope: "row" }, kindOf(row)), ...answers(row)), experts(row)]).filter(Boolean)));
}
