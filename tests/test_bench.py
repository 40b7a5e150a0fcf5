"""The bench: published models taken apart in a real browser give PyTorch's logits and the measures' accuracies.

The reference for every switch is the package's own forward pass with edits, in double precision; for a random router,
mulberry32 written down a second time in `test_lab_trainer`.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from playwright.sync_api import Browser, Page
from torch import Tensor

import kernel
from axe import violations
from browsing import bare_page, tasks_of
from frames import rest
from sparsity_moves.figures.book_renderer import DATA_DIR
from sparsity_moves.measures.ablation import component_ablation
from sparsity_moves.model import Parameters, Trace, forward
from sparsity_moves.studies import arm
from sparsity_moves.tasks import Sequences, stacked
from sparsity_moves.widgets.bench.models import Model, models, page_config
from sparsity_moves.widgets.bench.page_html import element, module, worker
from sparsity_moves.widgets.bench.widget import Bench, bench
from test_lab_trainer import Mulberry32

PAPER = Path(__file__).parents[1] / "results" / "paper"
EXACT = 1e-5
TASK = 0.1  # seconds
REROUTED = 60
INPUTS = 150
"""The inputs that means are taken over where only logits are looked at."""


@cache
def published() -> list[Model]:
    return models("paper")


def named(name: str) -> Model:
    return next(model for model in published() if model.name == name)


@pytest.fixture(scope="module", autouse=True)
def from_the_checkout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSITY_MOVES_RESULTS", str(PAPER.parent))
        yield


# --- The reference: the same change as edits of the package's forward pass


def change(**parts: str) -> dict[str, str]:
    return {"attention": "k", "ffn": "k", "heads": "kkkk", "experts": "kkkk", "router": "trained"} | parts


CHANGES = [
    *(change(attention=way) for way in "zmd"),
    *(change(ffn=way) for way in "zmd"),
    *(change(heads=f"k{way}kk") for way in "zmd"),
    *(change(experts=f"kk{way}k") for way in "zmd"),
    *(change(router=router) for router in ("initial", "random", "next", "one-3")),
    change(heads="zmdk", experts="zmdk", router="next"),
    change(attention="d", experts="kzkk", router="random"),
]


@dataclass
class Reference:
    """A model in double precision, the means of its parts over some inputs, and a donor's."""

    model: Model
    inputs: Sequences
    donor: Tensor
    p: Parameters = field(init=False)

    def __post_init__(self) -> None:
        exact = {n: t.double() if t.is_floating_point() else t for n, t in self.model.parameters.items()}
        self.p = {n: t[None] for n, t in exact.items()}
        self.parts = {
            "m": {n: x.mean(1, keepdim=True) for n, x in self.pieces(self.inputs.tokens).items()},
            "d": self.pieces(self.donor[None]),
        }
        self.parts["z"] = {n: torch.zeros_like(x) for n, x in self.parts["d"].items()}

    def run(self, tokens: Tensor, edits: dict[str, Any] | None = None, p: Parameters | None = None) -> Trace:
        return forward(self.model.spec.architecture, p or self.p, tokens[None], edits=edits)

    def pieces(self, tokens: Tensor) -> dict[str, Tensor]:
        """What each part is, (1, N, R, ...): the heads' mixtures, both components, every expert's share."""
        trace = self.run(tokens)
        layer, ffn = trace.layers[0], self.model.spec.architecture.ffn
        found = {"heads": layer.heads, "attention": layer.attention, "ffn": layer.ffn}
        for e in range(ffn.experts if ffn.experts > 1 else 0):
            assert layer.routing is not None
            assert layer.hidden is not None
            block = slice(e * ffn.expert_width, (e + 1) * ffn.expert_width)
            share = layer.hidden[..., block] @ self.p["0.ffn.w_out"][0, block]
            if ffn.output_bias:
                share = share + self.p["0.ffn.b_out"][0, e]
            found[f"expert {e}"] = share * layer.routing.gates[..., e : e + 1]
        return found

    def changed(self, tokens: Tensor, c: dict[str, str]) -> Tensor:
        """Logits (N, R, C) of the changed model."""
        edits: dict[str, Any] = {}
        p, experts = self.p, self.model.spec.experts

        def constant(part: str, way: str) -> Any:
            return lambda x: self.parts[way][part].expand_as(x)

        def heads(x: Tensor) -> Tensor:
            x = x.clone()
            for h, way in enumerate(c["heads"]):
                if way != "k":
                    x[:, :, :, h] = self.parts[way]["heads"][:, :, :, h]
            return x

        def gates(g: Tensor) -> Tensor:
            g = rerouted(g, c["router"], tokens, self.model.spec.top_k)
            for e, way in enumerate(c["experts"]):
                if way != "k":
                    g[..., e] = 0
            return g

        def shares(y: Tensor) -> Tensor:
            return y + sum(self.parts[way][f"expert {e}"] for e, way in enumerate(c["experts"]) if way != "k")

        edits["0.heads"] = heads
        if c["attention"] != "k":
            edits["0.attention"] = constant("attention", c["attention"])
        if experts > 1:
            edits |= {"0.gates": gates, "0.ffn": shares}
            if c["router"] == "initial":
                start = self.model.spec.architecture.initialise(self.model.spec.seed)["0.ffn.router"]
                p = p | {"0.ffn.router": start.double()[None]}
        if c["ffn"] != "k":
            edits["0.ffn"] = constant("ffn", c["ffn"])
        return self.run(tokens, edits, p).logits[0]


def rerouted(gates: Tensor, router: str, tokens: Tensor, k: int) -> Tensor:
    """The gates (1, N, R, E), given to other experts."""
    experts = gates.shape[-1]
    if router == "next":
        return gates.roll(1, -1)
    out = torch.zeros_like(gates)
    if router.startswith("one"):
        out[..., int(router[-1]) - 1] = gates.sum(-1)
        return out
    if router != "random":
        return gates.clone()
    for n, sequence in enumerate(tokens.tolist()):
        code = 0
        for token in sequence:
            code = (code * 31 + token) % 2**32
        source = Mulberry32(code, REROUTED)
        for r, row in enumerate(gates[0, n]):
            order = list(range(experts))
            for s, gate in enumerate(row.sort(descending=True).values[:k]):
                other = s + source.below(experts - s)
                out[0, n, r, order[other]] += gate
                order[other] = order[s]
    return out


# --- The page's own code, in Chromium


def script(text: str) -> str:
    """The worker's script without its last part, which listens; the test speaks with the model itself."""
    return text.split("let subject = null")[0]


EXPOSE = "(text) => { (0, eval)(text + ';Object.assign(globalThis, {Subject, decoded, WASM})'); }"
LOOK = """({facts, task, content, inputs, donor, looks, changes}) => {
    const wasm = new WebAssembly.Instance(new WebAssembly.Module(decoded(WASM)), {}).exports;
    const subject = new Subject(wasm, facts, task, decoded(content));
    if (inputs) subject.inputs = subject.inputs.slice(0, inputs);
    while (subject.tally.done < subject.every) subject.advance(subject.tally);
    subject.donate(donor);
    return [null, ...changes].map((change) => looks.map((input) => subject.look(input, change).logits));
}"""
COUNT = """({facts, task, content, donor, changes}) => {
    const wasm = new WebAssembly.Instance(new WebAssembly.Module(decoded(WASM)), {}).exports;
    const subject = new Subject(wasm, facts, task, decoded(content));
    const all = (tally) => {
        while (tally.done < subject.every) subject.advance(tally);
        return task.scored.reduce((sum, r) => sum + tally.right[r], 0) / task.scored.length / subject.every;
    };
    return [all(subject.tally), ...changes.map((change) => all(subject.counting(change)))];
}"""


@pytest.fixture
def bare(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def given(model: Model) -> dict[str, Any]:
    text = model.script.split('"')[3]
    return {"facts": model.facts, "task": page_config([model])["tasks"][model.spec.task], "content": text}


def inputs_of(model: Model, many: int) -> Sequences:
    every = model.inputs
    return every[torch.arange(min(many, len(every)))]


def furthest(page: Page, model: Model, changes: list[dict[str, str]], code: str | None = None) -> list[float]:
    """The largest error of a logit under no change and under each, relative to the largest logit."""
    some = inputs_of(model, INPUTS)
    picks = torch.randint(len(model.inputs), (3,), generator=torch.Generator().manual_seed(3))
    tokens, targets = model.inputs.tokens[picks], model.inputs.targets[picks]
    spoken = [{"tokens": t, "targets": a} for t, a in zip(tokens.tolist(), targets.tolist(), strict=True)]
    page.evaluate(EXPOSE, script(code or worker()))
    found = page.evaluate(
        LOOK,
        given(model) | {"inputs": INPUTS, "donor": spoken[0], "looks": spoken[1:], "changes": changes},
    )
    reference = Reference(model, some, tokens[0])
    errors = []
    for c, logits in zip([change(), *changes], found, strict=True):
        right = reference.changed(tokens[1:], c)
        ours = torch.tensor(logits, dtype=torch.double).view_as(right)
        errors.append(float((ours - right).abs().max() / right.abs().max()))
    return errors


class TestLogits:
    def test_every_published_checkpoint_is_on_the_bench(self) -> None:
        files = {path.stem for path in (PAPER / "checkpoints").glob("*.safetensors")}
        assert {model.spec.spec_id for model in published()} == files
        assert len(files) >= 18

    @pytest.mark.parametrize("task", ["add7", "modular_addition", "histogram"])
    def test_each_model_answers_as_in_pytorch_under_every_change(self, bare: Page, task: str) -> None:
        own = [model for model in published() if model.spec.task == task]
        assert len(own) >= 4
        for model in own:
            errors = furthest(bare, model, CHANGES)
            assert max(errors) < EXACT, (model.name, errors)

    @pytest.mark.parametrize("name", ["moe_top2", "moe_switch_frozen", "glu_bilinear", "moe_glu_active"])
    def test_arms_that_are_not_published_do_too(self, bare: Page, name: str) -> None:
        spec = arm(name, "laptop", "add7", 5)
        model = Model(spec, name, "final", spec.architecture.initialise(6))
        assert max(furthest(bare, model, CHANGES)) < EXACT

    @pytest.mark.parametrize(
        ("right", "wrong", "seen"),
        [
            ("<< h;", "<< (h ^ 1);", change(heads="kzkk")),  # another head
            ("<< e;", "<< (e ^ 1);", change(experts="kkzk")),  # another expert
            ("m: this.parts.mean, d: this.parts.donor", "m: this.parts.donor", change(ffn="m")),
            ("(fill(FFN, change.ffn, 0, d) << 1)", "fill(FFN, change.ffn, 0, d)", change(ffn="z")),
            ('=== "initial" ? "initial"', '=== "initial" ? "trained"', change(router="initial")),
            ("x / this.every", "x / this.capacity", change(attention="m")),  # a mean over too few
            ("Number(to ?? 1)) - 1", "Number(to ?? 1)) - 2", change(router="one-3")),
            ("look(input, change) {", "look(input, change) { input = this.inputs[0];", None),
        ],
    )
    def test_a_bench_that_aims_wrongly_is_found_out(
        self, bare: Page, right: str, wrong: str, seen: dict[str, str] | None
    ) -> None:
        assert worker().count(right) == 1
        errors = furthest(bare, named("add7-moe-final"), CHANGES, worker().replace(right, wrong))
        assert errors[CHANGES.index(seen) + 1 if seen else 0] > 100 * EXACT


MEASURES = {
    "no_attention_accuracy": change(attention="z"),
    "no_ffn_accuracy": change(ffn="z"),
    "mean_attention_accuracy": change(attention="m"),
    "mean_ffn_accuracy": change(ffn="m"),
}


def counted(page: Page, model: Model, measures: list[str]) -> dict[str, float]:
    page.evaluate(EXPOSE, script(worker()))
    wanted = [MEASURES[name] for name in measures]
    found = page.evaluate(COUNT, given(model) | {"donor": None, "changes": wanted})
    return dict(zip(["accuracy", *measures], found, strict=True))


class TestAccuracy:
    @pytest.mark.parametrize("name", ["add7-moe-first_best", "add7-glu-final", "add7-moe_switch-final"])
    def test_it_is_what_the_measures_count(self, bare: Page, name: str) -> None:
        """The same inputs, on this machine's CPU: an answer in a thousand may be a tie that rounds apart."""
        model = named(name)
        found = counted(bare, model, list(MEASURES))
        p = {n: t[None] for n, t in model.parameters.items()}
        right = component_ablation(model.spec.architecture, p, stacked([model.inputs]), [model.spec.seed])
        for measure in MEASURES:
            assert found[measure] == pytest.approx(right[measure].item(), abs=1e-3), measure

    @pytest.mark.parametrize(
        ("name", "measures"),
        [
            *(
                (f"add7-{arm}-{moment}", list(MEASURES))
                for arm in ("dense", "moe")
                for moment in ("first_best", "final")
            ),
            ("modular_addition-moe-grokked", ["no_ffn_accuracy", "mean_ffn_accuracy"]),
            ("histogram-moe-first_best", ["no_ffn_accuracy"]),
        ],
    )
    def test_it_is_what_the_published_tables_say(self, bare: Page, name: str, measures: list[str]) -> None:
        model = named(name)
        rows = pl.read_parquet(PAPER / "runs.parquet").filter(spec_id=model.spec.spec_id, moment=model.moment)
        for measure, value in counted(bare, model, measures).items():
            assert value == pytest.approx(rows[measure][0], abs=2e-3), measure


# --- The page as a reader has it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bench")
    for model in published():
        (place / f"bench-{model.name}.js").write_text(model.script)
    (place / "bench.html").write_text(
        bare_page("Bench", element(page_config(published()), "")), encoding="utf-8"
    )
    gone = [named("add7-moe-final"), named("add7-dense-final")]
    (place / "gone.html").write_text(
        bare_page("Bench", element(page_config(gone), "nowhere/")), encoding="utf-8"
    )
    return place


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SETTLED = "/Measured on all/.test(document.querySelector('.lab-state').textContent)"


class Opened:
    """Opens the page; `elsewhere` and `complaints` remember what must not happen."""

    def __init__(self, browser: Browser, base: str) -> None:
        self.browser, self.base = browser, base
        self.pages: list[Page] = []
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []

    def bare(self, url: str) -> Page:
        """A page into which the test puts the bench itself."""
        page = self._page(url.rsplit("/", 1)[0])
        page.goto(url)
        return page

    def __call__(
        self, place: str = "", base: str = "", script: str = "", name: str = "bench.html", **options: Any
    ) -> Page:
        home = base or self.base
        page = self._page(home, **options)
        if script:
            page.add_init_script(script)
        page.goto(f"{home}/{name}{place}")
        page.wait_for_selector(".bench select")
        return page

    def _page(self, home: str, **options: Any) -> Page:
        page = self.browser.new_page(**{"viewport": {"width": 1000, "height": 900}, **options})
        page.set_default_timeout(120_000)
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


def settle(page: Page) -> Page:
    rest(page, 0)  # a control that was moved is heard by then, and the page says so
    page.wait_for_function(f"() => {SETTLED}")
    return page


def shown(page: Page) -> dict[str, float]:
    """Each row's share of right answers, as the page writes it."""
    rows = page.locator(".bench-result tbody tr").all()
    return {
        row.locator("th").inner_text(): float(row.locator("td").nth(1).inner_text().rstrip("%")) / 100
        for row in rows
    }


HOSTILE = [
    "task:add7;ffn:q",
    "task:<script>",
    "task:constructor",
    "task:add7;model:__proto__",
    "task:add7;model:histogram-moe-first_best",
    "task:add7;__proto__:k",
    "task:add7;heads:zzzzz",
    "task:add7;router:one-5",
    "task:add7;input:9999",
    "task:add7;task:add7",
    "task:histogram;input:AAAA",
    "x" * 100_000,
    "%00%ff",
]


class TestPage:
    @pytest.mark.parametrize("how", ["http", "file"])
    def test_it_opens_with_the_papers_question_answered(self, opened: Opened, served: str, how: str) -> None:
        rows = shown(settle(opened(base=served if how == "http" else "")))
        table = pl.read_parquet(PAPER / "runs.parquet").filter(task="add7", moment="first_best", seed=42)
        for name, arm_name in (("MoE", "moe"), ("Dense", "dense")):
            own = table.filter(spec_id=named(f"add7-{arm_name}-first_best").spec.spec_id).row(0, named=True)
            assert rows[f"{name}, untouched"] == pytest.approx(own["accuracy"], abs=2e-3)
            assert rows[f"{name}, changed"] == pytest.approx(own["no_ffn_accuracy"], abs=2e-3)

    def test_a_switch_changes_the_numbers_at_once_and_back(self, opened: Opened) -> None:
        page = settle(opened())
        before = shown(page)
        page.get_by_role("button", name="All as trained").click()
        settle(page)
        assert set(shown(page)) == {"MoE, untouched", "Dense, untouched"}
        page.locator(".bench [name=heads-1]").select_option("z")
        settle(page)
        assert shown(page)["Dense, changed"] < shown(page)["Dense, untouched"]
        page.get_by_role("button", name="Without FFN").click()
        assert shown(settle(page)) == before

    def test_what_a_dense_layer_has_not_leaves_it_whole(self, opened: Opened) -> None:
        rows = shown(settle(opened("#bench=task:add7;experts:zzzz;router:next")))
        assert rows["Dense, changed"] == rows["Dense, untouched"]
        assert rows["MoE, changed"] < rows["MoE, untouched"]

    def test_one_input_is_answered_whole_and_changed(self, opened: Opened) -> None:
        page = settle(opened("#bench=task:add7;ffn:z;input:497"))
        table = page.locator(".lab-predictions")
        whole = table.locator("tr", has_text="Dense, untouched").locator("td").all_inner_texts()
        assert whole == ["4", "0", "5", "0", "EOS"]
        assert table.locator("tr", has_text="Dense, changed").locator("td.lab-wrong").count() > 0
        page.locator(".bench [name=input]").fill("8 + 7")
        settle(page)
        assert table.locator("tr", has_text="MoE, untouched").first.locator("td").all_inner_texts()[:2] == [
            "5",
            "1",
        ]
        assert page.locator(".lab-head svg").count() == 8
        page.locator(".bench [name=input]").fill("a thousand")
        assert "from 0 to 999" in page.get_by_role("alert").inner_text()

    def test_whole_patches_of_both_components_carry_a_donors_answer(self, opened: Opened) -> None:
        """In modular addition nothing but the two components knows the input at the "=": the answer goes along."""
        page = settle(opened("#bench=task:modular_addition;attention:d;ffn:d;input:3-4;donor:50-60"))
        for name in ("MoE", "Dense"):
            row = page.locator(".lab-predictions tr", has_text=f"{name}, changed").first
            assert row.locator("td").first.inner_text().split()[0] == str((50 + 60) % 113)

    def test_a_link_holds_the_whole_setting(self, opened: Opened) -> None:
        page = settle(
            opened("#bench=task:histogram;model:histogram-glu-first_best;heads:kzkm;input:ABCAABBC01")
        )
        href = page.get_by_role("link", name="Link to this setting").get_attribute("href")
        assert href
        again = settle(opened(href))
        assert again.locator(".bench [name=heads-3]").input_value() == "m"
        assert again.locator(".bench [name=input]").input_value() == "ABCAABBC01"
        assert shown(again) == shown(page)
        assert again.get_by_role("link", name="Link to this setting").get_attribute("href") == href

    def test_a_hostile_link_changes_nothing(self, opened: Opened) -> None:
        page = opened(f"#bench={HOSTILE[0]}")
        for fragment in HOSTILE:
            page.evaluate("(text) => (location.hash = text)", f"bench={fragment}")
            page.wait_for_function(
                "() => /does not have/.test(document.querySelector('.lab-state').textContent)"
            )
            assert page.locator(".bench [name=ffn]").input_value() == "z", fragment[:50]
            page.get_by_role("button", name="Without FFN").click()
            page.wait_for_function(f"() => {SETTLED}")

    def test_no_task_holds_the_page_up(self, opened: Opened) -> None:
        """What else the machine does can only make a task longer, so the best of three counts."""
        assert any(self.longest(opened) < TASK for _ in range(3))

    def test_a_task_that_holds_the_page_up_is_seen(self, opened: Opened) -> None:
        busy = (
            "() => { let x = 1; for (let i = 0; i < 4e8; i++) x = (Math.imul(x, 1103515245) + 12345) | 0; }"
        )
        # Thrice, as above: a sandbox that counts a thread's time in ticks can miss most of them.
        assert any(self.longest(opened, busy) > TASK for _ in range(3))

    def longest(self, opened: Opened, meanwhile: str = "() => {}") -> float:
        """Seconds of the page's longest task while it opens another model and takes a component from it."""
        page = settle(opened())
        with tasks_of(opened.browser, page) as tasks:
            page.locator(".bench [name=task]").select_option("modular_addition")
            page.wait_for_timeout(300)
            page.locator(".bench [name=ffn]").select_option("m")
            settle(page)
            page.evaluate(meanwhile)
        return max(tasks)

    def test_another_tasks_numbers_are_never_taken_for_this_ones(self, opened: Opened) -> None:
        page = settle(opened())
        for task, classes in (("modular_addition", 1), ("histogram", 10), ("add7", 5)):
            page.locator(".bench [name=task]").select_option(task)
            settle(page)
            assert page.locator(".lab-predictions thead th").count() == 1 + classes

    def test_a_sample_is_shown_before_all_is_measured(self, opened: Opened) -> None:
        page = settle(opened())
        page.evaluate(
            """() => { window.said = []; const state = document.querySelector(".lab-state");
                new MutationObserver(() => window.said.push(state.textContent)).observe(state, {childList: true}) }"""
        )
        page.locator(".bench [name=task]").select_option("modular_addition")
        settle(page)
        said = page.evaluate("() => window.said")
        assert sum("so far" in sentence for sentence in said) >= 3
        assert "all 12769 inputs" in said[-1]

    def test_a_model_that_is_not_there_is_a_sentence(self, opened: Opened) -> None:
        page = opened(name="gone.html")
        page.wait_for_function("() => /not found/.test(document.querySelector('.lab-state').textContent)")
        opened.complaints.clear()  # the browser's own word on the missing file

    def test_a_damaged_file_is_a_sentence(self, opened: Opened, folder: Path) -> None:
        whole = named("add7-narrow-final").script
        (folder / "bench-add7-narrow-final.js").write_text(whole[:5000] + '";\n')
        page = opened("#bench=task:add7;beside:add7-narrow-final")
        page.wait_for_function("() => /damaged/.test(document.querySelector('.lab-state').textContent)")
        (folder / "bench-add7-narrow-final.js").write_text(whole)
        page.get_by_role("button", name="Without attention").click()
        page.wait_for_timeout(100)

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ("delete globalThis.WebAssembly", "does not run WebAssembly"),
            ("WebAssembly.validate = () => false", "has no SIMD"),
        ],
    )
    def test_without_wasm_or_simd_a_sentence(self, opened: Opened, script: str, reason: str) -> None:
        page = opened(script=script)
        assert reason in page.locator(".lab-why").inner_text()
        assert not violations(page)  # also where nothing is measured

    def test_the_keyboard_alone(self, opened: Opened) -> None:
        page = settle(opened())
        before = shown(page)
        page.locator(".bench [name=ffn]").focus()
        page.keyboard.press("ArrowDown")
        assert page.locator(".bench [name=ffn]").input_value() == "m"
        assert shown(settle(page)) != before
        assert "Dense, changed" in page.locator(".bench [role=status]").inner_text()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1000, 360])
    def test_axe_finds_nothing_and_it_fits(self, opened: Opened, scheme: str, width: int) -> None:
        page = settle(opened(color_scheme=scheme, viewport={"width": width, "height": 800}))
        assert not violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


class TestInANotebook:
    @pytest.fixture
    def live(self, opened: Opened, folder: Path, served: str) -> tuple[Page, Bench]:
        (folder / "live.html").write_text(bare_page("Bench", ""), encoding="utf-8")
        page, widget = opened.bare(f"{served}/live.html"), bench("laptop")
        assert isinstance(widget, Bench)
        assert widget.table.is_empty()
        kernel.mount(page, widget)
        return settle(page), widget

    def test_what_was_measured_comes_back_as_a_table(self, live: tuple[Page, Bench]) -> None:
        page, widget = live
        dense = named("add7-dense-first_best")
        rows = pl.read_parquet(PAPER / "runs.parquet").filter(spec_id=dense.spec.spec_id, moment=dense.moment)
        page.locator(".bench [name=beside]").select_option(dense.name)
        for way, measure in (("z", "no_ffn_accuracy"), ("m", "mean_ffn_accuracy")):
            page.locator(".bench [name=ffn]").select_option(way)
            settle(page)
            assert widget.choice["ffn"] == way
            found = widget.table.filter(model=dense.name)
            assert found["changed"].to_list() == [False, True]
            assert found["inputs"].to_list() == [1000, 1000]
            assert found["accuracy"][0] == pytest.approx(rows["accuracy"][0], abs=2e-3)
            assert found["accuracy"][1] == pytest.approx(rows[measure][0], abs=2e-3)
            assert found["exact_match"][0] > found["exact_match"][1]

    def test_there_is_no_link_and_it_ends_without_a_trace(self, live: tuple[Page, Bench]) -> None:
        page, _ = live
        assert page.get_by_role("link", name="Link to this setting").count() == 0
        page.evaluate("() => window.end()")

    def test_the_kernel_hands_over_models_only(self) -> None:
        widget, sent = bench("laptop"), []
        assert isinstance(widget, Bench)
        widget.send = lambda content, buffers=None: sent.append(content)
        for wanted in ({"load": "../secret"}, {"load": ["add7"]}, "add7", {"load": published()[0].name}):
            widget._handle_custom_msg(wanted, [])
        assert [each["name"] for each in sent] == [published()[0].name]


class TestBook:
    def test_the_cell_writes_a_script_a_model_and_the_directive(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(DATA_DIR, str(tmp_path))
        text = bench("laptop").source
        assert text.startswith("```{bench}\n")
        names = {model["name"] for model in json.loads(text.splitlines()[1])["models"]}
        assert {path.stem for path in tmp_path.glob("*.js")} == {f"bench-{name}" for name in names}
        assert max(path.stat().st_size for path in tmp_path.glob("*.js")) * 3 / 4 < 1e6

    def test_where_nothing_is_stored_it_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPARSITY_MOVES_RESULTS", str(tmp_path))
        monkeypatch.setenv(DATA_DIR, str(tmp_path))
        assert "No trained models" in bench("laptop").source

    def test_the_page_is_light(self) -> None:
        assert len(module(page_config(published()))) < 2e6

    def test_every_link_in_the_book_is_a_setting_that_the_bench_has(self, opened: Opened) -> None:
        book, found = PAPER.parents[1] / "book", []
        for page in book.glob("*.md"):
            found += [part.split(">`")[0] for part in page.read_text().split("{take}`")[1:]]
        settings = [text.split("<")[1] for text in found]
        assert len(settings) >= 5
        for setting in settings:
            page = settle(opened(f"#bench={setting}"))
            href = page.get_by_role("link", name="Link to this setting").get_attribute("href") or ""
            assert set(setting.split(";")) <= set(href.removeprefix("#bench=").split(";"))
            page.close()
