"""`seamark audit …`: score pairs, flip or remove them, undo it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from seamark.cli.options import Common, Many, the_pairs, the_recipe
from seamark.cli.output import finish

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]


def score(
    common: Shared, scan: Path | None = None, features: Path | None = None, pairs: Many = (), method: str = "safer",
    seed: int = 0, out: Path | None = None, list: bool = False,
) -> None:  # fmt: skip
    """Score every pair: the lower, the more suspicious its label.

    Args:
        common: options of every command.
        scan: a scan's folder (methods safer and margin).
        features: features.json (method safer).
        pairs: preference pairs as group=file (methods random and length).
        method: see --list.
        seed: seed of the method random.
        out: folder for scores.json.
        list: name the methods and stop.
    """
    from seamark.audit import METHODS, score_pairs
    from seamark.features import FeatureSet, Scan

    if list:
        finish({"methods": sorted(METHODS)}, as_json=common.json, title="Methods", columns=("name",),
               rows=[(m,) for m in sorted(METHODS)])  # fmt: skip
        return
    recipe = the_recipe(common)
    scores = score_pairs(
        Scan.open(scan) if scan else None, FeatureSet.load(features) if features else None, method=method,
        pairs=the_pairs(recipe, pairs) if pairs or method in ("random", "length") else None, seed=seed,
    )  # fmt: skip
    if out is not None:
        scores.save(out / "scores.json")
    rows = [(i, f"{scores.values[i]:+.4f}") for i in scores.lowest(20)]
    finish(scores.model_dump(), as_json=common.json, out=out, title=f"Most suspicious by {method}",
           columns=("pair", "score"), rows=rows)  # fmt: skip


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

    Args:
        edited: edited.jsonl (any order).
        manifest: the manifest.json written beside it.
        out: file for the original rows (JSONL).
        group: only this group's rows.
        json: print the result as JSON on stdout.
    """
    from seamark.audit import undo_file

    rows = undo_file(edited, manifest, out, group=group)
    finish({"rows": len(rows), "file": str(out)}, as_json=json, title="Undone", columns=("rows", "file"),
           rows=[(str(len(rows)), str(out))])  # fmt: skip
