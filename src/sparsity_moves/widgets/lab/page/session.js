// One model in the trainer: trained a step at a time, measured, looked into.

export class Session {
  constructor(wasm, setting) {
    this.wasm = wasm;
    this.run = runOf(setting);
    this.step = 0;
    this.loss = null;
    const r = this.run;
    const size = wasm.setup(r.taskNumber, ...r.sizes, r.dModel, r.heads, r.width, r.experts, r.topK, r.router, r.gate, r.gated, r.activation, 256);
    if (!size) throw new Error("The trainer refused these settings.");
    wasm.initialise(r.seed);
  }

  floats(pointer, count) {
    return Array.from(new Float32Array(this.wasm.memory.buffer, pointer, count));
  }

  integers(pointer, count) {
    return Array.from(new Int32Array(this.wasm.memory.buffer, pointer, count));
  }

  get done() {
    return this.step >= this.run.steps;
  }

  // One update; the learning rate falls linearly over the last steps.
  advance() {
    const r = this.run, rate = r.rate * Math.min(1, (r.steps - this.step) / r.fall);
    this.wasm.draw_batch(r.batch);
    this.loss = this.wasm.differentiate(r.batch, r.balance);
    this.wasm.update(rate, r.weightDecay, r.beta1, r.beta2, r.clip);
    this.step++;
  }

  // What the curves show, now. The measurement without attention goes last: it routes other tokens.
  row() {
    const [accuracy, exact, test] = this.floats(this.wasm.evaluate(0), 3);
    const loads = this.integers(this.wasm.loads(), this.run.experts);
    const spectrum = this.run.taskNumber === 1 ? this.spectrum() : null;
    const [noFfn] = this.floats(this.wasm.evaluate(2), 1), [noAttention] = this.floats(this.wasm.evaluate(1), 1);
    return { step: this.step, loss: this.loss, accuracy, exact, test: test < 0 ? null : test, noFfn, noAttention, loads, spectrum };
  }

  // Of each unit's mean over the answers: the share of its power at each frequency k (k and p - k together),
  // averaged over the units that are not constant; and the mean of the largest share.
  spectrum() {
    const p = this.run.sizes[0], half = (p - 1) / 2, width = this.run.width;
    const units = new Float32Array(this.wasm.memory.buffer, this.wasm.unit_values(), p * width);
    const wave = Array.from({ length: p }, (_, i) => [Math.cos((2 * Math.PI * i) / p), Math.sin((2 * Math.PI * i) / p)]);
    const share = new Array(half).fill(0);
    let live = 0, concentration = 0;
    for (let u = 0; u < width; u++) {
      const power = [];
      for (let k = 1; k <= half; k++) {
        let x = 0, y = 0;
        for (let i = 0; i < p; i++) {
          const [c, s] = wave[(i * k) % p];
          x += units[i * width + u] * c;
          y += units[i * width + u] * s;
        }
        power.push(x * x + y * y);
      }
      const whole = power.reduce((a, b) => a + b);
      if (whole < 1e-8) continue;
      live++;
      concentration += Math.max(...power) / whole;
      power.forEach((one, k) => (share[k] += one / whole));
    }
    return { share: share.map((s) => s / Math.max(live, 1)), concentration: live ? concentration / live : null, live };
  }

  // One input: attention, predictions under each ablation and under the reader's own switches, and its experts.
  look(tokens, closedHeads, closedExperts) {
    const r = this.run, answers = r.readOut.length;
    new Int32Array(this.wasm.memory.buffer, this.wasm.token_values(), r.length).set(tokens);
    const predict = (without) => {
      this.wasm.look(1, without);
      const logits = this.floats(this.wasm.logit_values(), answers * r.classes);
      return r.readOut.map((_, i) => {
        const own = logits.slice(i * r.classes, (i + 1) * r.classes);
        return own.indexOf(Math.max(...own));
      });
    };
    this.wasm.close(closedHeads, closedExperts);
    const switched = closedHeads || closedExperts ? predict(0) : null;
    this.wasm.close(0, 0);
    const noAttention = predict(1), noFfn = predict(2), full = predict(0);
    const pattern = this.floats(this.wasm.pattern_values(), answers * r.heads * r.length);
    const experts = r.experts > 1 ? this.integers(this.wasm.experts_chosen(), answers * r.topK) : null;
    return { tokens, step: this.step, predictions: { full, noFfn, noAttention, switched }, pattern, experts };
  }
}
