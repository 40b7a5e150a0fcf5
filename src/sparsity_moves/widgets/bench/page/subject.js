// One trained model in the trainer: run whole, or with parts replaced and its router overruled.

const TENSORS = 12, ROUTER = 6, MIXTURES = 0, ATTENTION = 1, FFN = 2, EXPERTS = 3;
const ROUTES = { random: 1, next: 2, one: 3 };
const ANSWERS = 512; // of a run, so that one takes no longer than a few hundredths of a second
const STRIDE = 7919; // a prime that divides no number of inputs: the first inputs measured on are a sample of all

// The bytes that base64 stands for.
export function decoded(text) {
  const written = atob(text), bytes = new Uint8Array(written.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = written.charCodeAt(i);
  return bytes;
}

export class Subject {
  // `model` and `task` as CONFIG has them; `bytes` the model's numbers.
  constructor(wasm, model, task, bytes) {
    const [number, , , d, heads, , experts, topK] = model.setup;
    Object.assign(this, { wasm, task, number, d, heads, experts, topK, router: model.router, readOuts: task.readOut.length });
    this.capacity = Math.floor(ANSWERS / this.readOuts);
    if (bytes.length !== model.bytes || !wasm.setup(...model.setup, this.capacity)) throw new Error("The model's file is damaged.");
    const numbers = wasm.bench_setup(this.capacity), buffer = wasm.memory.buffer;
    this.parts = { mean: null, donor: null };
    this.replacements = new Float32Array(buffer, wasm.replacements(), numbers);
    let at = 0;
    const floats = (many) => new Float32Array(bytes.slice(4 * at, 4 * (at += many)).buffer);
    for (let name = 0; name < TENSORS; name++)
      new Float32Array(buffer, wasm.parameter_values() + 4 * wasm.tensor_offset(name), wasm.tensor_size(name)).set(floats(wasm.tensor_size(name)));
    if (model.router) {
      this.routing = new Float32Array(buffer, wasm.parameter_values() + 4 * wasm.tensor_offset(ROUTER), wasm.tensor_size(ROUTER));
      this.routers = { trained: this.routing.slice(), initial: floats(wasm.tensor_size(ROUTER)) };
    }
    this.tokens = new Int32Array(buffer, wasm.token_values(), this.capacity * task.length);
    this.targets = new Int32Array(buffer, wasm.target_values(), this.capacity * this.readOuts);
    this.inputs = inputsOf(task, number, bytes.subarray(4 * at));
    wasm.bench_start();
    this.tally = this.counting(null);
  }

  // A count of right answers over all inputs, yet to begin; `change` null is the whole model.
  counting(change) {
    return { change, done: 0, right: new Array(this.readOuts).fill(0), exact: 0 };
  }

  get every() {
    return this.inputs.length;
  }

  // Whether the change waits for the means over all inputs.
  waits(change) {
    return !this.parts.mean && [change.attention, change.ffn, ...change.heads, ...change.experts].includes("m");
  }

  // The next inputs of a count. The whole model's count leaves the means of all parts.
  advance(tally) {
    this.apply(tally.change);
    const many = Math.min(this.capacity, this.every - tally.done);
    for (let b = 0; b < many; b++) this.put(b, this.inputs[((tally.done + b) * STRIDE) % this.every]);
    this.wasm.bench(many);
    const right = new Int32Array(this.wasm.memory.buffer, this.wasm.right_answers(), this.readOuts);
    right.forEach((n, r) => (tally.right[r] += n));
    tally.exact += this.wasm.right_sequences();
    tally.done += many;
    if (tally.change) return;
    const sums = this.sums(many);
    if (tally.sums) sums.forEach((x, i) => (tally.sums[i] += x));
    else tally.sums = sums;
    if (tally.done === this.every) this.parts.mean = Float32Array.from(tally.sums, (x) => x / this.every);
  }

  put(b, { tokens, targets }) {
    this.tokens.set(tokens, b * this.task.length);
    this.targets.set(targets, b * this.readOuts);
  }

  sums(many) {
    return new Float64Array(this.wasm.memory.buffer, this.wasm.sums(many), this.replacements.length).slice();
  }

  // From here on runs are those of the change.
  apply(change) {
    const { d, heads, experts, readOuts, wasm } = this;
    if (this.router) this.routing.set(this.routers[change?.router === "initial" ? "initial" : "trained"]);
    if (!change) return wasm.intervene(0, 0, 0, 0, 0);
    const fill = (part, way, from, to) => {
      const source = { m: this.parts.mean, d: this.parts.donor }[way];
      for (let r = 0; r < readOuts; r++) {
        const row = (part * readOuts + r) * d, into = this.replacements.subarray(row + from, row + to);
        if (source) into.set(source.subarray(row + from, row + to));
        else into.fill(0);
      }
      return way === "k" ? 0 : 1;
    };
    const width = d / heads;
    let headBits = 0, expertBits = 0, bits = fill(ATTENTION, change.attention, 0, d) | (fill(FFN, change.ffn, 0, d) << 1);
    for (let h = 0; h < heads; h++) headBits |= fill(MIXTURES, change.heads[h] ?? "k", h * width, (h + 1) * width) << h;
    if (experts > 1) for (let e = 0; e < experts; e++) expertBits |= fill(EXPERTS + e, change.experts[e] ?? "k", 0, d) << e;
    const [route, to] = change.router.split("-");
    wasm.intervene(bits, headBits, expertBits, experts > 1 ? (ROUTES[route] ?? 0) : 0, Math.min(experts, Number(to ?? 1)) - 1);
  }

  // What every part of the whole model is for this input: what a patch puts into another's run.
  donate(input) {
    this.apply(null);
    this.put(0, input);
    this.wasm.bench(1);
    this.parts.donor = Float32Array.from(this.sums(1));
  }

  // One input's answers, logits, experts and attention.
  look(input, change) {
    this.apply(change);
    this.put(0, input);
    this.wasm.bench(1);
    const { readOuts, wasm } = this, buffer = wasm.memory.buffer, classes = this.task.classes;
    const logits = Array.from(new Float32Array(buffer, wasm.logit_values(), readOuts * classes));
    const answers = this.task.readOut.map((_, r) => {
      const own = logits.slice(r * classes, (r + 1) * classes);
      return own.indexOf(Math.max(...own));
    });
    const routed = this.experts > 1 && (change?.ffn ?? "k") === "k";
    const experts = routed ? Array.from(new Int32Array(buffer, wasm.experts_chosen(), readOuts * this.topK)) : null;
    const pattern = Array.from(new Float32Array(buffer, wasm.pattern_values(), readOuts * this.heads * this.task.length));
    return { answers, logits, experts, pattern };
  }
}

// All inputs where they are finite, else the sequences drawn for the model's evaluation.
function inputsOf(task, number, drawn) {
  const digits = (n, many) => Array.from({ length: many }, (_, i) => Math.floor(n / 10 ** i) % 10);
  if (number === 0)
    return Array.from({ length: 1000 }, (_, n) => {
      const answer = digits(n + 7, 4);
      return { tokens: [...digits(n, 3), 11, ...answer], targets: [...answer, 11] };
    });
  if (number === 1) {
    const p = task.sizes[0];
    return Array.from({ length: p * p }, (_, i) => ({ tokens: [Math.floor(i / p), i % p, p], targets: [(Math.floor(i / p) + i) % p] }));
  }
  return Array.from({ length: drawn.length / task.length }, (_, i) => {
    const tokens = [...drawn.subarray(i * task.length, (i + 1) * task.length)];
    return { tokens, targets: tokens.map((t) => tokens.filter((u) => u === t).length - 1) };
  });
}
