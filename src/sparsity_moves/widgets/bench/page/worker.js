// Runs one model beside the page, a few inputs at a time; between two it listens.

let subject = null, change = null, input = null, donor = null, tally = null, model = 0, turn = 0, running = false;
const next = new MessageChannel();
next.port1.onmessage = work;

const say = (kind, value) => postMessage({ kind, model, turn, value });
const counted = (t) => ({ done: t.done, every: subject.every, right: t.right, exact: t.exact });

function look() {
  const waits = change && subject.waits(change);
  say("look", { tokens: input.tokens, untouched: subject.look(input, null), changed: change && !waits ? subject.look(input, change) : null });
}

// The change first, as soon as it can be measured; the whole model when there is time.
function work() {
  try {
    const can = tally && tally.done < subject.every && !subject.waits(tally.change);
    const which = can ? tally : subject.tally;
    if (which.done === subject.every) return (running = false);
    subject.advance(which);
    say(which === tally ? "changed" : "untouched", counted(which));
    if (which === subject.tally && which.done === subject.every && change) look();
    next.port2.postMessage(null);
  } catch (error) {
    running = false;
    say("failed", String(error?.message ?? error));
  }
}

onmessage = ({ data }) => {
  try {
    if (data.kind === "open") {
      const wasm = new WebAssembly.Instance(new WebAssembly.Module(decoded(WASM)), {}).exports;
      ({ model } = data);
      subject = tally = null; // the last model is gone, even where this one cannot be opened
      subject = new Subject(wasm, data.facts, data.task, decoded(data.text));
    }
    ({ change, input, donor, turn } = data);
    if (!subject) return;
    subject.donate(donor);
    tally = change && subject.counting(change);
    say("untouched", counted(subject.tally));
    look();
    if (!running) next.port2.postMessage(null);
    running = true;
  } catch (error) {
    say("failed", String(error?.message ?? error));
  }
};
