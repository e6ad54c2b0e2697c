from __future__ import annotations

import importlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feature_corpus import make_pairs, make_sae, tiny
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csr_matrix

from seamark.errors import ConfigError, DataError
from seamark.features import Scan, contrast, scan
from seamark.features.accumulate import Pooled
from seamark.features.significance import Significance, adjusted, significance, wilcoxon_p
from seamark.stats import bootstrap_by_cluster, bootstrap_of_sums, cluster_codes

significance_module = importlib.import_module("seamark.features.significance")
Floats = NDArray[np.float64]
NUMBERS = [
    "effect", "low", "high", "p", "q_value", "agreeing", "n_differing", "length_controlled", "length_low",
    "length_high", "length_slope",
]  # fmt: skip


def fake_scan(
    chosen: Floats, rejected: Floats, *, prompts: list[str] | None = None, lengths: Any = None,
    positions: Any = None, parts: int = 1,
) -> Scan:  # fmt: skip
    """A scan whose pairs have the given mean activations [pairs × latents], without a folder.

    `lengths` and `positions` [pairs, 2]: response tokens and scoring positions of (chosen, rejected).
    """
    n, d_sae = chosen.shape
    lengths = np.full((n, 2), 7) if lengths is None else np.asarray(lengths)
    positions = np.ones((n, 2), int) if positions is None else np.asarray(positions)
    texts = pa.table({
        "pair_id": [f"p{i // 2}" for i in range(2 * n)], "side": ["chosen", "rejected"] * n,
        "group": ["safety"] * (2 * n), "prompt": np.repeat(prompts or [f"q{i}" for i in range(n)], 2),
        "n_positions": positions.reshape(-1), "n_response": lengths.reshape(-1),
    })  # fmt: skip
    sums = np.stack([chosen, rejected], axis=1).reshape(2 * n, d_sae) * positions.reshape(-1, 1)
    cut = [2 * len(c) for c in np.array_split(np.arange(n), parts)]
    found = [csr_matrix(s) for s in np.split(sums, np.cumsum(cut)[:-1])]
    manifest = {"config": {}, "sae_configs": {"s": {"d_sae": d_sae}}, "rows": cut, "groups": {"safety": n}, "key": "k"}
    result = Scan(Path("fake"), manifest)
    result.__dict__["texts"] = texts
    none = np.empty(0)
    result._pooled = lambda _, part: Pooled(
        found[part].indptr, found[part].indices, found[part].data, none, none, none, none, none
    )
    return result


def sparse(rng: np.random.Generator, n: int, d_sae: int, share: float = 0.5) -> Floats:
    """Activations of which only a share are not 0."""
    values: Floats = rng.exponential(size=(n, d_sae)) * (rng.random((n, d_sae)) < share)
    return values


def assert_same(a: Significance, b: Significance) -> None:
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_worked_example() -> None:
    """Numbers by hand: d is (1, 2, 3, 4, 5, −6) for latent 0, silent for 1, cancelling for 2."""
    d = np.array([1.0, 2, 3, 4, 5, -6])
    chosen, rejected = np.zeros((6, 3)), np.zeros((6, 3))
    chosen[:, 0], rejected[:, 0] = np.maximum(d, 0), np.maximum(-d, 0)
    chosen[0, 2] = rejected[1, 2] = 2.0
    found = significance(fake_scan(chosen, rejected, lengths=[(10 + i, 10) for i in range(6)]), draws=50)
    np.testing.assert_allclose(found.effect, [1.5, 0, 0])
    # ranks of positive ones are 1 … 5, so the smaller sum is 6: 14 of 64 subsets of 1 … 6 sum to at most 6
    np.testing.assert_allclose(found.p, [28 / 64, np.nan, np.nan])
    np.testing.assert_allclose(found.q_value, [28 / 64, np.nan, np.nan])
    np.testing.assert_allclose(found.agreeing, [5 / 6, np.nan, np.nan])
    assert found.n_differing.tolist() == [6, 0, 2]
    slope, intercept = np.polyfit(np.arange(6.0), d, 1)
    assert found.length_slope[0] == pytest.approx(slope)
    assert found.length_controlled[0] == pytest.approx(intercept)
    assert (found.n_pairs, found.n_prompts, found.length_range, found.reasons) == (6, 6, (0, 5), {})
    assert all(getattr(found, name).dtype == np.float64 for name in NUMBERS if name != "n_differing")


@pytest.mark.parametrize("n", [6, 13, 25, 50, 51, 300])
@pytest.mark.parametrize("tied", [False, True])
def test_p_is_that_of_scipy(n: int, tied: bool) -> None:
    rng = np.random.default_rng(n)
    d = rng.normal(0.2, 1.0, (40, n))
    if tied:
        d = np.where(abs(d) < 0.3, 0.0, np.round(d, 1))
        d[:, :6] = [0.5, 0.5, -0.5, 1.0, 2.0, 3.0]  # so that every row has a tie and enough differences
    found = wilcoxon_p(csr_matrix(d))
    for row, p in zip(d, found, strict=True):
        differing = row[row != 0]
        method = "asymptotic" if tied or n > significance_module.EXACT_UP_TO else "exact"
        expected = stats.wilcoxon(differing, method=method, correction=True).pvalue
        assert p == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_p_where_positive_and_negative_ranks_balance() -> None:
    d = np.array([[1.0, -1, 2, -2, 3, -3], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
    found = wilcoxon_p(csr_matrix(d))
    assert found[0] == 1.0
    assert found[1] == pytest.approx(stats.wilcoxon(d[1], method="asymptotic", correction=True).pvalue, rel=1e-10)
    assert found[2] == 2 / 64


def test_p_is_not_available_for_a_handful() -> None:
    d = np.zeros((2, 30))
    d[0, :5], d[1, :6] = [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]
    assert np.isnan(wilcoxon_p(csr_matrix(d))[0])
    assert wilcoxon_p(csr_matrix(d))[1] == 2 / 64


def test_adjusted_is_that_of_scipy() -> None:
    p = np.random.default_rng(0).random(200) ** 3
    p[::7], p[3] = np.nan, p[4]
    known = ~np.isnan(p)
    found = adjusted(p)
    np.testing.assert_allclose(found[known], stats.false_discovery_control(p[known]), rtol=1e-12)
    assert np.isnan(found[~known]).all()
    assert np.isnan(adjusted(np.full(3, np.nan))).all()
    assert adjusted(np.empty(0)).shape == (0,)


def test_effects_and_intervals_are_those_of_each_latent_alone() -> None:
    rng = np.random.default_rng(1)
    n = 80
    chosen, rejected = sparse(rng, n, 5), sparse(rng, n, 5)
    prompts = [f"q{i}" for i in rng.integers(0, 30, n)]
    lengths = rng.integers(1, 60, (n, 2))
    found = significance(fake_scan(chosen, rejected, prompts=prompts, lengths=lengths), draws=200, seed=3)
    codes, d = cluster_codes(prompts), chosen - rejected
    away = (lengths[:, 0] - lengths[:, 1]).astype(float)

    def intercept(s: Floats) -> float:
        one, x, xx, y, xy = s
        return float((y * xx - x * xy) / (one * xx - x * x))

    for i in range(5):
        plain = bootstrap_by_cluster(d[:, i], codes, draws=200, seed=3)
        assert found.effect[i] == pytest.approx(plain.value, rel=1e-9)
        lines = np.stack([np.ones(n), away, away**2, d[:, i], away * d[:, i]])
        mean = bootstrap_of_sums(lambda s: float(s[3] / s[0]), lines, codes, draws=200, seed=3)
        assert (found.low[i], found.high[i]) == (pytest.approx(mean.low), pytest.approx(mean.high))
        line = bootstrap_of_sums(intercept, lines, codes, draws=200, seed=3)
        assert found.length_controlled[i] == pytest.approx(line.value)
        assert (found.length_low[i], found.length_high[i]) == (pytest.approx(line.low), pytest.approx(line.high))
    assert found.n_prompts == len(set(prompts))


def test_shuffled_labels_give_uniform_p() -> None:
    rng = np.random.default_rng(5)
    n, d_sae = 60, 1000
    a, b = sparse(rng, n, d_sae), sparse(rng, n, d_sae)
    found = significance(fake_scan(a, b), draws=20)
    assert np.isfinite(found.p).all()
    for level in (0.05, 0.2, 0.5):
        assert np.mean(found.p < level) == pytest.approx(level, abs=0.03)
    assert (found.q_value < 0.05).sum() <= 1


def test_signal_is_found_among_noise() -> None:
    rng = np.random.default_rng(6)
    n = 200
    a, b = sparse(rng, n, 300), sparse(rng, n, 300)
    a[:, :5] += 0.8
    found = significance(fake_scan(a, b), draws=200)
    kept = np.flatnonzero(found.q_value < 0.05)
    assert set(range(5)) <= set(kept.tolist())
    assert len(kept) <= 7
    assert (found.low[:5] > 0).all()
    assert (found.agreeing[:5] > 0.6).all()
    assert ((found.low > 0) | (found.high < 0))[5:].mean() < 0.1


def test_what_only_follows_length_vanishes_at_equal_length() -> None:
    rng = np.random.default_rng(7)
    n = 400
    lengths = np.stack([rng.integers(20, 80, n), rng.integers(5, 65, n)], axis=1)
    follows = 0.05 * lengths + rng.exponential(0.2, (n, 2))
    real = rng.exponential(0.2, (n, 2)) + np.array([0.5, 0.0])
    chosen, rejected = (np.stack([follows[:, s], real[:, s]], axis=1) for s in (0, 1))
    found = significance(fake_scan(chosen, rejected, lengths=lengths), draws=300)
    assert found.low[0] > 0.3  # clear, but length alone
    assert found.length_low[0] < 0 < found.length_high[0]
    assert abs(found.length_controlled[0]) < 0.05
    assert found.length_slope[0] == pytest.approx(0.05, rel=0.05)
    assert found.length_controlled[1] == pytest.approx(0.5, abs=0.06)
    assert found.length_low[1] > 0.4
    assert found.length_slope[1] == pytest.approx(0.0, abs=0.003)


def test_repeated_prompts_widen_the_interval() -> None:
    rng = np.random.default_rng(8)
    of_prompt = rng.exponential(size=(20, 30))
    chosen = np.repeat(of_prompt, 10, axis=0) + rng.exponential(0.05, (200, 30))
    rejected = np.ones((200, 30))
    apart = significance(fake_scan(chosen, rejected), draws=300)
    together = significance(fake_scan(chosen, rejected, prompts=[f"q{i // 10}" for i in range(200)]), draws=300)
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio.mean() == pytest.approx(np.sqrt(10), rel=0.15)  # ten alike tell as much as one
    np.testing.assert_array_equal(apart.effect, together.effect)


def test_parts_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    n = 90
    chosen, rejected = sparse(rng, n, 70, 0.3), sparse(rng, n, 70, 0.3)
    lengths = rng.integers(1, 50, (n, 2))
    prompts = [f"q{i % 40}" for i in range(n)]
    whole = significance(fake_scan(chosen, rejected, lengths=lengths, prompts=prompts), draws=100)
    monkeypatch.setattr(significance_module, "CHUNK_BYTES", 30_000)  # a few draws, latents and entries at a time
    cut = significance(fake_scan(chosen, rejected, lengths=lengths, prompts=prompts, parts=7), draws=100)
    assert_same(whole, cut)
    monkeypatch.setattr(significance_module, "CHUNK_BYTES", 1)
    assert_same(whole, significance(fake_scan(chosen, rejected, lengths=lengths, prompts=prompts), draws=100))


def test_memory_stays_within_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    d = csr_matrix(sparse(rng, 2000, 300, 0.1) - sparse(rng, 2000, 300, 0.1))
    lengths = rng.integers(-30, 30, 300).astype(float)
    limit = 1 << 21
    monkeypatch.setattr(significance_module, "CHUNK_BYTES", limit)
    resampling = significance_module._Bootstrap(np.arange(300), 500, 0)
    tracemalloc.start()
    significance_module._length_controlled(d, lengths, resampling, {})
    wilcoxon_p(d)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit + 6 * d.shape[0] * 8  # the results themselves; all draws at once would take 8 MB


def test_latents_asked_for_equal_those_of_all() -> None:
    rng = np.random.default_rng(11)
    made = fake_scan(sparse(rng, 30, 20), sparse(rng, 30, 20), lengths=rng.integers(1, 20, (30, 2)), parts=2)
    every, some = significance(made, draws=50), significance(made, draws=50, latents=[17, 3])
    assert some.latents.tolist() == [17, 3]
    for name in set(NUMBERS) - {"q_value"}:
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[[17, 3]], err_msg=name)
    np.testing.assert_array_equal(some.q_value, adjusted(every.p[[17, 3]]))
    assert significance(made, draws=5, latents=[]).rows() == []


def test_pairs_without_positions_are_left_out() -> None:
    rng = np.random.default_rng(12)
    chosen, rejected = sparse(rng, 12, 4), sparse(rng, 12, 4)
    positions, lengths = rng.integers(1, 9, (12, 2)), rng.integers(1, 9, (12, 2))
    positions[3, 0] = positions[5, 1] = 0
    found = significance(fake_scan(chosen, rejected, positions=positions, lengths=lengths), draws=50)
    kept = [i for i in range(12) if i not in (3, 5)]
    alone = significance(fake_scan(chosen[kept], rejected[kept], lengths=lengths[kept]), draws=50)
    assert (found.left_out, found.n_pairs) == (("p3", "p5"), 10)
    for name in NUMBERS:
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-12, err_msg=name)
    with pytest.raises(DataError, match="positions on both sides"):
        significance(fake_scan(chosen, rejected, positions=np.zeros((12, 2), int)))


def test_rounding_is_no_difference() -> None:
    same = np.full((40, 2), 3.0)
    noise = same * (1 + 2e-6 * (np.arange(40) % 3 + 1))[:, None]  # always above: a rank test would be sure
    noise[:, 1] = 3.1
    found = significance(fake_scan(noise, same), draws=20)
    assert found.n_differing.tolist() == [0, 40]
    assert np.isnan(found.p[0])
    assert found.p[1] < 1e-6
    assert found.effect[0] == 0


def test_what_is_not_available_says_why() -> None:
    rng = np.random.default_rng(13)
    chosen, rejected = sparse(rng, 10, 3), sparse(rng, 10, 3)
    one = significance(fake_scan(chosen, rejected, prompts=["q"] * 10, lengths=[(9 + i, 5) for i in range(10)]))
    assert np.isnan([one.low, one.high, one.length_low, one.length_high]).all()
    assert np.isfinite([one.effect, one.length_controlled]).all()
    assert one.reasons == dict.fromkeys(("interval", "length_interval"), "all pairs belong to one prompt")

    equal = significance(fake_scan(chosen, rejected, lengths=[(i + 4, i) for i in range(10)]), draws=20)
    assert np.isnan([equal.length_controlled, equal.length_low, equal.length_high, equal.length_slope]).all()
    assert np.isfinite([equal.low, equal.high]).all()
    assert "4 tokens long in every pair" in equal.reasons["length_controlled"]
    assert equal.length_range == (4, 4)

    two = significance(fake_scan(chosen[:2], rejected[:2], lengths=[(5, 4), (9, 2)]), draws=20)
    assert np.isnan(two.length_controlled).all()
    assert "fewer than 3 pairs" in two.reasons["length_controlled"]

    # lengths differ in a draw only if it holds both prompts, as half of all draws do: sometimes they are too few
    outcomes = set()
    for seed in range(8):
        three = fake_scan(chosen[:3], rejected[:3], prompts=["a", "a", "b"], lengths=[(5, 5), (5, 5), (6, 5)])
        rare = significance(three, draws=101, seed=seed)
        assert np.isfinite(rare.length_controlled).all()
        few = rare.reasons.get("length_interval") == "too few valid resamples"
        assert np.isnan([rare.length_low, rare.length_high]).all() == few
        outcomes.add(few)
    assert outcomes == {True, False}


def test_rows_are_json() -> None:
    rng = np.random.default_rng(14)
    chosen, rejected = sparse(rng, 40, 6), sparse(rng, 40, 6)
    chosen[:, 2] += 1.0
    chosen[:, 5] = rejected[:, 5] = 0.0
    found = significance(fake_scan(chosen, rejected), draws=50)
    rows = found.rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [abs(r["effect"]) for r in rows] == sorted((abs(r["effect"]) for r in rows), reverse=True)
    assert rows[0]["sae"] == "s"
    assert rows[0]["latent"] == 2
    assert (rows[-1]["latent"], rows[-1]["p"], rows[-1]["agreeing"], rows[-1]["effect"]) == (5, None, None, 0.0)
    assert rows[0]["length_controlled"] is None  # all are as long
    by_q = found.rows(top=3, by="q_value")
    assert [r["q_value"] for r in by_q] == sorted(found.q_value[~np.isnan(found.q_value)].tolist())[:3]
    assert found.rows(by="q_value")[-1]["latent"] == 5
    with pytest.raises(ConfigError, match="no order 'p'"):
        found.rows(by="p")  # type: ignore[arg-type]


def test_errors() -> None:
    made = fake_scan(np.ones((4, 3)), np.zeros((4, 3)))
    with pytest.raises(DataError, match="no latent 3; there are 3"):
        significance(made, latents=[0, 3])
    with pytest.raises(DataError, match="no latent -1"):
        significance(made, latents=[-1])
    with pytest.raises(DataError, match="no group 'harm'"):
        significance(made, "harm")
    with pytest.raises(ConfigError, match="no autoencoder 'zz'"):
        significance(made, sae_id="zz")
    with pytest.raises(ConfigError, match="draws is 0"):
        significance(made, draws=0)


def test_on_a_scan(tmp_path: Path) -> None:
    made = scan(tiny(), {"s": make_sae(k=20)}, make_pairs(18), tmp_path)
    found, scores = significance(made, draws=50), contrast(made)
    np.testing.assert_allclose(found.effect, scores.chosen - scores.rejected, rtol=1e-3, atol=1e-4)
    assert found.n_pairs == scores.n_pairs
    assert found.length_range[0] < found.length_range[1]
    assert np.isfinite(found.q_value).any()
    assert found.provenance["scan"] == made.manifest["key"]
