// Who computes the other half of every batch: a second worker, or a second trainer in this one. Both are asked for the
// same, and both ways give the same bits: two halves are added, and two numbers have the same sum in either order.

// The worker at the other end of a port. It does the same steps, so what it says comes in the order in which it is wanted.
export class Link {
  constructor(port) {
    Object.assign(this, { port, run: 0, said: [], wanted: null, spare: null, begun: null });
    port.onmessage = ({ data }) => {
      if (data.setting) this.reset(data.run), this.begun(data.run, data.setting);
      else if (data.run !== this.run) return; // of an earlier run
      else if (this.wanted) this.wanted(data.value), (this.wanted = null);
      else this.said.push(data.value);
    };
  }

  // Whoever still waits for an earlier run's partner waits for good.
  reset(run) {
    Object.assign(this, { run, said: [], wanted: null });
  }

  begin(run, setting) {
    this.reset(run);
    this.port.postMessage({ run, setting });
    return this;
  }

  say(value, transfer = []) {
    this.port.postMessage({ run: this.run, value }, transfer);
  }

  hear() {
    return this.said.length ? this.said.shift() : new Promise((heard) => (this.wanted = heard));
  }

  start() {}

  loads(own) {
    this.say(own.slice());
    return this.hear();
  }

  // One buffer goes to and fro.
  async gradients(own) {
    const mine = this.spare?.length === own.length ? this.spare : new Float32Array(own.length);
    mine.set(own);
    this.say(mine, [mine.buffer]);
    return (this.spare = await this.hear());
  }

  ablated() {
    return this.hear();
  }
}

// Another trainer in this worker. It takes over batch and parameters at every step, so it can join at any of them.
export class Twin {
  constructor(wasm) {
    this.wasm = wasm;
  }

  start(session) {
    this.session = session;
    this.mine = new Half(this.wasm, session.run, 1);
  }

  forward() {
    const { half } = this.session, given = half.batch(); // the first half has left the second where it was
    this.mine.values("parameter_values").set(half.values("parameter_values"));
    this.mine.batch().forEach((all, i) => all.set(given[i]));
    this.mine.forward();
  }

  loads(own) {
    this.forward();
    const theirs = this.mine.loads().slice();
    this.mine.addLoads(own);
    return theirs;
  }

  gradients() {
    if (!this.mine.run.balance) this.forward();
    this.mine.backward();
    return this.mine.values("gradients", 4);
  }

  ablated() {
    return null;
  }
}
