"""Rows and correlations that follow from what the stages found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.explaining.job import Row
from benchmarks.harness import medians, rounded
from seamark.explain.comparing import rank_correlation
from seamark.stats import Estimate

Rows = Mapping[str, Sequence[Row]]
HALF = "L0,t at t = 0.5"
PREDICTORS = ("I_CDF", "I_CDF − null", "swapped null", "L0", "FVU", HALF)
OUTCOMES = {"count": "yield count", "share": "yield share", "good_count": "good, tagged or not"}
P_VALUE = f"p, {OUTCOMES['count']}"
"""Of a two-sided permutation test."""
PERMUTATIONS = 10_000
TITLES = {"demo": "concept metrics, demo pairs", "real": "concept metrics, real pairs"}
COMMAND = (
    "seamark explain --scan SCAN --sae SAE --n 200 --out EXPLAINED --llm NAME --base-url URL && "
    "seamark simulate --explained EXPLAINED --out SIMULATED --compare --llm NAME --base-url URL"
)
"""Gives the figures of a language model."""


def cell(estimate: Mapping[str, Any]) -> Any:
    """A value with its interval, as tables take it; without an interval the value alone."""
    if estimate["value"] is None or estimate["low"] is None:
        return rounded(estimate["value"])
    return {"median": rounded(estimate["value"]), "low": rounded(estimate["low"]), "high": rounded(estimate["high"])}


def table(rows: Rows) -> list[Row]:
    """All tables, in the order of the stages."""
    found: list[Row] = []
    if "suite" in rows:
        found += [{"table": "suite", **_plain(r)} for r in rows["suite"][0]["saes"]]
    if "concepts" in rows:
        for name, told in rows["concepts"][0]["pairs"].items():
            found += [{"table": TITLES[name], **_concepts(r)} for r in told["saes"]]
            title = f"latents that tell apart a share t of a concept's pairs, {name}"
            found += [{"table": title, "sae": r["sae"], **_l0_t(r["l0_t"])} for r in told["saes"]]
    if "yield" in rows:
        found += [{"table": "yield", **_yield(r)} for r in rows["yield"][0]["saes"]]
    if "yield" in rows and "concepts" in rows:
        found += correlations(rows)
    if "compare" in rows:
        found += _compared(rows["compare"][0])
    for name, title in (("time", "time"), ("server", "server")):
        if name in rows:
            found += [{"table": title, **row} for row in medians({name: rows[name]})]
    return found


def _plain(row: Row) -> Row:
    return {k: rounded(v) if isinstance(v, float) else v for k, v in row.items()}


def _concepts(row: Row) -> Row:
    estimates = {"I_CDF": row["i_cdf"], "swapped null": row["null"], "I_CDF − null": row["difference"]}
    i_cdf, null = row["i_cdf"]["value"], row["null"]["value"]
    return (
        _plain({k: row[k] for k in ("sae", "rank", "hookpoint", "k", "L0", "FVU")})
        | {name: cell(e) for name, e in estimates.items()}
        | {"null / I_CDF": rounded(null / i_cdf) if i_cdf else None, "rank by I_CDF": row["rank_i_cdf"]}
    )


def _l0_t(curve: Mapping[str, Sequence[float]]) -> Row:
    found: Row = {}
    for t, (n, null) in curve.items():
        found |= {f"t = {t}": rounded(n), f"swapped, t = {t}": rounded(null)}
    return found


def _yield(row: Row) -> Row:
    share = {"value": row["share"], "low": row["low"], "high": row["high"]}
    kept = ("sae", "hookpoint", "k", "with_q", "drawn", "explained", "tagged", "scored", "good")
    return {k: row[k] for k in kept} | {"tagged and good": row["yield"], "share": cell(share),
                                        "count": round(row["count"])}  # fmt: skip


# -- does a metric computed before any explanation predict the yield?


def correlations(rows: Rows) -> list[Row]:
    """Spearman of every predictor with the yield, over all autoencoders and over those of each hookpoint."""
    found = []
    for name, told in rows["concepts"][0]["pairs"].items():
        saes = joined(told["saes"], rows["yield"][0]["saes"])
        groups: dict[str, list[Row]] = {"all": saes}
        for sae in saes:
            groups.setdefault(sae["hookpoint"], []).append(sae)
        for over, some in groups.items():
            for predictor in PREDICTORS:
                row: Row = {"table": "Spearman with the yield", "pairs": name, "SAEs": over, "n": len(some),
                            "predictor": predictor}  # fmt: skip
                for outcome, title in OUTCOMES.items():
                    row[title] = cell(correlation(some, predictor, outcome).model_dump())
                row[P_VALUE] = rounded(permutation_p(some, predictor, "count"))
                found.append(row)
    return found


def joined(concepts: Sequence[Row], yields: Sequence[Row]) -> list[Row]:
    """A row an autoencoder: hookpoint, predictors and outcomes."""
    by_id = {y["sae"]: y | {"good_count": y["with_q"] * y["good"] / max(y["drawn"], 1)} for y in yields}
    return [
        {"sae": c["sae"], "hookpoint": c["hookpoint"], "I_CDF": c["i_cdf"]["value"], "swapped null": c["null"]["value"],
         "I_CDF − null": c["difference"]["value"], "L0": c["L0"], "FVU": c["FVU"],
         HALF: c["l0_t"]["0.5"][0],
         **{outcome: by_id[c["sae"]][outcome] for outcome in OUTCOMES}}
        for c in concepts if c["sae"] in by_id
    ]  # fmt: skip


def correlation(saes: Sequence[Row], predictor: str, outcome: str) -> Estimate:
    """Spearman over autoencoders that have both numbers; the interval resamples autoencoders."""
    pairs = _both(saes, predictor, outcome)
    found = rank_correlation(pairs)
    if found.value is None:  # the library speaks of features and scores
        return Estimate.not_available(f"{len(pairs)} SAEs with both numbers, or all with the same one", len(pairs))
    return found


def permutation_p(saes: Sequence[Row], predictor: str, outcome: str, draws: int = PERMUTATIONS) -> float | None:
    """Two-sided p of that Spearman if outcomes fell on autoencoders at random: the share of orders, the one found among
    them, with as strong a one. All orders are gone through where they are no more than `draws`, else so many drawn.

    None where the Spearman is not available.
    """
    if correlation(saes, predictor, outcome).value is None:
        return None
    x, y = (rankdata(side) - (len(side) + 1) / 2 for side in zip(*_both(saes, predictor, outcome), strict=True))
    found, n = abs(x @ y) - 1e-9, len(x)
    if math.factorial(n) <= draws:
        return float(np.mean([abs(x @ y[list(order)]) >= found for order in permutations(range(n))]))
    rng = np.random.default_rng(0)
    as_strong = sum(abs(x @ rng.permutation(y)) >= found for _ in range(draws))
    return float((1 + as_strong) / (1 + draws))


def _both(saes: Sequence[Row], predictor: str, outcome: str) -> list[tuple[float, float]]:
    return [(s[predictor], s[outcome]) for s in saes if s[predictor] is not None and s[outcome] is not None]


# -- segments against tokens


def _compared(row: Row) -> list[Row]:
    found = [{"table": "scores without a language model", **_plain(r)} for r in row["scores"]]
    found += [{"table": "no score", **r} for r in row["not_available"]]
    title = "tokens that would be sent and received"
    batching = row["batching"]
    for calls, usage in (("1 text a call", row["usage"]), (_texts(batching), batching)):
        for level in ("segment", "token"):
            if usage and usage.get(level):
                u = usage[level]
                found.append({"table": title, "level": level, "calls of": calls, "queries": u["queries"],
                              "sent": u["tokens_in"], "received": u["tokens_out"],
                              "all": u["tokens_in"] + u["tokens_out"]})  # fmt: skip
    return found + _savings(row)


def _texts(batching: Row | None) -> str:
    return f"{batching['batch']} texts a call" if batching else ""


def _savings(row: Row) -> list[Row]:
    title, batching = "share of tokens saved", row["batching"]
    found: list[Row] = [{"table": title, "what": "segments instead of tokens", "saved": cell(row["token_saving"])}]
    if batching:
        found += [{"table": title, "what": f"{_texts(batching)} instead of 1, {level}s",
                   "saved": rounded(batching[f"{level}_saving"])} for level in ("segment", "token")]  # fmt: skip
    llm = {"table": "with a language model", "Spearman": None, "tokens saved": None, "money saved": None}
    return [*found, llm | {"command": COMMAND}]
