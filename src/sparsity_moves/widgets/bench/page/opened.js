// A model on the bench: its numbers are loaded, a worker runs it, and what the worker last said stays here.

const loading = new Map();

// A model's numbers as text, asked for once.
function textOf(name, load) {
  if (!loading.has(name))
    loading.set(name, load(name).catch((error) => {
      loading.delete(name); // another try may succeed
      throw error;
    }));
  return loading.get(name);
}

// Numbers from scripts in a folder: over http and from the disk alike.
export function fromFiles(folder) {
  return (name) => new Promise((resolve, reject) => {
    const script = h("script", { src: `${folder}bench-${name}.js` });
    script.onload = () => {
      const text = globalThis.sparsityMovesModels?.[name];
      script.remove();
      if (typeof text === "string") resolve(text);
      else reject(new Error("The model's file is damaged."));
    };
    script.onerror = () => {
      script.remove();
      reject(new Error("The model's file was not found beside this page."));
    };
    document.head.append(script);
  });
}

export class Opened {
  constructor(load, heard) {
    this.load = load;
    this.heard = heard;
    this.url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    this.worker = new Worker(this.url);
    this.worker.onerror = (event) => this.fail(event.message ?? "The worker did not start.");
    this.worker.onmessage = ({ data: said }) => this.hear(said);
    this.number = this.turn = 0;
    this.forget();
  }

  forget() {
    this.untouched = this.changed = this.look = this.problem = null;
  }

  // Ask for a model with a change (null: whole), an input and a donor.
  async ask(facts, change, input, donor) {
    const turn = ++this.turn, wish = { change, input, donor, turn };
    this.asked = facts;
    this.changed = null;
    this.problem = null;
    if (this.look && String(this.look.tokens) === String(input.tokens)) this.look.changed = null;
    else this.look = null;
    if (this.facts === facts) {
      if (this.ready) this.worker.postMessage({ kind: "set", ...wish });
      this.wish = wish;
      return;
    }
    Object.assign(this, { facts, wish, ready: false, number: this.number + 1 });
    this.forget();
    const mine = this.number;
    try {
      const text = await textOf(facts.name, this.load);
      if (mine !== this.number) return;
      this.ready = true;
      this.worker.postMessage({ kind: "open", model: mine, facts, task: CONFIG.tasks[facts.task], text, ...this.wish });
    } catch (error) {
      if (mine === this.number) this.fail(error.message);
    }
  }

  hear({ kind, model, turn, value }) {
    if (model !== this.number) return;
    if (kind === "failed") return this.fail(value);
    if (kind === "untouched") this.untouched = value;
    else if (turn !== this.turn) return;
    else this[kind] = value;
    this.heard();
  }

  fail(sentence) {
    this.problem = sentence;
    this.facts = null; // asked again, it is loaded again
    this.heard();
  }

  // Whether all that was asked for has been measured.
  get settled() {
    const whole = (count) => count?.done === count?.every && count;
    return Boolean(this.problem || (this.look && whole(this.untouched) && (!this.wish.change || whole(this.changed))));
  }

  end() {
    this.worker.terminate();
    URL.revokeObjectURL(this.url);
  }
}
