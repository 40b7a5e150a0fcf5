// The page's end of the worker. `null` where it cannot run, with the sentence why.

// The smallest module with a SIMD instruction: (func (result v128) i32.const 0 i8x16.splat).
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11]);

export function obstacle(why = " The recorded run is below; training needs a current browser.") {
  if (typeof WebAssembly !== "object" || typeof Worker !== "function") return `This browser does not run WebAssembly in a worker.${why}`;
  if (!WebAssembly.validate(SIMD)) return `This browser's WebAssembly has no SIMD instructions.${why}`;
  return null;
}

export class Trainer {
  constructor(heard, failed) {
    this.run = 0;
    const url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.worker.onerror = (event) => failed(event.message ?? "The worker did not start.");
    this.worker.onmessage = ({ data }) => data.run === this.run && (data.kind === "failed" ? failed(data.value) : heard(data.kind, data.value));
    this.url = url;
  }

  // Starts over with a setting; whatever an earlier run still says is not heard.
  start(setting, play, speed, wish) {
    this.worker.postMessage({ kind: "start", run: ++this.run, setting, play, speed, wish });
  }

  // What the present run still says is not heard.
  hush() {
    this.run++;
  }

  tell(kind, more) {
    this.worker.postMessage({ kind, ...more });
  }

  end() {
    this.worker.terminate();
    URL.revokeObjectURL(this.url);
  }
}
