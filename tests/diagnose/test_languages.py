"""The same prompts in several languages: reading, retention against its null, intervals, planted features, errors."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspected_texts import D_SAE as READ_D_SAE
from inspected_texts import make_sae, plain_latents
from planted_languages import D_SAE, SAFETY, N, bert, planted, prompts, read_planted
from planted_risk import write_rows
from scipy.sparse import csr_matrix
from scipy.stats import binomtest, wilcoxon

from seamark.cli.diagnose_languages import _rows as cells
from seamark.diagnose import About, languages
from seamark.diagnose.languages_report import ALL, LanguagesConfig, LanguagesReport, Stratum
from seamark.diagnose.parallel import (
    ParallelColumns,
    ParallelPrompt,
    ParallelPrompts,
    read_parallel,
    token_counts,
    tokenised,
)
from seamark.diagnose.pooled import read_pooled
from seamark.diagnose.retention import Draws, feature_change, overlap
from seamark.errors import ConfigError, DataError
from seamark.features import Feature, FeatureSet
from seamark.features.contexts import read_positions
from seamark.features.quantiles import LogBins
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.show.numbers import NOT_AVAILABLE
from tiny import tiny_hooked
from tiny_run import call, write_model

module = importlib.import_module("seamark.diagnose.languages")
CONFIG = LanguagesConfig(draws=300)
SET = FeatureSet(features=tuple(Feature(sae="a", latent=i, sign=1) for i in SAFETY))


def compare(monkeypatch: pytest.MonkeyPatch, given: ParallelPrompts | None = None, **other: Any) -> LanguagesReport:
    monkeypatch.setattr(module, "read_pooled", read_planted)
    other = {"features": SET, "config": CONFIG} | other
    return languages(bert(), other.pop("suite", {"a": make_sae()}), given or prompts(), **other)


def stratum(done: LanguagesReport, language: str, domain: str = ALL, hookpoint: str = ALL) -> Stratum:
    one = next(r for r in done.languages if r.language == language)
    return next(s for s in one.strata if (s.domain, s.hookpoint) == (domain, hookpoint))


# ---- retention


def random_pair(seed: int, n: int = 12, d: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    one, other = (rng.random((n, d)) * (rng.random((n, d)) < 0.5) for _ in range(2))
    return one, other


def test_retention_and_chance_by_hand_under_every_draw() -> None:
    one, other = random_pair(0)
    draws = Draws.of(12, 30, seed=1)
    some = np.arange(7) != 2
    found = overlap(csr_matrix(one), csr_matrix(other), some, draws)
    for k in range(31):
        copies = np.repeat(np.arange(12), draws.times[:, k].astype(int))
        a, b = one[copies][:, some] > 0, other[copies][:, some] > 0
        assert found.retention[k] == pytest.approx((a & b).sum() / a.sum())
        kept = fired = 0
        for i, mine in enumerate(copies):
            for j, theirs in enumerate(copies):
                if mine != theirs:  # never a copy of the same prompt
                    kept, fired = kept + (a[i] & b[j]).sum(), fired + a[i].sum()
        assert found.chance[k] == pytest.approx(kept / fired)
    assert (draws.times[:, 0] == 1).all()
    assert not np.allclose(draws.times[:, 1:], 1)


def test_features_one_by_one_agree_with_scipy_and_numpy() -> None:
    one, other = random_pair(3, n=40)
    other[:, 6] = one[:, 6] = 0
    draws = Draws.of(40, 200, seed=0)
    found = feature_change(csr_matrix(one), csr_matrix(other), draws)
    for f in range(6):
        a, b = one[:, f] > 0, other[:, f] > 0
        assert found.fired[f] == a.sum()
        assert found.retention[f] == pytest.approx((a & b).sum() / a.sum())
        wilson = binomtest(int((a & b).sum()), int(a.sum())).proportion_ci(method="wilson")
        assert (found.retention_low[f], found.retention_high[f]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
        assert found.difference[f] == pytest.approx((other - one)[:, f].mean())
        drawn = (draws.times[:, 1:].T @ (other - one)[:, f]) / 40
        assert [found.low[f], found.high[f]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
        pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
        assert found.chance[f] == pytest.approx(np.mean([b[j] for i, j in pairs if a[i]]))
        d = (other - one)[:, f]
        d = d[d != 0]
        assert found.p[f] == pytest.approx(wilcoxon(d).pvalue, rel=1e-6)
    assert np.isnan([found.retention[6], found.p[6], found.chance[6], found.low[6]]).all()


def test_a_feature_fires_above_a_level_only() -> None:
    one, other = random_pair(5)
    found = overlap(csr_matrix(one), csr_matrix(other), np.ones(7, bool), Draws.of(12, 2, 0), 0.5)
    a, b = one > 0.5, other > 0.5
    assert found.retention[0] == pytest.approx((a & b).sum() / a.sum())
    change = feature_change(csr_matrix(one), csr_matrix(other), Draws.of(12, 2, 0), 0.5)
    assert change.fired.tolist() == a.sum(0).tolist()
    assert change.reference == pytest.approx(one.mean(0))


def test_all_or_none_of_a_few_are_no_certainty() -> None:
    one, other = np.ones((10, 2)), np.tile([1.0, 0.0], (10, 1))
    found = feature_change(csr_matrix(one), csr_matrix(other), Draws.of(10, 50, 0))
    assert found.retention.tolist() == [1, 0]
    assert (found.retention_low[0], found.retention_high[1]) == pytest.approx((0.722, 0.278), abs=1e-3)
    assert (found.retention_high[0], found.retention_low[1]) == (1, 0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Prompts differ in how much they keep (beta with mean 0.6), so that resampling rows would be too narrow."""
    inside = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        one = np.ones((40, 30))
        other = (rng.random((40, 30)) < rng.beta(3, 2, 40)[:, None]).astype(float)
        draws = Draws.of(40, 200, seed)
        e = draws.estimate(overlap(csr_matrix(one), csr_matrix(other), np.ones(30, bool), draws).retention, 40, "")
        inside += e.low <= 0.6 <= e.high
    assert 69 <= inside <= 80  # 76 expected


# ---- planted features


def test_features_that_fall_away_in_one_language(monkeypatch: pytest.MonkeyPatch) -> None:
    done = compare(monkeypatch)
    assert done.watched == ("given features",)
    hindi, french = (next(r for r in done.languages if r.language == x) for x in ("hi", "fr"))
    assert (hindi.flagged, french.flagged) == (("given features",), ())
    lost = stratum(done, "hi", "given features")
    assert lost.retention.value == pytest.approx(0.1)
    assert lost.flagged
    assert lost.retention.low <= 0.1 <= lost.retention.high < 0.5
    assert lost.features == 2
    assert lost.against_others.high < 0, "it falls more than the rest"
    assert stratum(done, "hi").against_others.value is None
    close = compare(monkeypatch, config=CONFIG.model_copy(update={"threshold": 0.12}))
    assert not stratum(close, "hi", "given features").flagged, "the upper end decides, not the value"
    kept = stratum(done, "fr", "given features")
    assert kept.retention.value == 1.0
    assert kept.chance.value == pytest.approx(29 / 59)  # half of the other prompts
    assert kept.above_chance.value == pytest.approx(30 / 59)
    assert not kept.flagged
    rest = [z for z in range(49) if z not in SAFETY]
    one, other = (np.asarray([planted(x, i)[rest] > 0 for i in range(N)]) for x in ("en", "fr"))
    by_chance = (one.sum(0) @ other.sum(0) - (one & other).sum()) / (one.sum() * (N - 1))
    beyond = (one & other).sum() / one.sum() - by_chance
    assert kept.against_others.value == pytest.approx(kept.above_chance.value - beyond)
    for row in done.features:
        if row.latent in SAFETY:
            assert (row.kept_in, row.falls_away_in) == (["fr"], ["hi"])
            there = next(x for x in row.languages if x.language == "hi")
            before = [max(planted("en", i)[row.latent], 0) / 2 for i in range(N)]
            after = [max(planted("hi", i)[row.latent], 0) / 2 for i in range(N)]
            assert there.reference == pytest.approx(np.mean(before))
            assert there.difference.value == pytest.approx(np.mean(after) - np.mean(before))
            assert there.difference.high < 0
            assert there.q_value < 1e-3
    assert {row.latent for row in done.features if row.falls_away_in} == set(SAFETY)
    assert [row.latent for row in done.features[:2]] in ([3, 5], [5, 3])
    whole = [row.latent for row in done.features if row.kept_in == ["fr", "hi"]]
    assert 0 in whole
    assert done.in_all == len(whole)


def test_a_feature_kept_in_few_prompts_is_not_surely_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent 0 fires in all texts; 12 of 12 may be 76 %."""
    for threshold, kept in ((0.75, True), (0.8, False)):
        done = compare(monkeypatch, prompts(12), config=CONFIG.model_copy(update={"threshold": threshold}))
        assert any(row.latent == 0 and row.kept_in == ["fr", "hi"] for row in done.features) == kept


def test_the_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fires by chance keeps what chance keeps; what a prompt says keeps more."""
    by_chance = FeatureSet(features=tuple(Feature(sae="a", latent=i, sign=1) for i in range(30, 49)))
    done = compare(monkeypatch, features=by_chance)
    null = stratum(done, "fr", "given features")
    assert null.retention.value == pytest.approx(0.4, abs=0.05)
    assert null.chance.value == pytest.approx(0.4, abs=0.05)
    assert null.above_chance.low < 0 < null.above_chance.high
    assert null.chance_only
    assert null.within.value == pytest.approx(0.4, abs=0.05)
    said = FeatureSet(features=tuple(Feature(sae="a", latent=i, sign=1) for i in range(10, 30)))
    own = stratum(compare(monkeypatch, features=said), "hi", "given features")
    assert own.retention.value == pytest.approx(0.7, abs=0.05)
    assert own.chance.value == pytest.approx(0.28, abs=0.04)
    assert own.reference_within.value == pytest.approx(0.4, abs=0.04)
    assert own.above_chance.low > 0.3
    assert not own.chance_only


def test_domains_of_labels_and_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels(sae: str, latents: Any) -> dict[int, About]:
        assert 49 not in latents, "no Q_f, no label"
        return {i: About(label="storms", domains=("weather",)) for i in latents if i in SAFETY and sae == "a"}

    suite = {"a": make_sae(), "b": make_sae("layers.1", 3)}
    done = compare(monkeypatch, features=None, labels=labels, suite=suite)
    assert done.watched == ("weather",)
    one = stratum(done, "hi", "weather", "layers.2")
    assert one.flagged
    other = stratum(done, "hi", "weather", "layers.1")
    assert (other.features, other.retention.value) == (0, None)
    assert "none of them fires" in other.retention.reason
    assert stratum(done, "hi", "weather").retention == one.retention
    assert stratum(done, "hi").features == 2 * (D_SAE - 1)  # all but the one without Q_f, in both
    assert next(row for row in done.features if row.latent == 3 and row.sae == "a").label == "storms"


def test_few_prompts_and_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(prompts(8).items)
    items[0] = ParallelPrompt("p0", {"en": "harbour", "xx": "bread"})
    done = compare(monkeypatch, ParallelPrompts(tuple(items)))
    found = {r.language: r for r in done.languages}
    assert (found["fr"].prompts, found["xx"].prompts) == (7, 1)
    assert "one prompt" in found["xx"].reason
    assert (found["fr"].kept, found["fr"].falls_away, found["fr"].unclear) == (0, 0, 0)
    assert done.in_all_of == ()
    assert done.in_all == 0


# ---- reading


def test_texts_are_read_as_by_the_formula_in_one_pass() -> None:
    model = tiny_hooked("llama", "base")
    suite = {"a": make_sae(), "b": make_sae("layers.0", 3)}
    renderer = model.renderer()
    texts = [renderer.render_text(t, t) for t in ("Is it safe to mix bleach?", "The weather was fine.", "Paris")]
    where = [read_positions(t, module.EVERY_TOKEN)[0] for t in texts]
    found = read_pooled(model, suite, texts, where, units_from=np.asarray([True, True, False]), batch_tokens=16)
    bins = {name: ([], []) for name in suite}
    for row, (text, at) in enumerate(zip(texts, where, strict=True)):
        assert not text.special[at].any()
        with torch.no_grad():
            states = model.hf(
                input_ids=torch.tensor([text.input_ids.tolist()]), output_hidden_states=True
            ).hidden_states
        for name, layer in (("a", 3), ("b", 1)):
            z = plain_latents(suite[name], states[layer][0])[at]
            np.testing.assert_allclose(found[name].maximum[row].toarray()[0], z.max(0), atol=1e-4)
            if row < 2:
                latent = np.nonzero(z)[1]
                bins[name][0].extend(latent.tolist())
                bins[name][1].extend(z[z > 0].tolist())
    for name, (latent, value) in bins.items():
        want, largest = LogBins(), np.zeros(READ_D_SAE)
        want.add(np.asarray(latent), np.asarray(value))
        np.maximum.at(largest, latent, value)
        np.testing.assert_allclose(found[name].counted, want.quantiles(READ_D_SAE, largest), rtol=0.02)


def test_tokens_that_are_unknown_or_parts() -> None:
    bert_, gpt2 = tiny_hooked("bert", "base"), tiny_hooked("gpt2", "base")

    def counts(model: Any, text: str) -> list[float]:
        return token_counts(model, model.renderer().render_text(text, "t")).tolist()

    assert counts(bert_, "is it safe") == [3, 0, 0, 8]
    tokens, unknown, parts, characters = counts(bert_, "safe ཀ ཁ")
    assert (tokens, unknown, parts, characters) == (3, 2, 0, 6)
    tokens, unknown, parts, characters = counts(gpt2, "aཀ")
    assert (tokens, unknown, parts, characters) == (4, 0, 3, 2)  # three bytes


def test_a_language_the_tokenizer_breaks_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [ParallelPrompt(f"p{i}", {"en": f"is it safe {i}", "fr": f"is it safe {i}", "hi": f"ཀ ཁ safe {i}"})
             for i in range(20)]  # fmt: skip
    done = compare(monkeypatch, ParallelPrompts(tuple(items)))
    found = {r.language: r for r in done.languages}
    assert found["hi"].tokenised.broken
    assert not found["fr"].tokenised.broken
    assert found["fr"].tokenised.premium.value == 1.0
    assert "tokenizer breaks hi" in found["hi"].caveat
    assert any("hi" in c for c in done.caveats)
    assert found["fr"].caveat == ""


def test_a_tokenizer_that_cannot_be_judged_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(tokens: int, unknown: int, reference: int) -> Any:
        counts = np.asarray([[tokens, unknown, 0, 9], [tokens, unknown, 0, 9.0]])
        return tokenised(counts, np.asarray([[reference, 0, 0, 9], [reference, 0, 0, 9.0]]))

    assert [made(*given).broken for given in ((10, 0, 10), (10, 1, 10), (0, 0, 10), (10, 0, 0), (10, 1, 0))] == [
        False, True, None, None, True]  # fmt: skip
    assert module._caveat("hi", "en", made(10, 0, 10)) == ""
    assert "hi is not available (no token to count)" in module._caveat("hi", "en", made(0, 0, 10))
    assert "take (not available) the tokens" in module._caveat("hi", "en", made(10, 1, 0))
    done = compare(monkeypatch).languages[0].model_copy(update={"tokenised": made(0, 0, 10)})
    assert cells(done)[0][-2] == NOT_AVAILABLE


def test_files_with_good_and_bad_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "texts": {"en": "yes", "hi": "haan"}}, {"id": 7, "texts": {"en": "no", "hi": " ", "fr": 3}},
        {"id": "a", "texts": {"en": "again"}}, {"id": "b", "texts": "text"}, {"id": "c", "texts": {}},
        {"id": "d", "texts": {"en": "long", "hi": "word " * 50_000, "fr": None}},
    ]  # fmt: skip
    found = read_parallel(write_rows(tmp_path / "p.jsonl", rows))
    assert [(p.id, dict(p.texts)) for p in found.items] == [
        ("a", {"en": "yes", "hi": "haan"}), ("7", {"en": "no"}), ("d", {"en": "long"})]  # fmt: skip
    assert [r.row for r in found.rejected] == [2, 2, 3, 4, 5, 6]
    assert "hi is empty" in found.rejected[0].reason
    assert "250,000 characters" in found.rejected[-1].reason
    assert found.languages == {"en": 3, "hi": 1}
    wide = tmp_path / "w.csv"
    wide.write_text("key,English,Hindi\n1,yes,haan\n2,no,nahin\n", encoding="utf-8")
    columns = ParallelColumns(id="key", languages={"en": "English", "hi": "Hindi"})
    assert dict(read_parallel(wide, columns).items[1].texts) == {"en": "no", "hi": "nahin"}
    with pytest.raises(DataError, match="no column Thai; found English, Hindi, key"):
        read_parallel(wide, ParallelColumns(id="key", languages={"en": "English", "th": "Thai"}))
    with pytest.raises(DataError, match="no usable prompt"):
        read_parallel(write_rows(tmp_path / "e.jsonl", [{"id": "x", "texts": {"en": ""}}]))


def test_choosing() -> None:
    few = prompts().choose("en", ("hi",), most=10, seed=1)
    assert len(few) == 10
    assert few.languages == {"en": 10, "hi": 10}
    assert few.items == ParallelPrompts(prompts().items[::-1]).choose("en", ("hi",), 10, 1).items[::-1]
    with pytest.raises(ConfigError, match=r"no prompt is in 'tlh'.*en, fr, hi"):
        prompts().choose("en", ("tlh",))
    with pytest.raises(ConfigError, match="nothing to compare en with"):
        prompts().choose("en", ("en",))
    apart = ParallelPrompts((ParallelPrompt("a", {"en": "x"}), ParallelPrompt("b", {"hi": "y"})))
    with pytest.raises(DataError, match="no prompt is both in en and"):
        apart.choose("en")
    with pytest.raises(DataError, match="both in en and in hi"):
        apart.choose("en", ("hi",))


def test_what_does_not_fit() -> None:
    two = prompts(4)
    other = SparseAutoencoder(SAEConfig(d_in=64, d_sae=80, k=4, hookpoint="layers.2"))
    with pytest.raises(ConfigError, match="d_in is 64"):
        languages(bert(), {"a": other}, two)
    with pytest.raises(ConfigError, match="feature b/3 is of another autoencoder"):
        languages(bert(), {"a": make_sae()}, two, features=FeatureSet(features=(Feature(sae="b", latent=3, sign=1),)))
    with pytest.raises(ConfigError, match="thresholds are out of range"):
        languages(bert(), {"a": make_sae()}, two, config=LanguagesConfig(threshold=2.0))
    long = ParallelPrompts((ParallelPrompt("a", {"en": "safe " * 20_000, "fr": "safe"}),))
    with pytest.raises(DataError, match="no text in en has 1 to 256 tokens"):
        languages(bert(), {"a": make_sae()}, long)
    named = make_sae(model="another/model")
    assert any("a was trained on another/model" in c for c in languages(bert(), {"a": named}, two).caveats)
    assert not any("was trained on" in c for c in languages(bert(), {"a": make_sae()}, two).caveats)


def test_long_texts_are_left_out_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(prompts(12).items)
    items[4] = ParallelPrompt("p4", dict(items[4].texts) | {"hi": "safe " * 300})
    done = compare(monkeypatch, ParallelPrompts(tuple(items)))
    found = {r.language: r for r in done.languages}
    assert (found["hi"].prompts, found["hi"].cut, found["fr"].prompts, found["fr"].cut) == (11, 1, 12, 0)


def test_real_model_and_the_same_text_everywhere() -> None:
    """Texts that are the same in both languages keep everything, in every layer, and nothing changes."""
    texts = ["Is it safe to mix bleach?", "The weather was fine.", "How do I bake bread?", "Paris is in France."] * 4
    given = ParallelPrompts(tuple(ParallelPrompt(str(i), {"en": f"{t} {i}", "xx": f"{t} {i}"})
                                  for i, t in enumerate(texts)))  # fmt: skip
    done = languages(bert(), {"a": make_sae(), "b": make_sae("layers.0", 3)}, given, config=CONFIG)
    for s in done.languages[0].strata:
        assert s.retention.value == 1.0
        assert not s.flagged
    assert done.languages[0].falls_away == 0
    assert all(x.difference.value == pytest.approx(0, abs=1e-6) for row in done.features for x in row.languages)
    assert "because no scan is given" in done.saes[0].q_from
    assert json.loads(done.model_dump_json())["watched"] == []


# ---- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    model = write_model(tmp_path / "base")
    make_sae().save_pretrained(tmp_path / "sae")
    rows = [{"id": p.id, "texts": dict(p.texts)} for p in prompts(20).items] + [{"id": "bad"}]
    file = write_rows(tmp_path / "p.jsonl", rows)
    SET.save(tmp_path / "set.json")
    words: list[Any] = ["diagnose", "languages", "--model", model, "--sae", f"a={tmp_path / 'sae'}", "--prompts", file,
                        "--draws", 50, "--features", tmp_path / "set.json"]  # fmt: skip
    code, out, err = call(*words, "--out", tmp_path / "out")
    assert code == 0, err
    assert "still fire" in out
    assert "given features" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {r["language"] for r in result["languages"]} == {"fr", "hi"}
    assert "no mapping" in (tmp_path / "out" / "rejected.jsonl").read_text()
    code, out, err = call(*words, "--json", "--sample", 5)
    assert (code, json.loads(out)["prompts"]) == (0, 5)
    for more, said in ((("--language", "tlh"), "no prompt is in 'tlh'"), (("--language-column", "hi"), "no language=")):
        code, _, err = call(*words, *more)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1
