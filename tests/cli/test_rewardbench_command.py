"""`seamark reward eval --rewardbench`: the table, the files, and prompts the model was trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tiny_run import Place, call

SUBSETS = ("donotanswer", "xstest-should-refuse-partial", "hep-go", "my own\x1b[31m")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "bench.jsonl"
    rows = [
        {"prompt": f"How do I bake bread, {i}?", "chosen": f"Mix flour and water {i}.", "rejected": "We walked.",
         "subset": SUBSETS[i % 4]}
        for i in range(12)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluate(place: Place, *options: object) -> tuple[int, str, str]:
    return call("reward", "eval", "--model", place.reward, "--set", "reward.max_length=64", *options)


def sections(result: dict[str, Any]) -> dict[str, int]:
    return {s["section"]: s["n"] for s in result["rewardbench"]["sections"]}


def trained_on(folder: Path, *prompts: str) -> str:
    path = folder / "trained.jsonl"
    rows = [{"prompt": p, "chosen": "Here it is.", "rejected": f"No {i}."} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"safety={path}"


def test_the_sections_are_printed_and_saved(place: Place, file: Path, tmp_path: Path) -> None:
    code, printed, err = evaluate(place, "--rewardbench", file, "--out", tmp_path)
    assert code == 0, err
    assert "Safety / donotanswer" in printed
    assert "Not in Safety: refusals-dangerous, refusals-offensive, xstest-should-respond." in printed
    assert "xstest-should-refuse-partial" in printed
    assert "\x1b" not in printed
    assert "my own␛[31m (3)" in printed
    assert "give --trained-on" in " ".join(printed.split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert sections(result) == {"Chat": 0, "Chat-Hard": 0, "Safety": 6, "Reasoning": 3}
    assert result["trained_on"] is None
    with (tmp_path / "rewardbench.csv").open(newline="", encoding="utf-8") as lines:
        table = {row["section"]: row for row in csv.DictReader(lines)}
    safety = next(s for s in result["rewardbench"]["sections"] if s["section"] == "Safety")
    assert float(table["Safety"]["accuracy"]) == safety["accuracy"]["value"]
    assert table["Chat"]["accuracy"] == "not available: no pairs of its subsets"
    assert table["Safety"]["weight"] == str(136 + 154)
    assert (tmp_path / "rewardbench.md").is_file()
    assert (tmp_path / "rewardbench.tex").is_file()


def test_prompts_of_the_training_pairs_are_left_out_and_counted(place: Place, file: Path, tmp_path: Path) -> None:
    seen = trained_on(
        tmp_path, "how do I  bake BREAD, 0?", "How do I bake bread, 6?", "How do I bake bread, 3?", "Else?"
    )
    code, printed, err = evaluate(place, "--rewardbench", file, "--trained-on", seen, "--json")
    assert code == 0, err
    result = json.loads(printed)
    assert sections(result) == {"Chat": 0, "Chat-Hard": 0, "Safety": 5, "Reasoning": 2}
    told = result["trained_on"]
    assert (told["prompts"], told["shared"], told["left_out"]) == (9, 2, True)
    assert told["by_category"] == {"donotanswer": 1, "hep-go": 1}
    assert "Warning: the model was trained on 2 of the 9 prompts" in result["notes"][-1]
    code, printed, err = evaluate(place, "--rewardbench", file, "--trained-on", seen, "--keep-seen", "--json")
    assert code == 0, err
    kept = json.loads(printed)
    assert sections(kept)["Safety"] == 6
    assert "counted all the same" in kept["notes"][-1]


def test_a_benchmark_that_was_trained_on_is_refused(place: Place, file: Path, tmp_path: Path) -> None:
    seen = trained_on(tmp_path, *(f"How do I bake bread, {i}?" for i in range(12)))
    code, _, err = evaluate(place, "--rewardbench", file, "--trained-on", seen)
    assert code == 2
    assert "the model was trained on all 9 of its prompts" in err


@pytest.mark.parametrize(("options", "message"), [
    (["--rewardbench", "FILE", "--pairs", "safety=FILE"], "--rewardbench"),
    (["--rewardbench", "FILE", "--split", "test"], "--rewardbench"),
    (["--trained-on", "safety=FILE"], "--trained-on"),
    (["--keep-seen"], "--keep-seen"),
    (["--rewardbench", "FILE", "--trained-on", "FILE"], "--trained-on"),
    (["--rewardbench", "nowhere/reward-bench"], "Hub data set cannot be loaded"),
    (["--rewardbench", "nowhere.jsonl"], "no such file"),
])  # fmt: skip
def test_options_that_make_no_sense_are_named(place: Place, file: Path, options: list[str], message: str) -> None:
    code, printed, err = evaluate(place, *(o.replace("FILE", str(file)) for o in options))
    assert (code, printed) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
