"""What the book adds to Sphinx: the numbered figure with a live chart that `figures.show` asks for.

    ```{chart} NAME
    the Vega-Lite specification, one line

    The caption, in MyST.
    ```

The label is `fig-NAME`; the rows behind the picture are expected at `_static/data/NAME.csv`.

The directive `lab` puts the live lab into a page, and {try}`eight experts <experts:8>` is a link that sets it up.
`bench` puts the bench there, with the models that its JSON lists, whose scripts are expected at
`_static/data/bench-NAME.js`; {take}`no FFN <task:add7;ffn:z>` sets that up. `explorer` is the view of all runs.
"""

import json
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from sparsity_moves.errors import UserError
from sparsity_moves.figures.book_renderer import placeholder
from sparsity_moves.widgets.bench import page_html as bench
from sparsity_moves.widgets.explorer.widget import element as explorer
from sparsity_moves.widgets.lab.page_html import element, fragment


class Chart(SphinxDirective):
    """A figure node around the element that `chart.js` draws into."""

    has_content: ClassVar[bool] = True
    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        figure = nodes.figure(classes=["chart-figure"])
        self.set_source_info(figure)
        self.options["name"] = f"fig-{name}"
        self.add_name(figure)
        figure += nodes.raw("", placeholder(name, json.loads(self.content[0])), format="html")
        figure += self._caption()
        figure += nodes.legend("", nodes.raw("", self._links(name), format="html"))
        return [figure]

    def _caption(self) -> nodes.caption:
        parsed = nodes.Element()
        self.state.nested_parse(self.content[1:], self.content_offset + 1, parsed)
        if len(parsed.children) != 1 or not isinstance(parsed[0], nodes.paragraph):
            raise self.error("a chart's caption is one paragraph")
        return nodes.caption("", "", *parsed[0].children)

    def _links(self, name: str) -> str:
        top = "../" * self.env.docname.count("/")
        return (
            f'<p class="chart-links"><a href="{top}_static/data/{name}.csv" download>Data (CSV)</a>'
            '<button type="button" class="chart-code">Code</button></p>'
        )


class LiveLab(SphinxDirective):
    """The lab that trains in the page, at most one a page; its content is a setting as JSON, `{}` for its own."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        setting = json.loads("\n".join(self.content) or "{}")
        return [nodes.raw("", element(setting), format="html")]


class Bench(SphinxDirective):
    """The bench on which models are taken apart, at most one a page; its content says which, as JSON."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        data = "../" * self.env.docname.count("/") + "_static/data/"
        return [nodes.raw("", bench.element(json.loads(self.content[0]), data), format="html")]


class AllRuns(SphinxDirective):
    """The explorer, at most one a page; its content is its index, and its data lie beside those of the figures."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        top = "../" * self.env.docname.count("/")
        index = json.loads(self.content[0])
        return [nodes.raw("", explorer(index, f"{top}_static/data/"), format="html")]


class Door(SphinxRole):
    """{try}`eight experts <experts:8>`: a link to the lab, set up so."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        title, _, setting = self.text.partition(" <")
        try:
            place = fragment(setting.removesuffix(">"))
        except UserError as error:
            message = self.inliner.reporter.error(f"{self.rawtext}: {error}", line=self.lineno)
            return [], [message]
        address = "../" * self.env.docname.count("/") + f"lab.html{place}"
        return [nodes.reference(self.rawtext, title, refuri=address)], []


class Taken(SphinxRole):
    """{take}`no FFN <task:add7;ffn:z>`: a link to the bench, set up so; what is not named is as it was trained."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        title, _, setting = self.text.partition(" <")
        address = "../" * self.env.docname.count("/") + f"bench.html#bench={setting.removesuffix('>')}"
        return [nodes.reference(self.rawtext, title, refuri=address)], []


def _name_references(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Call the entries of a bibliography what ARIA calls them now; docutils writes a withdrawn role."""
    if body := context.get("body"):
        context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the mending of references."""
    app.add_directive("chart", Chart)
    app.add_directive("bench", Bench)
    app.add_directive("lab", LiveLab)
    app.add_directive("explorer", AllRuns)
    app.add_role("take", Taken())
    app.add_role("try", Door())
    app.connect("html-page-context", _name_references)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
