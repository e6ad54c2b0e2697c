"""Guards of the authored demo data: their size, balance, independence of splits and length, and no repeated phrases."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from seamark.errors import DataError
from seamark.text.bow import longer_wins
from seamark.text.demo import demo_contrast_pairs, demo_pairs
from seamark.text.pairs import Pairs, PreferencePair, content_id, plain

DOMAINS = {"politics", "pornography", "violence", "terror"}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return demo_pairs()


def kinds(pairs: Pairs) -> Counter[str]:
    return Counter(str(pairs.raw[p.id]["kind"]) for p in pairs)


def key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_sizes(pairs: Pairs) -> None:
    safety, chat = pairs.group("safety"), pairs.group("chat")
    assert len(pairs) >= 800
    assert pairs.groups == ["safety", "chat"]
    assert len(safety) >= 480
    assert len({p.category for p in safety if p.source == "demo"}) >= 8
    assert kinds(safety)["lookalike"] >= 100
    assert sum(p.source == "demo-lookalike" for p in safety) == kinds(safety)["lookalike"]
    assert len(chat) >= 320


def test_rows_are_sound(pairs: Pairs) -> None:
    assert len(set(pairs.ids)) == len(pairs)
    for p in pairs:
        for text in (p.prompt, p.chosen, p.rejected):
            assert isinstance(text, str)
            assert text == text.strip()
            assert text
        assert key(plain(p.chosen)) != key(plain(p.rejected))
        assert p.category
    contents = Counter(content_id(p.prompt, p.chosen, p.rejected) for p in pairs)
    assert max(contents.values()) == 1


def test_fixed_split_by_prompt(pairs: Pairs) -> None:
    train, test = demo_pairs("train"), demo_pairs("test")
    assert len(train) + len(test) == len(pairs)
    assert {pairs.raw[p.id]["split"] for p in pairs} == {"train", "test"}
    assert not {key(plain(p.prompt)) for p in train} & {key(plain(p.prompt)) for p in test}
    for group in pairs.groups:
        assert 0.1 < len(test.group(group)) / len(pairs.group(group)) < 0.5
    assert {p.category for p in test.group("safety")} == {p.category for p in train.group("safety")}


def test_prompts_are_all_different(pairs: Pairs) -> None:
    counts = Counter(key(plain(p.prompt)) for p in pairs)
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_answers_share_no_long_phrases(pairs: Pairs) -> None:
    holders: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for p in pairs:
        for side, text in (("chosen", p.chosen), ("rejected", p.rejected)):
            words = key(plain(text)).split()
            for i in range(len(words) - 7):
                holders[tuple(words[i : i + 8])].add(f"{p.id}:{side}")
    shared = {couple for texts in holders.values() for couple in combinations(sorted(texts), 2)}
    assert len(shared) <= 5


@pytest.mark.parametrize("group", ["safety", "chat"])
def test_length_tells_nothing(pairs: Pairs, group: str) -> None:
    mine = pairs.group(group)
    chosen, rejected = (float(np.mean([len(plain(t)) for t in side])) for side in zip(*_sides(mine), strict=True))
    assert abs(chosen - rejected) / max(chosen, rejected) <= 0.10
    assert 0.42 <= longer_wins(mine)[group] <= 0.58


def _sides(pairs: Pairs) -> list[tuple[str, str]]:
    return [(plain(p.chosen), plain(p.rejected)) for p in pairs]


def test_answers_have_one_to_four_sentences(pairs: Pairs) -> None:
    def sentences(p: PreferencePair) -> list[int]:
        texts = (plain(p.chosen), plain(p.rejected))
        return [
            len([s for s in re.split(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])", t) if s.strip()]) for t in texts
        ]

    long = [p.id for p in pairs if not all(1 <= n <= 4 for n in sentences(p))]
    assert long == []


def test_contrast_pairs() -> None:
    contrast = demo_contrast_pairs()
    assert len(contrast) >= 160
    assert {c.domain for c in contrast} == DOMAINS
    concepts = Counter((c.domain, c.concept) for c in contrast)
    for domain in DOMAINS:
        assert sum(d == domain for d, _ in concepts) >= 4
    assert min(concepts.values()) >= 10
    assert len({c.id for c in contrast}) == len(contrast)
    for c in contrast:
        assert c.with_text.strip()
        assert c.without_text.strip()
        assert c.with_text != c.without_text
        a, b = len(c.with_text.split()), len(c.without_text.split())
        assert abs(a - b) <= max(3, 0.35 * max(a, b))


def test_unknown_split() -> None:
    with pytest.raises(DataError):
        demo_pairs("dev")  # type: ignore[arg-type]
