"""`seamark sae eval`, `seamark sae convert`: how good SAEs are, and how they are written in other formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.options import Common, Many, named_saes, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from seamark.features.evaluation import EvaluatedSAE, SAEEvaluation
    from seamark.stats import Estimate

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]


def sae_eval(
    common: Shared, model: str, sae: Many, text: Many = (), pairs: Many = (), out: Path | None = None,
    positions: Literal["tokens", "clauses", "sentences", "last"] = "tokens",
    scope: Literal["all", "response"] = "all", replace: Literal["all", "text"] = "all",
    split: Literal["test", "all"] = "all", max_texts: int | None = None, hookpoint: str | None = None,
    k: int | None = None,
) -> None:  # fmt: skip
    """How well SAEs rebuild activations, and what a model loses when it gets what they rebuild.

    Args:
        common: options of every command.
        model: a reward model or causal language model: a folder or a Hub name.
        sae: an SAE (a folder or Hub name of any known format), or name=SAE; repeat for more, all read in one pass.
        text: texts to measure on (JSONL with `text`, .txt, Parquet or a Hub name); repeat for more files.
        pairs: or preference pairs as group=file; without either, the demo pairs.
        out: folder for result.json.
        positions: where reconstruction and sparsity are measured; best where the SAE was trained.
        scope: prompt and response, or the response only. A plain text is all response.
        replace: what the model gets rebuilt: all tokens, or text (neither special tokens nor a text's first token).
        split: all pairs, or the held-out side of the recipe's split.
        max_texts: at most so many texts, those whose ids hash lowest (for pairs: --set data.max_pairs=N).
        hookpoint: for SAEs whose files name none.
        k: for SAEs whose files do not say it.
    """
    from seamark.features.evaluation import SAEEvalConfig, evaluate_saes
    from seamark.model.loading import load_model
    from seamark.sae import SparseAutoencoder

    recipe = the_recipe(common)
    if text and pairs:
        raise ConfigError("texts and pairs are given", where="--text, --pairs", fix="Give one kind")
    named = named_saes(sae)
    data: Any = _texts(text, max_texts) if text else the_pairs(recipe, pairs, "test" if split == "test" else None)
    suite = {name: SparseAutoencoder.from_pretrained(path, hookpoint=hookpoint, k=k) for name, path in named.items()}
    config = SAEEvalConfig(
        positions=positions, rule=recipe.scan.rule, scope=scope, replace=replace,
        max_length=recipe.scan.max_length or recipe.reward.max_length, batch_tokens=recipe.scan.batch_tokens or 8192,
        precision=recipe.scan.precision,
    )  # fmt: skip
    loaded = load_model(model)
    found = evaluate_saes(loaded, {name: one.to(loaded.device) for name, one in suite.items()}, data, config)
    columns, rows = _table(found)
    title = f"SAEs on {found.model} ({found.saes[0].quality.n:,} positions)"
    finish(found.model_dump(mode="json"), as_json=common.json, out=out, title=title, columns=columns, rows=rows)


def _texts(sources: Sequence[str], most: int | None) -> list[tuple[str, str]]:
    from seamark.text import read_texts
    from seamark.text.pairs import hash_unit

    found = list(read_texts(sources))
    if most is not None and most < 1:
        raise ConfigError(f"{most} texts are too few", where="--max-texts", fix="Take 1 or more")
    kept = {i for i, _ in sorted(found, key=lambda t: (hash_unit(t[0]), t[0]))[:most]}
    return [t for t in found if t[0] in kept]


Cell = Callable[["EvaluatedSAE"], str]


def _table(found: SAEEvaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and one row for each SAE; what a model loses where it was measured."""
    columns = _quality_columns()
    if found.kind == "language model":
        columns |= _loss_columns()
    elif any(one.reward for one in found.saes):
        columns |= _reward_columns()
    return ["SAE", *columns], [[one.name, *(cell(one) for cell in columns.values())] for one in found.saes]


def _quality_columns() -> dict[str, Cell]:
    from seamark.show.numbers import number, percent

    return {
        "FVU": lambda s: number(s.quality.fvu),
        "L0": lambda s: number(s.quality.l0),
        "dead": lambda s: percent(s.quality.dead_share),
        "dense": lambda s: percent(s.quality.dense_share),
    }


def _loss_columns() -> dict[str, Cell]:
    def cell(name: str, unit: str = "number") -> Cell:
        return lambda s: _short(getattr(s.loss, name) if s.loss else None, unit)

    return {"CE": cell("ce_clean"), "with SAE": cell("ce_sae"), "KL": cell("kl_sae"),
            "CE recovered": lambda s: _whole(s.loss.ce_recovered if s.loss else None, "share")}  # fmt: skip


def _reward_columns() -> dict[str, Cell]:
    def cell(name: str, unit: str = "share") -> Cell:
        return lambda s: _short(getattr(s.reward.overall, name) if s.reward else None, unit)

    return {"|Δ reward|": cell("abs_delta", "number"), "r": cell("correlation", "number"),
            "accuracy": cell("accuracy_clean"), "with SAE": cell("accuracy_sae"),
            "change": lambda s: _whole(s.reward.overall.accuracy_change if s.reward else None, "points")}  # fmt: skip


def _short(estimate: Estimate | None, unit: str) -> str:
    """A value without its interval: a table of many columns has no room, and `result.json` has it."""
    from seamark.show.numbers import in_unit

    return "–" if estimate is None or estimate.value is None else in_unit(estimate.value, unit)


def _whole(estimate: Estimate | None, unit: str) -> str:
    """The number that counts: with its interval, or the reason why there is none."""
    from seamark.show.numbers import estimate_text

    return "–" if estimate is None else estimate_text(estimate, unit)


def sae_convert(
    source: Annotated[str, tyro.conf.arg(name="from")], to: Path, format: Literal["seamark", "saelens", "sparsify"],
    hookpoint: str | None = None, k: int | None = None,
    activation: Literal["topk_relu", "jumprelu", "relu"] | None = None, component: int | None = None,
    revision: str | None = None, approximate: bool = False, json: bool = False,
) -> None:  # fmt: skip
    """Write an SAE of any known format in another one. Says what it had to change; refuses what cannot be said there.

    Args:
        source: the SAE: a folder, a file, or a repository of the Hub (owner/name, owner/name/folder).
        to: the folder to write; for sparsify, named for the hookpoint.
        format: the format to write.
        hookpoint: which SAE, where there are several; or the hookpoint, where the file names none.
        k: latents a position, for formats that do not store it (SAFER, Safe-SAIL).
        activation: for Safe-SAIL files, which do not store it.
        component: for a Safe-SAIL file of several SAEs, which one, from 0.
        revision: branch, tag or commit on the Hub.
        approximate: write also where the format has only close words for it, and say what changes.
        json: print the result as JSON on stdout.
    """
    from seamark.sae import formats

    stored = formats.read(source, hookpoint=hookpoint, k=k, activation=activation, component=component,
                          revision=revision)  # fmt: skip
    try:
        notes = (*stored.notes, *formats.write(stored, to, format, approximate=approximate))
    except FormatError as e:
        raise FormatError(e.what, where=e.where, fix=e.fix.replace("approximate=True", "--approximate")) from e
    result = {"from": source, "from_format": stored.format, "to": str(to), "format": format,
              "sae": stored.config.model_dump(), "notes": list(notes)}  # fmt: skip
    c = stored.config
    size = f"{c.activation}, d_in {c.d_in:,}, d_sae {c.d_sae:,}" + (f", k {c.k}" if c.k else "")
    rows = [("from", f"{source} ({stored.format})"), ("to", f"{to} ({format})"), ("SAE", size),
            *(("note", note) for note in notes)]  # fmt: skip
    finish(result, as_json=json, title="Converted", columns=("what", "value"), rows=rows)
