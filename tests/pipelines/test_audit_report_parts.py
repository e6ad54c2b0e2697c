"""Parts of `seamark audit report` on planted scores, without a model."""

from __future__ import annotations

import json
from pathlib import Path

from seamark.pipelines import audit_report_edits as edits
from seamark.pipelines import audit_report_scores as scoring
from seamark.pipelines import audit_report_stages as stages


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_that_tie_are_removed_in_the_order_of_the_ranking(tmp_path: Path) -> None:
    """Whatever the seed: the page lists a pair as one of the lowest if and only if it is taken out."""
    source, data = tmp_path / "safety.jsonl", tmp_path / "data"
    lines = [{"id": f"p{i}", "prompt": f"Is number {i} even?", "chosen": f"It is {i}.", "rejected": "Who knows."}
             for i in range(40)]  # fmt: skip
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data.mkdir()
    stages.read_data(data, pairs=[("safety", [str(source)])], max_pairs=None, target="safety", digests={})
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
