"""Words and segments of token lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planted_contexts import tokens_of
from seamark.errors import ConfigError
from seamark.explain.segments import segments
from seamark.explain.words import Words, phrase, word_starts


def cut(tokens: tuple[str, ...] | list[str], **options: int) -> list[str]:
    return ["".join(tokens[start:end]) for start, end in segments(tokens, **options)]


def test_clauses_are_segments() -> None:
    text = "I can't help with that, but e.g. 3.5 percent said yes. Wait;\nthen go on"
    assert cut(tokens_of(text)) == [
        "I can't help with that,", " but e.g. 3.5 percent said yes.", " Wait;", "\nthen go on"
    ]  # fmt: skip


def test_a_long_clause_is_cut_evenly_between_words() -> None:
    tokens = [f" {piece}" if i % 2 == 0 else piece for i, piece in enumerate(["anti", "dotes"] * 16)]
    found = segments(tokens)
    assert [end - start for start, end in found] == [10, 10, 12]
    assert all(tokens[start].startswith(" ") for start, _ in found)


def test_within_a_word_only_where_there_is_no_other_place() -> None:
    assert [end - start for start, end in segments(["a"] * 40)] == [13, 13, 14]
    # 16 tokens in two pieces of at most 8 would cut a word; three pieces do not.
    tokens = [*[" w"] * 7, " x", "x", *[" w"] * 7]
    assert all(tokens[start].startswith(" ") for start, _ in segments(tokens, longest=8))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好世界，今天天气很好。我们去公园吧！", ["你好世界，", "今天天气很好。", "我们去公园吧！"]),
        ("नमस्ते दुनिया। फिर", ["नमस्ते दुनिया।", " फिर"]),
    ],
)
def test_other_scripts(text: str, expected: list[str]) -> None:
    pieces = list(text) if text[0] == "你" else list(tokens_of(text))
    assert cut(pieces) == expected


def test_a_script_without_spaces_is_cut_between_its_tokens() -> None:
    assert [end - start for start, end in segments(["天"] * 31)] == [10, 10, 11]


def test_small_texts() -> None:
    assert segments([]) == []
    assert segments(["x"]) == [(0, 1)]
    assert segments([" "]) == [(0, 1)]
    assert segments(["", ""]) == [(0, 2)]
    assert cut(["Hi", ".", "\n", "\n", "Bye"]) == ["Hi.\n\n", "Bye"]
    with pytest.raises(ConfigError, match="segments of 0 tokens"):
        segments(["x"], 0)


@given(st.lists(st.text(max_size=6), max_size=60), st.integers(1, 20))
def test_every_token_is_in_one_segment(tokens: list[str], longest: int) -> None:
    found = segments(tokens, longest)
    assert [t for start, end in found for t in range(start, end)] == list(range(len(tokens)))
    assert all(0 < end - start <= longest for start, end in found)


def test_names_of_tokens() -> None:
    words = Words([" Anti", "dote", "s", ",", " don", "'", "t", "\n", " ", "2", "nd", "…"])
    assert words.names == ["anti…", "antidote…", "antidotes", ",", "don", "'", "t", "⏎", "␣", "2…", "2nd", "..."]
    assert words.words == ["antidotes", ",", "don", "'", "t", "⏎", "␣", "2nd", "..."]
    assert words.before(2, 0) == ()
    assert words.before(5, 2) == (",", "don")
    assert words.before(1, 1) is None
    assert Words(["选", "举", "votes"]).words == ["选", "举", "votes"]
    assert Words(["é", "", "t", ""]).names == ["é…", "é…", "ét", "ét"]
    assert Words(["é", "", " x"]).names == ["é", "é", "x"]
    assert word_starts(["न", "ि", " म"]) == [True, False, True]
    assert phrase(["选", "举"]) == "选举"
    assert phrase(["election", "day"]) == "election day"


def test_a_word_without_end_stays_cheap() -> None:
    words = Words(["ab"] * 50_000)
    assert len(words.words) == 1
    assert max(map(len, words.names)) < 60


@given(st.lists(st.text(max_size=5), max_size=40))
def test_every_token_has_a_name(tokens: list[str]) -> None:
    words = Words(tokens)
    assert len(words.names) == len(words.word) == len(tokens)
    assert not tokens or words.word[-1] == len(words.words) - 1
