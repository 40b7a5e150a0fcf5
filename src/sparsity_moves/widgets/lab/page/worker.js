// Trains beside the page. Between two slices of work it listens, so that every wish is heard within a few steps.

const SLICE = 20; // milliseconds
let wasm, session, playing = false, speed = 0, wish = null, run = 0, turn = 0;
const next = new MessageChannel();
next.port1.onmessage = ({ data }) => work(data);

const say = (kind, value) => postMessage({ kind, run, value });

function report() {
  say("row", session.row());
  show();
}

function show() {
  if (session && wish) say("look", session.look(...wish));
}

// Only the slice asked for last is done: a pause and a start in between leave no second thread of work.
function go() {
  const mine = ++turn;
  if (speed) setTimeout(() => work(mine), 1000 / speed);
  else next.port2.postMessage(mine);
}

function work(mine) {
  if (!playing || mine !== turn) return;
  const until = performance.now() + SLICE;
  do {
    session.advance();
    if (session.step % session.run.every === 0 || session.done) {
      report();
      break;
    }
  } while (!speed && performance.now() < until);
  if (session.done) {
    playing = false;
    say("done", session.step);
  } else {
    say("step", session.step);
    go();
  }
}

onmessage = ({ data }) => {
  try {
    if (data.kind === "start") {
      wasm ??= new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from(atob(WASM), (c) => c.charCodeAt(0))), {}).exports;
      ({ run, speed, wish } = data);
      session = new Session(wasm, data.setting);
      report();
    }
    if (data.kind === "speed") speed = data.speed;
    if (data.kind === "look") {
      wish = data.wish;
      show();
    }
    if (data.kind === "step" && session && !session.done) {
      session.advance();
      report();
      if (session.done) say("done", session.step);
    }
    playing = Boolean(session) && !session.done && (data.kind === "play" || data.kind === "start" ? data.play : playing && data.kind !== "step");
    if (playing) go();
  } catch (error) {
    say("failed", String(error?.message ?? error));
  }
};
