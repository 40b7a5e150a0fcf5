"""A widget and a page without JupyterLab between them: a module mounted as anywidget's front end mounts it."""

from typing import Any

import anywidget
from playwright.sync_api import Page

MOUNT = """async ([text, state]) => {
    const heard = [], changed = {};
    const model = {
        get: (name) => state[name],
        set: (name, value) => { state[name] = changed[name] = value; },
        save_changes: () => kernelSaves(changed),
        on: (kind, hear) => kind === "msg:custom" && heard.push(hear),
        send: async (content) => {
            for (const said of await kernelHears(content)) heard.forEach((hear) => hear(said));
        },
    };
    const module = await import(URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
    const el = document.querySelector("main").appendChild(document.createElement("div"));
    window.end = module.default.render({model, el});
}"""


def mount(page: Page, widget: anywidget.AnyWidget) -> None:
    """The widget's own module in the page; traits and messages go to and fro while a test waits for the page."""
    said: list[Any] = []
    widget.send = lambda content, buffers=None: said.append(content)

    def hears(content: Any) -> list[Any]:
        said.clear()
        widget._handle_custom_msg(content, [])
        return said

    def saves(changed: dict[str, Any]) -> None:
        for name, value in changed.items():
            widget.set_trait(name, value)

    page.expose_function("kernelHears", hears)
    page.expose_function("kernelSaves", saves)
    everybodys = anywidget.AnyWidget.class_trait_names()
    own = [name for name in widget.trait_names(sync=True) if name not in everybodys and name[0] != "_"]
    page.evaluate(MOUNT, [widget._esm, {name: getattr(widget, name) for name in own}])
