"""Trajectories: a planted link, links against finite differences and plain ablation, causal order, caps, errors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspected_texts import D_SAE, make_sae

from seamark.atlas.records import Run, Sae
from seamark.atlas.rows import ContextRow, FeatureRow
from seamark.atlas.store import Atlas
from seamark.atlas.writing import AtlasWriter
from seamark.diagnose import About, Tracing, Trajectory, inspect_text, trace
from seamark.diagnose.levels import atlas_examples, first_known, level_of
from seamark.diagnose.trajectory_graph import LeftOut
from seamark.errors import ConfigError, DataError, ModelError
from seamark.model.batching import collate
from seamark.model.generation import Generation
from seamark.sae import SAEConfig, SparseAutoencoder
from tiny import tiny_hooked

PROMPT, ANSWER = "Is it safe to mix bleach and ammonia?", "No, please never do that; the fumes are toxic."
CAUSAL = [("llama", "lm"), ("qwen2", "lm"), ("llama", "reward")]


@cache
def model_of(kind: str, head: str) -> Any:
    return tiny_hooked(kind, head)


def suite() -> dict[str, SparseAutoencoder]:
    return {"early": make_sae("layers.0", 0), "mlp": make_sae("layers.1.mlp", 1), "late": make_sae("layers.3", 2),
            "late too": make_sae("layers.3", 7)}  # fmt: skip


def units() -> dict[str, Any]:
    return {name: np.where(np.arange(D_SAE) % 5, 2.0, np.nan) for name in suite()}


def traced(kind: str = "llama", head: str = "lm", answer: str | None = ANSWER, **more: Any) -> Trajectory:
    return trace(model_of(kind, head), suite(), PROMPT, answer, q=units(), **more)


def plain_sae(hookpoint: str, W_enc: torch.Tensor, W_dec: torch.Tensor, b_enc: float) -> SparseAutoencoder:
    config = SAEConfig(d_in=32, d_sae=len(W_dec), activation="relu", normalize="none", subtract_b_dec=False,
                       hookpoint=hookpoint)  # fmt: skip
    sae = SparseAutoencoder(config)
    with torch.no_grad():
        sae.W_enc.copy_(W_enc)
        sae.W_dec.copy_(W_dec)
        sae.b_enc.fill_(b_enc)
    return sae.eval()


@pytest.mark.parametrize(("kind", "head"), [("llama", "lm"), ("qwen2", "reward")])
def test_a_planted_cause(kind: str, head: str) -> None:
    """Block 2 hands on what it gets, so B, which reads A's direction, is linear in A: the effect is known exactly."""
    model = tiny_hooked(kind, head)
    with torch.no_grad():
        model.hf.model.layers[2].self_attn.o_proj.weight.zero_()
        model.hf.model.layers[2].mlp.down_proj.weight.zero_()
    g = torch.Generator().manual_seed(3)
    written, read = torch.randn(24, 32, generator=g), torch.randn(32, 24, generator=g)
    cause = plain_sae("layers.1", torch.randn(32, 24, generator=g), written, 0.0)
    effect = plain_sae("layers.2", read, torch.randn(24, 32, generator=g), 60.0)
    found = trace(model, {"A": cause, "B": effect}, PROMPT, ANSWER, config=Tracing(nodes=64, links=8, checks=100))
    links = [link for link in found.links if link.target is not None]
    assert len(links) > 10
    for link in links:
        a, b = found.nodes[link.source], found.nodes[link.target or 0]
        assert (a.sae, b.sae) == ("A", "B")
        assert a.token == b.token, "nothing goes from token to token in a block that adds nothing"
        known = a.activation * float(written[a.latent] @ read[:, b.latent])
        assert link.effect == pytest.approx(known, rel=1e-3, abs=1e-4)
        assert link.ablation == pytest.approx(min(known, b.activation), rel=1e-3, abs=1e-3)
        assert link.share == pytest.approx(known / b.activation, rel=1e-3)
    assert found.between.same_sign.value == 1.0
    assert found.between.spearman.value == pytest.approx(1, abs=0.02)


def z_of(sae: SparseAutoencoder, h: torch.Tensor, latent: int) -> float:
    """W_enc(x − b_dec) + b_enc by the formula."""
    x = (h - h.mean()) / (h.std() + sae.config.eps)
    with torch.no_grad():
        return float((x - sae.b_dec.double()) @ sae.W_enc.double()[:, latent] + sae.b_enc.double()[latent])


@pytest.mark.parametrize(("kind", "head"), [("llama", "lm"), ("qwen2", "reward"), ("bert", "reward")])
def test_effects_are_derivatives(kind: str, head: str) -> None:
    """Against central differences: 0.3 % of the earlier feature's contribution is added and taken away by a hook."""
    model = tiny_hooked(kind, head)
    model.hf.double()
    saes = {"early": make_sae("layers.0", 0), "late": make_sae("layers.3", 2)}
    found = trace(model, saes, PROMPT, ANSWER, config=Tracing(nodes=4, links=3, checks=0))
    batch = collate([model.renderer().render(PROMPT, ANSWER, "t")], model.config.pad_token_id)
    blocks = model.hf.bert.encoder.layer if kind == "bert" else model.hf.model.layers

    def outcome(source: Any, target: Any, step: float) -> float:
        seen = {}

        def push(_m: Any, _a: Any, out: Any) -> Any:
            h = (out[0] if isinstance(out, tuple) else out).clone()
            at = h[0, source.token]
            sae = saes[source.sae]
            h[0, source.token] = at + step * source.activation * sae.W_dec[source.latent].double() * (at.std() + 1e-6)
            return (h, *out[1:]) if isinstance(out, tuple) else h

        def see(_m: Any, _a: Any, out: Any) -> None:
            seen["h"] = (out[0] if isinstance(out, tuple) else out)[0]

        handles = [blocks[0].register_forward_hook(push), blocks[3].register_forward_hook(see)]
        try:
            with torch.no_grad():
                logits = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        finally:
            for handle in handles:
                handle.remove()
        if target is not None:
            return z_of(saes[target.sae], seen["h"][target.token], target.latent)
        assert found.output is not None
        return float(logits[0, 0] if head == "reward" else logits[0, found.output.at, found.output.id])

    compared = 0
    for link in found.links:
        source = found.nodes[link.source]
        if source.sae == "early":
            target = None if link.target is None else found.nodes[link.target]
            slope = (outcome(source, target, 3e-3) - outcome(source, target, -3e-3)) / 6e-3
            assert slope == pytest.approx(link.effect, rel=0.02, abs=1e-4)
            compared += 1
    assert compared >= 6
    assert any(link.target is not None and found.nodes[link.source].token != found.nodes[link.target].token
               for link in found.links)  # fmt: skip


@pytest.mark.parametrize(("kind", "head"), CAUSAL)
def test_nothing_goes_backwards(kind: str, head: str) -> None:
    found = traced(kind, head, config=Tracing(nodes=30, links=64, checks=0))
    depth = {name: i for i, name in enumerate(found.hookpoints)}
    assert found.hookpoints == ("layers.0", "layers.1.mlp", "layers.3")
    pairs = [(found.nodes[link.source], found.nodes[link.target]) for link in found.links if link.target is not None]
    assert len(pairs) > 100
    assert all(depth[a.hookpoint] < depth[b.hookpoint] and a.token <= b.token for a, b in pairs)
    assert any(a.token < b.token for a, b in pairs)
    if found.output is not None and found.output.at is not None:
        behind = [n for n in found.nodes if n.token > (found.output.at or 0)]
        assert behind
        assert all(n.on_output == 0 for n in behind)


def test_an_encoder_reads_both_ways() -> None:
    found = traced("bert", "reward", config=Tracing(nodes=20, links=20, checks=0))
    pairs = [(found.nodes[link.source], found.nodes[link.target]) for link in found.links if link.target is not None]
    assert any(a.token > b.token for a, b in pairs)


@pytest.mark.parametrize(("kind", "head"), [*CAUSAL, ("bert", "reward")])
def test_nodes_and_ablation_are_those_of_the_token_view(kind: str, head: str) -> None:
    """Activations as `inspect_text` shows them; what an ablation takes away by a hook that removes z · W_dec."""
    model = model_of(kind, head)
    found = traced(kind, head, config=Tracing(nodes=6, links=3, checks=3))
    view = inspect_text(model, suite(), PROMPT, ANSWER, q=units(), top=1000)
    assert [(t.id, t.text, t.span, t.special) for t in found.tokens] == [
        (t.id, t.text, t.span, t.special) for t in view.tokens
    ]
    shown = {(view.features[f.feature].sae, view.features[f.feature].latent, i): f
             for i, t in enumerate(view.tokens) for f in t.firings}  # fmt: skip
    for n in found.nodes:
        there = shown[n.sae, n.latent, n.token]
        assert n.activation == pytest.approx(there.activation, rel=1e-4)
        assert (n.normalised is None) == (there.normalised is None) == (n.latent % 5 == 0)
    assert sum(found.fired.values()) == len(shown)
    if head == "reward":
        assert found.output is not None
        assert found.output.value == pytest.approx(view.reward, rel=1e-5)
    checked = [link for link in found.links if link.ablation is not None]
    assert 1 <= len({link.source for link in checked}) <= 3
    assert {link.source for link in found.links if link.ablation is None}
    for link in [c for c in checked if c.target is not None][:4]:
        source, target = found.nodes[link.source], found.nodes[link.target or 0]
        z = ablated(model, source, target, [t.id for t in found.tokens])
        assert link.ablation == pytest.approx(target.activation - z, rel=1e-3, abs=1e-4)


def ablated(model: Any, source: Any, target: Any, ids: list[int]) -> float:
    """max(z, 0) of `target` where `source` is taken out of the activation, by hooks of plain torch."""
    blocks = model.hf.bert.encoder.layer if hasattr(model.hf, "bert") else model.hf.model.layers
    places = {"layers.0": blocks[0], "layers.3": blocks[3],
              "layers.1.mlp": blocks[1].output.dense if hasattr(model.hf, "bert") else blocks[1].mlp}  # fmt: skip
    seen = {}

    def cut(_m: Any, _a: Any, out: Any) -> Any:
        h = (out[0] if isinstance(out, tuple) else out).clone()
        at = h[0, source.token]
        h[0, source.token] = at - source.activation * suite()[source.sae].W_dec[source.latent] * (at.std() + 1e-6)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def see(_m: Any, _a: Any, out: Any) -> None:
        seen["h"] = (out[0] if isinstance(out, tuple) else out)[0, target.token]

    handles = [places[source.hookpoint].register_forward_hook(cut),
               places[target.hookpoint].register_forward_hook(see)]  # fmt: skip
    try:
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    z = suite()[target.sae].encode(seen["h"][None]).dense()[0, target.latent]
    return max(float(z), 0.0)


def test_caps_and_determinism() -> None:
    config = Tracing(nodes=5, links=2, checks=4, paths=3)
    found = traced(config=config)
    assert found == traced(config=config)
    assert Trajectory.model_validate_json(found.model_dump_json()) == found
    json.loads(found.model_dump_json(), parse_constant=lambda word: pytest.fail(word))
    for hookpoint in found.hookpoints:
        here = [n for n in found.nodes if n.hookpoint == hookpoint]
        assert len(here) == 5
        assert found.fired[hookpoint] > 50
        named = [(n.sae, n.latent) for n in here]
        assert max(named.count(name) for name in named) <= 2
    into = [link.target for link in found.links]
    assert max(into.count(t) for t in into) <= 2
    assert 1 <= len(found.paths) <= 3
    linked = {(link.source, link.target) for link in found.links}
    for path in found.paths:
        assert len(path.nodes) >= 2
        assert set(zip(path.nodes, path.nodes[1:], strict=False)) <= linked
        assert path.reaches_output == ((path.nodes[-1], None) in linked)
    assert len({link.source for link in found.links if link.ablation is not None}) == 4
    assert traced(config=Tracing(nodes=5, links=2, checks=0)).between.spearman.value is None


def timed(monkeypatch: pytest.MonkeyPatch, seconds: float | None, step: float = 1.0, **more: Any) -> Trajectory:
    """Traced by a clock that goes on by a second each time it is looked at."""
    clock = iter(range(100_000))
    monkeypatch.setattr("seamark.diagnose.trajectory.monotonic", lambda: step * next(clock))
    return traced(config=Tracing(nodes=5, links=2, checks=4, max_seconds=seconds, **more))


def test_what_is_left_out_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = traced(config=Tracing(nodes=5, links=2, checks=4))
    assert whole.left_out == LeftOut()
    assert timed(monkeypatch, None).links == whole.links
    enough = timed(monkeypatch, 1e6)
    assert (enough.links, enough.left_out) == (whole.links, LeftOut())
    # The clock is looked at once for each of ten features that have earlier ones, then before each of four ablations.
    none = timed(monkeypatch, 0.5)
    assert none.left_out == LeftOut(features=10, checks=2), (
        "of links to the output two are kept: two features to ablate"
    )
    assert none.nodes == whole.nodes
    assert all(link.target is None and link.ablation is None for link in none.links)
    assert none.paths == ()
    some = timed(monkeypatch, 5.5)
    assert some.left_out == LeftOut(features=5, checks=4)
    late = [i for i, n in enumerate(whole.nodes) if n.hookpoint == "layers.3"]
    assert {link.target for link in some.links} <= {*late, None}, "the last hookpoint, where paths begin, comes first"
    kept = [link.model_copy(update={"ablation": None}) for link in whole.links if link.target in {*late, None}]
    assert list(some.links) == kept
    assert some.paths
    checked = timed(monkeypatch, 12.5)
    assert checked.left_out == LeftOut(checks=2)
    assert len({link.source for link in checked.links if link.ablation is not None}) == 2
    exact = {(link.source, link.target): link.ablation for link in whole.links}
    assert all(link.ablation in (None, exact[link.source, link.target]) for link in checked.links)
    for strange in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_seconds"):
            Tracing(max_seconds=strange)


def test_half_of_the_nodes_are_those_that_move_the_output_most() -> None:
    whole, some = (traced(head="reward", config=Tracing(nodes=n, checks=0)) for n in (64, 4))
    for hookpoint in some.hookpoints:
        most = sorted((abs(n.on_output or 0) for n in whole.nodes if n.hookpoint == hookpoint), reverse=True)
        here = sorted((abs(n.on_output or 0) for n in some.nodes if n.hookpoint == hookpoint), reverse=True)
        assert here[0] == most[0]
    assert any(n.on_output for n in some.nodes)


def test_the_output_of_a_language_model() -> None:
    model = model_of("llama", "lm")
    ids = [t.id for t in traced(config=Tracing(checks=0)).tokens]
    logits = model.hf(input_ids=torch.tensor([ids])).logits[0].detach()
    given = traced(config=Tracing(checks=0)).output
    assert given is not None
    start = model.renderer().render(PROMPT, ANSWER, "t").response_span[0]
    assert (given.at, given.id) == (start - 1, ids[start])
    assert given.value == pytest.approx(float(logits[start - 1, ids[start]]), rel=1e-4)
    alone = traced(answer=None, config=Tracing(checks=0))
    assert alone.output is not None
    assert alone.output.at == len(alone.tokens) - 1
    words = model.tokenizer(" safe", add_special_tokens=False)["input_ids"]
    aimed = traced(config=Tracing(checks=0, toward=" safe", at=7)).output
    assert aimed is not None
    assert (aimed.at, aimed.id) == (7, words[0])
    assert aimed.value == pytest.approx(float(logits[7, words[0]]), rel=1e-4)
    bare = traced(head="base", config=Tracing(checks=8))
    assert (bare.output, bare.output_reason) == (None, "the model gives neither rewards nor tokens")
    assert all(n.on_output is None for n in bare.nodes)
    assert all(link.target is not None for link in bare.links)
    assert bare.paths
    assert traced(head="reward", answer=None, config=Tracing(checks=0)).output_reason == "no answer was given"


def test_labels_and_levels() -> None:
    def labels(sae: str, latents: Any) -> dict[int, About]:
        return {i: About(label=f"{sae} {i}", state="text") for i in latents if i % 2}

    def examples(sae: str, latent: int) -> Any:
        words = ["Mix", " mix", "MIX ", "tea"] if latent % 3 else ["a", "b", "c", "d"]
        return [(words, [1.0, 1.0, 1.0, 1.0])] * (2 if sae != "mlp" else 1)

    found = traced(labels=labels, examples=examples, config=Tracing(checks=0, explained=True))
    assert len(found.nodes) > 10
    for n in found.nodes:
        assert n.latent % 2
        assert n.label == f"{n.sae} {n.latent}"
        expected = None if n.sae == "mlp" else "word" if n.latent % 3 else "concept"
        assert n.level.level == expected
    unknown = traced(config=Tracing(checks=0)).nodes[0].level
    assert unknown.level is None
    assert "neither" in unknown.reason
    weak = level_of([(["a", "b", "c"], [4.0, 1.9, 2.0])] * 3)
    assert (weak.firings, weak.types, weak.level, weak.commonest) == (6, 2, "word", 0.5)
    assert level_of([(["a"] * 4, [1.0] * 4)]).reason.startswith("4 firings are known")
    assert level_of([(["a"], [0.0])]).level is None
    both = first_known(lambda *_: [], lambda *_: [(["a"], [1.0])])
    assert both("x", 0) == [(["a"], [1.0])]


def test_a_text_of_an_atlas_counts_once(tmp_path: Path) -> None:
    """The strongest contexts are among those of the levels too."""
    ship, others = ["ship"] * 3, [["tea", "map"], ["code", "salt"], ["bread", "port"]]
    with AtlasWriter.open(tmp_path / "atlas.db", create=True) as w:
        w.add_run(Run(id="r", kind="explain", title="", created="2025-01-01T00:00:00Z", manifest={}))
        number = w.add_sae(Sae(number=0, id="a", model="m", hookpoint="layers.0", layer=0, d_sae=9))
        one = w.add_features(number, [FeatureRow(latent=4)])[4]
        w.add_contexts([
            ContextRow(one, "top", 0, "t0", ship, [1.0] * 3), ContextRow(one, "level", 0, "t0", ship, [1.0] * 3, 10),
            *(ContextRow(one, "level", 0, f"t{i}", words, [1.0] * 2, i) for i, words in enumerate(others, 1)),
        ])  # fmt: skip
    with Atlas.open(tmp_path / "atlas.db") as atlas:
        known = atlas_examples(atlas, {"mine": "a"})
        assert [list(tokens) for tokens, _ in known("mine", 4)] == [ship, *reversed(others)]
        level = level_of(known("mine", 4))
        assert (level.firings, level.types, level.level) == (9, 7, "concept"), "counted twice, it is the word ship"
        assert list(known("mine", 5)) == list(known("other", 4)) == []


def test_generated_answers() -> None:
    found = trace(model_of("llama", "lm"), suite(), PROMPT, generate=Generation(max_new_tokens=6), config=Tracing())
    assert found.generated is not None
    assert found.output is not None
    answer = [i for i, t in enumerate(found.tokens) if t.span == "response"]
    assert found.output.at == answer[0] - 1
    assert found.output.id == found.tokens[answer[0]].id


def test_errors() -> None:
    model = model_of("llama", "lm")
    one = {"a": make_sae("layers.1"), "b": make_sae("layers.1", 3)}
    with pytest.raises(ConfigError, match=r"all autoencoders are of layers\.1: nothing leads"):
        trace(model, one, PROMPT)
    for prompt in ("", "  \n "):
        with pytest.raises(DataError, match="the prompt is empty"):
            trace(model, suite(), prompt)
    with pytest.raises(ModelError, match=r"layers\.9 is out of range"):
        trace(model, suite() | {"far": make_sae("layers.9")}, PROMPT)
    foreign = SparseAutoencoder(SAEConfig(d_in=48, d_sae=9, k=2, hookpoint="layers.2"))
    with pytest.raises(ConfigError, match="Use the model it was trained on"):
        trace(model, suite() | {"foreign": foreign}, PROMPT)
    with pytest.raises(DataError, match=r"300,000 characters; at most 200,000"):
        trace(model, suite(), "mix " * 75_000)
    long = trace(model, suite(), "a b" * 50_000, config=Tracing(nodes=1, checks=0))
    assert len(long.tokens) == model.max_length
    assert long.truncated > 99_000
    with pytest.raises(ConfigError, match="no autoencoder"):
        trace(model, {}, PROMPT)
    with pytest.raises(ConfigError, match="only language models generate"):
        trace(model_of("llama", "reward"), suite(), PROMPT, generate=Generation())
    with pytest.raises(ConfigError, match="this model says no tokens"):
        trace(model_of("llama", "reward"), suite(), PROMPT, ANSWER, config=Tracing(toward="no"))
    with pytest.raises(ConfigError, match="has no tokens"):
        trace(model, suite(), PROMPT, config=Tracing(toward=""))
    with pytest.raises(ConfigError, match="no token at 5000"):
        trace(model, suite(), PROMPT, config=Tracing(at=5000))
