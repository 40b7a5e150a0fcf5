// Shows one of the examples that Python worked out: it looks up, and computes nothing but where to look.
(() => {
  function start(player) {
    player.dataset.started = "true";
    const { examples, strides, names, marked, sentence } = JSON.parse(player.querySelector("script").textContent);
    const groups = [...player.querySelectorAll("[data-control]")];
    const values = groups.map((group) => Number(group.querySelector("input")?.value ?? 0));

    function show() {
      const cells = examples[values.reduce((sum, value, i) => sum + value * strides[i], 0)].split(" ");
      const text = (cell) => (names[cell] ? names[cell][cells[cell]] : cells[cell]);
      for (const place of player.querySelectorAll("[data-cell]")) {
        const cell = place.dataset.cell;
        place.textContent = text(cell);
        place.dataset.marked = Number(cell in marked && marked[cell].includes(cells[cell]));
      }
      player.querySelector(".player-sum").textContent = sentence.replace(/\{(\d+)\}/g, (_, cell) => text(cell));
    }

    groups.forEach((group, i) => {
      const inputs = [...group.querySelectorAll("input")];
      const most = Number(group.dataset.most);
      const set = (value, typed) => {
        values[i] = Math.min(most, Math.max(0, Math.trunc(value) || 0));
        for (const input of inputs) if (input !== typed) input.value = values[i];
        show();
      };
      for (const input of inputs) {
        input.addEventListener("input", () => set(Number(input.value), input));
        input.addEventListener("change", () => set(Number(input.value)));
      }
      group.querySelector("button")?.addEventListener("click", () => set((values[i] + 1) % (most + 1)));
    });
  }

  for (const player of document.querySelectorAll(".player:not([data-started])")) start(player);
})();
