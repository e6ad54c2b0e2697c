"""RewardBench: the sections by hand, subsets that are absent, approximate or unknown, and prompts seen in training."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from seamark.audit.prompts_in_common import prompts_in_common
from seamark.audit.rewardbench import (
    GROUP,
    SECTIONS,
    WEIGHTS,
    BenchScore,
    evaluate_rewardbench,
    read_rewardbench,
    rewardbench_scores,
    subset_of,
)
from seamark.errors import DataError
from seamark.text import read_pairs
from seamark.text.pairs import Message, Pairs, PreferencePair


def pair(pair_id: str, subset: str, prompt: Any = None, chosen: str = "yes", rejected: str = "never") -> PreferencePair:
    return PreferencePair(pair_id, GROUP, prompt or f"question {pair_id}", chosen, rejected, "", subset)


def bench(counts: dict[str, tuple[int, int]]) -> tuple[dict[str, float], Pairs]:
    """Margins and pairs with {subset: (right, wrong)}."""
    pairs, margins = [], {}
    for subset, (right, wrong) in counts.items():
        for i in range(right + wrong):
            pairs.append(pair(f"{subset}-{i}", subset))
            margins[pairs[-1].id] = 1.5 if i < right else -0.5
    return margins, Pairs(tuple(pairs))


def values(score: BenchScore) -> dict[str, float | None]:
    return {s.section: s.accuracy.value for s in score.sections}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(n: int = 3, **columns: str) -> list[dict[str, Any]]:
    return [{"prompt": f"May I ask {i}?", "chosen": f"Of course, {i}.", "rejected": "No.", **columns} for i in range(n)]


def test_the_benchmark_is_as_published() -> None:
    assert {name: sum(WEIGHTS[s] for s in subsets) for name, subsets in SECTIONS.items()} == {
        "Chat": 358, "Chat-Hard": 456, "Safety": 740, "Reasoning": 1968,
    }  # fmt: skip
    assert sorted(s for subsets in SECTIONS.values() for s in subsets) == sorted(WEIGHTS)
    assert WEIGHTS["math-prm"] == sum(w for s, w in WEIGHTS.items() if s.startswith("hep-"))


def test_sections_as_computed_by_hand() -> None:
    """Weights are the published counts, whatever the number of pairs at hand."""
    score = rewardbench_scores(*bench({
        "refusals-dangerous": (3, 1), "refusals-offensive": (1, 1), "xstest-should-refuse": (2, 0),
        "xstest-should-respond": (1, 3), "donotanswer": (9, 1),
        "math-prm": (1, 1), "hep-cpp": (4, 0), "hep-rust": (1, 3),
        "llmbar-natural": (1, 2), "mt-bench-hard": (1, 0),
    }))  # fmt: skip
    safety = (100 * 0.75 + 100 * 0.5 + 154 * 1.0 + 250 * 0.25 + 136 * 0.9) / 740  # 463.9 / 740
    assert safety == pytest.approx(0.626891891)
    assert values(score) == {
        "Safety": pytest.approx(safety),
        "Reasoning": pytest.approx((984 * 0.5 + 164 * 1.0 + 164 * 0.25) / (984 + 164 + 164)),
        "Chat-Hard": pytest.approx((37 * 1.0 + 100 / 3) / 137),
        "Chat": None,
    }
    hard = score.section("Chat-Hard")
    assert hard.missing == ("llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
                            "llmbar-adver-manual")  # fmt: skip
    assert [(s.subset, s.n, s.weight, s.accuracy.value) for s in hard.subsets] == [
        ("mt-bench-hard", 1, 37, 1.0), ("llmbar-natural", 3, 100, pytest.approx(1 / 3)),
    ]  # fmt: skip
    chat = score.section("Chat")
    assert chat.missing == SECTIONS["Chat"]
    assert (chat.n, chat.accuracy.value, chat.accuracy.reason) == (0, None, "no pairs of its subsets")


def test_longer_wins_is_weighted_alike() -> None:
    pairs = Pairs((
        pair("a", "hep-go", chosen="long answer", rejected="short"), pair("b", "hep-go", chosen="no", rejected="none"),
        pair("c", "math-prm", chosen="as long", rejected="as much"),
    ))  # fmt: skip
    score = rewardbench_scores({"a": -1.0, "b": 1.0, "c": 0.0}, pairs).section("Reasoning")
    assert score.length.value == pytest.approx((164 * 0.5 + 984 * 0.5) / 1148)
    assert score.accuracy.value == pytest.approx((164 * 0.5 + 984 * 0.0) / 1148)


def test_a_tie_is_no_win_and_counted() -> None:
    margins, pairs = bench({"donotanswer": (2, 2)})
    margins["donotanswer-0"] = 0.0
    score = rewardbench_scores(margins, pairs)
    assert score.section("Safety").accuracy.value == 0.25
    assert score.ties == 1


def test_intervals_draw_prompts_not_rows() -> None:
    """Twenty copies of a row's prompt tell no more than the row: the interval is as wide as with one of each."""
    few, many = [], []
    margins = {}
    for i in range(20):
        for copy in range(20):
            p = pair(f"{i}-{copy}", "donotanswer", prompt=f"Question  {i}?" if copy else f"question {i}?")
            margins[p.id] = 1.0 if i % 2 else -1.0
            many.append(p)
        few.append(many[-1])
    one = rewardbench_scores(margins, Pairs(tuple(few))).section("Safety")
    all_of_them = rewardbench_scores(margins, Pairs(tuple(many))).section("Safety")
    assert all_of_them.accuracy.low == pytest.approx(one.accuracy.low, abs=0.02)
    assert all_of_them.subsets[0].accuracy.low == pytest.approx(one.accuracy.low, abs=0.02)
    assert one.accuracy.low is not None
    assert 0.2 < one.accuracy.low < 0.4


def test_subsets_are_equal_in_the_interval_whatever_their_size() -> None:
    """The interval is one of the weighted mean: it holds it even where one subset has most of the rows."""
    score = rewardbench_scores(*bench({"math-prm": (1, 9), "hep-cpp": (180, 20)})).section("Reasoning")
    assert score.accuracy.value == pytest.approx((984 * 0.1 + 164 * 0.9) / 1148)
    low, high = score.accuracy.low, score.accuracy.high
    assert low is not None
    assert high is not None
    assert low < (score.accuracy.value or 0) < high < 0.5


def test_rebuilt_and_unknown_subsets_are_said() -> None:
    assert subset_of("xstest-should-refuse-partial") == "xstest-should-refuse"
    assert subset_of("llmbar-natural") == "llmbar-natural"
    assert subset_of("mt-bench-human-approx") is None
    assert subset_of("") is None
    margins, pairs = bench({
        "xstest-should-refuse": (1, 1), "xstest-should-refuse-rmbench": (1, 0), "donotanswer-approx": (1, 1),
        "mt-bench-human-approx": (5, 0), "": (2, 0),
    })  # fmt: skip
    score = rewardbench_scores(margins, pairs)
    safety = score.section("Safety")
    assert {s.subset: s.n for s in safety.subsets} == {"xstest-should-refuse": 3, "donotanswer": 2}
    assert safety.accuracy.value == pytest.approx((154 * 2 / 3 + 136 / 2) / 290)
    assert score.mapped == {
        "xstest-should-refuse-rmbench": "xstest-should-refuse",
        "donotanswer-approx": "donotanswer",
    }
    assert score.unknown == {"mt-bench-human-approx": 5, "(no subset)": 2}


def test_pairs_without_a_margin_count_nowhere() -> None:
    margins, pairs = bench({"donotanswer": (2, 2)})
    del margins["donotanswer-0"]
    margins |= {"donotanswer-3": float("nan"), "no such pair": 1.0}
    score = rewardbench_scores(margins, pairs)
    assert score.unscored == 2
    assert (score.section("Safety").n, score.section("Safety").accuracy.value) == (2, 0.5)


def test_files_with_either_column_are_read(tmp_path: Path) -> None:
    by_subset = write(tmp_path / "a.jsonl", rows(subset="donotanswer", category="of no use"))
    by_category = write(tmp_path / "b.jsonl", rows(5, category="alpacaeval-easy"))
    assert [p.category for p in read_rewardbench(by_subset)] == ["donotanswer"] * 3
    both = read_rewardbench([by_subset, by_category])
    assert [p.category for p in both] == ["donotanswer"] * 3 + ["alpacaeval-easy"] * 2
    assert rewardbench_scores({}, both).unread == {"duplicate": 3}, "equal rows count once"
    assert {p.group for p in both} == {GROUP}


def test_the_filtered_split_of_a_saved_data_set_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {
        "raw": rows(3, subset="donotanswer"),
        "filtered": [{**r, "id": i} for i, r in enumerate(rows(2, subset="hep-go"))],
    }
    DatasetDict({k: Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(str(tmp_path / "saved"))
    found = read_rewardbench(tmp_path / "saved")
    assert [(p.id, p.category) for p in found] == [("0", "hep-go"), ("1", "hep-go")]


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    for file in (write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", rows(category="my own"))):
        with pytest.raises(DataError, match="no subset of RewardBench"):
            read_rewardbench(file)
    with pytest.raises(DataError, match="no such file"):
        read_rewardbench(tmp_path / "none.jsonl")


def test_prompts_seen_in_training_are_found_by_what_they_ask() -> None:
    asked = Pairs((
        pair("same", "hep-go", "How do I bake bread?"), pair("form", "hep-go", "How do\u00a0I  BAKE ｂread?\n"),
        pair("turn", "math-prm", "And with yeast?"), pair("chat", "math-prm", (Message("user", "Is it done?"),)),
        pair("new", "math-prm", "How do I bake a cake?"), pair("part", "math-prm", "bake bread"),
    ))  # fmt: skip
    trained = Pairs((
        pair("1", "", "how do I bake bread?"), pair("2", "", "Is it done?"),
        pair("3", "", (Message("system", "Be kind."), Message("user", "Bread?"),
                       Message("assistant", "How do I bake a cake?"), Message("user", "and with yeast?"))),
    ))  # fmt: skip
    found = prompts_in_common(asked, trained)
    assert found.pairs == ("same", "form", "turn", "chat")
    assert (found.prompts, found.shared) == (5, 3)
    assert found.by_category == {"hep-go": 2, "math-prm": 2}
    assert prompts_in_common(asked, Pairs(())).shared == 0


def test_prompts_in_common_of_real_files() -> None:
    """As the data's own description has it: 99 prompts of RM-Bench's chat are in the rebuilt Chat sections."""
    data = os.environ.get("SEAMARK_DATA")
    if not data:
        pytest.skip("SEAMARK_DATA names no folder")
    chat = read_rewardbench(Path(data) / "rewardbench_chat_rebuild.jsonl.gz")
    assert len(chat) == 740
    assert prompts_in_common(chat, read_pairs(chat=Path(data) / "prefs_chat_rmbench.jsonl.gz")).shared == 99


def test_a_model_is_run_on_known_subsets_only(tmp_path: Path) -> None:
    from seamark.model import RewardModel
    from tiny import tiny_folder

    model = RewardModel.from_pretrained(tiny_folder(tmp_path / "rm", "bert"))
    given = [{**r, "prompt": f"{s} {r['prompt']}", "subset": s} for s in ("donotanswer", "else") for r in rows(4)]
    pairs = read_rewardbench(write(tmp_path / "a.jsonl", given))
    score = evaluate_rewardbench(model, pairs, max_length=64)
    assert score.section("Safety").n == 4
    assert score.unknown == {"else": 4}
    assert score.unscored == 0
    assert score.truncated_texts == 0
    assert BenchScore.model_validate_json(score.model_dump_json()) == score


@pytest.mark.slow
def test_sections_equal_those_of_the_package_itself() -> None:
    """The package pins another transformers, so it runs in an environment of its own."""
    python = os.environ.get("SEAMARK_REWARDBENCH_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("set SEAMARK_REWARDBENCH_PYTHON to the Python of an environment with rewardbench==0.1.4")
    rng = random.Random(7)
    trials = []
    for size in (23, 23, 12, 5, 1):
        names = rng.sample(sorted(WEIGHTS), size)
        trials.append({name: (rng.randint(0, 9), rng.randint(1, 9)) for name in names})
    metrics = [{name: right / (right + wrong) for name, (right, wrong) in trial.items()} for trial in trials]
    done = subprocess.run(
        [python, str(Path(__file__).with_name("with_rewardbench.py"))], input=json.dumps(metrics), text=True,
        capture_output=True, timeout=500, check=False, env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["counts"] == dict(WEIGHTS)
    assert {k.replace(" ", "-"): sorted(v) for k, v in theirs["sections"].items()} == {
        k: sorted(v) for k, v in SECTIONS.items()
    }
    for trial, scores in zip(trials, theirs["scores"], strict=True):
        for section, ours in values(rewardbench_scores(*bench(trial))).items():
            expected = scores[section.replace("-", " ")]
            assert expected == 0 if ours is None else ours == pytest.approx(expected, abs=1e-12), section
