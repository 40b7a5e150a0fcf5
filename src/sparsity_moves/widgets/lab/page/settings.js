// What a reader can set, and what it means for the trainer. CONFIG comes from Python (`recipes.page_config`).

export function defaults(task = CONFIG.controls[0].value) {
  const values = Object.fromEntries(CONFIG.controls.map((control) => [control.name, control.value]));
  return { ...values, task, weight_decay: CONFIG.tasks[task].weightDecay };
}

// "task:add7;experts:8" as a setting; null unless every part is a control with one of its values.
export function readSetting(text) {
  if (typeof text !== "string" || text.length > 300) return null;
  const given = {};
  for (const part of text.split(";")) {
    const [, name, value] = /^([a-z_]+):([a-z0-9_.]+)$/.exec(part) ?? [];
    const control = CONFIG.controls.find((one) => one.name === name);
    const chosen = control?.values.find((one) => String(one) === value);
    if (chosen === undefined || Object.hasOwn(given, name)) return null;
    given[name] = chosen;
  }
  return { ...defaults(given.task), ...given };
}

export const writeSetting = (setting) =>
  CONFIG.controls.map((control) => `${control.name}:${setting[control.name]}`).join(";");

// Whether a control has any effect beside the others.
export function applies(control, setting) {
  const trees = setting.ffn.startsWith("tree");
  if (control.needs === "trees") return trees;
  if (control.needs && trees) return false;
  if (control.needs === "experts") return setting.experts > 1 && !(control.name === "top_k" && setting.routing === "hash");
  if (control.needs === "scores") return setting.experts > 1 && setting.routing !== "hash";
  return true;
}

// The numbers that the trainer's `setup` takes, and those of the run; as `recipes.spec_of` in Python.
export function runOf(setting) {
  const task = CONFIG.tasks[setting.task];
  const { routing } = setting, trees = setting.ffn.startsWith("tree"), experts = trees ? 1 : setting.experts;
  const gated = ["glu", "bilinear"].includes(setting.ffn), several = experts > 1, hashed = several && routing === "hash";
  const treeDepth = trees ? setting.tree_depth : 0;
  let width = trees ? setting.trees * (2 ** (treeDepth + 1) - 1) : setting.width;
  if (gated) width = Math.max(2, Math.floor(Math.floor((width * 2) / 3) / 2) * 2); // three matrices for two
  if (gated && several) width = Math.floor(width / experts) * experts;
  const router = trees ? 4 : !several ? 0 : hashed ? 3 : routing.endsWith("frozen") ? 2 : 1;
  const gate = several && routing.startsWith("switch") ? 1 : 0;
  const activation = setting.ffn === "bilinear" ? "none" : task.activation;
  return {
    ...task,
    ...(experts > task.many ? task.ofMany : {}),
    width,
    experts,
    topK: !several || hashed ? 1 : Math.min(setting.top_k, experts),
    router,
    gate,
    gated: gated ? 1 : 0,
    treeDepth,
    afterSum: setting.ffn === "tree_balanced" ? 1 : 0,
    blocks: trees ? width : experts,
    activation: ["relu", "gelu", "silu", "none"].indexOf(activation),
    taskNumber: Object.keys(CONFIG.tasks).indexOf(setting.task),
    balance: several && !hashed ? setting.balance : 0,
    weightDecay: setting.weight_decay,
    seed: setting.seed,
  };
}

// The words for one value of a control.
export const wordOf = (control, value) => control.words?.[control.values.indexOf(value)] ?? String(value);

// A histogram's symbols as the reader types them.
const SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";

// One input as the reader types it: {tokens, words} or {problem}, one sentence.
export function readInput(taskName, text) {
  const task = CONFIG.tasks[taskName];
  if (taskName === "add7") {
    const [, digits] = /^\s*(\d{1,3})\s*(?:\+\s*7\s*)?$/.exec(text) ?? [];
    if (digits === undefined) return { problem: "Type a number from 0 to 999, as in 497 + 7." };
    const number = Number(digits), places = (n, many) => Array.from({ length: many }, (_, i) => Math.floor(n / 10 ** i) % 10);
    const answer = places(number + 7, 4), tokens = [...places(number, 3), 11, ...answer];
    return { tokens, targets: [...answer, 11], words: tokens.map((t) => (t === 11 ? "EOS" : String(t))) };
  }
  if (taskName === "modular_addition") {
    const p = task.sizes[0], [, a, b] = /^\s*(\d{1,3})\s*\+\s*(\d{1,3})\s*$/.exec(text) ?? [];
    if (a === undefined || a >= p || b >= p) return { problem: `Type two numbers from 0 to ${p - 1}, as in 44 + 29.` };
    return { tokens: [Number(a), Number(b), p], targets: [(Number(a) + Number(b)) % p], words: [a, b, "="] };
  }
  const letters = text.toUpperCase().replace(/[\s,]/g, ""), last = SYMBOLS[task.vocabulary - 1];
  const tokens = [...letters].map((letter) => SYMBOLS.indexOf(letter)), names = task.vocabulary > 26 ? `letters, or digits up to ${last},` : `letters from A to ${last},`;
  if (tokens.length !== task.length || tokens.some((t) => !(t >= 0 && t < task.vocabulary)))
    return { problem: `Type ${task.length} ${names} as in ${"ABACADBBEF".slice(0, task.length)}.` };
  return { tokens, targets: tokens.map((t) => tokens.filter((u) => u === t).length - 1), words: [...letters] };
}

export const FIRST_INPUT = { add7: "497 + 7", modular_addition: "44 + 29", histogram: "ABACADBB" };

// An answer's class as the reader sees it.
export function answerWord(taskName, answer) {
  if (taskName === "add7" && answer > 9) return answer === 11 ? "EOS" : "PAD";
  if (taskName === "histogram") return String(answer + 1);
  return taskName === "modular_addition" && answer === CONFIG.tasks[taskName].sizes[0] ? "=" : String(answer);
}
