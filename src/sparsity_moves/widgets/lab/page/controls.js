// The panel of settings: native sliders and selections, so keyboard, touch and screen readers find what they know.

export function controls(setting, changed) {
  const fields = new Map();
  const box = h("div", { class: "lab-controls" });
  for (const control of CONFIG.controls) {
    const shown = h("b", {});
    const field = control.slider
      ? h("input", { type: "range", min: 0, max: control.values.length - 1, step: 1, name: control.name })
      : h("select", { name: control.name }, ...control.values.map((value, i) => h("option", { value: i }, wordOf(control, value))));
    const read = () => ({ ...setting(), [control.name]: control.values[Number(field.value)] });
    field.addEventListener("input", () => {
      const wanted = read();
      if (control.name === "task") wanted.weight_decay = CONFIG.tasks[wanted.task].weightDecay;
      changed(wanted);
    });
    fields.set(control.name, { control, field, shown });
    box.append(h("label", {}, h("span", {}, control.label, " ", control.slider ? shown : null), field));
  }
  // Shows a setting, and which controls have an effect in it.
  const show = (now) => {
    for (const { control, field, shown } of fields.values()) {
      const word = wordOf(control, now[control.name]);
      field.value = control.values.indexOf(now[control.name]);
      field.disabled = !applies(control, now);
      if (control.slider) {
        shown.textContent = word;
        field.setAttribute("aria-valuetext", word);
      }
    }
  };
  return { box, show };
}
