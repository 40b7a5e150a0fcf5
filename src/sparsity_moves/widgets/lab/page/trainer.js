// The page's end of the worker. `null` where it cannot run, with the sentence why.

// The smallest module with a SIMD instruction: (func (result v128) i32.const 0 i8x16.splat).
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11]);

export function obstacle(why = " The recorded run is below; training needs a current browser.") {
  if (typeof WebAssembly !== "object" || typeof Worker !== "function") return `This browser does not run WebAssembly in a worker.${why}`;
  if (!WebAssembly.validate(SIMD)) return `This browser's WebAssembly has no SIMD instructions.${why}`;
  return null;
}

const SILENCE = 5000; // milliseconds without a first word after which a pair of workers is given up

// One worker; where there are two cores, a second that differentiates the other half of every batch. Alone and in a
// pair a run has the same bits. Workers cannot share memory in a page that anyone may host, so gradients go to and fro:
// 0.07 to 0.09 ms an exchange (Chromium, idle), at most two a step, where the other half of a step takes 1.1 to 3.1 ms:
// least in modular addition. So every task has a pair, and a run gives it up where another program has the core.
export class Trainer {
  // `heard(kind, value)` of the present run; `failed(sentence)`; `lost()` when a pair is replaced by one alone.
  constructor(heard, failed, lost) {
    Object.assign(this, { heard, failed, lost, run: 0, alone: !(navigator.hardwareConcurrency > 1), workers: [], patience: 0 });
    this.url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    this.open();
  }

  open() {
    const broken = (sentence) => (this.alone ? this.failed(sentence) : this.separate());
    const worker = () => {
      const one = new Worker(this.url);
      this.workers.push(one);
      one.onerror = (event) => broken(event.message ?? "The worker did not start.");
      one.onmessage = ({ data }) => {
        if (data.run !== this.run) return;
        clearTimeout(this.patience);
        if (data.kind === "failed") broken(data.value);
        else this.heard(data.kind, data.value);
      };
      return one;
    };
    worker();
    if (this.alone) return;
    try {
      const second = worker(), { port1, port2 } = new MessageChannel();
      this.workers[0].postMessage({ kind: "pair", which: 0, port: port1 }, [port1]);
      second.postMessage({ kind: "pair", which: 1, port: port2 }, [port2]);
    } catch {
      this.alone = true;
    }
  }

  separate() {
    this.stop();
    this.alone = true;
    this.open();
    this.lost();
  }

  // Starts over with a setting; whatever an earlier run still says is not heard.
  start(setting, play, speed, wish) {
    this.workers[0].postMessage({ kind: "start", run: ++this.run, setting, play, speed, wish });
    clearTimeout(this.patience);
    if (!this.alone) this.patience = setTimeout(() => this.separate(), SILENCE);
  }

  // What the present run still says is not heard.
  hush() {
    this.run++;
    clearTimeout(this.patience);
  }

  tell(kind, more) {
    this.workers[0].postMessage({ kind, ...more });
  }

  stop() {
    clearTimeout(this.patience);
    for (const one of this.workers) one.terminate();
    this.workers = [];
  }

  end() {
    this.stop();
    URL.revokeObjectURL(this.url);
  }
}
