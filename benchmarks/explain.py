"""Safe-SAIL's path from a suite of autoencoders to explained, scored features, without a language model.

Stages, each in a process of its own and kept in the scratch folder under a key of its settings, texts and code, so that
a benchmark that was broken off goes on: `suite`, `concepts`, `scan`, `yield`, `compare`, `time`, `server`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import harness, llm_throughput
from benchmarks.explaining.job import TRIAL, Row, Settings
from benchmarks.explaining.stages import STAGES, Bench
from benchmarks.explaining.tables import COMMAND, Rows, correlation, joined, permutation_p, table
from benchmarks.explaining.texts import VARIABLE
from benchmarks.harness import Claim, Result

FOLDER = harness.SCRATCH / "explain"
RUNS = 5
TARGETS = {
    "segment_token_saving": ("share", ">= 0.55"),
    "segment_vs_token_spearman": ("", ">= 0.8"),
    "icdf_vs_yield_spearman": ("", ""),
    "features_explained_per_min_offline": ("features/min", ">= 20"),
    llm_throughput.NAME: ("share", llm_throughput.TARGET),
    "swapped_null_over_icdf": ("x", "<= 0.5"),
    "swapped_null_over_l0_half": ("x", ""),
    "ranking_kendall_tau": ("", ""),
    "segment_token_saving_llm": ("share", ""),
    "segment_vs_token_spearman_llm": ("", ""),
}  # fmt: skip
"""{claim: (unit, target)}; 20 features a minute are 200 in ten minutes. Of the swapped null the issue says only that it
is far below I_CDF: at most half of it, in every autoencoder, is our bound, written down before the full run."""
ABOUT = (
    "{saes} TopKReLU autoencoders of MiniLM-L6 ({hookpoints}; k {ks}; d_sae {d_sae}) trained in one pass on "
    "{source}, then measured by concept metrics on contrast pairs; of each at most {features} features with a Q_f, "
    "drawn by hash, explained without a language model (by words) and simulated by segments on held-out texts. "
    "Yield: features with a domain and a score of {score:g} or more; its count is the share of those drawn times the "
    "features with a Q_f. Intervals of concept metrics resample pairs, those of correlations with the yield resample "
    "autoencoders, of which there are few; beside the latter stands the p of a two-sided permutation test. The "
    "swapped null is asked to be at most half of I_CDF (mean over concepts, demo pairs) in the worst autoencoder: a "
    "bound of ours, set before the run, where the issue says only far below. Scores of the lexical simulator tell "
    "how far a feature follows words, not how well a language model would explain it. Segments against tokens: "
    "{compare_features} features of one autoencoder ({compare_hookpoint}, k {compare_k}), one text a call; tokens "
    "are counted with MiniLM's WordPiece on the prompts that would be sent: it drops line breaks, which a language "
    "model's tokenizer counts. Time: from the finished scan to scores at both levels, without the scan and the "
    "counting; features without an explanation do not count"
)
Why = Mapping[str, str]


def run(
    runs: int | None = None, say: Callable[[str], None] = lambda _: None, *, stage: str | None = None,
    features: int | None = None, trial: bool = False, settings: Settings | None = None, folder: Path = FOLDER,
) -> Result:  # fmt: skip
    """All stages; `runs` rounds (5) of those that are timed, `time` and `server`.

    Args:
        stage: only these, separated by commas, and what they need; of the others what an earlier run left.
        features: so many features of each autoencoder, and for the comparison.
        trial: a tiny suite, for a look at whether all stages run; kept apart from the real one.
        settings: instead of the usual ones.
        folder: where stages are kept.
    """
    names = [name.strip() for name in stage.split(",")] if stage else list(STAGES)
    if unknown := [name for name in names if name not in STAGES]:
        raise ValueError(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    chosen = settings or (TRIAL if trial else Settings())
    chosen = chosen if features is None else chosen.with_features(features)
    bench = Bench(folder / "trial" if trial else folder, chosen, os.environ.get(VARIABLE) or None, say, runs or RUNS)
    bench.run(names)
    timed: Rows = {name: rows for name, rows in bench.rows.items() if STAGES[name].repeated}
    return Result(
        "explain", about(chosen, bench.rows) + harness.disturbed(timed), claims(bench.rows, bench.why),
        table(bench.rows), {"runs": runs or RUNS, "trial": trial, **asdict(chosen), "missing": bench.why,
                            "stages": stage_rows(bench.rows)},
    )  # fmt: skip


def about(s: Settings, rows: Rows) -> str:
    """What was measured, and on which texts."""
    numbers = {k: ", ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in asdict(s).items()}
    trained, scanned = rows.get("suite", [{}])[0], rows.get("scan", [{}])[0]
    source = "texts"
    if trained:
        source = f"{trained['positions']:,} positions of {trained['source']} (learning rate {s.lr:g}, batch {s.batch})"
    text = ABOUT.format(**numbers, saes=len(s.hookpoints) * len(s.ks), source=source)
    if scanned:
        text += (
            f". Scan: {scanned['texts']:,} texts ({scanned['source']}, at most {s.max_length} tokens of each), "
            f"{scanned['positions']:,} positions, {scanned['bytes'] / 2**30:.2g} GiB, {scanned['stage_s']:,.0f} s for "
            "the suite"
        )
    for name, told in rows.get("concepts", [{"pairs": {}}])[0]["pairs"].items():
        text += f". Contrast pairs, {name}: {told['pairs']} of {told['concepts']} concepts, {told['left_out']} left out"
    return text


def stage_rows(rows: Rows) -> dict[str, Any]:
    """How long each stage took, and its memory; of one that went on after a break its last part."""
    return {name: {k: harness.rounded(found[0][k]) for k in ("stage_s", "peak_rss_mb")}
            for name, found in rows.items() if not STAGES[name].repeated}  # fmt: skip


# -- claims


def claims(rows: Rows, why: Why) -> list[Claim]:
    """One for each of `TARGETS`, without a value where its stage is missing."""
    over_features, over_pairs = "95 % interval over features", "95 % range over draws of pairs"
    word_pieces = f"{over_features}; tokens of MiniLM's WordPiece, which drops line breaks"
    found = {
        "segment_token_saving": _estimate(rows, why, "segment_token_saving", "compare", "token_saving", word_pieces),
        "segment_vs_token_spearman": _estimate(rows, why, "segment_vs_token_spearman", "compare", "spearman",
                                               over_features),
        "icdf_vs_yield_spearman": _against_yield(rows, why),
        "features_explained_per_min_offline": _timed(rows, why),
        llm_throughput.NAME: _server(rows, why),
        "swapped_null_over_icdf": _null(rows, why),
        "swapped_null_over_l0_half": _null_of_half(rows, why),
        "ranking_kendall_tau": _missing("ranking_kendall_tau", f"concepts: {why.get('concepts', '')}")
        if "concepts" not in rows else _from("ranking_kendall_tau", rows["concepts"][0]["pairs"]["demo"]["tau"],
                                             over_pairs),
    }  # fmt: skip
    without = f"no language model was asked; figures come from: {COMMAND}"
    return [found[name] if name in found else _missing(name, without) for name in TARGETS]


def _missing(name: str, reason: str) -> Claim:
    return harness.missing(name, *TARGETS[name], reason)


def _from(name: str, estimate: Row, spread: str) -> Claim:
    """A claim from an `Estimate` as JSON."""
    if estimate["value"] is None:
        return _missing(name, estimate["reason"])
    unit, target = TARGETS[name]
    return Claim(name, estimate["value"], unit, target, estimate["low"], estimate["high"], estimate["n"], spread,
                 estimate["reason"])  # fmt: skip


def _estimate(rows: Rows, why: Why, name: str, stage: str, column: str, spread: str) -> Claim:
    if stage not in rows:
        return _missing(name, f"{stage}: {why.get(stage, 'not run')}")
    return _from(name, rows[stage][0][column], spread)


def _against_yield(rows: Rows, why: Why) -> Claim:
    """I_CDF on the demo's pairs against the number of features that get a domain and a good score."""
    name = "icdf_vs_yield_spearman"
    for stage in ("concepts", "yield"):
        if stage not in rows:
            return _missing(name, f"{stage}: {why.get(stage, 'not run')}")
    saes = joined(rows["concepts"][0]["pairs"]["demo"]["saes"], rows["yield"][0]["saes"])
    p = permutation_p(saes, "I_CDF", "count")
    spread = f"95 % interval over {len(saes)} SAEs: few" + ("" if p is None else f"; permutation test: p = {p:.2g}")
    return _from(name, correlation(saes, "I_CDF", "count").model_dump(), spread)


def _timed(rows: Rows, why: Why) -> Claim:
    name = "features_explained_per_min_offline"
    if "time" not in rows:
        return _missing(name, f"time: {why.get('time', 'not run')}")
    return harness.from_runs(name, [row["features_per_min"] for row in rows["time"]], *TARGETS[name])


def _server(rows: Rows, why: Why) -> Claim:
    if "server" not in rows:
        return _missing(llm_throughput.NAME, f"server: {why.get('server', 'not run')}")
    return llm_throughput.claim(list(rows["server"]))


def _null(rows: Rows, why: Why) -> Claim:
    """The worst autoencoder's I_CDF of swapped pairs over that of the demo's pairs; least and most over the suite."""
    name = "swapped_null_over_icdf"
    if "concepts" not in rows:
        return _missing(name, f"concepts: {why.get('concepts', 'not run')}")
    saes = rows["concepts"][0]["pairs"]["demo"]["saes"]
    ratios = [r["null"]["value"] / r["i_cdf"]["value"] for r in saes if r["i_cdf"]["value"]]
    if len(ratios) < len(saes):
        return _missing(name, "no latent of some autoencoder tells a pair apart")
    unit, target = TARGETS[name]
    return Claim(name, max(ratios), unit, target, min(ratios), max(ratios), len(ratios), "least and most of the SAEs")


def _null_of_half(rows: Rows, why: Why) -> Claim:
    """Latents that tell apart half of a concept's swapped pairs over those that do so unswapped, sums over the suite:
    unlike I_CDF it does not count latents that tell one or two pairs apart by chance."""
    name = "swapped_null_over_l0_half"
    if "concepts" not in rows:
        return _missing(name, f"concepts: {why.get('concepts', 'not run')}")
    both = [r["l0_t"]["0.5"] for r in rows["concepts"][0]["pairs"]["demo"]["saes"]]
    total, null = (sum(side) for side in zip(*both, strict=True))
    if not total:
        return _missing(name, "no latent tells half of a concept's pairs apart")
    return Claim(name, null / total, *TARGETS[name], n=len(both))
