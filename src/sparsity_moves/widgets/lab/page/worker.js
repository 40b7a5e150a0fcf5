// Trains beside the page. Between two steps it reads what the page says, so that every wish is heard within a few steps.

const SLICE = 20; // milliseconds
let wasm, session, twin, partner = null, playing = false, speed = 0, wish = null, run = 0;

const inbox = [], breath = new MessageChannel();
let heard = () => {};
onmessage = ({ data }) => {
  inbox.push(data);
  heard();
};

// Until a message comes, or for so long; 0 lets those in that wait already.
const rest = (milliseconds) =>
  new Promise((over) => {
    heard = breath.port1.onmessage = over;
    if (milliseconds === 0) breath.port2.postMessage(null);
    else if (milliseconds < Infinity) setTimeout(over, milliseconds);
  });

const say = (kind, value) => postMessage({ kind, run, value });
const instance = () => new WebAssembly.Instance((wasm ??= new WebAssembly.Module(Uint8Array.from(atob(WASM), (c) => c.charCodeAt(0)))), {}).exports;

async function report() {
  say("row", await session.row());
  show();
}

function show() {
  if (session && wish) say("look", session.look(...wish));
}

async function work() {
  const until = performance.now() + SLICE;
  do await session.advance();
  while (!session.due && !speed && !inbox.length && performance.now() < until);
  if (session.partner === partner && !session.pays) session.join(new Twin((twin ??= instance())));
  if (session.due) await report();
  if (!session.done) return say("step", session.step);
  playing = false;
  say("done", session.step);
}

async function obey(data) {
  if (data.kind === "pair") pair(data.port, data.which);
  if (data.kind === "start") {
    ({ run, speed, wish } = data);
    const one = session?.wasm ?? instance();
    const other = partner ? partner.begin(run, data.setting) : new Twin((twin ??= instance()));
    session = new Session(one, data.setting, other, 0);
    await report();
  }
  if (data.kind === "speed") speed = data.speed;
  if (data.kind === "look") {
    wish = data.wish;
    show();
  }
  if (data.kind === "step" && session && !session.done) {
    await session.advance();
    await report();
    if (session.done) say("done", session.step);
  }
  playing = Boolean(session) && !session.done && (data.kind === "play" || data.kind === "start" ? data.play : playing && data.kind !== "step");
}

// The first worker of a pair talks to the page; the second does the same steps beside it, one ahead at most.
function pair(port, which) {
  if (which === 0) {
    partner = new Link(port);
    return;
  }
  const link = new Link(port);
  link.begun = async (of, setting) => {
    try {
      run = of;
      session = new Session(session?.wasm ?? instance(), setting, link, 1);
      for (const mine = session; mine === session; await mine.advance()) {
        if (mine.due) link.say(mine.ablated());
        if (mine.done) return;
      }
    } catch (error) {
      say("failed", String(error?.message ?? error));
    }
  };
}

(async () => {
  try {
    for (;;) {
      while (inbox.length) await obey(inbox.shift());
      if (playing) await work();
      await rest(playing ? (speed ? 1000 / speed : 0) : inbox.length ? 0 : Infinity);
    }
  } catch (error) {
    say("failed", String(error?.message ?? error));
  }
})();
