// Lights the path of one token through one tree: Python walked every token, this looks up in which leaf it ended.
(() => {
  function start(walker) {
    walker.dataset.started = "true";
    const { leaves, trees, positions, depth, visits, inputs, places, open, units } = JSON.parse(walker.querySelector("script").textContent);
    const sliders = [...walker.querySelectorAll("input")];

    function show() {
      const [input, place, tree, level] = sliders.map((slider) => Number(slider.value));
      sliders.forEach((slider) => (slider.nextElementSibling.textContent = {
        input: inputs[input], place: places[place], tree: tree + 1, level,
      }[slider.name]));
      const at = (input * positions + place) * trees;
      const leaf = parseInt(leaves[at + tree], 36);
      const path = [0];
      for (let bit = depth - 1; bit >= 0; bit--) path.push(2 * path.at(-1) + 1 + ((leaf >> bit) & 1));
      const walked = path.slice(0, level + 1);
      const seen = visits[tree];
      for (const mark of walker.querySelectorAll("[data-node]")) {
        const node = Number(mark.dataset.node);
        mark.dataset.on = Number(walked.includes(node));
        mark.dataset.dead = Number(seen[node] === 0);
        if (mark.tagName === "line") mark.setAttribute("stroke-width", (1 + (9 * seen[node]) / seen[0]).toFixed(1));
      }
      const turns = walked.slice(1).map((node) => (node % 2 ? "left" : "right"));
      const share = ((100 * seen[walked.at(-1)]) / seen[0]).toFixed(1);
      const same = [...leaves.slice(at, at + trees)].map((code) => parseInt(code, 36) + 1).join(" ");
      walker.querySelector(".walker-said").textContent =
        `${inputs[input]}, ${places[place]}: ${turns.length ? turns.join(", ") : "at the root"}` +
        (level === depth ? `, so leaf ${leaf + 1}. ` : " … ") + `${share} % of all tokens come here. ` +
        (level === depth ? `Leaves in all ${trees} trees: ${same}; ${open} of ${units} units are open.` : "");
    }

    for (const slider of sliders) slider.addEventListener("input", show);
    show();
  }

  for (const walker of document.querySelectorAll(".walker:not([data-started])")) start(walker);
})();
