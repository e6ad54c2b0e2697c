"""Scores by where pairs come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from seamark.audit import breakdown as module
from seamark.audit.breakdown import Breakdown, breakdown
from seamark.audit.faults import find_faults
from seamark.stats import Estimate
from seamark.text import Pairs, PreferencePair


def pair(n: int, group: str, source: str, category: str = "") -> PreferencePair:
    return PreferencePair(
        f"{group}{n}", group, f"What is {group} {n}?", f"Answer {n}.", f"Other {n}.", source, category
    )


PAIRS = Pairs((
    *(pair(n, "safety", "good", "fraud" if n % 2 else "") for n in range(40)),
    *(pair(n, "safety", "bad", "fraud" if n % 2 else "") for n in range(40, 60)),
    *(pair(n, "chat", "good") for n in range(15)), *(pair(n, "chat", "tiny") for n in range(15, 18)),
))  # fmt: skip
VALUES = {p.id: (-1.0 if p.source == "bad" and int(p.id.removeprefix("safety")) % 4 < 2 else 2.0) for p in PAIRS}


def test_rows() -> None:
    found = breakdown(VALUES, PAIRS)
    group, *others = [r for r in found.rows if r.group == "safety"]
    assert (group.by, group.name, group.n, group.scored) == ("group", "safety", 60, 60)
    assert group.below_zero.value == pytest.approx(10 / 60)
    assert group.mean.value == pytest.approx((50 * 2.0 - 10) / 60)
    assert group.below_zero.low is not None
    names = [("source", "bad"), ("source", "good"), ("category", ""), ("category", "fraud")]
    assert [(r.by, r.name) for r in others] == names
    assert others[0].below_zero.value == 0.5
    assert others[1].below_zero.value == 0.0
    assert group.duplicates is None
    assert group.wrong.value is None
    assert group.wrong.reason


def test_small_lines_and_missing_scores_say_so() -> None:
    values = {k: v for k, v in VALUES.items() if k != "chat0"} | {"chat1": float("nan"), "chat2": 0.0}
    found = breakdown(values, PAIRS)
    (chat,) = [r for r in found.of("group") if r.group == "chat"]
    assert (chat.n, chat.scored) == (18, 16)
    assert chat.below_zero.value == pytest.approx(0.5 / 16)
    (tiny,) = [r for r in found.of("source") if r.name == "tiny"]
    assert tiny.below_zero == Estimate.not_available("3 scored pairs; 10 are needed", 3)
    assert not [r for r in found.of("category") if r.group == "chat"]  # none names one
    assert Breakdown.model_validate_json(found.model_dump_json()) == found


def test_wrong_share_and_faults() -> None:
    seen: list[int] = []

    def share(values: Mapping[str, float], prompts: Mapping[str, str]) -> Estimate:
        seen.append(len(values))
        assert set(values) == set(prompts)
        return Estimate(value=float(np.mean([v < 0 for v in values.values()])), n=len(values))

    first = PAIRS[0]
    again = PreferencePair("again", "safety", first.prompt, first.chosen, first.rejected, "bad")
    against = PreferencePair("against", "safety", PAIRS[1].prompt, PAIRS[1].rejected, PAIRS[1].chosen, "bad")
    pairs = Pairs((*PAIRS, again, against))
    found = breakdown(VALUES, pairs, share, faults=find_faults(pairs))
    rows = {(r.by, r.group, r.name): r for r in found.rows}
    assert rows["group", "safety", "safety"].wrong.value == pytest.approx(10 / 60)
    assert (rows["group", "safety", "safety"].duplicates, rows["group", "safety", "safety"].contradictions) == (2, 2)
    assert (rows["source", "safety", "bad"].duplicates, rows["source", "safety", "bad"].contradictions) == (1, 1)
    assert 3 not in seen


def test_many_categories_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    pairs = Pairs(tuple(pair(n, "safety", f"s{n % 5}") for n in range(52)))
    found = breakdown(dict.fromkeys(pairs.ids, 1.0), pairs)
    assert {r.name for r in found.of("source")} == {"s0", "s1", "s2"}
    assert found.notes == ("Group safety: the 3 largest of 5 by source are shown.",)
