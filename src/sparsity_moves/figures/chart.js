// Draws every `.chart` of the page from the Vega-Lite specification inside it.
// All charts share one copy of Vega, loaded when the first chart asks for it.
(() => {
  const page = document.documentElement;

  function vega() {
    window.__vega ??= window.vegaEmbed ? Promise.resolve(window.vegaEmbed) : new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = (page.dataset.content_root || "./") + "_static/vega-bundle.js";
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = () => reject(new Error(script.src + " is missing"));
      document.head.append(script);
    });
    return window.__vega;
  }

  async function draw(chart) {
    const text = chart.querySelector("script").textContent, room = chart.clientWidth;
    if (room < 500) {
      chart.dataset.narrow = "true";
      const drawn = await picture(chart, narrow(JSON.parse(text), room, LABELS));
      const over = chart.querySelector("svg").viewBox.baseVal.width - room;
      if (over > 0) {  // it would be scaled down to the screen, and its words with it
        drawn.finalize();
        await picture(chart, narrow(JSON.parse(text), room, LABELS + over));
      }
    } else {
      await picture(chart, JSON.parse(text));
    }
    name(chart);
    powers(chart);
    watch(chart);
    chart.dataset.drawn = "true";
  }

  async function picture(chart, spec) {
    const embed = await vega();
    const result = await embed(chart, spec, {
      actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true },
    });
    await result.view.runAsync();
    return result;
  }

  // Pixels on a phone: what labels may take beside a plot, a plot at least, and a line of an axis' title.
  const LABELS = 130;
  const NARROWEST = 150;
  const TITLE = 210;

  // On a phone, plots give way to their axes' labels and stand below one another, titles run over several lines, and
  // legends over several rows.
  function narrow(node, room, labels) {
    if (node === null || typeof node !== "object") return node;
    for (const [key, value] of Object.entries(node)) {
      if (key === "width" && typeof value === "number") {
        node.width = Math.min(value, Math.max(NARROWEST, room - labels));
      } else if (key === "title" && value?.subtitle) {
        node.title = { ...value, text: lines(value.text, room), subtitle: lines(value.subtitle, room) };
      } else if (key === "facet" && value?.row && value?.column) {
        node.facet = { row: value.column, column: value.row };  // few columns of many rows
      } else if (key === "columns") {
        node.columns = 1;
      } else if (key === "x" && typeof value?.title === "string") {
        value.title = lines(value.title, TITLE);
      } else if (key === "legend" && value?.columns > 2) {
        value.columns = 2;
      } else if (key === "config") {
        value.legend.layout = { top: { direction: "vertical" } };
      } else if (!["data", "datasets", "params", "transform"].includes(key)) narrow(value, room, labels);
    }
    return node;
  }

  function lines(text, room) {
    const out = [""];
    for (const word of [text].flat().join(" ").split(" ")) {
      const longer = (out.at(-1) + " " + word).trim();
      if (longer.length * 6.5 > room - 40 && out.at(-1)) out.push(word); else out[out.length - 1] = longer;
    }
    return out;
  }

  // The picture is one image with one name; its controls stay outside of it.
  function name(chart) {
    const picture = chart.querySelector("svg");
    picture.removeAttribute("aria-hidden");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", chart.dataset.label);
  }

  // A slider called log_… goes through powers of two, and says the power rather than its exponent.
  function powers(chart) {
    for (const slider of chart.querySelectorAll('.vega-bind input[type="range"][name^="log_"]')) {
      const shown = slider.nextElementSibling;
      const say = () => {
        const power = String(2 ** slider.value);
        slider.setAttribute("aria-valuetext", power);
        if (shown.textContent !== power) shown.textContent = power;
      };
      new MutationObserver(say).observe(shown, { childList: true, characterData: true, subtree: true });
      say();
    }
  }

  // A picture wider than the screen scrolls, and the keyboard must reach what scrolls.
  function watch(chart) {
    const frame = chart.querySelector("svg").parentElement;
    frame.classList.add("chart-frame");
    new ResizeObserver(() => {
      const scrolls = frame.scrollWidth > frame.clientWidth + 1;
      for (const [key, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Chart, scrolls sideways"]]) {
        if (scrolls) frame.setAttribute(key, value); else frame.removeAttribute(key);
      }
    }).observe(frame);
  }

  // "Code" opens the notebook cell that made the figure.
  function openCode(button) {
    const cell = button.closest(".cell");
    const code = cell?.querySelector(".cell_input");
    if (!code) { button.remove(); return; }
    button.addEventListener("click", () => {
      const folded = code.closest("details") ?? cell.querySelector("details");
      if (folded) folded.open = true;
      code.scrollIntoView({ block: "center" });
    });
  }

  function start() {
    for (const chart of document.querySelectorAll(".chart:not([data-started])")) {
      chart.dataset.started = "true";
      draw(chart).catch((error) => {
        chart.textContent = "This chart could not be drawn: " + error.message;
        console.error(error);
      });
    }
    document.querySelectorAll("button.chart-code").forEach(openCode);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
