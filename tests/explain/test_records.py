from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from seamark.errors import DataError, FormatError
from seamark.explain import (
    Explanation,
    LexiconEntry,
    Simulation,
    Tag,
    read_explanations,
    read_simulations,
    write_explanations,
    write_simulations,
)
from seamark.stats import Estimate


def explanation(**changes: Any) -> Explanation:
    fields: dict[str, Any] = {
        "sae": "l2", "latent": 3, "text": "Words for bread; „Brot“, 面包\u2028 and so on.", "rating": 2,
        "rating_reason": "kitchens", "language": "en", "method": "llm", "model": "m", "prompt_version": "explain-1",
        "tags": (Tag("violence", "insult"), Tag("politics")), "tokens_in": 10, "tokens_out": 2, "cost": 0.25,
        "promoted": (" bread",), "suppressed": ("\n",),
        "lexicon": (LexiconEntry(ngram=("my", " bread"), weight=3.5, fires=2, seen=4),),
    }  # fmt: skip
    return Explanation(**(fields | changes))


def simulation(**changes: Any) -> Simulation:
    fields: dict[str, Any] = {
        "sae": "l2", "latent": 3, "level": "segment", "method": "lexical",
        "correlation": Estimate(value=0.577, low=0.1, high=0.9, n=4), "accuracy": Estimate(value=1.0, n=4),
        "n_texts": 2, "n_units": 4,
    }  # fmt: skip
    return Simulation(**(fields | changes))


def failed(**changes: Any) -> Explanation:
    blank = {"text": None, "reason": "time-out", "tags": (), "rating": None, "rating_reason": "", "lexicon": ()}
    return explanation(**(blank | changes))


def test_explanations_come_back_as_they_were(tmp_path: Path) -> None:
    some = [
        explanation(),
        failed(latent=4),
        explanation(sae="l1", rating=None, cost=None, model=None, method="lexical"),
    ]
    path = tmp_path / "deep" / "explanations.jsonl"
    write_explanations(path, iter(some))
    assert read_explanations(path) == {e.key: e for e in some}
    assert list(read_explanations(path)) == [("l2", 3), ("l2", 4), ("l1", 3)]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["format_version"] for row in rows] == [1, 1, 1]
    assert rows[0]["tags"] == [{"domain": "violence", "concept": "insult"}, {"domain": "politics", "concept": None}]
    assert "面包" in path.read_text(encoding="utf-8")


def test_simulations_come_back_as_they_were(tmp_path: Path) -> None:
    some = [simulation(), simulation(level="token", correlation=Estimate.not_available("one side is constant", 4))]
    write_simulations(tmp_path / "s.jsonl", some)
    assert read_simulations(tmp_path / "s.jsonl") == some


@pytest.mark.parametrize(
    "changes",
    [{"rating": 5}, {"tags": (Tag("violence"),)}, {"lexicon": (LexiconEntry(ngram=("a",), weight=1, fires=1, seen=1),)},
     {"reason": " "}],
)  # fmt: skip
def test_what_failed_carries_nothing(changes: dict[str, Any]) -> None:
    assert failed().failed
    with pytest.raises(ValidationError):
        failed(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"text": ""}, {"text": "x", "reason": "but failed"}, {"rating_reason": ""}, {"rating": 0}, {"rating": 6},
     {"rating": 4.5}, {"latent": -1}, {"method": "oracle"}, {"cost": float("nan")}, {"more": 1}, {"tokens_in": -1},
     {"tags": ({"domain": "a", "concept": None, "more": 1},)}],
)  # fmt: skip
def test_explanations_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        explanation(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"correlation": Estimate(value=1.2)}, {"correlation": Estimate(value=float("nan"))}, {"level": "word"},
     {"accuracy": Estimate(value=-0.1)}, {"accuracy": Estimate(value=None)}, {"n_failed": -1}],
)  # fmt: skip
def test_simulations_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        simulation(**changes)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        explanation().rating = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Tag("a").domain = "b"  # type: ignore[misc]


def test_a_feature_explained_twice_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_explanations(path, [explanation()])
    before = path.read_bytes()
    with pytest.raises(DataError, match="l2/3 is explained twice"):
        write_explanations(path, [explanation(latent=1), explanation(), explanation()])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", "line 2: not an explanation"),
        ("[]", "line 2: not an explanation"),
        ("{}", "line 2: not an explanation .*: Field required"),
        ('{"format_version": 2}', "line 2: not an explanation"),
        ('{"rating": NaN}', "line 2"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "e.jsonl"
    write_explanations(path, [explanation()])
    good = path.read_text(encoding="utf-8")
    if line.startswith("{") and line != "{}":
        line = json.dumps(json.loads(good) | {"latent": 9} | json.loads(line))
    path.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(FormatError, match=message) as e:
        read_explanations(path)
    assert "e.jsonl" in str(e.value)


def test_twice_in_a_file_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_explanations(path, [explanation()])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(FormatError, match=r"line 2: feature l2/3 comes twice"):
        read_explanations(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_simulations(tmp_path / "none.jsonl")
