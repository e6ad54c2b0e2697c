"""The share of wrong labels, from scores that have not seen them."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.audit.share import wrong_share


def scored(rho: float, power: float, n: int = 3000, seed: int = 0) -> tuple[dict[str, float], dict[str, str]]:
    """Scores N(power, 1) of right labels, negated for a share rho; two pairs a prompt."""
    rng = np.random.default_rng(seed)
    s = rng.normal(power, 1.0, n) * np.where(rng.random(n) < rho, -1, 1)
    return {f"p{i}": float(v) for i, v in enumerate(s)}, {f"p{i}": f"h{i // 2}" for i in range(n)}


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_good_judge_finds_the_share(rho: float, seed: int) -> None:
    found = wrong_share(*scored(rho, 2.5, seed=seed), draws=200)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= rho <= found.high
    assert found.value == pytest.approx(rho, abs=0.03)
    assert found.high - found.low < 0.2
    assert rho > 0 or found.high > 0


def test_a_weak_judge_gives_an_upper_estimate() -> None:
    for seed in range(4):
        found = wrong_share(*scored(0.1, 0.7, seed=seed), draws=200)
        assert found.value is not None
        assert 0.08 < found.value < 0.35
        assert found.high is not None
        assert found.high > 0.1


def test_the_choice_of_the_tail_brings_no_bias() -> None:
    found = [wrong_share(*scored(0.2, 2.5, n=1000, seed=seed), draws=20).value for seed in range(40)]
    assert np.mean(found) == pytest.approx(0.2, abs=0.012)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [150, 2000])
def test_chance_is_no_estimate(seed: int, n: int) -> None:
    found = wrong_share(*scored(0.1, 0.0, n=n, seed=seed), draws=200)
    assert found.value is None
    assert "chance" in found.reason


def test_too_few_pairs_or_no_scores() -> None:
    values, prompts = scored(0.1, 3.0, n=99)
    assert "too few" in wrong_share(values, prompts).reason
    values, prompts = scored(0.1, 3.0, n=400)
    assert "are 0" in wrong_share(dict.fromkeys(values, 0.0), prompts).reason


def test_order_and_scale_do_not_matter_but_prompts_do() -> None:
    values, prompts = scored(0.2, 2.0, n=600)
    found = wrong_share(values, prompts, draws=200)
    backwards = {i: 7.0 * values[i] for i in reversed(values)}
    assert wrong_share(backwards, prompts, draws=200) == found
    many = {f"{i}-{c}": v for i, v in values.items() for c in range(4)}
    apart = wrong_share(many, {i: i for i in many}, draws=200)
    together = wrong_share(many, {i: i.split("-")[0] for i in many}, draws=200)
    assert together.high - together.low > 1.4 * (apart.high - apart.low)  # type: ignore[operator]


def test_ties_at_the_edge_of_a_tail_stay_together() -> None:
    values = {f"p{i}": (1.0 if i % 5 else -1.0) for i in range(500)}
    found = wrong_share(values, {i: i for i in values}, draws=100)
    assert found.value == pytest.approx(0.2)
