from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_corpus import make_pairs, make_sae, tiny

import seamark.features.gather as gather_module
from seamark.errors import ConfigError, DataError, FormatError, RunError
from seamark.features import Scan, ScanConfig, contrast, scan
from seamark.features.reading import text_scores
from seamark.features.sets import Feature, FeatureSet
from seamark.model.reading import Reader
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.text.pairs import Pairs
from seamark.text.positions import positions

READ = Reader.__call__


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_texts_rewards_and_margins(tmp_path: Path, kind: str) -> None:
    model, pairs = tiny(kind), make_pairs()
    result = scan(model, {"s": make_sae()}, pairs, tmp_path)
    rows = result.texts.to_pylist()
    assert [r["text_id"] for r in rows] == [f"{p.id}:{side}" for p in pairs for side in ("chosen", "rejected")]
    rendered = [t for p in pairs for t in model.renderer().render_pair(p)]
    expected = model.rewards(rendered)
    np.testing.assert_allclose([r["reward"] for r in rows], expected, rtol=1e-4, atol=1e-5)
    assert [r["n_positions"] for r in rows] == [len(positions(t, "clauses")) for t in rendered]
    assert result.margins()["p1"] == rows[2]["reward"] - rows[3]["reward"]
    assert result.groups == ["chat", "safety"]


def test_one_pass_over_many_autoencoders_equals_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = {"a/1": make_sae("layers.2"), "b": make_sae("layers.1.mlp", seed=4), "c": make_sae("layers.2", d_sae=64)}
    model, pairs = tiny(), make_pairs()
    reads: list[int] = []

    def counting(self, batch):
        reads.extend(batch.rows)
        return READ(self, batch)

    monkeypatch.setattr(Reader, "__call__", counting)
    together = scan(model, suite, pairs, tmp_path / "all")
    assert sorted(reads) == list(range(2 * len(pairs)))
    for sae_id, sae in suite.items():
        alone = scan(model, {sae_id: sae}, pairs, tmp_path / sae_id.replace("/", "_"))
        assert (together.pooled(sae_id, "sum") != alone.pooled(sae_id, "sum")).nnz == 0
        np.testing.assert_array_equal(together.q(sae_id), alone.q(sae_id))
    with pytest.raises(ConfigError, match="several autoencoders"):
        together.pooled()


def test_pooling_statistics_and_q(tmp_path: Path) -> None:
    model, sae, pairs = tiny(), make_sae(k=20), make_pairs()
    result = scan(model, {"s": sae}, pairs, tmp_path)
    rendered = [t for p in pairs for t in model.renderer().render_pair(p)]
    clause, every = [], []
    for row, text in enumerate(rendered):
        got = gather_module.gather(model, rendered, [row], [positions(text, "tokens")], ["layers.2"])
        z = sae.encode(got.activations["layers.2"]).positive().dense().numpy()
        every.append(z)
        z = z[positions(text, "clauses") - text.response_span[0]]
        clause.append(z)
        np.testing.assert_allclose(result.pooled("s", "sum")[row].toarray()[0], z.sum(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.pooled("s", "mean")[row].toarray()[0], z.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.pooled("s", "max")[row].toarray()[0], z.max(0), rtol=1e-4, atol=1e-5)
    stats = result.feature_stats("s")
    scored, tokens = np.concatenate(clause), np.concatenate(every)
    np.testing.assert_array_equal(stats.count, (scored > 0).sum(0))
    np.testing.assert_allclose(stats.sum, scored.sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats.sumsq, (scored.astype(float) ** 2).sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stats.texts, sum((z > 0).any(0) for z in clause))
    for latent in range(96):
        fired = tokens[:, latent][tokens[:, latent] > 0]
        if len(fired) < 10:
            assert np.isnan(stats.q[latent])
        else:
            exact = np.quantile(fired, 0.999, method="inverted_cdf")
            assert stats.q[latent] == pytest.approx(exact, rel=0.01)


def test_same_bytes_and_no_second_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny(), make_pairs()
    for name in ("a", "b"):
        scan(model, {"s": make_sae()}, pairs, tmp_path / name, config=ScanConfig(batch_tokens=200))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    monkeypatch.setattr(Reader, "__call__", None)  # would fail
    scan(model, {"s": make_sae()}, pairs, tmp_path / "a", config=ScanConfig(batch_tokens=300))
    monkeypatch.undo()
    changed = scan(model, {"s": make_sae(seed=1)}, pairs, tmp_path / "a")  # another autoencoder: made again
    assert changed.manifest["key"] != Scan.open(tmp_path / "b").manifest["key"]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_cores_read_side_by_side_and_change_no_byte(tmp_path: Path, kind: str) -> None:
    model, pairs, before = tiny(kind), make_pairs(), torch.get_num_threads()
    model.hf.train()
    try:
        for cores in (1, 5):
            torch.set_num_threads(cores)
            scan(model, {"s": make_sae()}, pairs, tmp_path / str(cores), config=ScanConfig(batch_tokens=150))
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
        assert model.hf.training
        model.hf.eval()
    assert files(tmp_path / "1") == files(tmp_path / "5")


def test_contexts_of_a_corpus_too_large_to_hold_by_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = scan(tiny(), {"s": make_sae()}, make_pairs(), tmp_path)
    latents = np.argsort(-result.feature_stats("s").sum)[:5].tolist()
    held = [result.contexts("s", i) for i in latents]
    assert all(held)
    monkeypatch.setattr(sys.modules[Scan.__module__], "HELD_ENTRIES", 0)
    again = Scan.open(tmp_path)
    assert [again.contexts("s", i) for i in latents] == held
    assert not again._maxima


def test_prompts_that_were_scored_have_no_default_contrast(tmp_path: Path) -> None:
    result = scan(tiny(), {"s": make_sae()}, make_pairs(), tmp_path, config=ScanConfig(scope="all"))
    with pytest.raises(ConfigError, match="scored prompts too"):
        contrast(result)
    assert len(contrast(result, normalization="paper").top(3))


def test_batch_size_moves_rounding_only(tmp_path: Path) -> None:
    model, pairs = tiny("bert"), make_pairs()
    one, many = (
        scan(model, {"s": make_sae()}, pairs, tmp_path / str(n), config=ScanConfig(batch_tokens=n)) for n in (1, 8192)
    )
    for stat in ("mean", "sum", "max"):
        np.testing.assert_allclose(
            one.pooled("s", stat).toarray(), many.pooled("s", stat).toarray(), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(one.texts["reward"].to_numpy(), many.texts["reward"].to_numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_contexts(tmp_path: Path, kind: str, scope: str) -> None:
    model, sae, pairs = tiny(kind), make_sae(k=20), make_pairs()
    result = scan(model, {"s": sae}, pairs, tmp_path, config=ScanConfig(scope=scope))
    latent = int(result.feature_stats("s").sum.argmax())
    contexts = result.contexts("s", latent, n=5)
    maxima = result.pooled("s", "max")[:, [latent]].toarray()[:, 0]
    assert len(contexts) == 5
    by_id = {p.id: p for p in pairs}
    for context, strength in zip(contexts, sorted(maxima, reverse=True), strict=False):
        scored = [a for a, s in zip(context.activations, context.scoring, strict=True) if s]
        assert max(scored) == pytest.approx(strength)
        assert len(context.tokens) == len(context.activations)
        pair = by_id[context.pair_id]
        answer = pair.chosen if context.side == "chosen" else pair.rejected
        squashed = context.text.replace(" ", "").replace("\n", "")
        assert str(answer).replace(" ", "").replace("\n", "") in squashed
        if scope == "response":
            assert "Tell me" not in context.text
        assert context.q is not None
        assert context.q > 0
    plain = [t for p in pairs for t in model.renderer().render_pair(p) if t.text_id == contexts[0].text_id]
    span = positions(plain[0], "tokens")
    got = gather_module.gather(model, plain, [0], [span], ["layers.2"])
    z = sae.encode(got.activations["layers.2"]).positive().dense()[:, latent].numpy()
    if scope == "response":  # every token of the response has its value, not only clause ends
        np.testing.assert_allclose(contexts[0].activations, z, rtol=1e-4, atol=1e-5)
        assert sum(contexts[0].scoring) < len(contexts[0].scoring)
    assert all(c.group == "chat" for c in result.contexts("s", latent, n=3, group="chat"))


def test_without_rewards_and_tokens(tmp_path: Path) -> None:
    result = scan(
        tiny(), {"s": make_sae()}, make_pairs(), tmp_path, config=ScanConfig(rewards=False, keep_tokens="never")
    )
    assert result.texts["reward"].null_count == result.texts.num_rows
    with pytest.raises(DataError, match="no rewards"):
        result.margins()
    with pytest.raises(DataError, match="kept no latents of single tokens"):
        result.contexts("s", 0)
    assert not list(tmp_path.rglob("tokens*"))
    assert np.isfinite(result.q("s")).any()


def test_pairs_without_positions_are_left_out(tmp_path: Path) -> None:
    pairs = make_pairs()
    empty = replace(pairs[1], chosen="")
    pairs = pairs.with_items([empty if p.id == empty.id else p for p in pairs])
    result = scan(tiny(), {"s": make_sae()}, pairs, tmp_path)
    found = contrast(result)
    assert found.left_out == ("p1",)
    assert found.n_pairs == len(pairs.group("safety")) - 1
    g = text_scores(result, found.top(4))
    assert np.isnan(g["p1:chosen"])
    assert np.isfinite(g["p1:rejected"])


def test_errors(tmp_path: Path) -> None:
    model, pairs, suite = tiny(), make_pairs(), {"s": make_sae()}
    with pytest.raises(DataError, match="nothing to scan"):
        scan(model, suite, Pairs(()), tmp_path / "x")
    with pytest.raises(ConfigError, match="no autoencoder"):
        scan(model, {}, pairs, tmp_path / "x")
    with pytest.raises(ConfigError, match=r"d_in is 8 but layers\.2"):
        scan(
            model,
            {"s": SparseAutoencoder(SAEConfig(d_in=8, d_sae=16, k=2, hookpoint="layers.2"))},
            pairs,
            tmp_path / "x",
        )
    with pytest.raises(ConfigError, match="no hookpoint"):
        scan(model, {"s": SparseAutoencoder(SAEConfig(d_in=32, d_sae=64, k=2))}, pairs, tmp_path / "x")
    silent = pairs.with_items([replace(p, group="odd", chosen="", rejected="") if p.id == "p2" else p for p in pairs])
    with pytest.raises(DataError, match="group 'odd' has a position"):
        scan(model, suite, silent, tmp_path / "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        scan(model, suite, pairs, tmp_path / "other")
    with pytest.raises(FormatError, match="no finished scan"):
        Scan.open(tmp_path / "nothing")


def test_reading_errors(tmp_path: Path) -> None:
    result = scan(tiny(), {"s": make_sae()}, make_pairs(), tmp_path)
    with pytest.raises(DataError, match=r"no group 'harm'.*chat, safety"):
        contrast(result, "harm")
    with pytest.raises(ConfigError, match="no autoencoder 'zz'"):
        contrast(result, sae_id="zz")
    with pytest.raises(DataError, match="no latent 96"):
        result.contexts("s", 96)
    strange = FeatureSet(features=(Feature(sae="s", latent=99, sign=1),))
    with pytest.raises(DataError, match="no latent 99"):
        text_scores(result, strange)
    (tmp_path / "parts" / "00000" / "saes" / "s" / "pooled.safetensors").write_bytes(b"rubbish")
    with pytest.raises(FormatError, match="pooled"):
        Scan.open(tmp_path).pooled("s")
    (tmp_path / "parts" / "00000" / "texts.parquet").write_bytes(b"rubbish")
    with pytest.raises(FormatError, match=r"texts\.parquet"):
        _ = Scan.open(tmp_path).texts


def test_bad_activations_name_hookpoint_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self, batch):
        reading = READ(self, batch)
        h = reading.activations["layers.2"].clone()
        h[batch.rows.index(3) if 3 in batch.rows else 0] = torch.nan if 3 in batch.rows else 0.0
        return replace(reading, activations={"layers.2": h})

    monkeypatch.setattr(Reader, "__call__", broken)
    with pytest.raises(DataError, match=r"layers\.2 of text p1:rejected: activations hold NaN"):
        scan(tiny(), {"s": make_sae()}, make_pairs(), tmp_path)


def test_a_silent_autoencoder(tmp_path: Path) -> None:
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    result = scan(tiny(), {"s": sae}, make_pairs(), tmp_path)
    assert result.pooled("s").nnz == 0
    assert np.isnan(result.q("s")).all()
    assert result.contexts("s", 0) == []
    with pytest.raises(DataError, match="no latent fires"):
        contrast(result)


def test_where_the_model_lies_does_not_matter(tmp_path: Path) -> None:
    model, pairs = tiny(), make_pairs(4)
    name = model.name
    try:
        for place in ("a", "b"):
            (tmp_path / place / "model").mkdir(parents=True)
            model.name = str(tmp_path / place / "model")
            scan(model, {"s": make_sae()}, pairs, tmp_path / place / "scan")
    finally:
        model.name = name
    assert files(tmp_path / "a" / "scan") == files(tmp_path / "b" / "scan")


def test_an_interrupted_scan_leaves_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny(), make_pairs()
    config = ScanConfig(batch_tokens=200)
    scan(model, {"s": make_sae()}, pairs, tmp_path / "a", config=config)
    before = files(tmp_path / "a")
    calls = []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return READ(self, batch)

    monkeypatch.setattr(Reader, "__call__", dying)
    for target in ("a", "new"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            scan(model, {"s": make_sae(seed=1)}, pairs, tmp_path / target, config=config)
    monkeypatch.undo()
    assert {k: v for k, v in files(tmp_path / "a").items() if not k.startswith(".scan")} == before
    with pytest.raises(FormatError):
        Scan.open(tmp_path / "new")
    for target in ("a", "new"):  # and a rerun mends both
        scan(model, {"s": make_sae(seed=1)}, pairs, tmp_path / target, config=config)
    assert files(tmp_path / "a") == files(tmp_path / "new")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_token_scores_average_to_the_text_score(tmp_path: Path, kind: str) -> None:
    suite = {"a": make_sae(k=20), "b": make_sae("layers.1.attn", k=20, seed=5)}
    result = scan(tiny(kind), suite, make_pairs(), tmp_path)
    features = [Feature(sae=s, latent=i, sign=1 if i % 2 else -1) for s in suite for i in range(0, 96, 5)]
    chosen = FeatureSet(features=tuple(features))
    g = text_scores(result, chosen)
    for text_id in g:
        scores = result.token_scores(text_id, chosen)
        scored = [v for v, s in zip(scores.values, scores.scoring, strict=True) if s]
        assert np.mean(scored) == pytest.approx(g[text_id], rel=1e-4, abs=1e-5)
        assert len(scores.tokens) == len(scores.values)
    assert any(g.values())
    with pytest.raises(DataError, match="no text 'zz'"):
        result.token_scores("zz", chosen)
