"""`seamark simulate`: how well explanations predict, on texts they were not made from, where their features fire."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.explain import Ask, asked, cost_rows, spent, spent_row
from seamark.cli.options import Common
from seamark.cli.output import finish
from seamark.errors import ConfigError, ModelError, RunError

if TYPE_CHECKING:
    from seamark.explain.comparing import Comparison, Count
    from seamark.explain.llm import LLM, CostEstimate
    from seamark.explain.records import Explanation, Key, Level, Simulation
    from seamark.explain.simulating import SimulationConfig
    from seamark.features import FeatureContexts

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
SIMULATIONS = "simulations.jsonl"
UNCHECKED = "No explained.json beside the explanations: nothing shows that they were made from these contexts."
GOOD = 0.2
"""Score from which on Safe-SAIL's released database keeps a feature (METHODS §2.4)."""
Row = tuple[str, str]


def simulate(
    common: Shared, ask: Ask, explained: Path, out: Path, level: Literal["segment", "token"] = "segment",
    compare: bool = False, n_texts: int = 40, batch: int = 1, tokenizer: str | None = None,
) -> None:  # fmt: skip
    """Score explanations by simulation on held-out texts, as many with the feature as without.

    Writes simulations.jsonl and result.json. Without --llm, lexical explanations are simulated from their words.

    Args:
        common: options of every command.
        ask: the language model that simulates.
        explained: folder that `explain` wrote.
        out: folder for the results.
        level: predict 0 or 1 for segments of up to 15 tokens, or 0-10 for each token.
        compare: simulate at both levels and compare scores, tokens and money.
        n_texts: texts of a feature, at most: half with it, half without.
        batch: texts in a call of the language model.
        tokenizer: with --compare, the model whose tokenizer counts what is not sent: all of it without --llm, else what
            batches would save; without it the scan's, where that can be loaded.
    """
    from seamark.explain import folder
    from seamark.explain.records import read_explanations, write_simulations
    from seamark.explain.simulating import for_simulation
    from seamark.explain.simulating import simulate as score
    from seamark.features.context_sets import iter_contexts

    config = _config(n_texts, batch)
    if out.resolve() == explained.resolve():
        raise ConfigError("the explanations' own result.json lies there", where="--out", fix="Choose another folder")
    manifest = folder.check_folder(explained)
    contexts = for_simulation(iter_contexts(explained / folder.CONTEXTS), config)
    explanations = read_explanations(explained / folder.EXPLANATIONS)
    levels: list[Level] = ["segment", "token"] if compare else [level]
    with asked(ask, out) as asking:
        llm = asking.llm if asking else None
        if llm is not None and ask.dry_run:
            _show_estimate(llm, contexts, explanations, levels, config, common)
            return
        compared: Comparison | None = None
        if compare:
            compared, found = _compared(contexts, explanations, llm, config, explained, tokenizer)
        else:
            found = score(contexts, explanations, llm, level=level, config=config)
        books = spent(asking.ledger) if asking else None
    write_simulations(out / SIMULATIONS, found)
    summaries = {name: summary([s for s in found if s.level == name]) for name in levels}
    result: dict[str, Any] = {
        "explained": str(explained), "explained_key": manifest.key if manifest else None,
        "method": "llm" if llm else "lexical", "model": llm.name if llm else None,
        "config": config.model_dump(), "levels": summaries,
    }  # fmt: skip
    if compared is not None:
        words = ["seamark", "simulate", "--explained", str(explained), "--out", str(out), "--compare", "--n-texts",
                 str(n_texts), "--batch", str(batch)]  # fmt: skip
        command = f"{shlex.join(words)} --llm NAME --base-url URL"
        result |= {"comparison": compared, "llm": compared if llm else None, "llm_command": command}
    notes = [*_notes(llm, explanations), *([UNCHECKED] if manifest is None else [])]
    rows = [row for name, one in summaries.items() for row in _level_rows(name, one)]
    rows += _comparison_rows(compared, result["llm_command"]) if compared is not None else []
    rows += [spent_row(books)] if books else []
    rows += [("note", note) for note in (*notes, *(books["notes"] if books else ()))]
    title = f"Simulation ({result['method']}{f', {llm.name}' if llm else ''})"
    finish(result | {"notes": notes, "cost": books}, as_json=common.json, out=out, title=title,
           columns=("what", "value"), rows=rows)  # fmt: skip


def summary(simulations: Sequence[Simulation]) -> dict[str, Any]:
    """The distribution of scores over features, and why others have none. Median and share are over those with one."""
    from math import floor
    from statistics import fmean, median

    scores = [s.correlation.value for s in simulations if s.correlation.value is not None]
    accuracies = [s.accuracy.value for s in simulations if s.accuracy.value is not None]
    bins = Counter(min(floor(10 * v), 9) for v in scores)
    return {
        "features": len(simulations), "scored": len(scores), "median": median(scores) if scores else None,
        "mean": fmean(scores) if scores else None, "max": max(scores, default=None),
        "share_good": sum(v >= GOOD for v in scores) / len(scores) if scores else None, "good": GOOD,
        "histogram": {f"{i / 10:.1f}": bins[i] for i in range(-10, 10)},
        "median_accuracy": median(accuracies) if accuracies else None,
        "not_available": dict(Counter(s.correlation.reason for s in simulations
                                      if s.correlation.value is None).most_common()),
        "n_texts": sum(s.n_texts for s in simulations), "n_units": sum(s.n_units for s in simulations),
        "calls_failed": sum(s.n_failed for s in simulations), "tokens_in": sum(s.tokens_in for s in simulations),
        "tokens_out": sum(s.tokens_out for s in simulations),
    }  # fmt: skip


def _config(n_texts: int, batch: int) -> SimulationConfig:
    from seamark.explain.simulating import SimulationConfig

    least = 2 * SimulationConfig().min_texts
    for value, lowest, option in ((n_texts, least, "--n-texts"), (batch, 1, "--batch")):
        if value < lowest:
            raise ConfigError(f"{value} is too few", where=option, fix=f"Give {lowest} or more")
    return SimulationConfig(n_texts=n_texts, batch=batch)


def _compared(
    contexts: Mapping[Key, FeatureContexts], explanations: Mapping[Key, Explanation], llm: LLM | None,
    config: SimulationConfig, explained: Path, tokenizer: str | None,
) -> tuple[Comparison, list[Simulation]]:  # fmt: skip
    from seamark.explain.comparing import compare

    name = tokenizer or _scanned_model(explained)
    count: Count | None = None
    try:
        count = None if name is None else _counter(name)
    except ModelError:
        if tokenizer is not None:
            raise
    if count is None and llm is None:
        what = "nothing says whose tokenizer counts what would be sent"
        if name is not None:
            what = f"the tokenizer of the scanned model {name!r} cannot be loaded to count what would be sent"
        raise ConfigError(what, where="--tokenizer", fix="Name a model: --tokenizer seamark/default")
    return compare(contexts, explanations, llm, config=config, count=count, tokenizer=name if count else None)


def _scanned_model(explained: Path) -> str | None:
    """The model of the scan that the explanations were made from; None where it cannot be told any more, or the name is
    the last part of a folder's: nobody asks the Hub for what happens to be called the same there."""
    from seamark.explain.folder import read_manifest
    from seamark.run import read_json

    manifest = read_manifest(explained)
    try:
        name = "" if manifest is None else str(read_json(Path(manifest.scan) / "scan.json")["model_name"])
    except (RunError, KeyError, TypeError):
        return None
    return name if "/" in name else None


def _counter(name: str) -> Count:
    from seamark.model.pretrained import load_tokenizer, resolve_name

    tokenizer = load_tokenizer(resolve_name(name))
    # Not verbose: a prompt may be longer than what the scanned model takes, which does not matter here.
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _show_estimate(
    llm: LLM, contexts: Mapping[Key, FeatureContexts], explanations: Mapping[Key, Explanation],
    levels: Sequence[Level], config: SimulationConfig, common: Common,
) -> None:  # fmt: skip
    from seamark.explain.querying import check_queries
    from seamark.explain.simulating import simulation_queries

    result: dict[str, Any] = {"dry_run": True, "features": len(contexts), "levels": {}}
    rows: list[Row] = [("features", f"{len(contexts):,}")]
    total: CostEstimate | None = None
    for level in levels:
        asked_for = simulation_queries(contexts, explanations, level=level, config=config)
        found = llm.estimate([query.request for query in asked_for], check_queries(asked_for))
        result["levels"][level] = found.model_dump()
        total = found if total is None else total + found
        rows += [
            (f"{level}s: already answered, to ask", f"{found.cached:,}, {found.to_ask:,}"),
            (f"{level}s: tokens to send, to receive, expected", f"{found.tokens_in:,}, {found.tokens_out:,}"),
        ]
    if total is not None:  # the levels share one budget
        result["total"] = total.model_dump()
        rows += cost_rows(total)
    finish(result, as_json=common.json, title=f"Dry run: {llm.name}", columns=("what", "value"), rows=rows)


def _notes(llm: LLM | None, explanations: Mapping[Key, Explanation]) -> list[str]:
    from seamark.explain.lexical import caveat

    told = caveat(explanations.values(), by_llm=llm is not None)
    return [
        *([] if llm else ["No LLM was given (--llm), so the lexical simulator was used."]),
        *([told] if told else []),
    ]


def _level_rows(name: str, one: Mapping[str, Any]) -> list[Row]:
    from seamark.show.numbers import number, percent

    rows = [
        (f"{name} scores: features with one", f"{one['scored']:,} of {one['features']:,}"),
        (f"{name} scores: median, mean, highest", ", ".join(number(one[key]) for key in ("median", "mean", "max"))),
        (f"{name} scores: share of {GOOD} or more", percent(one["share_good"])),
        (f"{name}s: balanced accuracy on texts, median", percent(one["median_accuracy"])),
        *((f"{name} scores not available: {reason}", f"{n:,}") for reason, n in one["not_available"].items()),
    ]  # fmt: skip
    return [*rows, (f"{name}s: calls failed", f"{one['calls_failed']:,}")] if one["calls_failed"] else rows


def _comparison_rows(found: Comparison, command: str) -> list[Row]:
    from seamark.show.numbers import estimate_text, percent

    rows = [(f"Spearman of segment with token scores, {found.n_both:,} features",
             estimate_text(found.spearman, "number")),
            ("scored on: texts answered in both ways", f"{sum(f.n_texts for f in found.features):,}")]  # fmt: skip
    how = "tokens" if found.measured else f"tokens that would be ({found.tokenizer})"
    for name, used in (("segments", found.segment), ("tokens", found.token)):
        if used is not None:
            money = "" if used.cost is None else f"; cost {used.cost:.4f}"
            rows.append((f"by {name}: {how} sent, received", f"{used.tokens_in:,}, {used.tokens_out:,}{money}"))
    rows.append(("tokens saved by segments", estimate_text(found.token_saving)))
    if found.measured:
        rows.append(("money saved by segments", estimate_text(found.cost_saving)))
    if many := found.batching:
        rows.append((f"tokens saved by {many.batch} texts in a call, by segments, by tokens",
                     f"{percent(many.segment_saving)}, {percent(many.token_saving)}"))  # fmt: skip
    return rows if found.measured else [*rows, ("with a language model: not measured yet", command)]
