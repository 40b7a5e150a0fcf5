const TRIAL = 16; // steps after which a pair may be given up

// One half of a run: a trainer set up for it, and the half of every batch that it differentiates.
export class Half {
  constructor(wasm, run, which) {
    Object.assign(this, { wasm, run, which });
    const r = run;
    this.size = wasm.setup(r.taskNumber, ...r.sizes, r.dModel, r.heads, r.width, r.experts, r.topK, r.router, r.gate, r.gated, r.activation, r.treeDepth, r.afterSum, 256);
    if (!this.size) throw new Error("The trainer refused these settings.");
    wasm.initialise(r.seed);
  }

  // All parameters, their gradients or the like, where they lie; with what stands behind them.
  values(name, more = 0) {
    return new Float32Array(this.wasm.memory.buffer, this.wasm[name](), this.size + more);
  }

  loads() {
    return new Int32Array(this.wasm.memory.buffer, this.wasm.whole_loads(), this.run.experts);
  }

  addLoads(theirs) {
    this.loads().forEach((load, expert, all) => (all[expert] = load + theirs[expert]));
  }

  // All tokens and targets of a batch, as they lie one after the other.
  batch() {
    const { length, readOut, batch } = this.run, integers = (name, each) => new Int32Array(this.wasm.memory.buffer, this.wasm[name](), each * batch);
    return [integers("token_values", length), integers("target_values", readOut.length)];
  }

  draw() {
    this.wasm.draw_batch(this.run.batch);
  }

  forward() {
    this.wasm.half_forward(this.which, this.run.batch);
  }

  backward() {
    this.wasm.half_backward(this.run.batch, this.run.balance);
  }
}

// One model in the trainer: trained a step at a time, measured, looked into. `partner` has the other half of each batch.
export class Session {
  constructor(wasm, setting, partner, which) {
    this.wasm = wasm;
    this.run = runOf(setting);
    this.step = 0;
    this.loss = null;
    this.waited = this.worked = 0;
    this.half = new Half(wasm, this.run, which);
    this.join(partner);
  }

  join(partner) {
    this.partner = partner;
    partner.start(this);
  }

  // Whether a worker as partner is worth it: alone a step is two halves' work, in a pair one half's and the wait.
  get pays() {
    return this.step < TRIAL || this.waited < this.worked;
  }

  // What the partner says, and how long it let us wait.
  async heard(saying) {
    const asked = performance.now(), said = await saying;
    this.waited += performance.now() - asked;
    return said;
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

  // Whether this step is one to measure at.
  get due() {
    return this.step % this.run.every === 0 || this.done;
  }

  // One update; the learning rate rises linearly over the first steps and falls over the last, as `Spec.rate`. The balance
  // loss wants the loads of the whole batch before the way back.
  async advance() {
    const r = this.run, { half, partner } = this;
    const rate = r.rate * Math.min(1, r.rise ? (this.step + 1) / r.rise : 1, (r.steps - this.step) / r.fall);
    const began = performance.now() - this.waited;
    half.draw();
    half.forward();
    if (r.balance) half.addLoads(await this.heard(partner.loads(half.loads())));
    half.backward();
    half.values("other_gradients", 4).set(await this.heard(partner.gradients(half.values("gradients", 4))));
    this.loss = this.wasm.join();
    this.wasm.update(rate, r.weightDecay, r.beta1, r.beta2, r.clip);
    this.worked += performance.now() - this.waited - began;
    this.step++;
  }

  // What the curves show, now; once at each step that is due, since a partner measures then, too.
  async row() {
    const [accuracy, exact, test] = this.floats(this.wasm.evaluate(0), 3);
    const loads = this.integers(this.wasm.loads(), this.run.blocks);
    const spectrum = this.run.taskNumber === 1 ? this.spectrum() : null;
    const without = (this.due && (await this.partner.ablated())) || this.ablated();
    return { step: this.step, loss: this.loss, accuracy, exact, test: test < 0 ? null : test, ...without, loads, spectrum };
  }

  ablated() {
    const [noFfn] = this.floats(this.wasm.evaluate(2), 1), [noAttention] = this.floats(this.wasm.evaluate(1), 1);
    return { noFfn, noAttention };
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
