"""Plain texts from files, and the baselines that read no meaning."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from seamark.errors import DataError
from seamark.text.bow import bag_of_words_accuracy, longer_wins
from seamark.text.corpus import read_texts
from seamark.text.pairs import Message, Pairs, PreferencePair


def test_texts_from_json_lines(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "two", "id": 7}, {"text": ""}, {"text": 3}, {"text": "one"}, {"other": 1},
            {"text": "a\x00"}, {"text": "three", "id": "7"}]  # fmt: skip
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode() + b"\n\xff\n"))
    corpus = read_texts(path)
    assert [text for _, text in corpus] == ["one", "two", "three"]
    assert corpus[1] == ("7", "two")
    assert len({i for i, _ in corpus}) == 3
    assert [b.row for b in corpus.rejected] == [3, 4, 5, 6, 7, 9]


def test_paragraphs_of_text_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\nfirst\nline two\n\n\nsecond \xff\nstill\n\nthird")
    corpus = read_texts(path)
    assert [t for _, t in corpus] == ["first\nline two", "third"]
    assert [(b.row, b.reason[:9]) for b in corpus.rejected] == [(6, "not UTF-8")]


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match="no column text; found body"):
        read_texts(tmp_path / "a.jsonl")
    assert len(read_texts(tmp_path / "a.jsonl", column="body")) == 1
    (tmp_path / "empty.txt").write_text("")
    for source in ([], tmp_path / "missing.txt", tmp_path / "empty.txt"):
        with pytest.raises(DataError):
            read_texts(source)  # type: ignore[arg-type]


def pairs_with(word: str, n: int, group: str = "safety") -> Pairs:
    return Pairs(
        tuple(
            PreferencePair(f"{group}{i}", group, f"q{i}", f"answer {i % 5} {word}", f"answer {i % 5} plain")
            for i in range(n)
        )
    )


def test_bag_of_words_finds_a_word_and_nothing_else() -> None:
    train = pairs_with("never", 40)
    found = bag_of_words_accuracy(train, pairs_with("never", 20))["safety"]
    assert found.value == found.low == found.high == 1.0
    assert found.n == 20
    flipped = Pairs(tuple(p.flipped() for p in pairs_with("never", 20)))
    assert bag_of_words_accuracy(train, flipped)["safety"].value == 0.0
    blind = Pairs(tuple(PreferencePair(str(i), "chat", f"z{i}", "aaa", "bbb") for i in range(10)))
    assert bag_of_words_accuracy(train, blind)["chat"].value == 0.5  # unknown words: a tie


def test_bag_of_words_on_too_little() -> None:
    with pytest.raises(DataError):
        bag_of_words_accuracy(Pairs(()), pairs_with("never", 3))
    one = bag_of_words_accuracy(pairs_with("never", 1), pairs_with("never", 3))
    assert one["safety"].n == 3


def test_longer_wins() -> None:
    def pair(chosen: str, group: str) -> PreferencePair:
        return PreferencePair(chosen, group, "q", (Message("assistant", chosen),), "xx")

    assert longer_wins([pair("xxx", "a"), pair("yy", "a"), pair("z", "b")]) == {"a": 0.75, "b": 0.0}
