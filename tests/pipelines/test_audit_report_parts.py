"""Parts of `seamark audit report`, each by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seamark.audit.report import _pairs
from seamark.audit.review import Review
from seamark.audit.scores import PairScores
from seamark.cli.reports import result_rows
from seamark.features import FeatureSet, ScanConfig, scan
from seamark.model import RewardModel
from seamark.pipelines import audit_report_edits as edits
from seamark.pipelines import audit_report_scores as scoring
from seamark.pipelines import audit_report_stages as stages
from seamark.pipelines.audit_report_blocks import edits_block
from seamark.pipelines.audit_report_options import AuditOptions
from seamark.pipelines.audit_report_page import _contradicted
from seamark.pipelines.audit_report_price import Price, prices
from seamark.pipelines.evidence import pair_evidence
from seamark.pipelines.recipe import SaferRecipe
from seamark.run import write_json
from seamark.sae import SAEConfig, SparseAutoencoder
from seamark.show.html import render_part
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_that_tie_are_removed_in_the_order_of_the_ranking(tmp_path: Path) -> None:
    """Whatever the seed: the page lists a pair as one of the lowest if and only if it is taken out."""
    lines = [{"id": f"p{i}", "prompt": f"Is number {i} even?", "chosen": f"It is {i}.", "rejected": "Who knows."}
             for i in range(40)]  # fmt: skip
    data = read_data(tmp_path, safety=lines)
    pairs = stages.load_pairs(data)
    values = {m: {i: sign * float(n) for n, i in enumerate(pairs.ids)} for m, sign in (("margin", 1), ("latents", -1))}
    assert len(set(scoring._ranking(values, pairs, None, 0).values.values())) < 5  # the two ranks cancel
    for seed in (0, 3):
        ranking = scoring._ranking(values, pairs, None, seed)
        scores, out = tmp_path / f"scores-{seed}", tmp_path / f"edits-{seed}"
        for folder in (scores, out):
            folder.mkdir()
        ranking.save(scores / scoring.SCORES)
        edits.write_edits(out, data, scores, share=0.1, group="safety", seed=seed)
        assert {r["id"] for r in rows(out / edits.REMOVED)} == set(ranking.lowest(4))


@pytest.mark.parametrize("keep_tokens", ["always", "never"])
def test_a_half_answer_is_not_shown_as_if_it_were_whole(tmp_path: Path, keep_tokens: str) -> None:
    model = tiny_hooked("llama")
    assert isinstance(model, RewardModel)
    long = "First I say that it is dangerous. " * 30 + "Then I stop."
    pairs = Pairs((PreferencePair("p", "safety", "Tell me about bleach.", long, "No."),
                   PreferencePair("q", "safety", "Tell me, " * 60 + "now!", "I can't help with that.", "Sure."),
                   PreferencePair("r", "safety", "Why?", "Because.", "No.")))  # fmt: skip
    suite = {"a": SparseAutoencoder.untrained(SAEConfig(d_in=32, d_sae=16, k=2, hookpoint="layers.2"), 0)}
    config = ScanConfig.model_validate({"keep_tokens": keep_tokens, "max_length": 120, "rewards": True})
    made = scan(model, suite, pairs, tmp_path, config=config)
    review = Review(made, FeatureSet(features=()))
    found = {p.id: pair_evidence(p, review, 0.0) for p in pairs}
    lost = int(made.texts["truncated"].to_pylist()[made.rows_by_pair["p"][0]])
    assert lost > 10
    shown = "".join(found["p"].chosen.tokens).strip()
    assert long.endswith(shown)
    assert shown != long
    assert found["p"].chosen.note.startswith(
        f"The model read only the last part of this answer; {lost:,} tokens before it"
    )
    assert "all of this answer, but not the first" in found["q"].chosen.note
    assert "all of this answer, but not the first" in found["q"].rejected.note
    assert {found["p"].rejected.note, found["r"].chosen.note, found["r"].rejected.note} == {""}
    page = render_part("report/suspicious.html", data={}, pairs=_pairs([found["p"]]))
    assert page.count("The model read only the last part") == 1
    assert page.index("Labelled chosen") < page.index("The model read only the last") < page.index("Labelled rejected")


def test_near_contradictions_are_no_sign_of_annotators_that_disagree(tmp_path: Path) -> None:
    texts = [(f"Is number {i} even? I asked often, and nobody knows.", f"It is {i} times two.", "Who knows.")
             for i in range(10)]  # fmt: skip
    lines = [{"id": f"p{i}", "prompt": p, "chosen": c, "rejected": r} for i, (p, c, r) in enumerate(texts)]
    turned = lines[0] | {"id": "turned", "chosen": texts[0][2], "rejected": texts[0][1]}
    near = lines[1] | {"id": "near", "prompt": f"{texts[1][0]} Today.", "chosen": texts[1][2], "rejected": texts[1][1]}
    chat = [lines[2] | {"id": "chat", "chosen": texts[2][2], "rejected": texts[2][1]}]
    data = read_data(tmp_path, safety=[*lines, turned, near], chat=chat)
    found: Any = SimpleNamespace(done=SimpleNamespace(data=data), group="safety", faults=stages.load_faults(data))
    assert "near" in found.faults.ids("near_contradiction")
    share = _contradicted(found)
    assert (share.value, share.n) == (3 / 12, 12)  # p0 and its turned copy, and p2, which chat contradicts


def test_prices_are_of_the_audited_group_and_commands_work_as_printed(tmp_path: Path) -> None:
    write_json(tmp_path / stages.SUMMARY, {"safety": {"pairs": 7}, "chat": {"pairs": 5000}})

    def priced(trained: bool, **given: Any) -> dict[str, Price]:
        options = AuditOptions(model="m", pairs={"safety": ["f"]}, out="o", **given)
        found = prices(options, SaferRecipe(model="m"), tmp_path, {}, trained=trained, judged=False)
        return {p.name: p for p in found}

    assert priced(True)["LLM judge"].estimate.startswith("7 pairs,")
    for trained, given, how in (
        (True, {}, "--crossfit 5"), (False, {}, "--crossfit 5 --base BASE"),
        (False, {"base": "b", "crossfit": 3}, "--crossfit 3 --base b"),
    ):  # fmt: skip
        found = priced(trained, **given)
        assert found["Cross-fitted margin"].how == how
        assert found["Voting"].how == f"{how} --voting 3"


def test_that_nothing_was_removed_is_said(tmp_path: Path) -> None:
    """12 pairs at 1 %: the file of the removed is there, but empty, which readers of data sets refuse."""
    lines = [{"id": f"p{i}", "prompt": f"q{i}", "chosen": f"It is {i}.", "rejected": "Who knows."} for i in range(12)]
    data = read_data(tmp_path, safety=[*lines, lines[3]])
    PairScores(method="m", values={f"p{i}": float(i) for i in range(12)}).save(tmp_path / scoring.SCORES)
    edits.write_edits(tmp_path, data, tmp_path, share=0.01, group="safety", seed=0)
    found = json.loads((tmp_path / edits.EDITS).read_text())
    assert (tmp_path / edits.REMOVED).read_text() == ""
    told = " ".join(edits_block(found, tmp_path).after)
    assert f"{edits.NOTHING[1:]}; the other two files hold all pairs" in told
    assert "Exact duplicates are dropped when reading" in told
    assert "rejected.jsonl names their rows" in told
    assert rows(data / "rejected.jsonl")[0]["reason"] == "duplicate of row 4"
    result: dict[str, Any] = {"pairs": {}, "wrong_share": {}, "faults": {}, "failure_signs": [], "files": {}}
    assert dict(result_rows(result | {"edits": found}))["edits"] == edits.NOTHING
    assert "edits" not in dict(result_rows(result | {"edits": found | {"edited": 1}}))


def read_data(folder: Path, **groups: list[Any]) -> Path:
    """The first stage of an audit of safety pairs, on rows by group."""
    files = {g: folder / f"{g}.jsonl" for g in groups}
    for g, file in files.items():
        file.write_text("".join(json.dumps(line) + "\n" for line in groups[g]), encoding="utf-8")
    (folder / "data").mkdir()
    pairs = [(g, [str(f)]) for g, f in files.items()]
    stages.read_data(folder / "data", pairs=pairs, max_pairs=None, target="safety", digests={})
    return folder / "data"
