"""What the claims of the explain benchmark are held against, and what stands beside them."""

from __future__ import annotations

import sys
from itertools import permutations
from pathlib import Path

import pytest
from scipy.stats import permutation_test, spearmanr

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import explain
from benchmarks.explaining.job import Settings
from benchmarks.explaining.tables import P_VALUE, correlations, permutation_p

I_CDF = [0.03, 0.05, 0.02, 0.08, 0.06, 0.01, 0.07, 0.04]
COUNTS = [10, 30, 20, 60, 40, 50, 70, 45]


def an(value):
    return {"value": value, "low": value, "high": value, "n": 8, "reason": ""}


def rows(nulls, i_cdf=I_CDF):
    saes = [
        {"sae": f"s{i}", "hookpoint": f"layers.{i % 2}.mlp", "L0": 8.0, "FVU": None, "i_cdf": an(v), "null": an(null),
         "difference": an(v - null), "l0_t": {"0.5": (4.0, 1.0)}}
        for i, (v, null) in enumerate(zip(i_cdf, nulls, strict=True))
    ]  # fmt: skip
    counted = [{"sae": f"s{i}", "with_q": 100, "good": 1, "drawn": 10, "share": c / 100, "count": c}
               for i, c in enumerate(COUNTS)]  # fmt: skip
    return {"concepts": [{"pairs": {"demo": {"saes": saes, "tau": an(0.5)}}}], "yield": [{"saes": counted}],
            "compare": [{"token_saving": an(0.6), "spearman": an(0.9)}]}  # fmt: skip


def claims(nulls):
    return {c.name: c for c in explain.claims(rows(nulls), {})}


def test_no_autoencoder_may_have_more_than_half_of_its_i_cdf_swapped():
    below = claims([v * 0.49 for v in I_CDF])["swapped_null_over_icdf"]
    assert (below.target, below.holds, below.value) == ("<= 0.5", True, pytest.approx(0.49))
    one_above = claims([v * (0.6 if i == 3 else 0.1) for i, v in enumerate(I_CDF)])["swapped_null_over_icdf"]
    assert (one_above.holds, one_above.value) == (False, pytest.approx(0.6))
    half = claims([0.0] * 8)["swapped_null_over_l0_half"]
    assert (half.target, half.holds) == ("", None)
    assert "issue says only far below" in explain.about(Settings(), {})


def test_the_rank_correlation_has_a_p_value():
    rank = claims([0.0] * 8)["icdf_vs_yield_spearman"]
    expected = permutation_test((I_CDF,), lambda x: spearmanr(x, COUNTS).statistic, permutation_type="pairings",
                                n_resamples=4000, rng=1).pvalue  # fmt: skip
    saes = [{"I_CDF": x, "count": y} for x, y in zip(I_CDF, COUNTS, strict=True)]
    p = permutation_p(saes, "I_CDF", "count")
    assert p == pytest.approx(expected, abs=0.03)
    assert p == permutation_p(saes, "I_CDF", "count")
    assert rank.spread.endswith(f"permutation test: p = {p:.2g}")
    found = [r for r in correlations(rows([0.0] * 8)) if r["SAEs"] == "all"]
    assert found[0][P_VALUE] == pytest.approx(p, rel=1e-3)
    assert {r["predictor"]: r[P_VALUE] for r in found}["FVU"] is None


def test_few_autoencoders_are_permuted_in_every_order():
    x, y = [1.0, 2.0, 2.0, 5.0, 3.0], [2.0, 1.0, 4.0, 9.0, 5.0]
    saes = [{"a": a, "b": b} for a, b in zip(x, y, strict=True)]
    found = abs(spearmanr(x, y).statistic)
    every = [abs(spearmanr(x, order).statistic) >= found - 1e-9 for order in permutations(y)]
    assert permutation_p(saes, "a", "b") == pytest.approx(sum(every) / 120)
    assert permutation_p(saes[:2], "a", "b") is None
    assert permutation_p([{"a": 1.0, "b": float(i)} for i in range(5)], "a", "b") is None


def test_beside_the_saving_stands_how_tokens_were_counted():
    assert "WordPiece, which drops line breaks" in claims([0.0] * 8)["segment_token_saving"].spread
    assert "drops line breaks" in explain.about(Settings(), {})
