"""Reading concept-contrast pairs: what makes a pair, what is listed as rejected, and their texts as a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seamark.errors import DataError
from seamark.text import (
    ContrastPair,
    ContrastPairs,
    contrast_corpus,
    contrast_problem,
    demo_contrast_pairs,
    read_contrast_pairs,
)

GOOD = {"with": "Is the senator tall?", "without": "Is the gardener tall?", "concept": "figure", "domain": "politics"}


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (GOOD | changes).items() if v != "LEFT OUT"}


@pytest.mark.parametrize(
    ("with_text", "without_text", "problem"),
    [
        ("The king waved.", "The cook waved.", ""),
        ("The king waved.", "the  KING\nwaved.", "same"),
        ("ｋing", "king", "same"),
        ("", "The cook waved.", "with is empty"),
        ("The king waved.", " \n ", "without is empty"),
        ("The king waved.", "?!", "without holds no word"),
        ("a b c d", "a", ""),  # 3 words apart
        ("a b c d e", "a", "length (5 and 1 words)"),
        ("w " * 12, "w " * 8, ""),  # 4 apart, a third of 12
        ("w " * 12, "v " * 7, "length"),
        ("国王向人群挥手", "厨师向人群挥手", ""),
        ("国王向人群挥手致意微笑", "厨师挥手", "length (11 and 4 words)"),
        ("nul\x00", "The cook", "NUL"),
        ("half \ud800", "The cook", "UTF-8"),
    ],
)
def test_what_makes_a_pair(with_text: str, without_text: str, problem: str) -> None:
    found = contrast_problem(with_text, without_text)
    assert problem in found
    assert bool(problem) == bool(found)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_verdict_does_not_depend_on_sides(a: str, b: str) -> None:
    assert bool(contrast_problem(a, b)) == bool(contrast_problem(b, a))


def test_bad_rows_are_listed_with_their_reason(tmp_path: Path) -> None:
    rows = [
        row(id="one"),
        row(**{"with": "LEFT OUT"}),
        row(**{"without": 5}),
        row(**{"with": ["a", "list"]}),
        row(concept=" "),
        row(domain=None),
        row(without="is the  SENATOR tall?"),
        row(without="Is the gardener, who lives by the old harbour, tall?"),
        row(**{"with": "IS the senator tall?"}),  # a duplicate
        row(**{"with": GOOD["without"], "without": GOOD["with"]}),
        row(drafted="perhaps", **{"with": "Is the king tall?"}),
        "no JSON",
        "[1, 2]",
        row(concept="event"),  # the same texts may stand for two concepts
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    found = read_contrast_pairs(file)
    assert [(p.concept, p.drafted) for p in found] == [("figure", False), ("event", False)]
    assert found[0].id == "one"
    assert {r.file for r in found.rejected} == {str(file)}
    reasons = {r.row: r.reason for r in found.rejected}
    assert list(reasons) == list(range(2, 14))
    for number, words in enumerate(
        ["with is missing", "without has the wrong type (int", "with has the wrong type (list", "concept is empty",
         "domain is missing", "the same", "differ too much", "duplicate of row 1", "swapped in row 1",
         "drafted is neither", "not valid JSON", ""], 2,
    ):  # fmt: skip
        assert words in reasons[number]
        assert "senator" not in reasons[number]


def test_ids_are_unique_and_do_not_depend_on_order(tmp_path: Path) -> None:
    rows = [row(id=7), row(id=7, concept="event"), row(id="7", domain="other"), row(id=True, concept="x"),
            row(concept="y", id="a\nb"), row(concept="z")]  # fmt: skip
    forth = read_contrast_pairs(write(tmp_path / "a.jsonl", rows))
    assert len(set(forth.ids)) == len(forth) == 6
    assert forth[0].id == "7"
    plain = [{k: v for k, v in r.items() if k != "id"} for r in rows]
    a = read_contrast_pairs(write(tmp_path / "b.jsonl", plain))
    b = read_contrast_pairs(write(tmp_path / "c.jsonl", plain[::-1]))
    own = {(p.domain, p.concept): p.id for p in a if p.domain == "politics" and p.concept != "figure"}
    assert own.items() <= {(p.domain, p.concept): p.id for p in b}.items()
    # One row may bring along the id that another's content would get.
    stolen = read_contrast_pairs(write(tmp_path / "d.jsonl", [row(id=a[-1].id), row(concept="z")]))
    assert len(set(stolen.ids)) == 2


def test_formats_and_several_sources(tmp_path: Path) -> None:
    csv = tmp_path / "pairs.csv"
    csv.write_text(
        "domain,concept,with,without,drafted\n"
        "politics,figure,Is the king tall?,Is the cook tall?,TRUE\n"
        "politics,figure,Is the king old?,Is the cook old?,\n",
        encoding="utf-8",
    )
    jsonl = write(tmp_path / "pairs.jsonl", [row(), row(**{"with": "Is the king old?", "without": "Is the cook old?"})])
    found = read_contrast_pairs([csv, jsonl])
    assert [p.drafted for p in found] == [True, False, False]
    assert [(r.row, r.reason) for r in found.rejected] == [(2, f"duplicate of row 2 of {csv}")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"with": "a", "without": "b"}], "no column concept, domain"),
        ([row(**{"with": ""}), row(concept=None)], "no usable contrast pair (1 × with is empty; 1 × concept is"),
        (["no JSON"], "no usable contrast pair"),
        ([], "no usable contrast pair (no rows)"),
    ],
)  # fmt: skip
def test_files_without_pairs(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read_contrast_pairs(write(tmp_path / "pairs.jsonl", rows))
    assert message in str(error.value)
    assert str(tmp_path / "pairs.jsonl") in str(error.value)


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no contrast pairs given"):
        read_contrast_pairs([])
    with pytest.raises(DataError, match="no such file"):
        read_contrast_pairs(tmp_path / "none.jsonl")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    demo = demo_contrast_pairs()
    drafted = ContrastPair("härbour", "ships", "Did a «ship» come?", "Did a «cart» come?", "own:id", True)
    file = write(tmp_path / "pairs.jsonl", [p.to_row() for p in [*demo, drafted]])
    found = read_contrast_pairs(file)
    assert list(found) == [*demo, drafted]
    assert found.rejected == ()
    assert found.fingerprint() != demo.fingerprint()
    assert found.concepts == [*demo.concepts, ("härbour", "ships")]


def test_corpus_of_pairs() -> None:
    shared = "Is the gardener tall?"
    pairs = ContrastPairs((
        ContrastPair("d", "a", "Is the king tall?", shared, "x"),
        ContrastPair("d", "b", "Is the bishop tall?", shared, "x:with"),
    ))  # fmt: skip
    corpus = contrast_corpus(pairs)
    assert corpus.items == (
        ("x:with", "Is the king tall?"), ("x:without", shared),
        ("x:with:with", "Is the bishop tall?"), ("x:with:without", shared),
    )  # fmt: skip
    with pytest.raises(DataError, match="1 ids of contrast pairs come more than once"):
        contrast_corpus([*pairs, pairs[0]])
    with pytest.raises(DataError, match="no contrast pairs"):
        contrast_corpus([])
