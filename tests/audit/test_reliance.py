"""Reliance: a planted latent is found, p is honest under clusters, the set and what is about safety stay out."""

from __future__ import annotations

import numpy as np
import pytest
from findings_scan import Floats, planted_scan, sparse
from scipy import stats

from seamark.audit import reliance as module
from seamark.audit.reliance import Reliance, reliance
from seamark.errors import DataError
from seamark.features import Feature, FeatureSet, Scan

N, D = 300, 40
STYLE, SAFE, ABOUT = 7, 3, 11
"""Latents that go with the margin: one of both groups, one of the set, and one that is about safety all the same."""
SET = FeatureSet(features=(Feature(sae="s", latent=SAFE, sign=1),))


def activations(seed: int = 0) -> dict[str, tuple[Floats, Floats]]:
    rng = np.random.default_rng(seed)
    found = {}
    for group in ("safety", "chat"):
        sides = [sparse(rng, N, D) for _ in range(2)]
        if group == "chat":
            for side in sides:
                side[:, [SAFE, ABOUT]] = 0.0
        found[group] = (sides[0], sides[1])
    return found


def rewards(found: dict[str, tuple[Floats, Floats]], noise: float = 1.0) -> dict[str, Floats]:
    rng = np.random.default_rng(5)
    return {
        group: np.stack([side[:, STYLE] - 0.8 * side[:, ABOUT] + side[:, SAFE] + noise * rng.normal(size=len(side))
                         for side in sides], axis=1)
        for group, sides in found.items()
    }  # fmt: skip


def scanned(parts: int = 1, **more: object) -> Scan:
    found = activations()
    return planted_scan(found, rewards=rewards(found), parts=parts, **more)  # type: ignore[arg-type]


def test_what_is_found_and_what_is_left_to_safety() -> None:
    found = reliance(scanned(), SET, draws=100)
    assert found.tested == D
    assert found.found >= 3
    assert found.found_in_set == 1
    assert found.found_relevant == 1
    first = found.latents[0]
    assert first.latent == STYLE
    assert not {SAFE, ABOUT} & {r.latent for r in found.latents}
    assert first.correlation.low is not None
    assert first.correlation.low > 0.2
    assert first.q_value <= 0.05
    assert first.rating in (1, 2)
    assert "safety responses" in first.why
    assert (found.n_pairs, found.left_out, found.reason) == (N, (), "")


def test_numbers_are_those_of_the_definition() -> None:
    scan = scanned(lengths={g: [(7 + i % 5, 9) for i in range(N)] for g in ("safety", "chat")})
    first = reliance(scan, SET, draws=50).latents[0]
    chosen, rejected = activations()["safety"]
    d = (chosen - rejected)[:, STYLE]
    reward = rewards(activations())["safety"]
    m = reward[:, 0] - reward[:, 1]
    assert first.correlation.value == pytest.approx(d @ m / np.sqrt(d @ d * (m @ m)))
    t = (d * m).sum() / np.sqrt(((d * m) ** 2).sum())
    assert first.p == pytest.approx(2 * stats.t.sf(t, (d != 0).sum() - 1))
    gap = np.array([7 + i % 5 - 9 for i in range(N)])
    assert first.length == pytest.approx(d @ gap / np.sqrt(d @ d * (gap @ gap)))
    assert first.n_differing == (d != 0).sum()


def test_labels_play_no_part() -> None:
    """Swapping the sides of any pairs changes no correlation and no p."""
    found = activations()
    given = rewards(found)
    swap = np.random.default_rng(2).random(N) < 0.5
    chosen, rejected = found["safety"]
    swapped = {
        **found,
        "safety": (np.where(swap[:, None], rejected, chosen), np.where(swap[:, None], chosen, rejected)),
    }
    turned = {**given, "safety": np.where(swap[:, None], given["safety"][:, ::-1], given["safety"])}
    one = reliance(planted_scan(found, rewards=given), SET, draws=20)
    other = reliance(planted_scan(swapped, rewards=turned), SET, draws=20)
    assert [r.latent for r in one.latents] == [r.latent for r in other.latents]
    assert [r.p for r in one.latents] == pytest.approx([r.p for r in other.latents])


def test_pairs_of_one_prompt_are_not_independent() -> None:
    """Without any relation, copies of a few prompts must not make one; p stays uniform."""
    rng = np.random.default_rng(0)
    n_prompts, copies, d_sae = 40, 10, 400
    sides = [np.repeat(sparse(rng, n_prompts, d_sae), copies, axis=0) for _ in range(2)]
    reward = np.repeat(rng.normal(size=(n_prompts, 2)), copies, axis=0)
    prompts = {"safety": [f"q{i // copies}" for i in range(n_prompts * copies)]}
    scan = planted_scan({"safety": (sides[0], sides[1])}, rewards={"safety": reward}, prompts=prompts)
    rows, margin, _ = module._pairs(scan, "safety")
    tests = module._tests(scan, "s", rows, margin, np.arange(n_prompts * copies) // copies)
    naive = module._tests(scan, "s", rows, margin, np.arange(n_prompts * copies))
    assert 0.01 < (tests.p[~np.isnan(tests.p)] < 0.05).mean() < 0.09
    assert (naive.p < 0.05).mean() > 0.4
    found = reliance(scan, SET, draws=20)
    assert found.found == 0
    assert found.latents == ()


def test_parts_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one = reliance(scanned(), SET, draws=50)
    assert reliance(scanned(parts=6), SET, draws=50) == one
    monkeypatch.setattr(module, "HELD", 500)
    assert reliance(scanned(parts=6), SET, draws=50) == one
    assert Reliance.model_validate_json(one.model_dump_json()) == one


def test_where_there_is_nothing_to_say() -> None:
    found = activations()
    still = {g: np.zeros((N, 2)) for g in found}
    nothing = reliance(planted_scan(found, rewards=still), SET)
    assert (nothing.reason, nothing.tested, nothing.latents) == ("every margin is 0", 0, ())
    few = {g: (a[:10], b[:10]) for g, (a, b) in found.items()}
    assert (
        reliance(planted_scan(few, rewards=rewards(few)), SET).reason == "no latent differs on the pairs of 20 prompts"
    )
    alone = {"safety": found["safety"]}
    unrated = reliance(planted_scan(alone, rewards=rewards(alone)), SET, draws=20)
    assert unrated.found_relevant is None
    assert unrated.latents[0].rating is None
    assert unrated.latents[0].why
    with pytest.raises(DataError, match="no rewards"):
        reliance(planted_scan(found), SET)
    broken = rewards(found)
    broken["safety"][4, 0] = np.nan
    assert reliance(planted_scan(found, rewards=broken, silent=("safety1",)), SET, draws=20).left_out == (
        "safety1", "safety4")  # fmt: skip
