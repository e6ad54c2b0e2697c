"""Faults of preference data: each kind planted, named by id, and what it means for training."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from seamark.audit.faults import ABOUT, KINDS, TREATMENT, FaultKind, Faults, find_faults, normal
from seamark.text import Message, Pairs, PreferencePair, read_pairs

LONGER = (
    "You can grow tomatoes on a sunny balcony if the pots are deep enough. Water them every morning, feed them once a "
    "week, and pinch out the side shoots, so that the plant puts its strength into the fruit and not into leaves."
)
OTHER = (
    "Tomatoes need a garden and cannot be grown on a balcony at all, whatever people tell you. Buy them in a shop, put "
    "them into the fridge, and eat them within a few days, because they lose their taste after that."
)


def pairs_of(*rows: Sequence[str], group: str = "safety") -> Pairs:
    """Pairs of (id, prompt, chosen, rejected[, group])."""
    items = [PreferencePair(r[0], r[4] if len(r) > 4 else group, r[1], r[2], r[3]) for r in rows]
    return Pairs(tuple(items))


def only(found: Faults, *kinds: FaultKind) -> None:
    assert {f.kind for f in found.faults} == set(kinds)


def count(found: Faults, kind: FaultKind) -> tuple[int | None, int | None, int]:
    line = next(c for c in found.counts if c.kind == kind)
    return line.faults, line.pairs, line.left_out


def test_clean_pairs_have_no_faults() -> None:
    found = find_faults(pairs_of(("a", "What is tea?", "A drink.", "A car."), ("b", "What is rye?", "Grain.", "Fish.")))
    only(found)
    assert found.left_out == {}
    assert [c.kind for c in found.counts] == list(KINDS)
    assert {c.faults for c in found.counts if c.kind != "changed_id"} == {0}
    assert count(found, "changed_id")[0] is None  # the rows are not known: not 0
    assert set(KINDS) == set(ABOUT) == set(TREATMENT)


def test_contradiction_within_a_group_leaves_all_out() -> None:
    found = find_faults(pairs_of(
        ("a", "What is tea?", "A drink.", "A car."),
        ("b", "what  is TEA?", "a car.", "A\u200b drink."),
        ("c", "What is tea?", "A drink.", "A bird."),
    ))  # fmt: skip
    only(found, "contradiction")
    assert found.faults[0].ids == ("a", "b")
    assert set(found.left_out) == {"a", "b"}
    assert count(found, "contradiction") == (1, 2, 2)


def test_contradiction_across_groups_is_kept_and_said() -> None:
    found = find_faults(pairs_of(
        ("a", "What is tea?", "A drink.", "A car."), ("b", "What is tea?", "A car.", "A drink.", "chat"),
    ))  # fmt: skip
    only(found, "group_contradiction")
    assert found.faults[0].groups == ("safety", "chat")
    assert found.left_out == {}
    assert "kept" in next(c.treatment for c in found.counts if c.kind == "group_contradiction")


def test_duplicates_but_the_first_are_left_out_in_a_group_only() -> None:
    found = find_faults(pairs_of(
        ("a", "What is tea?", "A drink.", "A car."), ("b", "What is tea?", "A  drink.", "A CAR."),
        ("c", "What is tea?", "\uff21 drink.", "A car."), ("d", "What is tea?", "A drink.", "A car.", "chat"),
    ))  # fmt: skip
    assert [f.ids for f in found.of("duplicate")] == [("a", "b", "c")]
    assert [f.ids for f in found.of("group_duplicate")] == [("a", "d")]
    assert set(found.left_out) == {"b", "c"}
    assert find_faults(pairs_of(("a", "q", "x", "y"), ("b", "q", "x", "z"))).faults == ()


def test_messages_and_strings_are_compared_by_their_words() -> None:
    chat = PreferencePair("m", "safety", (Message("user", "What is tea?"),), (Message("assistant", "A drink."),),
                          (Message("assistant", "A car."),))  # fmt: skip
    found = find_faults(Pairs((*pairs_of(("a", "What is tea?", "A car.", "A drink.")), chat)))
    assert found.of("contradiction")[0].ids == ("a", "m")


def test_hollow_pairs() -> None:
    found = find_faults(pairs_of(
        ("same", "What is tea?", "A drink.", "a  DRINK."), ("empty", "What is rye?", "\u200b \u2060", "Grain."),
        ("mute", "\u00ad", "One", "Two"), ("empty2", "What is rye?", "\u200b", "grain."),
    ))  # fmt: skip
    only(found, "same_answers", "empty")
    assert found.ids("empty") == {"empty", "mute", "empty2"}
    assert [f.detail for f in found.of("empty")] == ["chosen", "prompt", "chosen"]
    assert set(found.left_out) == {"same", "empty", "mute", "empty2"}


def test_hostile_long_and_unreadable() -> None:
    found = find_faults(pairs_of(
        ("bidi", "What is tea?", "A drink\u202e.knird", "No."), ("bell", "What is rye?\x07", "Grain.", "Fish."),
        ("tags", "What is oat?", "A" + "".join(chr(0xE0000 + ord(c)) for c in "hidden"), "No"),
        ("half", "What is mint?", "\ud800 leaf", "No."), ("long", "What is bran?", "word " * 20_001, "No."),
        ("fine", "ما هو الشاي؟\u200f", "مشروب\u200c.", "Tab\there\r\nand 👩\u200d👧"),
        ("flag", "Which flag?", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "None"),
    ))  # fmt: skip
    assert {f.ids[0]: f.detail for f in found.of("hostile")} == {
        "bidi": "chosen: reordering marks", "bell": "prompt: control characters",
        "tags": "chosen: hidden tag characters",
    }  # fmt: skip
    assert [f.ids[0] for f in found.of("too_long")] == ["long"]
    assert set(found.left_out) == {"half"}


def test_one_answer_under_many_prompts() -> None:
    rows = [(str(n), f"Question {n}?", "I do not know.", f"Answer {n}") for n in range(4)]
    assert find_faults(pairs_of(*rows)).faults == ()
    rows.append(("4", "Question 4?", "Answer 4", "i do not  know."))
    (fault,) = find_faults(pairs_of(*rows)).faults
    assert fault.kind == "repeated_answer"
    assert fault.ids == ("0", "1", "2", "3", "4")
    assert fault.detail == "5 prompts; chosen 4 times, rejected 1 times"


def test_near_duplicates_and_near_contradictions() -> None:
    edited = LONGER.replace("sunny", "bright")
    found = find_faults(pairs_of(
        ("a", "Can I grow tomatoes?", LONGER, OTHER), ("b", "Can I grow tomatoes?", edited, OTHER),
        ("c", "Can I grow tomatoes?", OTHER, LONGER.replace("morning", "evening")),
        ("d", "Can I grow carrots?", LONGER, OTHER), ("e", "Can I grow tomatoes?", LONGER, "No, never."),
    ))  # fmt: skip
    assert [f.ids for f in found.of("near_duplicate")] == [("a", "b")]
    assert ("a", "c") in [f.ids for f in found.of("near_contradiction")]
    assert found.ids("near_duplicate", "near_contradiction") == {"a", "b", "c"}
    assert found.left_out == {}


def test_answers_that_resemble_each_other_are_told_apart_by_the_nearer_way() -> None:
    """Both ways of matching are near where the two answers of a pair are one word apart."""
    other = LONGER.replace("sunny", "shady")
    found = find_faults(pairs_of(
        ("a", "Where do tomatoes grow best at home?", LONGER, other),
        ("b", "Where do tomatoes grow best at home now?", other, LONGER),
        ("c", "Where do tomatoes grow best at home then?", LONGER, other),
    ))  # fmt: skip
    assert ("a", "b") in [f.ids for f in found.of("near_contradiction")]
    assert [f.ids for f in found.of("near_duplicate")] == [("a", "c")]


def test_near_duplicates_without_spaces_between_words() -> None:
    first = "在阳台上种番茄需要足够深的花盆每天早上浇水每周施肥一次并且要把侧枝摘掉让植物把力气用在果实上"
    other = "番茄只能种在花园里不能种在阳台上去商店买然后放进冰箱几天之内吃掉因为之后味道就没有了"
    found = find_faults(
        pairs_of(("a", "怎么种番茄", first, other), ("b", "怎么种番茄", first.replace("每周", "每月"), other))
    )
    assert [f.ids for f in found.of("near_duplicate")] == [("a", "b")]


def test_result_does_not_depend_on_hash_seeds_and_holds_no_text() -> None:
    rng = random.Random(1)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    rows = []
    for n in range(60):
        texts = [" ".join(rng.choices(words, k=40)) for _ in range(3)]
        rows.append((f"p{n}", *texts))
        if n % 3 == 0:
            rows.append((f"p{n}x", texts[0], texts[1] + " ba", texts[2]))
    found = find_faults(pairs_of(*rows))
    assert {f.ids for f in found.of("near_duplicate")} == {(f"p{n}", f"p{n}x") for n in range(0, 60, 3)}
    assert found == find_faults(pairs_of(*rows))
    assert not any(row[1][:20] in found.model_dump_json() for row in rows)
    assert Faults.model_validate_json(found.model_dump_json()) == found


def test_refused_rows_and_ids_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "prompt": "What is tea?", "chosen": "A drink.", "rejected": "A car."},
        {"id": "x", "prompt": "What is rye?", "chosen": "Grain.", "rejected": "A fish."},
        {"prompt": "What is oat?", "chosen": "Grain too.", "rejected": "A bird."},
        {"id": "y", "prompt": "What is tea?", "chosen": "A drink.", "rejected": "A car."},
        {"prompt": "What is salt?", "chosen": "", "rejected": "A car."},
        {"prompt": "What is salt?", "chosen": "A mineral.", "rejected": "A mineral."},
        {"prompt": "What is salt?", "chosen": None, "rejected": "A mineral."},
        {"prompt": "What is salt?", "chosen": "bell\x00", "rejected": "A mineral."},
        {"prompt": "What is tea?", "chosen": "A drink.", "rejected": "A car."},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{not json\n", encoding="utf-8")
    pairs = read_pairs(safety=file)
    found = find_faults(pairs)
    assert found.n_pairs == 3
    assert found.n_rejected == 7 == sum(r.rows for r in found.rejected)
    reasons = {r.reason: r.rows for r in found.rejected}
    assert reasons["duplicate of another row of the group"] == 2
    assert reasons["chosen is empty"] == 1
    assert "chosen and rejected are identical" in reasons
    assert {r.file for r in found.rejected} == {str(file)}
    assert found.made_ids == 1
    assert count(found, "changed_id") == (1, 1, 0)
    assert found.usable(pairs).ids == pairs.ids


def test_usable_drops_what_is_left_out() -> None:
    pairs = pairs_of(("a", "q", "x", "y"), ("b", "q", "y", "x"), ("c", "p", "x", "y"))
    assert find_faults(pairs).usable(pairs).ids == ["c"]


@pytest.mark.parametrize(
    ("one", "other"), [("Ä b", "a\u0308  B"), ("ﬁne\n", "FINE"), ("a\u200bb", "AB"), ("ß", "SS"), ("１２", "12")]
)
def test_normal(one: str, other: str) -> None:
    assert normal(one) == normal(other)


def test_variants_of_one_row_do_not_make_it_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamark.audit.near.MOST_COMPARED", 20)
    prompt = " ".join(f"word{n}" for n in range(300))
    rows = [
        (str(n), prompt, f"first answer number {n} is this", f"second answer number {n} is that") for n in range(80)
    ]
    found = find_faults(pairs_of(*rows))
    assert found.of("near_duplicate") == ()
    assert "20 comparisons" in found.notes[0]


def made_up(n: int, words: int = 110, seed: int = 0) -> list[tuple[str, str, str, str]]:
    """Rows of random words; every tenth is a copy with one word changed."""
    rng = random.Random(seed)
    vocabulary = [f"{a}{b}{c}{d}" for a in "bdfgklmn" for b in "aeiou" for c in "bdfgklmn" for d in "aeiou"]
    rows: list[tuple[str, str, str, str]] = []
    for i in range(n):
        if i % 10 == 9:
            _, prompt, chosen, rejected = rows[-1]
            rows.append((f"r{i}", prompt, chosen.replace(" ", " changed ", 1), rejected))
        else:
            prompt, chosen, rejected = (" ".join(rng.choices(vocabulary, k=k)) for k in (words // 4, words, words))
            rows.append((f"r{i}", prompt, chosen, rejected))
    return rows


@pytest.mark.slow
def test_fifty_thousand_pairs_in_bounded_time() -> None:
    pairs = pairs_of(*made_up(50_000))
    start = time.process_time()
    found = find_faults(pairs)
    assert len(found.of("near_duplicate")) >= 4_900
    assert time.process_time() - start < 60


def test_real_pairs() -> None:
    folder = os.environ.get("SEAMARK_DATA")
    if not folder:
        pytest.skip("SEAMARK_DATA is not set")
    (file, *_) = sorted(Path(folder).glob("prefs_safety_rmbench*")) or [None]
    if file is None:
        pytest.skip("no prefs_safety_rmbench in SEAMARK_DATA")
    pairs = read_pairs(safety=file)
    found = find_faults(pairs)
    assert found.n_pairs == len(pairs)
    assert len(found.left_out) < 0.2 * len(pairs)
