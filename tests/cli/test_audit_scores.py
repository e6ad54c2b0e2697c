"""`seamark audit score`: the list, files of margins, signals and a combination, and the judge over a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seamark.audit import METHODS, PairScores
from seamark.audit.combine import Combination
from seamark.text import Pairs, read_pairs
from tiny_run import Place, call, the_error


@pytest.fixture
def pairs(place: Place) -> Pairs:
    return read_pairs(place.pairs)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "explain")
    from llm_server import Server

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")

    def make(seen: Any) -> dict[str, Any]:
        first = seen.user.split("== answer A ==\n| ")[1]
        return {"better": "A" if first.startswith("I can't") else "B", "confidence": 60}

    with Server(make=make) as found:
        yield found


def score(place: Place, *options: object, json_out: bool = True) -> tuple[int, str, str]:
    return call("audit", "score", *place.options, *options, *(["--json"] if json_out else []))


def test_the_list_names_kind_needs_and_about() -> None:
    code, out, err = call("audit", "score", "--list", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["methods"] == sorted(METHODS)
    about = {m["name"]: m for m in found["about"]}
    assert about["probe"]["kind"] == "control"
    assert about["safer"]["needs"] == ["scan", "features"]
    assert all(m["about"] for m in about.values())
    shown = call("audit", "score", "--list")[1]
    assert "bag_of_words" in shown
    assert "cross" in shown or "folds" in shown


def test_scores_from_files(place: Place, pairs: Pairs, tmp_path: Path) -> None:
    ids = pairs.ids
    (tmp_path / "margins.json").write_text(json.dumps({i: [n * 1.0, n * 2.0] for n, i in enumerate(ids)}))
    code, out, err = score(place, "--method", "margin_crossfit", "--margins", tmp_path / "margins.json")
    assert code == 0, err
    assert json.loads(out)["values"] == {i: n * 1.5 for n, i in enumerate(ids)}
    code, out, err = score(place, "--method", "bag_of_words", "--out", tmp_path / "bow")
    assert code == 0, err
    assert set(PairScores.load(tmp_path / "bow" / "scores.json").values) == set(pairs.group("safety").ids)
    Combination(signals=("bag",), weights=(-1.0,), intercept=-1.0, prior=0.2, n=100, n_flipped=20).save(
        tmp_path / "combination.json"
    )
    code, out, err = score(place, "--method", "combined", "--combination", tmp_path / "combination.json",
                           f"--signals=bag={tmp_path}/bow/scores.json")  # fmt: skip
    assert code == 0, err
    bow, combined = PairScores.load(tmp_path / "bow" / "scores.json"), json.loads(out)["values"]
    assert sorted(combined, key=lambda i: (combined[i], i)) == sorted(combined, key=lambda i: (bow.values[i], i))
    code, out, err = score(place, "--method", "bag_of_words", "--group", "chat", "--folds", 3)
    assert set(json.loads(out)["values"]) == set(pairs.group("chat").ids)


@pytest.mark.parametrize(("options", "error"), [
    (("--method", "latents"), "needs a scan"),
    (("--method", "margin_crossfit"), "--margins"),
    (("--method", "judge"), "--llm"),
    (("--method", "length", "--llm", "m"), "asks no language model"),
    (("--method", "judge", "--llm", "m"), "--out or --cache"),
    (("--method", "judge", "--llm", "m", "--group", "chat"), "--criterion"),
    (("--method", "combined", "--signals", "x"), "not of the form name=file"),
    (("--method", "voting", "--margins", "recipe.txt"), "recipe.txt"),
    (("--method", "bag_of_words", "--group", "no"), "no pairs in group 'no'"),
])  # fmt: skip
def test_errors_name_the_option(place: Place, options: tuple[str, ...], error: str) -> None:
    assert error in the_error(*score(place, *options))


def test_wrong_margins(place: Place, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": ["x"]}')
    assert "key a.0" in the_error(*score(place, "--method", "voting", "--margins", tmp_path / "m.json"))


def test_the_judge_says_what_it_takes_and_asks_once(place: Place, pairs: Pairs, server: Any, tmp_path: Path) -> None:
    options = ("--method", "judge", "--llm", "m", "--base-url", server.url, "--out", tmp_path / "out")
    n = len(pairs.group("safety"))
    code, out, err = score(place, *options, "--dry-run")
    assert code == 0, err
    assert json.loads(out)["to_ask"] == 2 * n
    assert server.stats.requests == 0
    assert not (tmp_path / "out" / "scores.json").exists()
    code, out, err = score(place, *options)
    assert code == 0, err
    assert f"to ask: {2 * n}" in err
    assert "cost, expected" in err
    assert json.loads(out)["values"] == dict.fromkeys(pairs.group("safety").ids, 0.6)
    judged = json.loads((tmp_path / "out" / "judged.json").read_text())
    assert (judged["model"], judged["prompt_version"], judged["failed"]) == ("m", "judge-1", {})
    asked = server.stats.requests
    assert asked == 2 * n
    code, out, err = score(place, *options, "--one-order")
    assert code == 0, err
    assert server.stats.requests == asked
    assert f"already answered: {n}" in err


def test_a_scan_of_other_pairs_is_noticed_before_a_model_is_paid(
    place: Place, pairs: Pairs, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seamark.features import Scan

    def opened(path: Path) -> SimpleNamespace:
        return SimpleNamespace(
            rows_by_pair=dict.fromkeys(pairs.ids[:4], (0, 1)), path=Path("scan"), manifest={"key": ""}
        )

    monkeypatch.setattr(Scan, "open", opened)
    judge = ("--method", "judge", "--llm", "m", "--base-url", server.url, "--out", tmp_path / "out", "--scan", "scan")
    assert "were not scanned" in the_error(*score(place, *judge))
    for method in (judge, ("--method", "bag_of_words", "--scan", "scan")):
        assert "not of the demo pairs" in the_error(*call("audit", "score", *method))
    assert server.stats.requests == 0
