// What a reader chose: two models of a task, what is changed in both, and two inputs. One plain object, one link.

export const WAYS = { k: "as it is", z: "set to zero", m: "its mean", d: "from the donor" };
const ROUTES = { trained: "as trained", initial: "at its initial weights", random: "a random expert for each token", next: "the next expert's tokens" };
const pair = (...shares) => shares.map((x) => Math.floor(x * CONFIG.tasks.modular_addition.sizes[0])).join(" + ");
const FIRST = {
  add7: () => ["497 + 7", "120 + 7"],
  modular_addition: () => [pair(0.4, 0.26), pair(0.7, 0.5)],
  histogram: () => ["ABACADBBEFGHIJ", "AAAABBBCDEFGHI"].map((text) => text.slice(0, CONFIG.tasks.histogram.length)),
};
const UNCHANGED = { attention: "k", ffn: "k", router: "trained" };

const ofTask = (task) => CONFIG.models.filter((model) => model.task === task);
export const modelNamed = (name) => CONFIG.models.find((model) => model.name === name);
const most = (task, number) => Math.max(...ofTask(task).map((model) => model.setup[number]));

// The routes that there are where a task's models have so many experts.
export const routes = (experts) => ({ ...ROUTES, ...Object.fromEntries(Array.from({ length: experts }, (_, e) => [`one-${e + 1}`, `all tokens to expert ${e + 1}`])) });
export const headsOf = (task) => most(task, 4);
export const expertsOf = (task) => (most(task, 6) > 1 ? most(task, 6) : 0);

// The parts that are as they were trained.
export const untouched = (task) => ({ ...UNCHANGED, heads: "k".repeat(headsOf(task)), experts: "k".repeat(expertsOf(task)) });
export const isChanged = (choice) => /[zmd]/.test(choice.attention + choice.ffn + choice.heads + choice.experts) || choice.router !== "trained";
// Whether anything that is changed is there in this model.
export function concerns(choice, model) {
  const experts = model.setup[6] > 1;
  return /[zmd]/.test(choice.attention + choice.ffn + choice.heads + (experts ? choice.experts : "")) || (experts && choice.router !== "trained");
}

// A task's first choice: an MoE beside the dense layer, where both are there, and no FFN: the paper's question.
export function firstChoice(task = CONFIG.models[0].task) {
  const own = ofTask(task), named = (arm) => own.filter((model) => model.name.startsWith(`${task}-${arm}-`)).at(-1);
  const model = named("moe") ?? own.at(-1), [input, donor] = FIRST[task]();
  return { task, model: model.name, beside: (named("dense") ?? own[0]).name, ...untouched(task), ffn: "z", input, donor };
}

// An input in a link: letters, digits and a dash for what stands between two numbers.
const writeInput = (task, text) => (task === "histogram" ? text.toUpperCase().replace(/[\s,]/g, "") : text.replace(/\s*\+\s*7\s*$/, task === "add7" ? "" : "$&").replace(/\s/g, "").replace("+", "-"));
const readLinked = (text) => text.replace("-", " + ");

export const writeChoice = (c) =>
  Object.entries({ ...c, input: writeInput(c.task, c.input), donor: writeInput(c.task, c.donor) }).map(([name, value]) => `${name}:${value}`).join(";");

// "task:add7;ffn:z;..." as a choice; null unless every part is one that the page could have written.
export function readChoice(text) {
  if (typeof text !== "string" || text.length > 500) return null;
  const given = {};
  for (const part of text.split(";")) {
    const [, name, value] = /^([a-z]+):([A-Za-z0-9_-]+)$/.exec(part) ?? [];
    if (!name || Object.hasOwn(given, name)) return null;
    given[name] = value;
  }
  if (!Object.hasOwn(CONFIG.tasks, given.task)) return null;
  const first = firstChoice(given.task), wanted = { ...first, ffn: "k", ...given };
  const { task } = wanted, ways = (text, many) => text.length === many && /^[kzmd]*$/.test(text);
  if (Object.keys(given).some((name) => !Object.hasOwn(first, name))) return null;
  if (modelNamed(wanted.model)?.task !== task || modelNamed(wanted.beside)?.task !== task) return null;
  if (!ways(wanted.attention, 1) || !ways(wanted.ffn, 1) || !ways(wanted.heads, headsOf(task)) || !ways(wanted.experts, expertsOf(task))) return null;
  if (!Object.hasOwn(routes(expertsOf(task)), wanted.router)) return null;
  for (const name of ["input", "donor"]) {
    if (Object.hasOwn(given, name)) wanted[name] = readLinked(given[name]) + (task === "add7" ? " + 7" : "");
    if (readInput(task, wanted[name]).problem) return null;
  }
  return wanted;
}
