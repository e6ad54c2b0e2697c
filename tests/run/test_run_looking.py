"""Looking at run folders: what is found, how two differ, and folders that were made to harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from seamark.errors import DataError, FormatError
from seamark.run import Run, Stage, looking
from seamark.run.entries import Entry
from seamark.run.looking import compare_runs, list_runs, read_report, read_run, run_names
from seamark.stats import Estimate


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def entries(found: tuple[Entry, ...]) -> dict[str, Any]:
    """{name: (value, low, high), text, or the reason why there is no value}"""
    told: dict[str, Any] = {}
    for e in found:
        assert e.name not in told
        v = e.value
        told[e.name] = e.text if v is None else v.reason if v.value is None else (v.value, v.low, v.high)
    return told


def build(folder: Path, *, text: str) -> dict[str, Any]:
    write(folder / "out.txt", text)
    return {"chosen": text}


def test_a_run_as_seamark_makes_it(tmp_path: Path) -> None:
    with Run(tmp_path / "mine") as run:
        run.stages("both", [Stage("data", build, {"text": "a"}), Stage("clean/scan", build, {"text": "b"})])
    (card,) = list_runs(tmp_path)
    assert (card.name, card.stages, card.result, card.report) == ("mine", 2, False, False)
    assert card.created.startswith("20")
    view = read_run(tmp_path, "mine")
    assert [s.name for s in view.stages] == ["clean/scan", "data"]
    assert all(len(s.key) == 64 and s.seconds is not None and s.function.endswith("build") for s in view.stages)
    assert {"seamark", "torch"} <= set(view.versions)
    assert entries(view.config) == {"text": "b"}
    assert (view.result, view.notes) == ((), ())
    assert list_runs(tmp_path / "mine") == [card], "a run folder itself may be named"


def test_results_are_told_with_their_intervals(tmp_path: Path) -> None:
    write(tmp_path / "r" / "result.json", {
        "recipe": {"name": "n", "recipe": "safer", "model": "m", "seeds": [0, 1], "reward": {"epochs": 2, "lr": None}},
        "reward": {"accuracy": {"safety": 0.8, "chat": 0.7}, "interval": {"safety": [0.7, 0.9]}, "steps": 6},
        "effect": {"D": None, "low": None, "high": None, "reason": "not run", "rate": 0.05},
        "features": [{"sae": "s", "latent": 7, "direct_effect": 0.5, "direct_effect_interval": [0.4, 0.6],
                      "direct_effect_reason": ""},
                     {"sae": "s", "latent": 9, "direct_effect": None, "direct_effect_interval": None,
                      "direct_effect_reason": "fewer than 10 firings"}],
        "rows": [{"method": "safer", "rate": 0.05, "safety": Estimate(value=0.6, low=0.5, high=0.7, n=40).model_dump()},
                 {"method": "random", "rate": 0.05, "safety": Estimate.not_available("one prompt").model_dump()}],
        "named": [{"name": "x"}, {"name": "y"}],
        "deep": [[1, 2], [3]], "flag": True, "nothing": None, "words": ["a", "b"],
    })  # fmt: skip
    view = read_run(tmp_path, "r")
    assert entries(view.config) == {"name": "n", "recipe": "safer", "model": "m", "seeds": "[0, 1]",
                                    "reward.epochs": (2, None, None), "reward.lr": "null"}  # fmt: skip
    assert entries(view.result) == {
        "reward.accuracy.safety": (0.8, 0.7, 0.9), "reward.accuracy.chat": (0.7, None, None),
        "reward.steps": (6, None, None), "effect.D": "not run", "effect.rate": (0.05, None, None),
        "features[s 7].direct_effect": (0.5, 0.4, 0.6), "features[s 9].direct_effect": "fewer than 10 firings",
        "rows[safer 0.05].safety": (0.6, 0.5, 0.7), "rows[random 0.05].safety": "one prompt",
        "named[0].name": "x", "named[1].name": "y",
        "deep[0]": "[1, 2]", "deep[1]": "[3]", "flag": "true", "nothing": "null", "words": '["a", "b"]',
    }  # fmt: skip
    assert (view.card.title, view.card.kind, view.card.model) == ("n", "safer", "m")


def test_two_runs_are_joined_by_meaning(tmp_path: Path) -> None:
    rows = [{"method": "safer", "rate": 0.05, "auroc": 0.7}, {"method": "random", "rate": 0.05, "auroc": 0.5}]
    write(tmp_path / "a" / "result.json", {"recipe": {"k": 1, "same": 2}, "rows": rows, "only": 1})
    changed = [rows[1], rows[0] | {"auroc": 0.9}]
    write(tmp_path / "b" / "result.json", {"recipe": {"k": 3, "same": 2, "new": "x"}, "rows": changed})
    for name, version in (("a", "2.0"), ("b", "2.1")):
        write(tmp_path / name / "s" / "manifest.json", {"versions": {"torch": version, "numpy": "2"}})
    found = compare_runs(tmp_path, "a", "b")
    assert [(d.name, d.a is None, d.b is None) for d in found.config] == [("k", False, False), ("new", True, False)]
    assert [d.name for d in found.versions] == ["torch"]
    differs = {d.name for d in found.result if not d.same}
    assert differs == {"rows[safer 0.05].auroc", "only"}
    assert {d.name for d in found.result if d.same} == {"rows[random 0.05].auroc"}
    with pytest.raises(DataError, match="no such run folder"):
        compare_runs(tmp_path, "a", "c")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/", "r/../r", "../x/r", "r/s", "R", "r\0", ".hidden", "link", "x" * 5000]
)
def test_names_are_looked_up_and_never_joined(tmp_path: Path, name: str) -> None:
    root = tmp_path / "runs"
    write(root / "r" / "result.json", {"a": 1})
    write(root / "r" / "s" / "result.json", {"a": 1})
    write(root / ".hidden" / "result.json", {"a": 1})
    write(tmp_path / "x" / "r" / "result.json", {"secret": 1})
    write(tmp_path / "result.json", {"secret": 1})
    (root / "link").symlink_to(tmp_path / "x" / "r")
    (root / "r" / "report.html").symlink_to(tmp_path / "result.json")
    assert run_names(root) == ["r"]
    for read in (read_run, read_report):
        with pytest.raises(DataError, match="no such run folder"):
            read(root, name)
    with pytest.raises(FormatError, match="cannot be read"):
        read_report(root, "r")
    assert list_runs(root)[0].report is False


def test_links_inside_a_run_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    secret = write(tmp_path / "secret.json", {"recipe": {"password": "x"}, "secret": 1})
    (root / "r" / "stage").mkdir(parents=True)
    (root / "r" / "result.json").symlink_to(secret)
    (root / "r" / "stage" / "manifest.json").symlink_to(secret)
    write(root / "r" / "ours" / "manifest.json", {"stage": "ours"})
    write(tmp_path / "far" / "manifest.json", {"stage": "far"})
    (root / "r" / "far").symlink_to(tmp_path / "far")
    view = read_run(root, "r")
    assert view.result == view.config == ()
    assert [s.name for s in view.stages] == ["ours"]
    assert (view.card.result, view.card.model) == (False, "")
    assert view.notes


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    write(tmp_path / "r" / "s" / "manifest.json", {"stage": "s"})
    os.mkfifo(tmp_path / "r" / "result.json")  # reading it would wait for ever
    os.mkfifo(tmp_path / "r" / "report.html")
    view = read_run(tmp_path, "r")
    assert view.notes == ("result.json: not a plain file",)
    with pytest.raises(FormatError, match="not a plain file"):
        read_report(tmp_path, "r")
    assert list_runs(tmp_path / "none") == []


@pytest.mark.parametrize(("text", "note"), [
    ("{", "not readable as JSON"), ("[1]", "not a JSON object"), ('{"a": ' + "[" * 100_000, "not readable as JSON"),
    ("\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"), "not readable as JSON"), ("", "not readable as JSON"),
    ('{"a": ' + "9" * 5000 + "}", "not readable as JSON"),
])  # fmt: skip
def test_files_that_are_no_results(tmp_path: Path, text: str, note: str) -> None:
    path = tmp_path / "r" / "result.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    view = read_run(tmp_path, "r")
    assert view.notes == (f"result.json: {note}",)
    assert view.result == ()
    assert list_runs(tmp_path)[0].name == "r"


def test_odd_values_are_shown_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = {"x": deep}
    text = """{"nan": NaN, "inf": -Infinity, "big": BIG, "half": "\\ud800", "\\ud801": 1, "recipe": "a word",
        "long": "LONG", "deep": DEEP, "value": {"value": NaN, "low": 1}, "accuracy": {"a": 1}, "interval": 5}"""
    for name, value in (("BIG", "1" + "0" * 400), ("LONG", "y" * 5000), ("DEEP", json.dumps(deep))):
        text = text.replace(name, value)
    write(tmp_path / "r" / "result.json", text)
    told = entries(read_run(tmp_path, "r").result)
    assert (told["nan"], told["inf"], told["recipe"]) == ("NaN", "-Infinity", "a word")
    assert told["big"].startswith("1000")
    assert told["half"] == "?"
    assert told["long"].endswith("(4,500 more characters)")
    assert told["deep" + ".x" * 11].startswith('{"x"')
    assert told["value"] == "NaN"
    assert (told["accuracy.a"], told["interval"]) == ((1, None, None), (5, None, None))
    json.dumps(read_run(tmp_path, "r").model_dump(mode="json"), allow_nan=False).encode("utf-8")
    write(tmp_path / "many" / "result.json", {f"k{i}": i for i in range(3000)})
    many = read_run(tmp_path, "many")
    assert len(many.result) == 2000
    assert many.notes == ("result: only the first 2,000 values are shown",)
    monkeypatch.setattr(looking, "MAX_JSON", 1 << 20)
    write(tmp_path / "huge" / "result.json", {"x": "y" * (1 << 20)})
    assert read_run(tmp_path, "huge").notes == ("result.json: larger than 1 MB",)
    monkeypatch.setattr(looking, "MAX_REPORT", 1 << 20)
    write(tmp_path / "huge" / "report.html", "y" * ((1 << 20) + 1))
    with pytest.raises(FormatError, match="larger than 1 MB"):
        read_report(tmp_path, "huge")
    write(tmp_path / "huge" / "report.html", "y" * (1 << 20))
    assert len(read_report(tmp_path, "huge")) == 1 << 20


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe/result.json")).write_text("{}", encoding="utf-8")
    write(tmp_path / "ok <b>" / "result.json", {})
    assert run_names(tmp_path) == ["ok <b>"]


def test_the_newest_comes_first(tmp_path: Path) -> None:
    for name, day in (("a", 2), ("b", 3), ("c", 1)):
        write(tmp_path / name / "s" / "manifest.json", {"created": f"2025-01-0{day}T00:00:00+00:00"})
    assert [card.name for card in list_runs(tmp_path)] == ["b", "a", "c"]
