"""Trees in language models: every MLP is replaced, and only they are; trees count their visits, and are pruned."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from sparsity_moves.cli_looks import Language
from sparsity_moves.errors import UserError
from sparsity_moves.kernels.tree import masked
from sparsity_moves.language import Trees, counting, mlps, runs, text, usage, with_trees
from sparsity_moves.language.module import every
from sparsity_moves.language.training import LanguageSpec, train, without
from sparsity_moves.language.training import build as build_language
from sparsity_moves.model import FeedForward

transformers = pytest.importorskip("transformers", reason="an extra")

SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
FAMILIES = {
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **SMALL,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            word_embed_proj_dim=16,
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_inner=24)
    ),
}
families = pytest.mark.parametrize("family", list(FAMILIES))


def build(family: str):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def trees(depth: int = 2, number: int = 3, **more) -> FeedForward:
    width = number * (2 ** (depth + 1) - 1) + more.get("always_on", 0)
    return FeedForward(width, router="tree", tree_depth=depth, activation="gelu", **more)


TOKENS = torch.arange(2 * 9).view(2, 9) % 50


@families
def test_every_mlp_is_replaced_and_nothing_else_changes(family):
    before = build(family)
    others = {n: p.clone() for n, p in before.named_parameters()}
    model = with_trees(before, trees())
    assert len(every(model)) == 2
    names = {n for n, _ in model.named_parameters()}
    kept = {n for n in others if n in names and "fc1" not in n and "mlp" not in n}
    gone = set(others) - names
    assert all(torch.equal(dict(model.named_parameters())[n], others[n]) for n in kept)
    assert all("mlp" in n or ".fc" in n for n in gone), "only weights of MLPs are gone"
    assert len(gone) > 0
    assert model(TOKENS).logits.isfinite().all()


@families
def test_the_model_computes_what_its_trees_do(family):
    """The same logits when the masked form, written here, stands in the trees' place; others when it is scaled."""
    model = with_trees(build(family), trees())
    expected = model(TOKENS).logits
    for scale, same in ((1.0, True), (2.0, False)):
        for layer in every(model).values():
            layer.forward = lambda x, t=layer, s=scale: (
                s * masked(t.ffn, x.flatten(0, -2), t.w_in, t.b_in, t.w_out).view_as(x)
            )
        found = model(TOKENS).logits
        assert torch.allclose(found, expected, atol=1e-5) == same


@families
def test_it_learns_and_every_tree_gets_a_gradient(family):
    model = with_trees(build(family), trees()).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(TOKENS, labels=TOKENS).loss
        optimiser.zero_grad()
        loss.backward()
        if not losses:
            assert all(bool(layer.w_in.grad.abs().sum() > 0) for layer in every(model).values())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "gpt2"])
def test_a_converted_model_whose_units_are_all_open_is_the_dense_one(family):
    """Always-on units are a dense layer; trees that add nothing leave it as it was."""
    before = build(family)
    dense = before(TOKENS).logits
    phi = {"gpt_neox": "gelu", "opt": "relu", "gpt2": "gelu"}[family]
    ffn = FeedForward(24 + 7, router="tree", tree_depth=2, always_on=24, activation=phi)
    model = with_trees(before, ffn, convert=True)
    for layer in every(model).values():
        layer.w_out.data[24:] = 0
    tolerance = 2e-3 if family == "gpt2" else 1e-5  # GPT-2's GELU is the approximate one
    assert torch.allclose(model(TOKENS).logits, dense, atol=tolerance)


def test_a_converted_models_trees_have_its_units_in_their_order():
    before = build("gpt_neox")
    w_in = before.gpt_neox.layers[1].mlp.dense_h_to_4h.weight.clone()
    layer = with_trees(before, trees(), convert=True).gpt_neox.layers[1].mlp
    assert torch.equal(layer.w_in, w_in[:21])


def test_a_glu_is_not_converted_and_loses_nothing_by_asking():
    model = build("llama")
    expected = model(TOKENS).logits
    with pytest.raises(UserError, match="is a GLU, which has no plain units"):
        with_trees(model, trees(), convert=True)
    assert torch.equal(model(TOKENS).logits, expected)


def test_a_model_without_such_mlps_is_refused():
    with pytest.raises(UserError, match="nothing to replace"):
        mlps(torch.nn.Linear(3, 3))
    with pytest.raises(UserError, match="nothing to replace"):
        mlps(with_trees(build("opt"), trees()))


def test_visits_are_counted_while_somebody_counts():
    model = with_trees(build("opt"), trees(depth=3))
    with counting(model) as visited:
        expected = model(TOKENS).logits
        model(TOKENS)
    model(TOKENS)
    assert len(visited) == 2
    for counts in visited.values():
        assert counts[:, 0].tolist() == [2 * TOKENS.numel()] * 3, "every token visits every root"
        assert torch.equal(counts[:, 1] + counts[:, 2], counts[:, 0])
    rows = usage(model, visited)
    assert [row["layer"] for row in rows] == list(visited)
    assert all(0 <= row[name] <= 1 for row in rows for name in ("leaf_entropy", "balance", "dead_nodes"))

    left = [layer.prune(visited[name]) for name, layer in every(model).items()]
    assert all(n == int((visited[name] > 0).sum()) < 45 for n, name in zip(left, visited, strict=True))
    assert torch.allclose(model(TOKENS).logits, expected, atol=1e-6)
    with counting(model) as again:
        model((TOKENS + 20) % 50)
    assert not any(again[name][visited[name] == 0].any() for name in visited), (
        "nobody is sent to what is gone"
    )


def test_layers_of_other_trees_and_other_shapes():
    layer = Trees(8, trees(always_on=2, nonlinearity="sum"), bias=True)
    assert layer(torch.randn(2, 3, 4, 8)).shape == (2, 3, 4, 8)
    assert layer(torch.randn(0, 8)).shape == (0, 8)
    assert "3 trees of depth 2, 11 of 23 units open" in repr(layer)
    with pytest.raises(UserError, match="is no tree"):
        Trees(8, FeedForward(8))


# --- A small model of bytes -----------------------------------------------------------------------------------------

QUICK = {
    "d_model": 32,
    "layers": 2,
    "heads": 2,
    "width": 120,
    "length": 48,
    "batch": 8,
    "steps": 60,
    "learning_rate": 1e-2,
}
KINDS = {"dense": {}, "moe": {}, "tree": {}, "tree_balanced": {"ffn": "tree", "nonlinearity": "sum"}}


def spec_of(kind: str, **more) -> LanguageSpec:
    return LanguageSpec(
        **{"ffn": kind, **QUICK, "seed": 1, "evaluate_every": 30, "evaluation": 2, **KINDS[kind], **more}
    )


def test_stories_can_be_followed():
    story = bytes(text.generated(3, 200).tolist()).decode()
    found = re.findall(r"(\w+) has (\d) (\w+?)s?\. \1 gives (\d) to (\w+)\. \1 has (\d) \3s?\.", story)
    assert len(found) == 200
    assert all(int(had) - int(gave) == int(left) >= 1 and a != b for a, had, _, gave, b, left in found)
    assert torch.equal(text.generated(3, 200), text.generated(3, 200))
    assert not torch.equal(text.generated(4, 200)[:50], text.generated(3, 200)[:50])


def test_windows_are_of_the_text_and_the_same_for_a_seed():
    source = torch.arange(200, dtype=torch.uint8)
    (first, second), again = text.windows(source, 5, 9, 1, 2), text.windows(source, 5, 9, 1, 1)
    assert first.shape == (5, 9)
    assert torch.equal(first.diff(dim=1), torch.ones(5, 8, dtype=torch.long))
    assert torch.equal(first, next(again))
    assert not torch.equal(first, second)
    with pytest.raises(UserError, match="has no window of 300"):
        next(text.windows(source, 1, 300, 0, 1))


def test_wikitext_says_what_it_lacks(monkeypatch):
    with pytest.raises(UserError, match="no split 'best'"):
        text.wikitext("best")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package `datasets`"):
        text.wikitext("test")


def test_wikitext_is_the_lines_in_their_order(monkeypatch):
    class Stub:
        @staticmethod
        def load_dataset(*names, split):
            assert names == ("Salesforce/wikitext", "wikitext-103-raw-v1")
            return {"text": ["", f" = {split} = \n", "café\n"]}

    monkeypatch.setitem(sys.modules, "datasets", Stub)
    assert bytes(text.wikitext("test").tolist()).decode() == " = test = \ncafé\n"


def test_wikitext_is_read_from_a_folder_of_the_hubs_form(tmp_path, monkeypatch):
    """Parquet files and the card that names the configuration: what the hub sends, without the hub."""
    pytest.importorskip("datasets", reason="an extra")
    polars = pytest.importorskip("polars")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "wikitext"
    (folder / "raw").mkdir(parents=True)
    card = ["---", "configs:", "- config_name: wikitext-103-raw-v1", "  data_files:"]
    lines = {split: ["", f" = {split} = \n", " Füße , und so weiter .\n"] for split in text.SPLITS}
    for split, own in lines.items():
        polars.DataFrame({"text": own}).write_parquet(folder / "raw" / f"{split}.parquet")
        card += [f"  - split: {split}", f"    path: raw/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    for split, own in lines.items():
        assert bytes(text.wikitext(split, str(folder)).tolist()).decode() == "".join(own)
    with pytest.raises(UserError, match="WikiText-103 could not be loaded"):
        text.wikitext("test", str(tmp_path / "nowhere"))


def test_trees_follow_autocast_as_linear_layers_do():
    layer, x = Trees(8, trees()), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    rounded = (w.bfloat16().float() for w in (layer.w_in, layer.b_in, layer.w_out))
    expected = masked(layer.ffn, x.bfloat16().float(), *rounded)
    assert torch.allclose(half.float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_of_bytes_learns_and_is_looked_at(kind):
    _, rows = train(spec_of(kind), text.generated(0, 400), text.generated(1, 100))
    assert [row["step"] for row in rows] == [0, 30, 60]
    assert rows[-1]["tokens"] == 60 * 8 * 48
    assert 200 < rows[0]["perplexity"] < 320, "at its start it knows nothing of 256 bytes"
    assert rows[-1]["perplexity"] < rows[1]["perplexity"] < 16
    for row in rows[1:]:
        assert row["no_ffn_perplexity"] > row["perplexity"]
        assert row["no_attention_perplexity"] > row["perplexity"]
        assert (row["balance"] is not None) == (kind.startswith("tree"))
    again, other = (
        train(spec_of(kind, steps=5, seed=s), text.generated(0, 400), text.generated(1, 100))[1]
        for s in (1, 2)
    )
    assert again[0] == rows[0]
    assert other[-1]["perplexity"] != again[-1]["perplexity"]


def test_all_kinds_share_their_size():
    sizes = {kind: sum(p.numel() for p in build_language(spec_of(kind)).parameters()) for kind in KINDS}
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    assert {kind: spec_of(kind).shape.open_blocks * spec_of(kind).shape.expert_width for kind in KINDS} == {
        "dense": 120, "moe": 30, "tree": 32, "tree_balanced": 32
    }  # fmt: skip


def test_the_rest_of_the_model_starts_the_same():
    dense, tree = (dict(build_language(spec_of(kind)).named_parameters()) for kind in ("dense", "tree"))
    assert torch.equal(dense["gpt_neox.embed_in.weight"], tree["gpt_neox.embed_in.weight"])
    assert torch.equal(
        dense["gpt_neox.layers.1.attention.dense.weight"], tree["gpt_neox.layers.1.attention.dense.weight"]
    )


def test_without_its_ffns_a_model_is_one_whose_ffns_are_zero():
    model = build_language(spec_of("dense")).eval()
    tokens = torch.arange(40).view(2, 20)
    with without(model, "ffn"):
        found = model(tokens).logits
    assert not torch.equal(found, model(tokens).logits), "and has them again afterwards"
    for layer in model.gpt_neox.layers:
        layer.mlp.dense_4h_to_h.weight.data.zero_()
        layer.mlp.dense_4h_to_h.bias.data.zero_()
    assert torch.equal(found, model(tokens).logits)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ffn": "tree", "tree_depth": 10}, "a tree of height 10 has more nodes than the 512 units"),
        ({"ffn": "tree", "tree_depth": 0}, "."),
        ({"ffn": "dense", "activation": "foo"}, "no activation is called 'foo'"),
    ],
)
def test_a_layer_that_there_is_not_is_refused_before_anything_is_trained(wrong, said):
    with pytest.raises(UserError, match=said):
        LanguageSpec(seed=0, **wrong)


def test_settings_that_are_none_are_refused():
    with pytest.raises(UserError, match="no FFN is called 'sparse'"):
        LanguageSpec(ffn="sparse", seed=0)


def test_the_command_trains_what_it_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "run", lambda wanted, *_: asked.extend(wanted) or len(asked))
    Language(ffn=("tree", "tree_balanced"), seeds=2, height=4, activation="relu").run()
    assert [(arm, spec.nonlinearity) for arm, spec in asked] == [
        ("tree", "node"),
        ("tree_balanced", "sum"),
    ] * 2
    assert {(spec.activation, spec.tree_depth, spec.steps) for _, spec in asked} == {("relu", 4, 600)}
    assert {spec.shape.activation for _, spec in asked} == {"relu"}
    with pytest.raises(UserError, match="no language model's FFN is called 'bush'"):
        Language(ffn=("bush",)).run()
