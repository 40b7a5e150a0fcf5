"""The live lab in a real browser: it learns, answers while it trains, and nobody is left out or let in.

The page under test is the directive's own element in a bare page; `test_book.py` looks at the chapter around it.
"""

import gzip
import itertools
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import kernel
from axe import violations
from browsing import PATIENCE, bare_page
from lab_speed import LEARNED, answer, learned_and_done, longest_task, set_slider, until
from sparsity_moves.errors import UserError
from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.studies.arms import TREES as TREE_ARMS
from sparsity_moves.widgets.lab import record
from sparsity_moves.widgets.lab.host import ACTIVATIONS, GATES, ROUTERS, Host
from sparsity_moves.widgets.lab.module import config, joined, module
from sparsity_moves.widgets.lab.page_html import element, fragment, recorded
from sparsity_moves.widgets.lab.recipes import CONTROLS, checked, defaults, spec_of
from sparsity_moves.widgets.lab.widget import Lab, lab

TREES = [name for name in TREE_ARMS if name != "tree_active"]  # which the number of trees makes of `tree`
TASK, SIZE = 0.1, 60_000  # seconds, bytes


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lab")
    (place / "lab.html").write_text(bare_page("Lab", element({})), encoding="utf-8")
    # The same with a host that listens, as JupyterLab does.
    listening = (
        "<div class=lab-host></div><script type=module>" + module() + "\nconst state = "
        f"{json.dumps({'recorded': recorded(), 'setting': defaults(), 'links': False})};\n"
        "const model = {get: (name) => state[name], set: (name, value) => (state[name] = value), "
        "save_changes: () => (window.saved = structuredClone(state))};\n"
        "const made = {render({model, el}) { return mount(el, {recorded: model.get('recorded'), "
        "setting: model.get('setting'), links: false, finished(setting, rows) { model.set('setting', setting); "
        "model.set('rows', rows); model.save_changes(); }}); }};\n"
        "window.end = made.render({model, el: document.querySelector('.lab-host')});</script>"
    )
    (place / "live.html").write_text(bare_page("Lab", listening), encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Opened:
    """Opens pages; `elsewhere` and `complaints` remember what must not happen."""

    def __init__(self, browser: Browser, base: str) -> None:
        self.browser, self.base = browser, base
        self.pages: list[Page] = []
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []

    def bare(self, url: str) -> Page:
        """A page into which the test puts the lab itself."""
        page = self._page(url.rsplit("/", 1)[0])
        page.goto(url)
        return page

    def __call__(self, name: str = "lab.html", script: str = "", base: str = "", **options: Any) -> Page:
        home = base or self.base
        page = self._page(home, **options)
        if script:
            page.add_init_script(script)
        page.goto(f"{home}/{name}")
        page.wait_for_selector(".lab-accuracy svg")
        return page

    def _page(self, home: str, **options: Any) -> Page:
        page = self.browser.new_page(**{"viewport": {"width": 1000, "height": 900}, **options})
        page.set_default_timeout(PATIENCE)
        self.pages.append(page)
        page.on(
            "request", lambda r: r.url.startswith((home, "blob:", "data:")) or self.elsewhere.append(r.url)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        return page


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Opened]:
    opener = Opened(browser, folder.as_uri())
    yield opener
    for page in opener.pages:
        page.close()
    assert not opener.elsewhere
    assert not opener.complaints


def state(page: Page) -> str:
    return page.locator(".lab-state").inner_text()


def step(page: Page) -> int:
    return int(state(page).split("step ")[1].split(" ")[0])


HUNDREDS = "step [1-9][0-9]{2,} of"


# A page in a browser with so many cores, which counts its workers and may spoil the second.
WORKERS = {
    name: "Object.defineProperty(navigator, 'hardwareConcurrency', {get: () => "
    + ("1" if name == "one" else "2")
    + "}); window.made = 0; const Real = Worker; const Text = Blob; "
    "window.Blob = class extends Text { constructor(parts) { super(parts); window.source ??= parts[0]; } }; "
    "window.Worker = class { constructor(url) { "
    + f"if (++window.made === 2) {{ {spoilt} }} return new Real(url); }} }};"
    for name, spoilt in {
        "two": "",
        "one": "",
        "of two one breaks": "return new Real(URL.createObjectURL(new Blob(['wrong()'])));",
        "of two one is silent": "return new Real(URL.createObjectURL(new Blob([''])));",
        "of two one is slow": "return new Real(URL.createObjectURL(new Blob([`const { prototype } = MessagePort, "
        "post = prototype.postMessage; prototype.postMessage = function (...said) { const until = performance.now() "
        "+ 200; while (performance.now() < until); post.apply(this, said) };`, window.source])));",
        "no second": "throw new Error('no second');",
    }.items()
}


class TestItLearns:
    @pytest.mark.parametrize("experts", [1, 2, 4, 8, 16])
    def test_add7_by_the_end_of_its_run(self, opened: Opened, experts: int) -> None:
        """In how many seconds is for `benchmarks/lab_speed.py` to say: no test should depend on the machine."""
        page = opened()
        learned_and_done(page, experts)
        assert float(state(page).split("right in ")[1].split("%")[0]) >= 99

    @pytest.mark.parametrize("workers", WORKERS)
    def test_the_same_bits_as_the_recorded_run(self, opened: Opened, workers: str) -> None:
        """Whether a worker or a pair of them trained, and whatever becomes of the second."""
        page = opened("live.html", script=WORKERS[workers])
        page.get_by_role("button", name="Train").click()
        until(page, HUNDREDS)
        page.get_by_role("button", name="Pause").click()
        rows = page.wait_for_function("() => window.saved?.rows").json_value()
        assert len(rows) > 3
        assert rows == recorded()["rows"][: len(rows)]
        made = {"one": 1, "of two one breaks": 3, "of two one is silent": 3}.get(workers, 2)
        assert page.evaluate("() => window.made") == made

    def test_the_recorded_run_is_what_the_trainer_gives(self) -> None:
        host = Host(spec_of(recorded()["setting"]))
        host.call("initialise", host.spec.seed)
        for row in recorded()["rows"][:6]:
            while row["step"] and host_steps(host) < row["step"]:
                advance(host)
            assert record.row_of(host, row["step"], row["loss"]) == row
        assert recorded()["setting"] == defaults()
        assert recorded()["rows"][-1]["exact"] >= 0.99

    @pytest.mark.parametrize("trees", TREES)
    def test_trees_show_where_answers_go(self, opened: Opened, trees: str) -> None:
        page = opened(f"lab.html#lab=ffn:{trees};trees:4;tree_depth:2;experts:4")
        assert page.locator(".lab [name=experts]").is_disabled()
        page.get_by_role("button", name="Train").click()
        until(page, HUNDREDS)
        page.wait_for_function("() => document.querySelectorAll('.lab-trees svg').length === 4")
        assert page.locator(".lab-trees rect").count() == 4 * 7
        assert page.locator(".lab-switches", has_text="expert").count() == 0

    @pytest.mark.parametrize("task", ["modular_addition", "histogram"])
    def test_the_other_tasks_train_too(self, opened: Opened, task: str) -> None:
        page = opened()
        page.get_by_label("Task").select_option(str(CONTROLS[0]["values"].index(task)))
        until(page, HUNDREDS)
        assert page.locator(".lab-spectrum svg").is_visible() == (task == "modular_addition")


def host_steps(host: Host) -> int:
    return getattr(host, "done", 0)


def advance(host: Host) -> None:
    done = host_steps(host)
    host.step(host.spec.rate(done))
    host.done = done + 1  # type: ignore[attr-defined]


class TestItAnswersAtOnce:
    def test_a_slider_moved_in_training_shows_new_numbers(self, opened: Opened) -> None:
        """The new model's; after how long, the benchmark says."""
        assert answer(opened()) > 0

    def test_no_task_holds_the_page_up(self, opened: Opened) -> None:
        """What else the machine does can only make a task longer, so the best of three counts."""
        assert min(longest_task(opened.browser, opened()) for _ in range(3)) < TASK

    def test_a_task_that_holds_the_page_up_is_seen(self, opened: Opened) -> None:
        # A fixed amount of work, not of time: on a loaded machine a second can pass in which a
        # thread hardly runs.
        busy = """() => new Promise((done) => setTimeout(() => {
            let x = 1; for (let i = 0; i < 4e8; i++) x = (Math.imul(x, 1103515245) + 12345) | 0;
            done(x); }))"""
        # Thrice, as above: a sandbox that counts a thread's time in ticks can miss most of them.
        assert any(longest_task(opened.browser, opened(), busy) > TASK for _ in range(3))

    def test_play_pause_step_reset(self, opened: Opened) -> None:
        page = opened()
        page.get_by_label("Speed").select_option("50")
        page.get_by_role("button", name="Train").click()
        until(page, "Training: step [1-9]")
        page.get_by_role("button", name="Pause").click()
        page.wait_for_timeout(200)
        held = step(page)
        page.wait_for_timeout(300)
        assert step(page) == held < 100
        page.get_by_role("button", name="Step").click()
        page.wait_for_function(
            f"() => document.querySelector('.lab-state').textContent.includes('step {held + 1} ')"
        )
        page.get_by_role("button", name="Reset").click()
        page.wait_for_function("() => document.querySelector('.lab-state').textContent.includes('step 0 ')")
        page.get_by_label("Speed").select_option("0")
        page.get_by_role("button", name="Train").click()
        until(page, HUNDREDS)

    def test_a_pinned_run_stays_beside_the_next(self, opened: Opened) -> None:
        page = opened()
        assert page.get_by_role("button", name="Pin this run").is_disabled()
        page.get_by_role("button", name="Train").click()
        until(page, HUNDREDS)
        page.get_by_role("button", name="Pin this run").click()
        set_slider(page, "experts", 8)
        page.wait_for_function(
            "() => document.querySelectorAll('.lab-run-pinned').length"
            " && document.querySelectorAll('.lab-loads li').length === 8"
        )
        assert page.locator(".lab-ablation thead th").all_inner_texts() == [
            "Model",
            "your run",
            "recorded, default setting",
            "pinned",
        ]


class TestOneInput:
    def test_an_input_is_answered_and_parts_can_be_taken_out(self, opened: Opened) -> None:
        page = opened()
        page.get_by_role("button", name="Train").click()
        page.wait_for_function(LEARNED)
        page.get_by_label("Input").fill("123 + 7")
        first = page.locator(".lab-predictions thead th")
        page.wait_for_function(
            "() => document.querySelector('.lab-predictions thead').textContent === 'Right answer0310EOS'"
        )
        assert first.count() == 6
        page.wait_for_function(
            "() => document.querySelectorAll('.lab-predictions tbody tr')[0]?.textContent === 'Full model0310EOS'"
        )
        for head in range(1, 5):
            page.get_by_role("checkbox", name=f"head {head}").check()
        page.wait_for_function(
            "() => /With your switches/.test(document.querySelector('.lab-predictions').textContent)"
        )
        assert page.locator(".lab-heads svg").count() == 4

    @pytest.mark.parametrize("typed", ["<img src=x onerror=alert(1)>", "1000", "-1", "", "7 + 8", "𝟟"])
    def test_what_is_no_input_gets_one_sentence(self, opened: Opened, typed: str) -> None:
        page = opened()
        page.get_by_label("Input").fill(typed)
        assert page.locator(".lab-problem").inner_text() == "Type a number from 0 to 999, as in 497 + 7."
        assert page.locator(".lab img").count() == 0


class TestLinks:
    def test_a_link_holds_the_whole_setting(self, opened: Opened) -> None:
        page = opened()
        set_slider(page, "experts", 16)
        page.get_by_label("Routing").select_option("1")
        link = page.get_by_role("link", name="Link to this setting").get_attribute("href") or ""
        again = opened(f"lab.html{link}")
        assert again.locator(".lab [name=experts]").get_attribute("aria-valuetext") == "16"
        assert again.get_by_label("Routing").input_value() == "1"
        assert "Training" not in state(again)  # nothing starts unasked

    @pytest.mark.parametrize(
        "link",
        [
            "task:add7;experts:3",
            "experts:8;experts:4",
            "__proto__:1",
            "constructor:1",
            "task:<script>window.hit=1</script>",
            "task:add7;",
            "",
            "seed:1e3",
            "x" * 10_000,
            "%00",
        ],
    )
    def test_a_link_that_is_none_changes_nothing(self, opened: Opened, link: str) -> None:
        page = opened(f"lab.html#lab={link}")
        assert "nothing was changed" in state(page)
        assert page.locator(".lab [name=experts]").get_attribute("aria-valuetext") == "4"
        assert page.evaluate("() => window.hit ?? Object.prototype.experts ?? null") is None

    def test_a_door_in_a_chapter_opens_the_lab_as_set(self, opened: Opened) -> None:
        page = opened(f"lab.html{fragment('task:histogram;experts:8')}")
        assert page.locator(".lab [name=experts]").get_attribute("aria-valuetext") == "8"
        assert page.get_by_label("Input").input_value() == "ABACADBB"

    @pytest.mark.parametrize("wrong", ["experts:3", "colour:red", "", "experts"])
    def test_a_door_to_nowhere_is_refused(self, wrong: str) -> None:
        with pytest.raises(UserError, match=r"the lab"):
            fragment(wrong)

    def test_python_and_the_page_mean_the_same_run(self, opened: Opened) -> None:
        names = ("task", "ffn", "experts", "width", "top_k", "routing")
        choices: list[list[Any]] = [
            next(c["values"] for c in CONTROLS if c["name"] == name) for name in names
        ]
        asked = [dict(zip(names, choice, strict=True)) for choice in itertools.product(*choices)][::7]
        asked += [
            {"task": task, "ffn": ffn, "trees": trees, "tree_depth": depth}
            for task, ffn, trees, depth in itertools.product(choices[0], TREES, (1, 16), (1, 5))
        ]
        found = opened().evaluate(
            f"(asked) => {{ {config()} {joined('settings.js')} return asked.map((one) => "
            "runOf({...defaults(one.task), ...one})) }",
            asked,
        )
        for setting, run in zip(asked, found, strict=True):
            spec = spec_of(setting)
            theirs = (
                run["width"],
                run["experts"],
                run["topK"],
                ROUTERS[run["router"]],
                GATES[run["gate"]],
                ACTIVATIONS[run["activation"]],
                bool(run["gated"]),
                run["balance"],
                run["weightDecay"],
                run["batch"],
                run["rate"],
                run["rise"],
                run["fall"],
                run["treeDepth"],
                bool(run["afterSum"]),
                run["steps"],
            )
            assert theirs == (
                spec.width,
                spec.experts,
                spec.top_k,
                spec.router,
                spec.gate,
                spec.activation,
                spec.gated,
                spec.balance_weight,
                spec.weight_decay,
                spec.batch,
                spec.learning_rate,
                spec.warm_up,
                spec.decay,
                spec.tree_depth,
                spec.nonlinearity == "sum",
                spec.steps,
            ), setting


class TestEverybody:
    @pytest.mark.parametrize("how", ["http", "file"])
    def test_from_a_server_and_from_the_disk(self, opened: Opened, served: str, how: str) -> None:
        page = opened(base=served if how == "http" else "")
        page.get_by_role("button", name="Train").click()
        until(page, "step [1-9][0-9]+ of")

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ("delete globalThis.WebAssembly", "does not run WebAssembly"),
            ("WebAssembly.validate = () => false", "has no SIMD"),
        ],
    )
    def test_without_wasm_or_simd_the_recorded_run_stays_with_a_sentence(
        self, opened: Opened, script: str, reason: str
    ) -> None:
        page = opened(script=script)
        assert reason in page.locator(".lab-why").inner_text()
        assert page.get_by_role("button", name="Train").is_disabled()
        assert page.locator(".lab-run-recorded").count() > 0
        assert not violations(page)
        set_slider(page, "experts", 8)

    def test_the_keyboard_alone(self, opened: Opened) -> None:
        page = opened()
        page.get_by_role("slider", name="Experts", exact=False).first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".lab [name=experts]").get_attribute("aria-valuetext") == "8"
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        until(page, "Paused")

    def test_a_screen_reader_hears_a_sentence_now_and_then(self, opened: Opened) -> None:
        page = opened()
        page.evaluate(
            """() => { const said = document.querySelector(".lab [role=status]");
                window.heard = [];
                new MutationObserver(() => window.heard.push(said.textContent)).observe(said, {childList: true}) }"""
        )
        page.get_by_role("button", name="Train").click()
        page.wait_for_timeout(2500)
        page.get_by_role("button", name="Pause").click()
        page.wait_for_function("() => window.heard.at(-1)?.startsWith('Paused, step')")
        assert 1 <= len(page.evaluate("() => window.heard")) <= 3

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1000, 360])
    def test_axe_finds_nothing_and_it_fits(self, opened: Opened, scheme: str, width: int) -> None:
        page = opened(color_scheme=scheme, viewport={"width": width, "height": 800}, has_touch=width == 360)
        page.get_by_role("button", name="Train").click()
        until(page, HUNDREDS)
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("All numbers").click()
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def test_nothing_glides_for_those_who_asked_for_less_motion(self, opened: Opened) -> None:
        for motion, still in (("reduce", True), ("no-preference", False)):
            page = opened(reduced_motion=motion)
            how = page.locator(".lab-fill").first.evaluate("e => getComputedStyle(e).transitionDuration")
            assert (how == "0s") == still


class TestInANotebook:
    def test_what_the_reader_trained_comes_back_as_a_table(
        self, opened: Opened, folder: Path, served: str
    ) -> None:
        """Through the module's own end of the widget: traits go to the page, and come back from it."""
        (folder / "empty.html").write_text(bare_page("Lab", ""), encoding="utf-8")
        page, widget = opened.bare(f"{served}/empty.html"), Lab(experts=8, seed=3)
        assert widget.spec.experts == 8
        assert widget.table.is_empty()
        kernel.mount(page, widget)
        assert page.locator(".lab [name=experts]").get_attribute("aria-valuetext") == "8"
        assert page.get_by_role("link", name="Link to this setting").count() == 0
        set_slider(page, "experts", 2)  # which trains at once
        until(page, HUNDREDS)
        page.get_by_role("button", name="Pause").click()
        until(page, "Paused")
        assert (widget.spec.experts, widget.spec.seed) == (2, 3)
        steps = widget.table["step"].to_list()
        assert steps == [25 * i for i in range(len(steps))]
        assert len(steps) > 4
        page.get_by_text("All numbers").click()
        for _ in range(200):  # what the page said last may still be on its way here
            shown = page.locator(".lab-numbers tbody tr").last.locator("td").all_inner_texts()
            last = widget.table.row(-1, named=True)
            if shown and shown[0] == str(last["step"]):
                break
            page.wait_for_timeout(50)
        names = ("accuracy", "no_ffn_accuracy", "no_attention_accuracy", "exact_match")
        assert shown[0] == str(last["step"])
        assert shown[2:] == [f"{100 * last[name]:.1f}%" for name in names]
        page.evaluate("() => window.end()")

    @pytest.mark.parametrize("wrong", [{"experts": 3}, {"colour": "red"}])
    def test_a_setting_that_there_is_not_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"in the lab|no control"):
            checked(wrong)

    def test_while_the_book_is_built_it_is_a_directive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(DATA_DIR, "somewhere")
        assert lab(experts=8)._repr_mimebundle_()["text/markdown"].startswith("```{lab}\n{")

    def test_the_module_is_small(self) -> None:
        assert len(gzip.compress(module().encode(), 9)) < SIZE
