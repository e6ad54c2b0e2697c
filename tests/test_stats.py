"""Estimates and bootstraps against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest, norm

from seamark.stats import (
    Estimate,
    bootstrap,
    bootstrap_by_cluster,
    bootstrap_matrix,
    bootstrap_of_sums,
    cluster_codes,
    wilson,
)


def single(n: int) -> np.ndarray:
    """Every item a cluster of its own."""
    return np.arange(n)


def test_cluster_codes_are_by_first_appearance():
    assert cluster_codes(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]
    assert cluster_codes([]).shape == (0,)


def test_an_estimate_is_a_value_or_a_reason():
    gone = Estimate.not_available("too few", 3)
    assert (gone.available, gone.value, gone.low, gone.high, gone.n, gone.reason) == (
        False, None, None, None, 3, "too few",
    )  # fmt: skip
    assert Estimate(value=0.0).available
    with pytest.raises(ValidationError):
        gone.value = 0.0


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    e = bootstrap_by_cluster(values, single(400), draws=4000)
    half = 1.96 * values.std() / 20
    assert e.value == pytest.approx(values.mean())
    assert e.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert e.high == pytest.approx(values.mean() + half, abs=0.06 * half)
    assert e.n == 400


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        e = bootstrap_by_cluster((rng.random(80) < 0.7).astype(float), single(80), draws=300, seed=i)
        hits += e.low <= 0.7 <= e.high
    assert 0.90 <= hits / 300 <= 0.98


def test_rows_of_one_prompt_are_no_evidence_of_their_own():
    values = np.random.default_rng(2).normal(size=50)
    alone = bootstrap_by_cluster(values, single(50))
    repeated = bootstrap_by_cluster(np.repeat(values, 16), np.repeat(single(50), 16))
    as_rows = bootstrap_by_cluster(np.repeat(values, 16), single(800))
    assert repeated.value == pytest.approx(alone.value)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert (as_rows.high - as_rows.low) == pytest.approx((alone.high - alone.low) / 4, rel=0.15)


def test_clusters_of_unequal_size_count_by_their_rows():
    values, clusters = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1])
    e = bootstrap_by_cluster(values, clusters)
    assert e.value == 0.75
    assert (e.low, e.high) == (0.0, 1.0)


def test_codes_with_gaps_are_the_same_clusters():
    values = np.random.default_rng(3).random(12)
    plain = np.repeat(np.arange(6), 2)
    assert bootstrap_by_cluster(values, plain * 1000 + 7) == bootstrap_by_cluster(values, plain)
    assert bootstrap_by_cluster(np.full(3, 5.0), np.array([9, 9, 4])).low == 5.0  # no draw of nothing, counted as 0


def test_nothing_varies_nothing_doubts():
    e = bootstrap_matrix(np.ones((3, 5)), single(5))
    assert (e.value, e.low, e.high) == (1.0, 1.0, 1.0)


def test_seeds_are_resampled_too():
    by_seed = np.array([0.0, 1.0, 2.0])
    e = bootstrap_matrix(np.repeat(by_seed[:, None], 40, axis=1), single(40), draws=4000)
    # The mean of three draws from {0, 1, 2}: all 0 (or all 2) in 1 of 27 draws, which is more than 2.5 %.
    assert (e.value, e.low, e.high) == (1.0, 0.0, 2.0)
    one_seed = bootstrap_matrix(np.random.default_rng(4).normal(size=(1, 60)), single(60))
    more_seeds = bootstrap_matrix(np.repeat(np.random.default_rng(4).normal(size=(1, 60)), 3, axis=0), single(60))
    assert one_seed.high - one_seed.low == pytest.approx(more_seeds.high - more_seeds.low, rel=0.1)


def test_differences_are_paired():
    rng = np.random.default_rng(5)
    base = rng.normal(size=(3, 100))
    e = bootstrap_matrix(base + 0.1 - base, single(100))
    assert (e.value, e.low, e.high) == pytest.approx((0.1, 0.1, 0.1))


def test_equal_calls_give_equal_numbers():
    values = np.random.default_rng(6).random((2, 30))
    assert bootstrap_matrix(values, single(30)) == bootstrap_matrix(values, single(30))
    assert bootstrap_matrix(values, single(30)) != bootstrap_matrix(values, single(30), seed=1)


def test_the_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    bootstrap_by_cluster(np.random.default_rng(0).random(5), single(5))
    assert (np.random.get_state()[1] == before).all()


def test_nothing_is_not_zero():
    assert bootstrap_by_cluster(np.empty(0), single(0)) == Estimate.not_available("no items")
    assert bootstrap_matrix(np.empty((0, 3)), single(3)) == Estimate.not_available("no items")
    found = bootstrap_matrix(np.array([[1.0, np.nan, 3.0], [1.0, 2.0, np.inf]]), single(3))
    assert (found.value, found.reason, found.n) == (None, "2 of 3 values are no finite numbers", 3)


def test_one_prompt_gives_no_interval():
    e = bootstrap_by_cluster(np.array([1.0, 0.0]), np.zeros(2, dtype=int))
    assert (e.value, e.low, e.high) == (0.5, None, None)
    assert "one prompt" in e.reason
    several_seeds = bootstrap_matrix(np.array([[1.0], [0.0]]), np.zeros(1, dtype=int))
    assert (several_seeds.low, several_seeds.high) == (0.0, 1.0)  # there, the seeds give one


def test_any_statistic():
    values = np.random.default_rng(7).normal(size=300)
    e = bootstrap(lambda rows: float(values[rows].std()), 300)
    assert e.value == pytest.approx(values.std())
    assert e.low < e.value < e.high
    assert (e.high - e.low) / 2 == pytest.approx(1.96 / np.sqrt(600), rel=0.2)


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_an_undefined_statistic_is_not_available(undefined):
    assert bootstrap(lambda _: undefined, 5) == Estimate.not_available("undefined on the full sample", 5)
    assert bootstrap(lambda _: 1.0, 0) == Estimate.not_available("no items")

    def mostly_undefined(rows):
        return 1.0 if len(set(rows.tolist())) == 5 else undefined  # only 5!/5^5 of the resamples

    e = bootstrap(mostly_undefined, 5)
    assert (e.value, e.low, e.high) == (1.0, None, None)
    assert "too few" in e.reason

    def sometimes_undefined(rows):
        return float(rows.mean()) if 0 in rows else undefined

    e = bootstrap(sometimes_undefined, 5)
    assert e.value == 2.0
    assert e.low < 2.0 < e.high


def test_a_ratio_of_sums_has_the_interval_of_resampled_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 1.0, 300)
    y = 3 * x + rng.normal(0, 0.5, 300)
    both = np.stack([y, x])
    ratio = bootstrap_of_sums(lambda s: s[0] / s[1], both, single(300))
    assert ratio.value == pytest.approx(y.sum() / x.sum())
    draws = [y[i].sum() / x[i].sum() for i in (rng.integers(0, 300, 300) for _ in range(2000))]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (ratio.low, ratio.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    grouped = bootstrap_of_sums(lambda s: s[0] / s[1], both, single(300) // 100)
    assert (grouped.value, grouped.n) == (ratio.value, 300)
    assert grouped.low != ratio.low


def test_a_single_draw_that_is_undefined_gives_no_interval():
    found = bootstrap(lambda rows: 1.0 if len(set(rows.tolist())) == 3 else None, 3, draws=1, seed=0)
    assert found.value == 1.0
    assert found.low is None
    assert "too few" in found.reason


def test_sums_without_an_interval_or_a_value_say_why():
    ones = np.ones((1, 300))
    assert bootstrap_of_sums(lambda s: None, ones, single(300), undefined="why").reason == "why"
    assert bootstrap_of_sums(lambda s: float("nan"), ones, single(300), undefined="why").value is None
    assert bootstrap_of_sums(lambda s: s[0], ones[:, :0], single(0)).reason == "no items"
    alone = bootstrap_of_sums(lambda s: s[0], ones, np.zeros(300, np.int64))
    assert (alone.value, alone.low) == (300, None)
    assert alone.reason.startswith("no interval")
    rare = np.zeros((1, 300))
    rare[0, 0] = 1
    twice = bootstrap_of_sums(lambda s: None if s[0] != 1 else 1.0, rare, single(300))
    assert (twice.value, twice.low) == (1, None)
    assert "too few valid" in twice.reason


def test_wilson_bounds_agree_with_scipy():
    counts = [(0, 3), (1, 3), (10, 10), (0, 1), (37, 400), (399, 400)]
    over, under = np.asarray(counts, np.float64).T
    for z in (1.959964, 3.0):
        level = 1 - 2 * norm.sf(z)
        low, high = wilson(over, under) if z < 2 else wilson(over, under, z)
        for i, (k, n) in enumerate(counts):
            want = binomtest(k, n).proportion_ci(level, method="wilson")
            assert (low[i], high[i]) == pytest.approx((want.low, want.high), abs=1e-6)
    assert wilson(np.asarray([10.0]), np.asarray([10.0]))[0][0] == pytest.approx(0.7225, abs=1e-4)


def test_wilson_bounds_of_nothing_are_not_available():
    bounds = wilson(np.asarray([[0.0, np.nan]]), np.asarray([[0.0, 0.0]]))
    assert np.isnan(bounds).all()
    assert bounds[0].shape == (1, 2)
