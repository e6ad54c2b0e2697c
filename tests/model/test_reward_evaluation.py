"""Accuracy by group and category, ties, intervals by prompt, and the length baseline."""

from __future__ import annotations

import numpy as np
import pytest

from seamark.model.batching import collate, plan_batches
from seamark.model.evaluation import Evaluation, evaluate
from seamark.text.pairs import Pairs, PreferencePair
from tiny import tiny_hooked


def made(chosen, rejected, longer, groups, categories, prompts):
    return Evaluation(
        ids=tuple(str(i) for i in range(len(chosen))),
        groups=tuple(groups),
        categories=tuple(categories),
        prompts=tuple(prompts),
        chosen=np.asarray(chosen, float),
        rejected=np.asarray(rejected, float),
        longer=np.asarray(longer, float),
        truncated_texts=0,
    )


def test_accuracy_by_hand():
    e = made([2, 1, 1, 0], [1, 1, 2, -1], [1, 0, 0.5, 1], "sscc", "abab", "xyzz")
    np.testing.assert_array_equal(e.margins, [1, 0, -1, 1])
    np.testing.assert_array_equal(e.correct, [1, 0.5, 0, 1])
    assert e.accuracy().value == 0.625
    assert e.accuracy("s").value == 0.75
    assert e.accuracy("c", "b").value == 1.0
    assert e.accuracy(category="a").value == 0.5
    assert e.longer_wins("c").value == 0.75
    assert e.cells() == [("s", "a"), ("s", "b"), ("c", "a"), ("c", "b")]
    empty = e.accuracy("nothing")
    assert empty.value is None
    assert empty.reason == "no pairs"
    table = e.to_json()
    assert table["groups"]["s"]["accuracy"]["value"] == 0.75
    assert table["groups"]["c"]["mean_margin"] == 0.0
    assert len(table["categories"]) == 4


def test_intervals_resample_prompts():
    """Forty rows of two prompts are two observations, not forty."""
    correct, wrong = [1.0] * 20, [0.0] * 20
    two = made([*correct, *wrong], [0.5] * 40, [0] * 40, "s" * 40, "a" * 40, ["x"] * 20 + ["y"] * 20)
    many = made([*correct, *wrong], [0.5] * 40, [0] * 40, "s" * 40, "a" * 40, [str(i) for i in range(40)])
    assert two.accuracy().low == 0.0
    assert two.accuracy().high == 1.0
    assert many.accuracy().low > 0.3


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_evaluate_reads_both_sides(kind):
    model = tiny_hooked(kind)
    long, short = "Wait an hour. Bake it until it is brown.", "No, please."
    items = [
        PreferencePair("1", "chat", "How do I bake bread?", long, short, category="how"),
        PreferencePair("2", "chat", "How do I bake bread?", short, long, category="how"),
        PreferencePair("3", "safety", "Is it safe?", short, short),
    ]
    e = evaluate(model, Pairs(tuple(items)), batch_tokens=60)
    np.testing.assert_allclose(e.margins[0], -e.margins[1], rtol=1e-4)
    np.testing.assert_array_equal(e.longer, [1, 0, 0.5])
    assert e.accuracy("chat").value == 0.5
    assert e.accuracy("safety").value == 0.5  # a tie
    assert e.prompts[0] == e.prompts[1] != e.prompts[2]
    assert e.truncated_texts == 0
    assert evaluate(model, Pairs(tuple(items)), max_length=12).truncated_texts > 0
    assert len(evaluate(model, Pairs(())).ids) == 0


def test_plan_batches():
    lengths = [5, 1, 9, 3, 9, 2, 30]
    plan = plan_batches(lengths, 18)
    assert sorted(i for b in plan for i in b) == list(range(7))
    assert plan[0] == [6]  # over the budget: alone
    assert plan[1] == [2, 4]
    for batch in plan[1:]:
        assert max(lengths[i] for i in batch) * len(batch) <= 18
    assert max(len(b) for b in plan_batches([1] * 10, 100, max_batch=3)) == 3
    assert plan_batches([], 10) == []
    assert plan == plan_batches(list(lengths), 18)


def test_collate_pads_on_the_right():
    model = tiny_hooked("bert")
    renderer = model.renderer()
    r = [renderer.render_text("Paris is the capital", "a"), renderer.render_text("No", "b")]
    batch = collate(r, 0, pad_to=12, rows=[1, 0])
    assert batch.input_ids.shape == (2, 12)
    assert batch.rows == (1, 0)
    assert batch.attention_mask.sum(1).tolist() == [len(r[1]), len(r[0])]
    assert batch.input_ids[0, : len(r[1])].tolist() == r[1].input_ids.tolist()
    assert batch.input_ids[0, len(r[1]) :].sum() == 0
