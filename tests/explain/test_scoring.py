"""Scores of simulations, against the definition and against scipy."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr

from planted_contexts import context
from seamark.errors import DataError
from seamark.explain.comparing import rank_correlation
from seamark.explain.scoring import correlation, detection, prompts, segment_truth, token_levels


def test_the_check_value() -> None:
    """METHODS §2.4."""
    found = correlation([[1, 0, 1, 1]], [[1, 0, 1, 0]])
    assert found.value is not None
    assert found.value == pytest.approx(1 / math.sqrt(3), abs=1e-12)
    assert round(found.value, 3) == 0.577
    assert found.n == 4


def test_pooled_over_texts_and_only_what_is_known() -> None:
    rng = random.Random(1)
    truth = [[rng.choice([None, *range(11)]) for _ in range(rng.randint(0, 30))] for _ in range(20)]
    guess = [[(t or 0) + rng.uniform(0, 9) for t in text] for text in truth]
    pairs = [(t, g) for text, mine in zip(truth, guess, strict=True) for t, g in zip(text, mine, strict=True)
             if t is not None]  # fmt: skip
    found = correlation(truth, guess)
    assert found.value == pytest.approx(pearsonr(*zip(*pairs, strict=True)).statistic, abs=1e-9)
    assert found.n == len(pairs)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert correlation(truth, guess) == found
    shifted = correlation(truth, [[g + 1e6 for g in text] for text in guess])
    assert shifted.value == pytest.approx(found.value, abs=1e-6)


@pytest.mark.parametrize(
    ("truth", "guess", "reason"),
    [
        ([[1, 1], [1]], [[0, 1], [1]], "the truth is the same in all units"),
        ([[0, 1], [1]], [[0, 0], [0]], "the prediction is the same in all units"),
        ([[0, 1], [1]], [[0.1, 0.1], [0.1]], "the prediction is the same in all units"),
        ([], [], "no units"),
        ([[None, None]], [[0, 1]], "no units"),
    ],
)
def test_undefined_is_not_zero(truth: list[list[float | None]], guess: list[list[float]], reason: str) -> None:
    found = correlation(truth, guess)
    assert found.value is None
    assert found.reason == reason


def test_the_interval_resamples_texts() -> None:
    """Twenty equal units in each of two texts are worth two, not forty."""
    one = correlation([[1] * 20, [0] * 20] * 3, [[1] * 20, [0] * 20, [1] * 20, [1] * 20, [0] * 20, [0] * 20])
    many = correlation([[1], [0]] * 60, ([[1], [0], [1], [1], [0], [0]]) * 20)
    assert one.value == pytest.approx(many.value)
    assert None not in (one.low, one.high, many.low, many.high)
    assert (one.high or 0) - (one.low or 0) > 2 * ((many.high or 0) - (many.low or 0))


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="another number of predictions"):
        correlation([[1, 0]], [[1]])
    with pytest.raises(DataError, match="another number of predictions"):
        correlation([[1, 0]], [])
    with pytest.raises(DataError, match="2 predictions for 1 texts"):
        detection([True], [True, False])


def test_detection() -> None:
    found = detection([True] * 8 + [False] * 2, [True] * 6 + [False] * 2 + [True, False])
    assert found.value == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert detection([True, False], [False, True]).value == 0
    assert detection([True, True], [True, False]).value is None
    assert "both needed" in detection([True, True], [True, False]).reason
    assert detection([], []).value is None


def test_truth_of_a_text() -> None:
    text = context("t", ["a", " b", " c", " d"], [0, 0.1, 5, 12])
    assert token_levels(text) == [0, 1, 5, 10]
    assert segment_truth(text, [(0, 1), (1, 2), (2, 4)]) == [0, 1, 1]
    assert segment_truth(text, [(0, 1), (1, 2), (2, 4)], tau=0.5) == [0, 0, 1]
    unread = context("t", text.tokens, [0, 0, 5, 0]).__class__(
        **(vars(text) | {"activations": (0.0, 0.0, 1.0, 0.0), "read": (False, True, True, False)})
    )
    assert token_levels(unread) == [None, 0, 5, None]
    assert segment_truth(unread, [(0, 1), (1, 2), (2, 4)]) == [None, 0, 1]
    for no_unit in (None, 0.0, math.nan):
        bad = context("t", ["a"], [1]).__class__(**(vars(text) | {"q": no_unit}))
        with pytest.raises(DataError, match="without Q_f"):
            token_levels(bad)
        with pytest.raises(DataError, match="without Q_f"):
            segment_truth(bad, [(0, 1)])


def test_tau_is_a_share_of_q() -> None:
    """Q_f 10 and 0.5: half of the first is 5, half of the second 0.25."""
    for q in (10.0, 0.5):
        text = context("t", ["a", " b", " c"], [4, 6, 5], q=q)  # levels: activations are 0.4 Q_f, 0.6 Q_f, 0.5 Q_f
        spans = [(0, 1), (1, 2), (2, 3)]
        assert segment_truth(text, spans, tau=0.55) == [0, 1, 0]
        assert segment_truth(text, spans, tau=0.45) == [0, 1, 1]
        assert segment_truth(text, [(0, 3)], tau=0.7) == [0]


def test_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    found = rank_correlation([(a, math.exp(a)) for a in x])
    assert found.value == pytest.approx(1)
    noisy = rank_correlation([(a, a + b) for a, b in zip(x, rng.normal(size=50), strict=True)])
    assert noisy.low is not None
    assert noisy.low < (noisy.value or 0) < (noisy.high or 0) < 1
    assert rank_correlation([(1, 2), (2, 3)]).value is None
    assert "3 are needed" in rank_correlation([(1, 2), (2, 3)]).reason
    assert rank_correlation([(1, 2), (1, 3), (1, 4)]).value is None


def test_texts_of_a_prompt_are_resampled_together() -> None:
    """Four equal answers to each of a few prompts are worth the prompts, not the answers."""
    rng = random.Random(3)
    truth = [[rng.randint(0, 1), rng.randint(0, 1), rng.randint(0, 1)] for _ in range(30)]
    guess = [[t if rng.random() < 0.8 else 1 - t for t in mine] for mine in truth]
    once = correlation(truth, guess)
    fires = [any(mine) for mine in truth]
    found = [f if rng.random() < 0.7 else not f for f in fires]
    names = [f"prompt {i}" for i in range(30)]
    clustered, loose = (correlation(truth * 4, guess * 4, clusters=c) for c in (names * 4, None))
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx((once.value, once.low, once.high))
    assert loose.value == pytest.approx(once.value)
    assert (loose.high or 0) - (loose.low or 0) < 0.6 * ((clustered.high or 0) - (clustered.low or 0))
    one, together, apart = (
        detection(fires * n, found * n, clusters=c) for n, c in ((1, None), (4, names * 4), (4, None))
    )
    assert (together.value, together.low, together.high) == pytest.approx((one.value, one.low, one.high))
    assert (apart.high or 0) - (apart.low or 0) < 0.6 * ((together.high or 0) - (together.low or 0))
    for score in (lambda c: correlation(truth, guess, clusters=c), lambda c: detection(fires, found, clusters=c)):
        with pytest.raises(DataError, match="2 clusters for 30 texts"):
            score(["a", "b"])


def test_what_goes_together() -> None:
    plain = context("t1", ["a"], [1])
    assert prompts([plain, replace(plain, text_id="t2")]) == ["t1", "t2"]
    pair = [replace(plain, text_id=f"p:{side}", pair_id="p", side=side) for side in ("chosen", "rejected")]
    assert prompts(pair) == ["p", "p"]  # contexts of before prompts were told
    others = [replace(c, pair_id=f"p{i}", prompt="same prompt") for i, c in enumerate(pair)]
    assert prompts(others) == ["same prompt"] * 2
