"""`seamark audit …`: score pairs, flip or remove them, undo it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from seamark.cli.explain import Ask, AskOptions, asked, cost_rows
from seamark.cli.options import Common, Many, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError, DataError, FormatError
from seamark.run import read_json, write_json

if TYPE_CHECKING:
    from seamark.audit.judge import Judged
    from seamark.features import Scan
    from seamark.text import Pairs

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]


def score(
    common: Shared, ask: Ask, scan: Path | None = None, features: Path | None = None, pairs: Many = (),
    method: str = "safer", group: str | None = None, sae: str | None = None, controls: Many = (),
    margins: Path | None = None, criterion: str = "", one_order: bool = False, combination: Path | None = None,
    signals: Many = (), folds: int = 5, seed: int = 0, out: Path | None = None, list: bool = False,
) -> None:  # fmt: skip
    """Score every pair: the lower, the more suspicious its label.

    With --llm, the method judge asks a language model which of a pair's answers is better. What that is expected to
    take is said before it starts; --dry-run stops there.

    Args:
        common: options of every command.
        ask: the language model of the method judge.
        scan: a scan's folder.
        features: features.json.
        pairs: preference pairs as group=file; with a scan, the scores of just these.
        method: see --list, which says what each one needs.
        group: the group that fitted methods and the judge score; without it, the recipe's target.
        sae: the SAE of the method latents, where the scan holds several.
        controls: feature sets of controls, as untrained=file and random_latents=file.
        margins: JSON {pair id: [margins by reward models that never saw its prompt]}.
        criterion: what "better" means to the judge, a sentence; needed for groups other than safety.
        one_order: show the judge each pair once, at half the cost; a taste for what stands first is not made up for.
        combination: combination.json, for the method combined.
        signals: scores that the combination takes, as method=scores.json.
        folds: folds of prompts of cross-fitted methods.
        seed: of the method random, and of folds.
        out: folder for scores.json.
        list: name the methods and stop.
    """
    from seamark.audit import METHODS, PairScores, score_pairs
    from seamark.audit.combine import Combination
    from seamark.features import FeatureSet, Scan

    if list:
        found = [{"name": m.name, "kind": m.kind, "needs": m.needs, "about": m.about} for m in METHODS.values()]
        finish({"methods": sorted(METHODS), "about": found}, as_json=common.json, title="Methods",
               columns=("name", "kind", "needs", "about"),
               rows=[(m.name, m.kind, ", ".join(m.needs), m.about) for m in METHODS.values()])  # fmt: skip
        return
    recipe = the_recipe(common)
    group = group or recipe.target
    known = METHODS[method].needs if method in METHODS else ()
    needs_pairs = bool(pairs) or (scan is None and "pairs or scan" in known) or "pairs" in known or method == "judge"
    chosen = the_pairs(recipe, pairs) if needs_pairs else None
    opened = Scan.open(scan) if scan else None
    if chosen is not None and opened is not None:
        _check_scanned(opened, chosen, demo=not pairs and not recipe.data.pairs)
    judged = None
    if chosen is not None and method == "judge":
        judged = _judged(common, ask, chosen, group, criterion, one_order=one_order, out=out)
        if judged is None:
            return
    elif ask.llm is not None:
        raise ConfigError(f"the method {method!r} asks no language model", where="--llm", fix="Write --method judge")
    scores = score_pairs(
        opened, FeatureSet.load(features) if features else None, method=method,
        pairs=chosen, seed=seed, group=group, sae=sae, folds=folds,
        controls={name: FeatureSet.load(file) for name, file in _named(controls, "--controls").items()},
        margins=_margins(margins) if margins else None, judged=judged.values if judged else None,
        combination=Combination.load(combination) if combination else None,
        signals={name: PairScores.load(Path(file)) for name, file in _named(signals, "--signals").items()},
    )  # fmt: skip
    if out is not None:
        scores.save(out / "scores.json")
        if judged is not None:
            write_json(out / "judged.json", judged)
    rows = [(i, f"{scores.values[i]:+.4f}") for i in scores.lowest(20)]
    finish(scores.model_dump(), as_json=common.json, out=out, title=f"Most suspicious by {method}",
           columns=("pair", "score"), rows=rows)  # fmt: skip


def _check_scanned(scan: Scan, pairs: Pairs, *, demo: bool) -> None:
    """Pairs and scan belong together: said before a language model is paid to judge them."""
    from seamark.audit.scanned import check_same_labels

    missing = [i for i in pairs.ids if i not in scan.rows_by_pair]
    if missing and demo:
        raise ConfigError("the scan is not of the demo pairs", where="--pairs", fix="Give the pairs that were scanned")
    if missing:
        raise DataError(f"{len(missing)} of {len(pairs)} pairs were not scanned, the first being {missing[0]!r}",
                        where=str(scan.path), fix="Give the pairs that were scanned")  # fmt: skip
    check_same_labels(scan, pairs)


def _named(items: Many, option: str) -> dict[str, str]:
    """`name=file` options as {name: file}."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise ConfigError(f"{item!r} is not of the form name=file", where=option,
                              fix=f"Write {option} name=file.json")  # fmt: skip
        if name in found:
            raise ConfigError(f"{name!r} is given twice", where=option, fix="Give each name once")
        found[name] = file
    return found


def _margins(path: Path) -> dict[str, list[float]]:
    """{pair id: margins}; `FormatError` on anything else."""
    from pydantic import FiniteFloat, TypeAdapter, ValidationError

    try:
        return TypeAdapter(dict[str, list[FiniteFloat]]).validate_python(read_json(path))
    except ValidationError as e:
        key = ".".join(map(str, e.errors()[0]["loc"]))
        raise FormatError("not margins by pair id", where=f"{path}, key {key}" if key else str(path),
                          fix='Write {"pair id": [margin, …], …}') from None  # fmt: skip


def _judged(
    common: Common, ask: AskOptions, pairs: Pairs, group: str, criterion: str, *, one_order: bool, out: Path | None
) -> Judged | None:
    """Judgements of the group's pairs; None after a dry run."""
    from seamark.audit.judge import SAFETY, judge_estimate, judge_pairs

    if not criterion and group != "safety":
        raise ConfigError(f"what is a better answer in group {group!r}?", where="--criterion",
                          fix="Say it in a sentence")  # fmt: skip
    if ask.llm is None:
        raise ConfigError("the method 'judge' needs a language model", where="--llm",
                          fix="Write --llm NAME, as its server calls it")  # fmt: skip
    if out is None and ask.cache is None and not ask.dry_run:
        raise ConfigError("answers that are paid need a place", where="--out", fix="Give --out or --cache")
    mine = pairs.group(group)
    if len(mine) == 0:
        raise DataError(f"no pairs in group {group!r}", fix=f"The groups are: {', '.join(pairs.groups)}")
    with asked(ask, out or Path()) as asking:
        if asking is None:
            return None
        expected = judge_estimate(asking.llm, mine, criterion or SAFETY, both_orders=not one_order)
        rows = [
            ("pairs", f"{len(mine):,}"), ("already answered", f"{expected.cached:,}"),
            ("to ask", f"{expected.to_ask:,}"), ("tokens to send, expected", f"{expected.tokens_in:,}"),
            ("tokens to receive, expected", f"{expected.tokens_out:,}"), *cost_rows(expected),
        ]  # fmt: skip
        if ask.dry_run:
            finish({"dry_run": True, "pairs": len(mine)} | expected.model_dump(), as_json=common.json,
                   title=f"Dry run: {asking.llm.name}", columns=("what", "value"), rows=rows)  # fmt: skip
            return None
        sys.stderr.write("".join(f"  {what}: {value}\n" for what, value in rows))
        return judge_pairs(asking.llm, mine, criterion or SAFETY, both_orders=not one_order)


def poison(common: Shared, rate: float, scores: Path, out: Path, pairs: Many = (), seed: int = 0) -> None:
    """Flip the labels of a group's highest-scoring pairs, to measure what that does. Writes a manifest that undoes it.

    Args:
        common: options of every command.
        rate: share of the target group, e.g. 0.05.
        scores: scores.json of `audit score`.
        out: folder for edited.jsonl and manifest.json.
        pairs: preference pairs as group=file; without any, the demo pairs.
        seed: decides ties.
    """
    _edit("poison", common, rate, scores, out, pairs, seed)


def denoise(common: Shared, rate: float, scores: Path, out: Path, pairs: Many = (), seed: int = 0) -> None:
    """Remove a group's lowest-scoring pairs. Writes a manifest that undoes it.

    Args:
        common: options of every command.
        rate: share of the target group, e.g. 0.04.
        scores: scores.json of `audit score`.
        out: folder for edited.jsonl and manifest.json.
        pairs: preference pairs as group=file; without any, the demo pairs.
        seed: decides ties.
    """
    _edit("denoise", common, rate, scores, out, pairs, seed)


def _edit(kind: str, common: Common, rate: float, scores: Path, out: Path, pairs: Many, seed: int) -> None:
    from seamark import audit

    recipe = the_recipe(common)
    change = audit.poison if kind == "poison" else audit.denoise
    edit = change(the_pairs(recipe, pairs), audit.PairScores.load(scores), rate, recipe.target, seed)
    edited, manifest = audit.write_edit(edit, out)
    about = edit.manifest
    result = {"kind": about.kind, "method": about.method, "group": about.group, "rate": about.rate,
              "n_edited": about.n_edited, "edited": str(edited), "manifest": str(manifest)}  # fmt: skip
    finish(result, as_json=common.json, out=out, title=f"{kind} by {about.method}", columns=("what", "value"),
           rows=[(k, str(v)) for k, v in result.items()])  # fmt: skip


def undo(
    edited: Annotated[Path, tyro.conf.Positional], manifest: Annotated[Path, tyro.conf.Positional], out: Path,
    group: str | None = None, json: bool = False,
) -> None:  # fmt: skip
    """Turn an edited file back into the original rows, field for field and in order.

    Exact duplicates and rows that are no pair are dropped when files are read, so they do not come back; an audit
    names them in data/rejected.jsonl.

    Args:
        edited: clean.jsonl or flipped.jsonl of `audit report`, edited.jsonl of `audit poison` and `audit denoise`; its
            rows may be in any order.
        manifest: what was written with it: clean-manifest.json, flipped-manifest.json, or the manifest.json of
            `audit poison` and `audit denoise`.
        out: file for the original rows (JSONL).
        group: only this group's rows.
        json: print the result as JSON on stdout.
    """
    from seamark.audit import undo_file

    rows = undo_file(edited, manifest, out, group=group)
    finish({"rows": len(rows), "file": str(out)}, as_json=json, title="Undone", columns=("rows", "file"),
           rows=[(str(len(rows)), str(out))])  # fmt: skip
