"""Sorting, pooling and counting of active entries, against the slow and obvious way."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import seamark.features.quantiles as quantiles
from seamark.features.accumulate import RESPONSE, SCORING, Accumulator, Firings, StoredPositions, Totals
from seamark.features.entries import Groups, pool, sort_entries
from seamark.features.quantiles import N_BINS, LogBins
from seamark.sae import SparseLatents

Entry = tuple[int, int, float]
SMALLEST, LARGEST = float(np.finfo(np.float32).smallest_subnormal), float(np.finfo(np.float32).max)
WIDTHS = (1, 2, 3, 96, 1 << 16, 1 << 20)
VALUES = st.floats(SMALLEST, LARGEST, width=32) | st.sampled_from([SMALLEST, 0.5, 1.0, 1.5, LARGEST])


@st.composite
def entries(draw: st.DrawFn) -> tuple[int, list[Entry]]:
    """(d_sae, entries in any order). Owners of all sizes: those that fit beside a latent into 32 bits, and others."""
    d_sae = draw(st.sampled_from(WIDTHS))
    last = (1 << 32 >> max(1, (d_sae - 1).bit_length())) - 1  # the largest owner that can be packed
    owner = st.integers(0, 3) | st.sampled_from([last, last + 1, 1 << 40]) if draw(st.booleans()) else st.integers(0, 3)
    latent = st.integers(0, d_sae - 1) | st.sampled_from([0, d_sae - 1])
    return d_sae, draw(st.lists(st.tuples(owner, latent, VALUES), max_size=40))


def arrays(found: list[Entry]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    owner, latent, value = zip(*found, strict=True) if found else ((), (), ())
    return np.asarray(owner, np.int64), np.asarray(latent, np.int32), np.asarray(value, np.float32)


def same_bytes(a: Any, b: Any) -> None:
    """Equal arrays, field by field, down to dtype and bits."""
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


@settings(max_examples=300, deadline=None)
@given(entries())
@example((1 << 20, [(4095, (1 << 20) - 1, LARGEST), (4095, 0, SMALLEST), (0, 5, 1.0)]))
@example((1 << 20, [(4096, (1 << 20) - 1, LARGEST), (4096, 0, SMALLEST), (0, 5, 1.0)]))
@example((1, [((1 << 31) - 1, 0, 2.0), ((1 << 31) - 1, 0, 1.0)]))
def test_entries_are_sorted_by_owner_latent_and_value(case: tuple[int, list[Entry]]) -> None:
    d_sae, found = case
    same_bytes(sort_entries(*arrays(found), d_sae), arrays(sorted(found)))


@settings(max_examples=300, deadline=None)
@given(entries(), st.randoms(use_true_random=False))
def test_pooling_is_that_of_a_dense_table_in_any_order(case: tuple[int, list[Entry]], chance: Any) -> None:
    d_sae, found = case
    groups = pool(*arrays(found), d_sae)
    table: dict[tuple[int, int], list[float]] = defaultdict(list)
    for owner, latent, value in found:
        table[owner, latent].append(value)
    assert list(zip(groups.owner.tolist(), groups.latent.tolist(), strict=True)) == sorted(table)
    for i, place in enumerate(sorted(table)):
        values = np.asarray(table[place], np.float64)
        assert groups.sum[i] == pytest.approx(values.sum(), rel=1e-12)
        assert groups.square[i] == pytest.approx((values * values).sum(), rel=1e-12)
        assert groups.max[i] == values.max()
        assert groups.times[i] == len(values)
    shuffled = list(found)
    chance.shuffle(shuffled)
    same_bytes(pool(*arrays(shuffled), d_sae), groups)


@settings(max_examples=100, deadline=None)
@given(entries())
def test_owners_too_large_to_be_packed_change_no_bit(case: tuple[int, list[Entry]]) -> None:
    d_sae, found = case
    near = [(owner % 4, latent, value) for owner, latent, value in found]
    small, large = pool(*arrays(near), d_sae), pool(*arrays([(o + (1 << 40), i, v) for o, i, v in near]), d_sae)
    same_bytes(large._replace(owner=large.owner - (1 << 40)), small)


def test_a_group_is_summed_alike_whatever_stands_beside_it() -> None:
    chance = np.random.default_rng(0)
    n, d_sae = 60_000, 64
    owner, latent = chance.integers(0, 40, n), chance.integers(0, d_sae, n).astype(np.int32)
    value = chance.lognormal(0, 5, n).astype(np.float32)
    whole = pool(owner, latent, value, d_sae)
    for one in (0, 17, 39):
        mine, inside = whole.owner == one, owner == one
        same_bytes(pool(owner[inside], latent[inside], value[inside], d_sae), Groups(*(c[mine] for c in whole)))


def test_nothing_is_pooled_to_nothing_of_the_same_kind() -> None:
    nothing, something = pool(*arrays([]), 8), pool(*arrays([(0, 1, 1.0)]), 8)
    assert [c.dtype for c in nothing] == [c.dtype for c in something]
    assert all(len(c) == 0 for c in nothing)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_firings_are_the_positive_latents_in_order(n: int, flat: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    k, d_sae = 7, 40
    indices = torch.rand(n, d_sae, generator=generator).argsort(1)[:, :k].to(torch.int32)
    values = torch.randn(n, k, generator=generator)
    values[:, 0] = 0.0
    latents = SparseLatents(indices, values, d_sae)
    if flat:  # of every other position the first three only, as of a threshold
        kept = torch.ones(n, k, dtype=torch.bool)
        kept[::2, 3:] = False
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        latents = SparseLatents(indices[kept], values[kept], d_sae, offsets)
    found, dense = Firings.of(latents), latents.dense().clamp_min(0).numpy()
    assert (found.bounds.dtype, found.latent.dtype, found.value.dtype) == (np.int64, np.int32, np.float32)
    assert len(found.bounds) == n + 1
    for i, (a, b) in enumerate(itertools.pairwise(found.bounds.tolist())):
        assert found.latent[a:b].tolist() == np.flatnonzero(dense[i]).tolist()
        np.testing.assert_array_equal(found.value[a:b], dense[i][dense[i] > 0])


class Positions:
    """Random positions of texts, 12 a text, with what fires there. Values are multiples of 1/8, so sums are exact."""

    def __init__(self, texts: int, d_sae: int = 30, seed: int = 0) -> None:
        chance = np.random.default_rng(seed)
        self.dense = chance.integers(1, 80, (texts, 12, d_sae)) / 8 * (chance.random((texts, 12, d_sae)) < 0.2)
        self.flags = chance.integers(0, 4, (texts, 12)).astype(np.uint8)
        self.dense[:, :, 3] = 0.0  # one that never fires
        self.d_sae = d_sae

    def batch(self, texts: list[int], first: int = 0) -> tuple[StoredPositions, Firings]:
        """A batch of these texts, numbered from `first`."""
        rows = np.repeat(np.asarray(texts) - first, 12).astype(np.int32)
        place = np.tile(np.arange(12, dtype=np.int32), len(texts))
        z = self.dense[texts].reshape(-1, self.d_sae)
        bounds = np.concatenate([[0], (z > 0).sum(1).cumsum()]).astype(np.int64)
        firings = Firings(bounds, np.nonzero(z)[1].astype(np.int32), z[z > 0].astype(np.float32))
        return StoredPositions(rows, place, self.flags[texts].reshape(-1)), firings


@pytest.mark.parametrize("apart", [False, True])
def test_accumulated_texts_are_those_of_a_dense_table(apart: bool) -> None:
    p = Positions(20)
    total = Accumulator(p.d_sae, read_apart=apart)
    for texts in ([4, 0, 19], [7], list(range(8, 19)), [1, 2, 3, 5, 6]):
        total.add(*p.batch(texts))
    pooled, found = total.close(21), total.totals  # one text more, where nothing was read
    scored = p.dense * ((p.flags & SCORING) != 0)[..., None]
    answer = p.dense[(p.flags & RESPONSE) != 0]
    for text in range(20):
        mine = slice(pooled.indptr[text], pooled.indptr[text + 1])
        z = scored[text]
        fires = np.flatnonzero(z.any(0))
        assert pooled.latent[mine].tolist() == fires.tolist()
        np.testing.assert_array_equal(pooled.sum[mine], z.sum(0)[fires])
        np.testing.assert_array_equal(pooled.max[mine], z.max(0)[fires])
        np.testing.assert_array_equal(pooled.count[mine], (z > 0).sum(0)[fires])
        if apart:
            mine, fires = slice(pooled.read_indptr[text], pooled.read_indptr[text + 1]), p.dense[text].any(0)
            assert pooled.read_latent[mine].tolist() == np.flatnonzero(fires).tolist()
            np.testing.assert_array_equal(pooled.read_max[mine], p.dense[text].max(0)[fires])
    assert pooled.indptr[20] == pooled.indptr[21] == len(pooled.latent)
    assert len(pooled.read_indptr) == (22 if apart else 0)
    flat = scored.reshape(-1, p.d_sae)
    np.testing.assert_array_equal(found.count, (flat > 0).sum(0))
    np.testing.assert_array_equal(found.sum, flat.sum(0))
    np.testing.assert_array_equal(found.sumsq, (flat * flat).sum(0))
    np.testing.assert_array_equal(found.max, flat.max(0))
    np.testing.assert_array_equal(found.texts, scored.any(1).sum(0))
    np.testing.assert_array_equal(found.largest, answer.max(0))
    assert np.bincount(found.bins.keys // N_BINS, found.bins.counts, p.d_sae).tolist() == (answer > 0).sum(0).tolist()


def test_the_order_of_batches_changes_no_bit() -> None:
    p, results = Positions(12, seed=1), []
    p.dense *= np.float32(1 / 3)  # sums that are rounded
    for plan in ([[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]], [[7, 8, 9, 10, 11], [2, 0, 1], [6, 3, 5, 4]]):
        total = Accumulator(p.d_sae)
        for texts in plan:
            total.add(*p.batch(texts))
        results.append((*astuple(total.close(12)), *total.totals.arrays().values()))
    same_bytes(*results)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 19), unique=True, max_size=4).map(sorted), st.permutations(range(5)))
def test_parts_add_up_to_the_whole(cuts: list[int], order: list[int]) -> None:
    p = Positions(20, seed=2)
    whole, parts = Accumulator(p.d_sae), []
    whole.add(*p.batch(list(range(20))))
    whole.close(20)
    for a, b in itertools.pairwise([0, *cuts, 20]):
        part = Accumulator(p.d_sae)
        part.add(*p.batch(list(range(a, b)), first=a))
        part.close(b - a)
        parts.append(Totals.of(part.totals.arrays()))  # by way of a file
    together = Totals.none(p.d_sae)
    for i in order:
        if i < len(parts):
            together.add(parts[i])
    same_bytes(together.arrays().values(), whole.totals.arrays().values())
    same_bytes(astuple(together.stats()), astuple(whole.totals.stats()))


def test_what_was_added_is_left_as_it_was() -> None:
    p = Positions(4)
    part = Accumulator(p.d_sae)
    part.add(*p.batch([0, 1, 2, 3]))
    part.close(4)
    before = [a.copy() for a in part.totals.arrays().values()]
    together = Totals.none(p.d_sae)
    together.add(part.totals)
    together.add(part.totals)
    same_bytes(part.totals.arrays().values(), before)
    np.testing.assert_array_equal(together.count, 2 * part.totals.count)
    np.testing.assert_array_equal(together.max, part.totals.max)


N = 1_000_000


def distributions() -> dict[str, NDArray[np.float32]]:
    chance = np.random.default_rng(0)
    found = {
        "exponential": chance.exponential(2.0, N),
        "over 12 orders of magnitude": np.exp(chance.normal(0.0, 12 * np.log(10) / 6, N)),
        "constant": np.full(N, 0.3),
        "a power of two": np.full(N, 4.0),
        "two values, the large one rarer than the level": np.where(np.arange(N) % 2000 == 0, 7.0, 0.1),
        "two values, the large one not so rare": np.where(np.arange(N) % 500 == 0, 7.0, 0.1),
        "narrow": chance.normal(5.0, 1e-3, N),
        "uniform": 1.0 - chance.random(N),
    }
    return {name: v.astype(np.float32) for name, v in found.items()}


@pytest.fixture(scope="module")
def million() -> tuple[LogBins, dict[str, NDArray[np.float32]]]:
    """A million firings of each distribution, one latent each, counted in batches."""
    bins, values = LogBins(), distributions()
    for batch in range(0, N, 250_000):
        for latent, v in enumerate(values.values()):
            some = v[batch : batch + 250_000]
            bins.add(np.full(len(some), latent, np.int32), some)
    return bins, values


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.999])
def test_quantiles_of_a_million_are_within_one_percent(
    million: tuple[LogBins, dict[str, NDArray[np.float32]]], level: float
) -> None:
    bins, values = million
    found = bins.quantiles(len(values) + 1, np.asarray([*(v.max() for v in values.values()), 0.0]), level)
    for latent, (name, v) in enumerate(values.items()):
        exact = float(np.quantile(v, level, method="inverted_cdf"))
        assert found[latent] == pytest.approx(exact, rel=0.01), name
        assert found[latent] <= v.max(), name
    assert np.isnan(found[-1])


def test_bins_merge_to_the_same_bytes_in_any_order(
    million: tuple[LogBins, dict[str, NDArray[np.float32]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, values = million
    cuts = np.random.default_rng(1).choice(N, 5, replace=False)
    places = list(itertools.pairwise([0, *sorted(cuts.tolist()), N]))
    for waiting, order in ((1 << 22, range(6)), (1 << 14, [5, 2, 0, 4, 1, 3]), (1, [3, 1, 4, 0, 2, 5])):
        monkeypatch.setattr(quantiles, "WAITING", waiting)
        together = LogBins()
        for i in order:
            part = LogBins()
            for latent, v in enumerate(values.values()):
                some = v[slice(*places[i])]
                part.add(np.full(len(some), latent), some)
            together.merge(part)
        same_bytes((together.keys, together.counts), (whole.keys, whole.counts))


@settings(max_examples=300, deadline=None)
@given(st.floats(2.0**-30, 2.0**30, width=32, exclude_max=True))
def test_the_middle_of_a_bin_is_near_all_that_is_in_it(value: float) -> None:
    bins = LogBins()
    bins.add(np.zeros(10, np.int32), np.full(10, value, np.float32))
    assert bins.quantiles(1, np.asarray([np.inf]))[0] == pytest.approx(value, rel=0.0088)
    assert bins.quantiles(1, np.asarray([value]))[0] <= value


def test_nine_firings_have_no_quantile() -> None:
    bins = LogBins()
    bins.add(np.zeros(9, np.int32), np.ones(9, np.float32))
    assert np.isnan(bins.quantiles(2, np.ones(2))).all()
    bins.add(np.zeros(1, np.int32), np.ones(1, np.float32))
    assert bins.quantiles(2, np.ones(2)).tolist()[0] == 1.0


@pytest.mark.parametrize(("outliers", "expected"), [(0, 1.0), (1, 1.0), (2, 100.0), (3, 100.0)])
def test_ranks_are_exact(outliers: int, expected: float) -> None:
    """Of 1,001 values the 1,000th in order is at the level 0.999; of 1,002 the 1,001st."""
    bins = LogBins()
    bins.add(np.zeros(1000 + outliers, np.int32), np.repeat([1.0, 100.0], [1000, outliers]))
    assert bins.quantiles(1, np.asarray([100.0]))[0] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("value", [SMALLEST, 2.0**-31, 2.0**30, LARGEST])
def test_values_outside_of_the_bins_count_and_bound_the_quantile(value: float) -> None:
    bins = LogBins()
    bins.add(np.zeros(20, np.int32), np.full(20, value, np.float32))
    assert bins.counts.tolist() == [20]
    found = bins.quantiles(1, np.asarray([value]))[0]
    assert 0 < found <= value
