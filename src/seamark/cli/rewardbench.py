"""`seamark reward eval --rewardbench …`: the sections of RewardBench as a table and as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from seamark.cli.options import Common, parse_pairs, the_recipe
from seamark.cli.output import finish, percent
from seamark.errors import DataError
from seamark.show import visible
from seamark.stats import Estimate

if TYPE_CHECKING:
    from seamark.audit.prompts_in_common import PromptsInCommon
    from seamark.audit.rewardbench import BenchScore
    from seamark.text import Pairs

COLUMNS = ("section", "pairs", "weight", "accuracy", "longer wins")
_MOST = 8
"""Names of subsets in one note, at most."""


def eval_rewardbench(
    common: Common, model: str, sources: Sequence[str], trained_on: Sequence[str], keep_seen: bool, out: Path | None
) -> None:
    """Read, check against the training pairs, run, print and save."""
    from seamark.audit.rewardbench import evaluate_rewardbench, read_rewardbench
    from seamark.model import RewardModel
    from seamark.show.exports import write_table

    recipe = the_recipe(common)
    pairs = read_rewardbench(list(sources))
    seen = _seen(pairs, trained_on)
    if seen and not keep_seen:
        pairs = _without_seen(pairs, seen)
    score = evaluate_rewardbench(RewardModel.from_pretrained(model), pairs, max_length=recipe.reward.max_length)
    notes = [*_notes(score), *_seen_notes(seen, keep_seen)]
    known = None if seen is None else seen.model_dump() | {"left_out": not keep_seen}
    result = {"model": model, "rewardbench": score.model_dump(), "trained_on": known, "notes": notes}
    rows = list(table_rows(score))
    if out is not None:
        write_table(
            out, "rewardbench", COLUMNS, rows, "RewardBench: accuracy by section and subset. " + " ".join(notes)
        )
    printed = [[percent(v) if isinstance(v, Estimate) else "" if v is None else v for v in row] for row in rows]
    finish(result, as_json=common.json, out=out, title="RewardBench", columns=COLUMNS, rows=printed)
    if not common.json:
        for note in notes:
            Console().print(visible(note), markup=False, highlight=False)


def table_rows(score: BenchScore) -> Iterator[tuple[Any, ...]]:
    """A line for each section, followed by one for each of its subsets."""
    for section in score.sections:
        weight = sum(s.weight for s in section.subsets)
        yield section.section, section.n, weight, section.accuracy, section.length
        for s in section.subsets:
            yield f"{section.section} / {s.subset}", s.n, s.weight, s.accuracy, s.length


def _seen(pairs: Pairs, trained_on: Sequence[str]) -> PromptsInCommon | None:
    """What the training pairs share with the pairs that will count."""
    from seamark.audit.prompts_in_common import prompts_in_common
    from seamark.audit.rewardbench import subset_of
    from seamark.text import read_pairs

    files = parse_pairs(trained_on, "--trained-on")
    if not files:
        return None
    return prompts_in_common(pairs.where(lambda p: subset_of(p.category) is not None), read_pairs(files))


def _without_seen(pairs: Pairs, seen: PromptsInCommon) -> Pairs:
    ids = set(seen.pairs)
    left = pairs.where(lambda p: p.id not in ids)
    if seen.shared == seen.prompts:
        raise DataError(f"the model was trained on all {seen.prompts} of its prompts", where="--rewardbench",
                        fix="Test on other prompts; --keep-seen counts these all the same")  # fmt: skip
    return left


def _notes(score: BenchScore) -> Iterator[str]:
    """What the figures leave out, or count though it is not quite the benchmark's own: one sentence each."""
    for section in score.sections:
        if section.missing:
            yield f"Not in {section.section}: {_listed(section.missing)}."
    if score.mapped:
        yield f"Counted as the subset they rebuild, not the benchmark's own pairs: {_listed(score.mapped)}."
    if score.unknown:
        yield f"Not counted, no subset of RewardBench: {_listed(_counted(score.unknown))}."
    if score.ties:
        yield f"{score.ties} pairs with equal rewards count as wrong, as in the benchmark's own code."
    if score.unread:
        yield f"Rows that were not read: {_listed(_counted(score.unread))}."
    if score.truncated_texts:
        yield f"{score.truncated_texts} texts were cut to the model's length."


def _seen_notes(seen: PromptsInCommon | None, keep: bool) -> Iterator[str]:
    if seen is None:
        yield "Whether the model was trained on these prompts was not checked: give --trained-on."
    elif not seen.shared:
        yield f"None of the {seen.prompts} prompts is in the training pairs."
    else:
        done = "counted all the same" if keep else "left out"
        where = _listed(_counted(seen.by_category))
        yield (f"Warning: the model was trained on {seen.shared} of the {seen.prompts} prompts; their "
               f"{len(seen.pairs)} pairs are {done}: {where}.")  # fmt: skip


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"{name} ({n})" for name, n in counts.items()]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Names in one line; a file decides what they are, so they are cut where they are many or long."""
    shown = [name if len(name) <= 60 else name[:60] + "…" for name in list(names)[:_MOST]]
    more = [f"{len(names) - _MOST} more"] * (len(names) > _MOST)
    return ", ".join(shown + more)
