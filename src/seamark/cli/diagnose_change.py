"""`seamark diagnose change`: two checkpoints of a model through one autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from seamark.cli.options import Common, Many, named_saes, the_pairs, the_recipe
from seamark.cli.output import finish
from seamark.errors import ConfigError

if TYPE_CHECKING:
    from seamark.diagnose.change_report import ChangeReport, FeatureMove

Shared = Annotated[Common, tyro.conf.OmitArgPrefixes]
By = Literal["activation", "firing", "contrast", "attribution", "margin"]
COLUMNS = ("feature", "state", "texts before", "texts after", "before", "after", "change [95 %]", "q", "null 95 %",
           "contrast")  # fmt: skip


def diagnose_change(
    common: Shared, out: Path | None = None, before: str | None = None, after: str | None = None,
    sae: str | None = None, null: Many = (), scan_before: Path | None = None, scan_after: Path | None = None,
    scan_null: Many = (), sae_id: str | None = None, pairs: Many = (), texts: Many = (),
    split: Literal["train", "test", "all"] = "all", group: str | None = None, features: Path | None = None,
    by: By = "activation", top: int = 20, least: int = 10, attribution: bool = True, draws: int = 1000, seed: int = 0,
) -> None:  # fmt: skip
    """Which features appear, vanish and move from one checkpoint to another, and which pairs show it.

    Both models read the same texts once, through one SAE. Give another training of the first as --null: retraining
    alone moves features, and "moved" means more than that. Writes result.json, the scans, and tables (.md, .csv, .tex).

    Args:
        common: options of every command.
        out: folder for results and scans.
        before: the one model: a folder or a Hub name.
        after: the other one, of the same architecture.
        sae: the SAE's folder, or name=folder.
        null: another training of the first model, such as with another seed; repeat for more.
        scan_before: a scan made before, instead of --before; with the model too, attributions are read.
        scan_after: a scan of the same texts with the same SAE, instead of --after.
        scan_null: a scan instead of --null; repeat for more.
        sae_id: the SAE's name, where the scans hold several.
        pairs: group=file; repeat for more. Without pairs and texts: those of the recipe, or the demo pairs.
        texts: plain texts instead: JSONL with `text`, .txt, Parquet or a Hub name.
        split: only one side of the recipe's split of the pairs.
        group: texts of this group count for features; else the recipe's target.
        features: a feature set (JSON), for which it is asked whether it moved more than others.
        by: the measure that features are ordered by.
        top: features in the table, besides those of --features.
        least: texts in which a feature must fire, before or after, to be judged.
        attribution: also read gradients of reward models: what features add to rewards and margins.
        draws: bootstrap draws.
        seed: of draws, swaps and permutations.
    """
    from seamark.diagnose.change import change
    from seamark.features import FeatureSet, Scan
    from seamark.model import load_model
    from seamark.sae import SparseAutoencoder

    scanned = scan_before is not None or scan_after is not None or bool(scan_null)
    options: dict[str, Any] = {
        "features": None if features is None else FeatureSet.load(_features(features)), "by": by, "top": top,
        "least": least, "attribution": attribution, "draws": draws, "seed": seed,
    }  # fmt: skip
    recipe = the_recipe(common)
    if scanned:
        if scan_before is None or scan_after is None:
            raise ConfigError("one scan alone", where="--scan-before, --scan-after", fix="Give both")
        if pairs or texts:
            raise ConfigError(
                "scans are given, and texts to scan too", where="--scan-before", fix="Give one or the other"
            )
        given = [name for name in (before, after, *null) if name is not None]
        folder = None if sae is None else next(iter(named_saes([sae]).values()))
        report = change(
            Scan.open(scan_before), Scan.open(scan_after), null=[Scan.open(place) for place in scan_null],
            sae_id=sae_id, group=group, models=[load_model(name) for name in given],
            sae=None if folder is None else SparseAutoencoder.from_pretrained(folder), **options,
        )  # fmt: skip
    else:
        report = _read(
            common, out, before, after, sae, null, pairs, texts, split, _target(recipe, group, texts), options
        )
    if out is not None:
        _tables(out, report)
    finish(report.model_dump(mode="json"), as_json=common.json, out=out, title=_title(report), columns=COLUMNS,
           rows=[_row(f, report) for f in report.features])  # fmt: skip


def _read(
    common: Common, out: Path | None, before: str | None, after: str | None, sae: str | None, null: Many, pairs: Many,
    texts: Many, split: str, group: str | None, options: dict[str, Any],
) -> ChangeReport:  # fmt: skip
    """From models and texts."""
    from seamark.diagnose.change import change_models
    from seamark.model import load_model
    from seamark.pipelines.suite import write_rejects
    from seamark.sae import SparseAutoencoder
    from seamark.text import read_texts

    if before is None or after is None or sae is None:
        raise ConfigError("two models and an SAE are needed", where="--before, --after, --sae",
                          fix="Give them, or --scan-before and --scan-after")  # fmt: skip
    if out is None:
        raise ConfigError("the scans need a place", where="--out", fix="Write --out runs/change")
    if pairs and texts:
        raise ConfigError("both pairs and texts are given", where="--texts", fix="Give one or the other")
    recipe = the_recipe(common)
    name, place = next(iter(named_saes([sae]).items()))
    corpus = read_texts(texts) if texts else the_pairs(recipe, pairs, None if split == "all" else split)
    write_rejects(list(corpus.rejected), out)
    config = recipe.scan.model_copy(update={"max_length": recipe.scan.max_length or recipe.reward.max_length})
    return change_models(
        load_model(before), load_model(after), SparseAutoencoder.from_pretrained(place), corpus, out / "scans",
        sae_id=name, null=[load_model(one) for one in null], config=config, group=group, **options,
    )  # fmt: skip


def _target(recipe: Any, group: str | None, texts: Many) -> str | None:
    return group if group is not None or texts else recipe.target


def _features(path: Path) -> Path:
    return path / "features.json" if path.is_dir() else path


def _tables(out: Path, report: ChangeReport) -> None:
    """The tables as files."""
    from seamark.show.exports import write_table

    rows = []
    for f in report.features:
        for name, m in f.measures.items():
            texts = ", ".join(t.text_id for t in f.texts)
            rows.append([f"{f.sae}/{f.latent}", f.sign, _state(f, report), f.texts_before, f.texts_after, name,
                         m.before, m.after, m.change, m.q, m.null, m.moved, texts])  # fmt: skip
    columns = ["feature", "sign", "state", "texts before", "texts after", "measure", "before", "after", "change", "q",
               "null", "moved", "texts"]  # fmt: skip
    write_table(out, "features", columns, rows,
                f"Features from {report.before} to {report.after}", units={"change": "signed"})  # fmt: skip
    if report.groups:
        write_table(out, "rewards", ["group", "pairs", "accuracy before", "accuracy after", "change", "margin",
                                     "reranked", "to right", "to wrong"],
                    [[g.group, g.n_pairs, g.accuracy_before, g.accuracy_after, g.accuracy, g.margin, g.reranked,
                      g.to_right, g.to_wrong] for g in report.groups],
                    f"Rewards from {report.before} to {report.after}",
                    units={"change": "points", "margin": "signed"})  # fmt: skip
        write_table(out, "reranked", ["pair", "group", "margin before", "margin after"],
                    [[p.pair_id, p.group, p.before, p.after] for p in report.reranked],
                    "Pairs whose ranking changed")  # fmt: skip


def _title(report: ChangeReport) -> str:
    from seamark.show.numbers import estimate_text, number, percent, signed

    kind = report.null.kind + (f" ({', '.join(report.null.models)})" if report.null.models else "")
    lines = [
        f"Change from {report.before} to {report.after} through {report.sae} at {report.hookpoint}, on "
        f"{report.n_texts:,} texts of {report.group} ({report.n_prompts:,} prompts)",
        f"{report.judged:,} of {report.d_sae:,} features judged; {_turned(report.appears, report.null_appears)} "
        f"appear, {_turned(report.vanishes, report.null_vanishes)} vanish; null: {kind}",
    ]  # fmt: skip
    lines += [f"{m.measure}: {m.moved} moved of {m.significant} with q ≤ 0.05; median |change| {number(m.median)}, "
              f"null {number(m.null_median)}" for m in report.measures]  # fmt: skip
    lines += [f"the set by {s.measure}: {s.moved} of {s.n} moved; AUROC of |change| {number(s.auroc)} "
              f"(p {number(s.p)}, against features of equal level {number(s.p_matched)}; null {number(s.null_auroc)}, "
              f"above the null {number(s.excess_auroc)}); along its signs {estimate_text(s.along, 'signed')}, "
              f"null {signed(s.null_along)}, beyond it {estimate_text(s.along_beyond, 'signed')}"
              for s in report.feature_set]  # fmt: skip
    for g in report.groups:
        null = f" (null {', '.join(percent(n) for n in g.null_reranked)})" if g.null_reranked else ""
        lines.append(f"{g.group}, {g.n_pairs:,} pairs: accuracy {percent(g.accuracy_before.value)} → "
                     f"{percent(g.accuracy_after.value)} ({estimate_text(g.accuracy, 'points')}), margin "
                     f"{estimate_text(g.margin, 'signed')}, reranked {percent(g.reranked.value)}{null}: "
                     f"{g.to_wrong} to wrong, {g.to_right} to right")  # fmt: skip
    lines += [f"FVU {fit.who}: {number(fit.fvu)}" for fit in report.fits]
    lines += [f"{what} is not available: {why}" for what, why in report.reasons.items()]
    return "\n".join([*lines, *(f"note: {caveat}" for caveat in report.caveats)])


def _turned(n: int, null: tuple[int, ...]) -> str:
    """`5 (null 4, 7)`"""
    return f"{n} (null {', '.join(map(str, null)) or 'not available'})"


def _state(f: FeatureMove, report: ChangeReport) -> str:
    """`vanishes (so in 1 of 2 null)`"""
    return f.state if f.null_same is None else f"{f.state} (so in {f.null_same} of {len(report.null_vanishes)} null)"


def _row(f: FeatureMove, report: ChangeReport) -> tuple[str, ...]:
    from seamark.show.numbers import estimate_text, number, signed

    name = f"{f.sae}/{f.latent}" + ("" if f.sign is None else " +" if f.sign > 0 else " −")
    m, contrast = f.measures.get(report.by), f.measures.get("contrast")
    if m is None:
        return name, _state(f, report), str(f.texts_before), str(f.texts_after), *["–"] * 6
    return (
        name, _state(f, report), str(f.texts_before), str(f.texts_after), number(m.before), number(m.after),
        estimate_text(m.change, "signed"), "–" if m.q is None else number(m.q),
        "–" if m.null is None else number(m.null),
        "–" if contrast is None else f"{signed(contrast.before)} → {signed(contrast.after)}",
    )  # fmt: skip
