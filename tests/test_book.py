"""The built pages, in a real browser with no network: they load nothing from elsewhere, complain about
nothing, their controls redraw the picture, and everybody can read them, in light and in dark.

Each check is a function that returns what is wrong; planted faults at the end show that it would notice.
"""

import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import altair as alt
import polars as pl
import pytest
import yaml
from playwright.sync_api import Browser, Page

from axe import violations
from sparsity_moves import cli, studies
from sparsity_moves.errors import UserError
from sparsity_moves.figures.book_renderer import show
from sparsity_moves.names import results_folder
from sparsity_moves.publishing import site

ROOT = Path(__file__).parents[1]
PAGES = [*site.page_names(yaml.safe_load((ROOT / "_toc.yml").read_text())), "search"]
DRAWN = """() => document.readyState === "complete"
    && !document.querySelector(".chart:not([data-drawn])")
    && (!window.MathJax?.startup?.promise || window.mathDone
        || (MathJax.startup.promise.then(() => { window.mathDone = true }), false))"""


def build() -> Path:
    return site.build(ROOT, profile="smoke", output=ROOT / "_build" / "test", reads=cli.tables("smoke"))


@pytest.fixture(scope="session")
def html() -> Path:
    """The book of the smoke profile, trained and built once and kept as long as nothing it depends on changes."""
    os.environ["SPARSITY_MOVES_RESULTS"] = str(ROOT / "_build" / "test" / "results")
    (ROOT / "_build" / "test").mkdir(parents=True, exist_ok=True)
    with (ROOT / "_build" / "test" / "training.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other test process finds the models trained
        specs = [spec for study in studies.every("smoke") for spec in study.specs]
        studies.engine.run(specs, studies.store("smoke"), quiet=True)
        studies.write_tables("smoke")
        for name in ("usage", "language"):  # committed looks: the same at every profile
            shutil.copytree(ROOT / "results" / name, results_folder(name), dirs_exist_ok=True)
    return build().parent


@pytest.fixture(scope="session")
def served(html: Path) -> Iterator[str]:
    """The address of the book over http."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=["http", "file"])
def base(request: pytest.FixtureRequest, html: Path, served: str) -> str:
    return served if request.param == "http" else html.as_uri()


@dataclass
class Visit:
    """A page looked at, and what went wrong meanwhile."""

    page: Page
    refused: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def settle(self) -> "Visit":
        self.page.wait_for_function(DRAWN, timeout=120_000)
        self.page.wait_for_timeout(100)
        return self


@pytest.fixture
def visit(browser: Browser) -> Iterator["Visitor"]:
    visitor = Visitor(browser)
    yield visitor
    visitor.close()


class Visitor:
    """Opens pages with every request to elsewhere refused and remembered."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.pages: list[Page] = []

    def __call__(self, base: str, name: str, *, scheme: str = "light", width: int = 1200) -> Visit:
        page = self.browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.emulate_media(reduced_motion="reduce")
        self.pages.append(page)
        seen = Visit(page)

        def route(route, request) -> None:  # type: ignore[no-untyped-def]
            if request.url.startswith((base, "data:", "blob:")):
                route.continue_()
            else:
                seen.refused.append(request.url)
                route.abort()

        page.route("**/*", route)
        page.on(
            "console", lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on(
            "response", lambda r: seen.complaints.append(f"{r.status} {r.url}") if r.status > 399 else None
        )
        page.goto(f"{base}/{name}.html")
        return seen.settle()

    def close(self) -> None:
        for page in self.pages:
            page.close()


def idle_controls(page: Page) -> list[str]:
    """The sliders and selections that, moved, leave the picture as it was."""
    idle = []
    for chart in page.locator(".chart").all():
        for control in chart.locator("input[type=range], select").all():
            before = chart.locator("svg").first.inner_html()
            control.evaluate(
                """e => {
                    if (e.tagName === "SELECT") e.selectedIndex = (e.selectedIndex + 1) % e.length;
                    else e.value = e.value === e.max ? e.min : e.max;
                    for (const name of ["input", "change"]) e.dispatchEvent(new Event(name, {bubbles: true}));
                }"""
            )
            page.wait_for_timeout(250)
            if chart.locator("svg").first.inner_html() == before:
                idle.append(control.evaluate("e => e.outerHTML"))
    return idle


class _Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        if target := values.get("href" if tag in ("a", "link") else "src"):
            self.targets.append(target)


def dead_links(html: Path) -> list[str]:
    """Relative links of any page that lead to no file, or to no place on the page."""
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in html.glob("*.html")}
    dead = []
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(file)
            setting = parts.fragment.startswith(
                ("lab=", "bench=")
            )  # no place on the page: what the lab is set to
            lost = parts.fragment and not setting and known and unquote(parts.fragment) not in known.anchors
            if not file.is_file() or lost:
                dead.append(f"{path.name} → {target}")
    return dead


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_complains_about_nothing_and_its_controls_redraw(
    visit: Visitor, base: str, name: str
) -> None:
    seen = visit(base, name)
    assert not idle_controls(seen.page)
    assert not seen.refused
    assert not seen.complaints


def test_the_first_result_has_a_slider(html: Path, visit: Visitor) -> None:
    assert visit(html.as_uri(), "redistribution").page.locator(".chart input[type=range]").count() > 0


def test_live_a_figure_needs_no_other_file(visit: Visitor, tmp_path: Path) -> None:
    chart = alt.Chart(pl.DataFrame({"x": [1, 2]})).mark_point().encode(x="x:Q")
    figure = show(
        chart,
        name="live",
        caption="Two *points*, {numref}`fig-live`.",
        data=pl.DataFrame({"x": [1, 2]}),
        alt="Points",
    )
    (tmp_path / "live.html").write_text(f"<!doctype html>{figure._repr_mimebundle_()['text/html']}")
    seen = visit(tmp_path.as_uri(), "live")
    assert seen.page.get_by_role("img", name="Points").is_visible()
    assert seen.page.locator("figcaption em").inner_text() == "points"
    assert not seen.refused
    assert not seen.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(visit: Visitor, html: Path, name: str, scheme: str) -> None:
    assert not violations(visit(html.as_uri(), name, scheme=scheme).page)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(visit: Visitor, html: Path, name: str) -> None:
    page = visit(html.as_uri(), name, width=360).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(SMALLEST) > 7.5, "a chart is scaled down, and its words with it"
    assert not violations(page)


SMALLEST = """() => {
    const sizes = [];
    for (const text of document.querySelectorAll(".chart svg text")) {
        const to = text.getScreenCTM();
        if (text.textContent) sizes.push(parseFloat(getComputedStyle(text).fontSize) * Math.hypot(to.a, to.b));
    }
    return Math.min(99, ...sizes);
}"""
"""Pixels of the charts' smallest words."""


def test_a_chart_follows_the_theme_and_keeps_its_controls(visit: Visitor, html: Path) -> None:
    page = visit(html.as_uri(), "redistribution").page
    slider = page.locator(".chart input[type=range]").first
    slider.evaluate("e => { e.value = e.max; e.dispatchEvent(new Event('input', {bubbles: true})) }")
    moved = slider.input_value()
    ink = "() => getComputedStyle(document.querySelector('.chart svg text')).fill"
    light = page.evaluate(ink)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(500)
    assert page.evaluate(ink) != light
    assert slider.input_value() == moved


def test_every_figure_offers_its_data_and_its_code(visit: Visitor, html: Path) -> None:
    for name in PAGES:
        page = visit(html.as_uri(), name).page
        for figure in page.locator("figure.chart-figure").all():
            link = figure.get_by_role("link", name="Data (CSV)").get_attribute("href") or ""
            table = pl.read_csv(io.BytesIO((html / link).read_bytes()), infer_schema_length=None)
            assert table.height > 0, link
            figure.get_by_role("button", name="Code").click()
            assert figure.locator("xpath=ancestor::*[contains(@class,'cell')]//pre").first.is_visible()


def test_search_finds_a_page_from_the_disk(visit: Visitor, html: Path) -> None:
    seen = visit(html.as_uri(), "search")
    seen.page.goto(f"{html.as_uri()}/search.html?q=redistribution")
    seen.page.wait_for_selector("#search-results li a")
    assert not seen.refused
    assert not seen.complaints


def test_printing_leaves_the_navigation_out(visit: Visitor, html: Path) -> None:
    page = visit(html.as_uri(), "redistribution").page
    page.emulate_media(media="print")
    assert not page.locator(".bd-sidebar-primary").is_visible()
    assert page.locator(".chart svg").first.is_visible()


def test_links_within_the_book_lead_somewhere(html: Path) -> None:
    assert not dead_links(html)


def test_pages_name_no_place_of_the_machine_that_built_them(html: Path) -> None:
    for path in [*html.glob("*.html"), *html.glob("_sources/*")]:
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.name


def test_no_page_shows_an_empty_output(html: Path) -> None:
    empty = re.compile(
        r"<div class=\"output text_plain[^>]*>\s*<div class=\"highlight\"><pre><span></span>\s*</pre>"
    )
    assert not [path.name for path in html.glob("*.html") if empty.search(path.read_text(encoding="utf-8"))]


def test_a_second_build_changes_nothing(html: Path) -> None:
    before = (html / "index.html").stat().st_mtime_ns
    build()
    assert (html / "index.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ("search", site.BIBLIOGRAPHY)])
def test_an_executed_notebook_runs_again_cell_by_cell(html: Path, name: str) -> None:
    """As a reader runs it who downloads it from the page (nbval, lax: no cell may raise)."""
    notebook = html.parent / "work" / "notebooks" / f"{name}.ipynb"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", str(notebook)]
    done = subprocess.run(command, cwd=ROOT / "book", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def small_book(root: Path, page: str) -> Path:
    """A book of one page of prose."""
    (root / "book" / "assets").mkdir(parents=True, exist_ok=True)
    (root / "book" / "index.md").write_text(page)
    (root / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "book" / "references.bib").touch()
    (root / "book" / "assets" / "book.css").touch()
    return root


def test_a_page_with_a_warning_is_refused_and_the_last_good_book_stays(tmp_path: Path) -> None:
    index = site.build(small_book(tmp_path, "# Good\n"), profile="smoke")
    small_book(tmp_path, "# Bad\n\n{numref}`fig-that-is-not-there`\n")
    with pytest.raises(UserError, match="fig-that-is-not-there"):
        site.build(tmp_path, profile="smoke")
    assert "Good" in index.read_text()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"The book could not be written: .*taken"):
        site.build(small_book(tmp_path, "# One\n"), profile="smoke", output=tmp_path / "taken")


def test_a_chapter_that_raises_stops_the_build_with_its_sentence(tmp_path: Path) -> None:
    page = "# One\n\n```{code-cell}\nraise ValueError('three experts')\n```\n"
    with pytest.raises(UserError, match=r"^index\.md, code cell 1: ValueError: three experts$"):
        site.build(small_book(tmp_path, page), profile="smoke")


def test_a_build_that_is_killed_leaves_no_kernel_behind(tmp_path: Path) -> None:
    running = tmp_path / "running"
    page = (
        "# One\n\n```{code-cell}\nimport os, pathlib, time\n"
        f"pathlib.Path({str(running)!r}).write_text(str(os.getpid()))\ntime.sleep(300)\n```\n"
    )
    build_it = (
        "import sys\nfrom pathlib import Path\nfrom sparsity_moves.publishing import site\n"
        "if __name__ == '__main__':\n    site.build(Path(sys.argv[1]), profile='smoke')\n"
    )
    (tmp_path / "build.py").write_text(build_it)
    root = small_book(tmp_path / "root", page)
    with subprocess.Popen([sys.executable, tmp_path / "build.py", root]) as building:
        assert within(60, lambda: running.exists() and running.read_text() != "")
        kernel = int(running.read_text())
        assert alive(kernel)
        building.kill()
    assert within(15, lambda: not alive(kernel))


def within(seconds: float, so: Callable[[], bool]) -> bool:
    """Whether something becomes so in that time."""
    end = time.monotonic() + seconds
    while not so() and time.monotonic() < end:
        time.sleep(0.1)
    return so()


def alive(process: int) -> bool:
    """Whether it runs: one that has ended and that nobody has asked about does not."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_an_unknown_chapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chapter 'nonsense'; it has: index"):
        site.build_chapter(small_book(tmp_path, "# One\n"), "nonsense", {})


class TestTheChecksWouldNotice:
    def test_a_request_to_elsewhere(self, visit: Visitor, base: str) -> None:
        seen = visit(base, "index")
        seen.page.evaluate(
            "document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))"
        )
        seen.page.wait_for_timeout(300)
        assert seen.refused == ["https://example.org/x.png"]

    def test_a_script_that_fails(self, visit: Visitor, html: Path) -> None:
        seen = visit(html.as_uri(), "index")
        seen.page.evaluate("setTimeout(() => { throw new Error('planted') })")
        seen.page.wait_for_timeout(300)
        assert any("planted" in complaint for complaint in seen.complaints)

    def test_a_picture_without_a_text(self, visit: Visitor, html: Path) -> None:
        page = visit(html.as_uri(), "redistribution").page
        page.evaluate("document.querySelector('.chart svg').removeAttribute('aria-label')")
        assert any("alt" in violation for violation in violations(page))

    def test_a_control_that_does_nothing(self, visit: Visitor, html: Path) -> None:
        page = visit(html.as_uri(), "redistribution").page
        dead = "<label>dead <input type=range min=0 max=3 value=1></label>"
        page.evaluate("dead => document.querySelector('.chart').insertAdjacentHTML('beforeend', dead)", dead)
        assert len(idle_controls(page)) == 1

    def test_a_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "a.html").write_text("<a href='b.html'>b</a> <a href='#there'>there</a> <p id=here>")
        assert dead_links(tmp_path) == ["a.html → b.html", "a.html → #there"]
