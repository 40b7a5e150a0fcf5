"""All the runs in a real browser: what Python packed comes out again, the brush picks what it covers, and nobody is
left out or let in."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser, Page

import kernel
from axe import violations
from browsing import bare_page
from frames import rest
from sparsity_moves import studies
from sparsity_moves.errors import UserError
from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.figures.reference import RUNS
from sparsity_moves.names import MOMENTS
from sparsity_moves.store import Store
from sparsity_moves.studies.argument import Argument
from sparsity_moves.studies.evidence import Evidence
from sparsity_moves.widgets.explorer.data import MEASURES, chunks, models, packed
from sparsity_moves.widgets.explorer.widget import Explorer, element, explorer, index, write

ROOT = Path(__file__).parents[1]
PAGE_BYTES = 2_000_000
QUIET = 200  # milliseconds after a picture at which table and sentence have followed


def planted(
    number: int = 6, *, arms: tuple[str, ...] = ("dense", "moe"), shift: float = 0.0, **more: Any
) -> Evidence:
    """Runs whose accuracies say which they are: arm by the first digit, seed by the second."""
    rows, curves, settings = [], [], {}
    for a, arm in enumerate(arms):
        for seed in range(number):
            spec = studies.arm(arm, "laptop", "add7", seed, **more)
            spec_id = f"{int(1000 * shift):04x}{a:04x}{seed:08x}"
            settings[spec_id] = json.loads(spec.canonical)
            share = round(0.1 + 0.4 * a / len(arms) + 0.3 * seed / number + shift, 4)
            own: dict[str, Any] = dict.fromkeys(RUNS, None) | {
                n: getattr(spec, n) for n in RUNS if hasattr(spec, n)
            }
            own |= dict.fromkeys(MEASURES, share) | {
                "parameters": 1000 + a,
                "active_parameters": 100,
                "arm": arm,
            }
            own |= {"flops_per_token": 5000, "spec_id": spec_id, "study": "redistribution"}
            rows += [own | {"moment": moment, "step": 10 * (i + 1)} for i, moment in enumerate(MOMENTS[::2])]
            lines = {"spec_id": spec_id, "accuracy": share, "test_accuracy": None}
            lines |= {"no_ffn_accuracy": share, "no_attention_accuracy": 0.5}
            curves += [lines | {"step": step, "loss": 1e-6 * step} for step in range(10, 510, 10)]
    schema = {"train_below": pl.Int32}
    table = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=schema)
    return Evidence(table, settings, pl.DataFrame(curves, infer_schema_length=None))


def put(place: Path, name: str, sources: dict[str, Evidence]) -> dict[str, Any]:
    found = chunks(sources, dict.fromkeys(sources, Store(place / "none")))
    (place / name).mkdir()
    write(found, place / name)
    (place / f"{name}.html").write_text(
        bare_page("Runs", element(index(found), f"{name}/")), encoding="utf-8"
    )
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    put(place, "few", {"paper": planted(), "own": planted(2, shift=0.05)})
    one, other = planted(2, arms=("dense",), shift=0.1, width=128), planted(2)
    both = Evidence(
        pl.concat([other.rows, one.rows]),
        other.settings | one.settings,
        pl.concat([other.curves, one.curves]),
    )
    put(place, "twins", {"paper": both})
    (place / "empty.html").write_text(bare_page("Runs", ""), encoding="utf-8")
    return place


@pytest.fixture
def attentive(tmp_path: Path) -> Path:
    """A page of one committed run a task whose attention is stored."""
    paper = Store(ROOT / "results" / "paper")
    whole = Evidence.of(paper)
    kept = whole.rows.filter(pl.col("spec_id").is_in(paper.tables.checkpoints()), moment="first_best")
    few = Evidence(kept.unique("task"), whole.settings, whole.curves)
    found = chunks({"paper": few}, {"paper": paper})
    (tmp_path / "data").mkdir()
    write(found, tmp_path / "data")
    page = bare_page("Runs", element(index(found), "data/"))
    (tmp_path / "runs.html").write_text(page, encoding="utf-8")
    return tmp_path


class Opened:
    """Opens pages; `elsewhere` and `complaints` remember what must not happen."""

    def __init__(self, browser: Browser, base: str) -> None:
        self.browser, self.base = browser, base
        self.pages: list[Page] = []
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []

    def __call__(self, name: str = "few.html", **options: Any) -> Page:
        return settled(self.bare(name, **options))

    def bare(self, name: str, **options: Any) -> Page:
        page = self.browser.new_page(**{"viewport": {"width": 1000, "height": 1000}, **options})
        self.pages.append(page)
        page.on(
            "request",
            lambda r: r.url.startswith((self.base, "blob:", "data:")) or self.elsewhere.append(r.url),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        page.goto(f"{self.base}/{name}")
        return page


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Opened]:
    opener = Opened(browser, folder.as_uri())
    yield opener
    for page in opener.pages:
        page.close()
    assert not opener.elsewhere
    assert not opener.complaints


def settled(page: Page) -> Page:
    page.wait_for_function("() => document.querySelector('.runs canvas[aria-label*=brushed]')")
    rest(page, QUIET)
    return page


def brushed(page: Page) -> int:
    rest(page, QUIET)
    return int("".join(filter(str.isdigit, page.locator(".runs-state").inner_text().split("of")[0])))


def edges(page: Page, *values: float | None) -> None:
    """Type the brush's edges: across from, to; up from, to."""
    for field, value in zip(page.locator(".runs-brush input").all(), values, strict=True):
        field.fill("" if value is None else str(value))


def rows(page: Page) -> list[dict[str, str]]:
    """The selection's file."""
    with page.expect_download() as coming:
        page.get_by_text("Data of these runs").click()
    return list(csv.DictReader(io.StringIO(Path(coming.value.path()).read_text())))


class TestThePacking:
    def test_a_share_comes_back_to_the_next_answer_and_none_stays_none(self) -> None:
        chunk = packed(pl.Series([0.0, 0.123456, 1.0, None]))
        short = np.frombuffer(base64.b64decode(chunk["data"]), "<u2")
        assert chunk["kind"] == "share"
        assert short[:3] / 65_534 == pytest.approx([0, 0.123456, 1], abs=1e-5)
        assert short[3] == 65_535

    def test_a_loss_and_a_count_keep_their_size(self) -> None:
        for column in (pl.Series("loss", [1e-7, 0.5]), pl.Series("parameters", [33_536, 2])):
            chunk = packed(column)
            values = np.frombuffer(base64.b64decode(chunk["data"]), "<f4")
            assert chunk["kind"] == "number"
            assert values == pytest.approx(column.to_list(), rel=1e-6)

    def test_a_run_of_several_studies_is_one_model_by_its_main_name(self) -> None:
        twice = pl.DataFrame(
            {"spec_id": ["a", "a", "b"], "study": ["sweep", "redistribution", "sweep"]}
            | {"arm": ["dense_e1", "dense", "moe"], "seed": [1, 1, 1]}
        )
        found = models(twice)
        assert dict(found.select("spec_id", "arm").iter_rows()) == {"a": "dense", "b": "moe"}
        assert set(found.filter(spec_id="a")["study"].item().split(", ")) == {"sweep", "redistribution"}

    def test_every_committed_run_is_there_and_small_enough(self, tmp_path: Path) -> None:
        paper = Store(ROOT / "results" / "paper")
        evidence = Evidence.of(paper)
        found = chunks({"paper": evidence}, {"paper": Store(tmp_path)})
        ids = [i for key, chunk in found.items() if key.startswith("runs-") for i in chunk["ids"]]
        assert sorted(ids) == sorted(evidence.rows["spec_id"].unique())
        write(found, tmp_path)
        for task in ("add7", "modular_addition", "histogram"):  # what a first look at a task loads
            first = [tmp_path / f"explorer-runs-paper-{task}.js"]
            arms = found[f"runs-paper-{task}"]["arms"]
            first += [
                tmp_path / f"explorer-curves-paper-{task}-{i}.js"
                for i, arm in enumerate(arms)
                if arm[0] in index(found)["first"]
            ]
            weight = len(element(index(found))) + sum(path.stat().st_size for path in first)
            assert weight < PAGE_BYTES, (task, weight)

    def test_attention_is_that_of_the_stored_parameters(self) -> None:
        paper = Store(ROOT / "results" / "paper")
        whole = Evidence.of(paper)
        one = whole.rows.filter(pl.col("spec_id").is_in(paper.tables.checkpoints()), task="add7").head(1)
        few = Evidence(one, whole.settings, whole.curves)
        (pattern,) = chunks({"paper": few}, {"paper": paper})["attention-paper-add7"].values()
        weights = np.frombuffer(base64.b64decode(pattern["data"]), "<u2") / 65_534
        weights = weights.reshape(pattern["heads"], len(pattern["answers"]), len(pattern["tokens"]))
        assert weights.sum(-1) == pytest.approx(1, abs=1e-3)  # each row is a distribution
        for row, at in enumerate(range(3, 8)):
            assert (weights[:, row, at + 1 :] == 0).all()  # and nobody looks ahead

    def test_where_there_is_a_table_of_attention_the_pattern_is_the_tables(self, tmp_path: Path) -> None:
        whole = planted(1, arms=("moe",))
        (spec_id,) = whole.settings
        key = {"spec_id": spec_id, "layer": 0, "head": 1, "carry": None, "relation": None}
        table = [
            key | {"moment": moment, "position": 0, "key": 2, "weight": weight}
            for moment, weight in (("first_best", 0.2), ("final", 0.9))
        ]
        evidence = Evidence(whole.rows, whole.settings, whole.curves, {"attention": pl.DataFrame(table)})
        (pattern,) = chunks({"paper": evidence}, {"paper": Store(tmp_path)})["attention-paper-add7"].values()
        weights = np.frombuffer(base64.b64decode(pattern["data"]), "<u2") / 65_534
        assert (pattern["moment"], pattern["answers"]) == ("final", ["EOS"])
        assert weights.reshape(pattern["heads"], 1, -1)[1, 0, 2] == pytest.approx(0.9, abs=1e-4)


class TestTheBrush:
    def test_it_picks_the_runs_that_it_covers(self, opened: Opened) -> None:
        page = opened()
        assert brushed(page) == 16
        edges(page, None, None, 29, None)  # the dense from 10 %, the MoE from 30 %, in steps of 5
        assert brushed(page) == 2 + 6 + 3
        assert {row["arm"] for row in rows(page)} == {"dense", "moe"}
        edges(page, None, None, 46, None)
        assert {row["arm"] for row in rows(page)} == {"moe"}

    def test_dragging_and_typing_are_the_same(self, opened: Opened) -> None:
        page = opened()
        box = page.locator(".runs-points").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 60, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 120, steps=4)
        page.mouse.up()
        dragged = brushed(page)
        assert 0 < dragged < 16
        typed = [float(field.input_value()) for field in page.locator(".runs-brush input").all()]
        page.get_by_role("button", name="Clear the brush").click()
        assert brushed(page) == 16
        edges(page, *typed)
        assert brushed(page) == dragged

    def test_a_finger_brushes_too(self, opened: Opened) -> None:
        page = opened(has_touch=True, viewport={"width": 360, "height": 900})
        page.locator(".runs-points").scroll_into_view_if_needed()
        box = page.locator(".runs-points").bounding_box()
        assert box is not None
        client = page.context.new_cdp_session(page)
        for kind, x, y in (
            ("touchStart", 50, 20),
            ("touchMove", 120, 25),
            ("touchMove", 250, 120),
            ("touchEnd", 0, 0),
        ):
            places = [] if kind == "touchEnd" else [{"x": box["x"] + x, "y": box["y"] + y}]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        assert 0 < brushed(page) < 16

    def test_seeds_and_arms_filter_with_the_keyboard_alone(self, opened: Opened) -> None:
        page = opened()
        page.locator("[name=seeds]").focus()
        page.keyboard.type("0-1")
        assert brushed(page) == 8
        page.keyboard.press("Tab")  # to the arms
        page.keyboard.press("Enter")
        for _ in range(5):  # over three buttons and the list to the second arm
            page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert brushed(page) == 4
        assert page.locator("[role=status]").inner_text().startswith("4 of 16 runs brushed. ")
        assert page.evaluate("document.activeElement.type") == "checkbox"  # where one was, one stays

    def test_the_readers_own_runs_lie_over_the_published_ones_or_stand_alone(self, opened: Opened) -> None:
        page = opened()
        for source, number in (("own", 4), ("paper", 12), ("both", 16)):
            page.locator("[name=source]").select_option(source)
            assert brushed(page) == number

    def test_the_file_has_what_python_has(self, opened: Opened) -> None:
        page = opened()
        found = {row["spec_id"]: row for row in rows(page)}
        for row in planted().rows.filter(moment="first_best").iter_rows(named=True):
            mine = found[row["spec_id"]]
            assert float(mine["no_ffn_accuracy"]) == pytest.approx(row["no_ffn_accuracy"], abs=1e-5)
            assert (mine["arm"], int(mine["seed"]), int(mine["width"])) == (
                row["arm"],
                row["seed"],
                row["width"],
            )

    def test_runs_of_one_arm_and_seed_are_told_apart_by_their_settings(self, opened: Opened) -> None:
        names = opened("twins.html").locator("tbody label").all_inner_texts()
        assert sorted(names) == sorted(
            [
                *(f"Dense, width {width}, seed {seed}" for width in (128, 256) for seed in (0, 1)),
                *(f"MoE, seed {seed}" for seed in (0, 1)),
            ]
        )

    def test_curves_are_those_of_the_brushed_runs(self, opened: Opened) -> None:
        page = opened()
        picture = "() => document.querySelectorAll('.runs canvas')[1].toDataURL()"
        all_of_them = page.evaluate(picture)
        edges(page, None, None, 46, None)
        brushed(page)
        assert page.evaluate(picture) != all_of_them
        assert "loaded" not in page.get_by_text("One line a run").inner_text()

    def test_many_moves_are_one_picture_and_the_slow_parts_wait_for_rest(self, opened: Opened) -> None:
        """How soon they come is for `benchmarks/explorer_speed.py` to say: no test should depend on the machine."""
        page = opened()
        pictures, tables = page.evaluate(MOVES)
        assert (pictures, tables) == (1, 1)
        assert 0 < brushed(page) < 16

    def test_only_the_two_pictures_are_canvases(self, opened: Opened) -> None:
        """A browser gives each a layer of its own: one a row and arm held up the page for more than 100 ms."""
        page = opened()
        page.locator("summary").click()
        assert page.locator(".runs-sample").count() == 2 + 16  # arms and rows
        assert page.locator(".runs canvas").count() == 2


MOVES = """async () => {
    const canvas = document.querySelector(".runs-points"), box = canvas.getBoundingClientRect();
    const pen = canvas.getContext("2d"), clear = pen.clearRect.bind(pen);
    let pictures = 0, tables = 0;
    pen.clearRect = (...where) => { pictures++; clear(...where); };
    new MutationObserver(() => tables++).observe(document.querySelector(".runs-scroll"), { childList: true });
    const say = (kind, x, y) => canvas.dispatchEvent(
        new PointerEvent(kind, { clientX: box.x + x, clientY: box.y + y, pointerId: 1, bubbles: true }));
    canvas.setPointerCapture = () => {};
    say("pointerdown", 60, 20);
    for (let i = 1; i <= 20; i++) say("pointermove", 60 + i * 16, 20 + i * 11);
    while (!tables) await new Promise((go) => setTimeout(go, 50));
    await new Promise((go) => setTimeout(go, 300));
    return [pictures, tables];
}"""
"""Twenty moves of the brush between two frames: how often the points were drawn, and the table made anew."""


class TestTheLink:
    def test_it_holds_the_whole_view(self, opened: Opened) -> None:
        page = opened()
        for name, value in (("x", "parameters"), ("moment", "final"), ("curve", "loss"), ("source", "paper")):
            page.locator(f"[name={name}]").select_option(value)
        page.locator("[name=seeds]").fill("0-3, 5")
        edges(page, None, None, 25, 60)
        number = brushed(page)
        page.locator(".runs td input").first.check()
        rest(page, QUIET)
        link = page.get_by_text("Link to this view").get_attribute("href") or ""
        again = opened(f"few.html{link}")
        assert brushed(again) == number
        assert again.get_by_text("Link to this view").get_attribute("href") == link
        assert again.locator(".runs td input").first.is_checked()
        assert again.locator("[name=curve]").input_value() == "loss"

    @pytest.mark.parametrize(
        "bad",
        [
            "task:nonsense",
            "x:constructor",
            "arms:no_such_arm",
            "box:1+2+3",
            "box:1+2+3+Infinity",
            "picks:<img src=x onerror=alert(1)>",
            "%E0%A4%A",
            "seeds:a-b",
            "moment:" + "a" * 7000,
        ],
    )
    def test_a_strange_one_changes_nothing_and_says_so(self, opened: Opened, bad: str) -> None:
        page = opened(f"few.html#runs={bad}")
        page.wait_for_function(
            "() => /does not have/.test(document.querySelector('.runs-state').textContent)"
        )
        assert len(rows(page)) == 16

    def test_a_strange_seed_is_one_sentence(self, opened: Opened) -> None:
        page = opened()
        page.locator("[name=seeds]").fill("one")
        assert "numbers and ranges" in page.get_by_role("alert").inner_text()
        assert brushed(page) == 16


class TestEverybody:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1000, 360])
    def test_axe_finds_nothing_and_it_fits(self, opened: Opened, scheme: str, width: int) -> None:
        page = opened(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.locator("summary").click()
        page.locator(".runs td input").first.check()
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_a_missing_file_is_one_sentence(self, browser: Browser, tmp_path: Path) -> None:
        found = put(tmp_path, "gone", {"paper": planted()})
        for key in found:
            (tmp_path / "gone" / f"explorer-{key}.js").unlink()
        page = browser.new_page()
        page.goto(f"{tmp_path.as_uri()}/gone.html")
        page.wait_for_function("() => /is missing/.test(document.querySelector('.runs-state').textContent)")
        assert not violations(page)  # also where there is nothing to draw
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("download", lambda download: complaints.append(download.suggested_filename))
        page.get_by_text("Data of these runs").click()  # and nothing to save
        page.locator(".runs canvas").first.click()
        rest(page, QUIET)
        assert not complaints
        page.close()

    def test_missing_attention_is_one_sentence(self, browser: Browser, attentive: Path) -> None:
        (attentive / "data" / "explorer-attention-paper-add7.js").unlink()
        page, complaints = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{attentive.as_uri()}/runs.html")
        settled(page)
        assert page.get_by_text("The file of attention-paper-add7 is missing.").is_visible()
        assert page.locator(".runs tbody tr").count() == 1  # the rest of the page is there
        page.locator("[name=task]").select_option("modular_addition")
        page.locator(".runs-heads svg, .runs-heads canvas").first.wait_for()
        assert not page.get_by_text("is missing").count()
        assert not complaints
        page.close()

    def test_attention_that_comes_after_another_task_was_chosen_is_not_its(
        self, browser: Browser, attentive: Path
    ) -> None:
        late = attentive / "data" / "explorer-attention-paper-add7.js"
        late.write_text(f"window.came = () => {{ {late.read_text()} }};")
        page, complaints = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{attentive.as_uri()}/runs.html")
        page.wait_for_function("() => window.came")
        # Both in one task of the page: the models of one task are gone, those of the other not there.
        page.locator("[name=task]").evaluate(
            """(field) => { field.value = "modular_addition"; field.dispatchEvent(new Event("change")); came(); }"""
        )
        page.locator(".runs-heads svg, .runs-heads canvas").first.wait_for()
        rest(page, QUIET)
        assert page.locator(".runs-attention").count() == 1
        assert not complaints
        page.close()

    def test_frames_that_come_late_lose_nothing(self, opened: Opened) -> None:
        """As in a tab behind another, or on a machine that is busy: clocks go on and frames do not."""
        page = opened.bare("empty.html")
        page.add_init_script(
            "const frame = window.requestAnimationFrame.bind(window);"
            "window.requestAnimationFrame = (drawn) => setTimeout(() => frame(drawn), 700);"
        )
        page.goto(f"{opened.base}/few.html")
        assert settled(page).locator(".runs tbody tr").count() == 16
        edges(page, None, None, 25, 60)
        number = brushed(page)
        assert page.locator(".runs tbody tr").count() == number < 16

    def test_without_javascript_a_sentence_says_where_the_runs_are(
        self, browser: Browser, folder: Path
    ) -> None:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(f"{folder.as_uri()}/few.html")
        assert "runs.parquet" in page.locator("noscript").inner_text()
        context.close()

    def test_live_the_kernel_hands_over_chunks_and_hears_the_selection(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(DATA_DIR, raising=False)
        widget = explorer(Argument(planted()), "laptop")
        assert isinstance(widget, Explorer)
        sent: list[Any] = []
        monkeypatch.setattr(widget, "send", sent.append)
        widget._answer(None, {"load": "runs-own-add7"}, None)
        widget._answer(None, {"load": "../secret"}, None)
        assert [(each["key"], len(each["chunk"]["ids"])) for each in sent] == [("runs-own-add7", 12)]

    def test_live_what_is_brushed_comes_back(
        self, opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Through the module's own end of the widget, as JupyterLab mounts it."""
        monkeypatch.delenv(DATA_DIR, raising=False)
        page, widget = opened.bare("empty.html"), explorer(Argument(planted()), "laptop")
        assert isinstance(widget, Explorer)
        kernel.mount(page, widget)
        assert brushed(settled(page)) == len(widget.selected) == 12
        edges(page, None, None, 46, None)
        number = brushed(page)
        ids = planted().rows.filter(moment="first_best").filter(pl.col("no_ffn_accuracy") >= 0.46)["spec_id"]
        assert sorted(widget.selected) == sorted(ids)
        assert 0 < number == len(ids) < 12
        assert page.get_by_text("Link to this view").count() == 0
        page.evaluate("() => window.end()")

    def test_a_book_has_one(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(DATA_DIR, str(tmp_path))
        explorer(Argument(planted()), "laptop")
        with pytest.raises(UserError, match="two explorers"):
            explorer(Argument(planted()), "laptop")


def test_a_brush_that_forgets_an_edge_is_noticed(browser: Browser, tmp_path: Path) -> None:
    put(tmp_path, "broken", {"paper": planted(), "own": planted(2, shift=0.05)})
    page = tmp_path / "broken.html"
    rule = "y >= b[2] && "
    assert rule in page.read_text()
    page.write_text(page.read_text().replace(rule, ""))
    opener = Opened(browser, tmp_path.as_uri())
    with pytest.raises(AssertionError):
        TestTheBrush().test_it_picks_the_runs_that_it_covers(lambda: opener("broken.html"))  # type: ignore[arg-type]
    opener.pages[0].close()
