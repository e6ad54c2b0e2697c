"""The stages of an audit that score pairs and look for what scores, texts and features say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from seamark.audit import report_data as rd
from seamark.audit.breakdown import breakdown
from seamark.audit.overlap import overlap
from seamark.audit.reliance import reliance
from seamark.audit.review import Review
from seamark.audit.scores import METHODS, PairScores, score_pairs
from seamark.audit.share import wrong_share
from seamark.audit.shortcuts import shortcuts
from seamark.audit.suspicion import RULE, mean_rank, wrong_probability
from seamark.errors import ConfigError, SeamarkError
from seamark.features import FeatureSet, Scan, ScanConfig
from seamark.features.contexts import TextsReadAgain
from seamark.pipelines.audit_report_stages import (
    FEATURES,
    MARGINS,
    SCAN,
    dimension_of,
    load_faults,
    load_pairs,
    load_reward,
    load_sae,
)
from seamark.pipelines.evidence import feature_contexts, pair_evidence
from seamark.run import read_json, write_json
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes
from seamark.text.pairs import Pairs

SCORES, TABLE, LINES, SUMMARY = "scores.json", "scores.parquet", "scores.jsonl", "summary.json"
FINDINGS, SUSPICIOUS, CONTEXTS, JUDGED = "findings.json", "suspicious.json", "contexts.json", "judged.json"
CHEAP = ("margin", "latents", "safer", "probe", "direction", "length", "bag_of_words")
"""Methods that take one pass of the model and no retraining."""
PROBABILITY = "p_wrong"
RANK = "rank"
JUDGES = ("margin_crossfit", "latents", "probe")
"""Out-of-fold antisymmetric scores; P(wrong) is made of the first from which a share of wrong labels can be estimated,
and the breakdown of the first that there is."""
SHARE_JUDGES = (*JUDGES, "bag_of_words")
"""Out-of-fold scores from which the share of wrong labels is estimated; where none of `SAW_NONE` has an estimate, the
first that is available counts."""
SAW_NONE = ("margin_crossfit", "bag_of_words")
"""Those that saw none of the labels they judge. The others read activations of a reward model that may have learned
them: folds keep a label from the regression, not from the model."""
Values = dict[str, dict[str, float]]


def score_all(
    folder: Path, data: Path, scan: Path, features: Path | None = None, *, target: str, sae_id: str, by: str | None,
    folds: int, seed: int, no_features: str, margins: Sequence[str] = (), **more: Path,
) -> None:  # fmt: skip
    """Scores of every pair by every method that costs little, the ranking of the audited group, P(wrong).

    Methods are fitted and scored group by group. One that cannot be had is left out with its reason. Further inputs
    (`more`): folders of cross-fitted margins, named by `margins`.
    """
    opened, pairs = Scan.open(scan / SCAN), load_pairs(data)
    chosen = None if features is None else FeatureSet.load(features / FEATURES)
    given: dict[str, Any] = {"sae": sae_id, "folds": folds}
    methods = list(CHEAP)
    if margins:
        given["margins"] = _margins([more[name] for name in margins])
        methods += ["margin_crossfit"] + (["voting"] if len(next(iter(given["margins"].values()), ())) > 1 else [])
    if by and by not in methods:
        if by not in METHODS:
            raise ConfigError(f"no scoring method {by!r}", where="--by", fix=f"One of: {', '.join(methods)}")
        methods.append(by)
    values: Values = {m: {} for m in methods}
    why: dict[str, str] = {}
    shares: dict[str, dict[str, Estimate]] = {}
    for group in pairs.groups:
        mine = pairs.group(group)
        for method in methods:
            if chosen is None and "features" in METHODS[method].needs:
                why[method] = no_features
                continue
            try:
                values[method] |= score_pairs(opened, chosen, method=method, pairs=mine, seed=seed, group=group,
                                              **given).values  # fmt: skip
            except SeamarkError as e:
                why[f"{method} ({group})" if len(pairs.groups) > 1 else method] = e.what
        shares[group] = _shares(values, mine, why)
        values.setdefault(PROBABILITY, {}).update(_probabilities(values, shares[group], mine))
    ranking = _ranking(values, pairs.group(target), by, seed)
    ranking.save(folder / SCORES)
    agreement = {g: _agreement(values, pairs.group(g)) for g in pairs.groups}
    write_json(folder / SUMMARY, {
        "methods": [m for m in methods if values[m]], "missing": why, "shares": shares, "agreement": agreement,
        "rule": ranking.method, "ranked_by": [by] if by else [m for m in RULE if values[m]],
    })  # fmt: skip
    _write_table(folder, pairs, values, ranking, set(load_faults(data).left_out))


def _margins(folders: Sequence[Path]) -> dict[str, list[float]]:
    """{pair id: margins by models that never saw its prompt}."""
    found: dict[str, list[float]] = {}
    for folder in folders:
        for pair, margin in read_json(folder / MARGINS).items():
            found.setdefault(pair, []).append(margin)
    return found


def _shares(values: Values, pairs: Pairs, why: Mapping[str, str]) -> dict[str, Estimate]:
    """Estimated share of wrong labels of one group by each out-of-fold judge."""
    prompts = {p.id: p.prompt_key for p in pairs}
    found = {}
    for method in (m for m in SHARE_JUDGES if m in values):
        mine = {i: values[method][i] for i in prompts if i in values[method]}
        reason = next((r for m, r in why.items() if m.split(" (")[0] == method), "it scored no pair")
        found[method] = wrong_share(mine, prompts) if mine else Estimate.not_available(reason)
    return found


def _probabilities(values: Values, shares: Mapping[str, Estimate], pairs: Pairs) -> dict[str, float]:
    """P(wrong) of one group's pairs, by the first judge whose share is available."""
    judge = next((m for m in JUDGES if m in shares and shares[m].available), None)
    if judge is None:
        return {}
    return wrong_probability({p.id: values[judge][p.id] for p in pairs if p.id in values[judge]}, shares[judge])


def _agreement(values: Values, pairs: Pairs) -> dict[str, Estimate]:
    """{method: share of labels it agrees with}; ties count one half, intervals resample prompts."""
    found = {}
    for method, scores in values.items():
        mine = [p for p in pairs if p.id in scores]
        if method == PROBABILITY or not mine:
            continue
        sides = (np.sign([scores[p.id] for p in mine]) + 1.0) / 2.0
        found[method] = bootstrap_by_cluster(sides, cluster_codes([p.prompt_key for p in mine]))
    return found


def _ranking(values: Values, pairs: Pairs, by: str | None, seed: int) -> PairScores:
    """What pairs of the audited group are ranked by; `seed` decides ties, which mean ranks often have, as in edits.

    Raises:
        ConfigError: no method could score them.
    """
    methods = [by] if by else [m for m in RULE if values[m]]
    methods = [m for m in methods if any(p.id in values[m] for p in pairs)]
    if not methods:
        raise ConfigError(f"no pair could be scored by {by or ' or '.join(RULE)}", where="--by",
                          fix="Choose another method")  # fmt: skip
    ranked = mean_rank(values, pairs.ids, methods)
    return ranked.model_copy(update={"method": f"{ranked.method} of {' and '.join(methods)}", "seed": seed})


def _write_table(folder: Path, pairs: Pairs, values: Values, ranking: PairScores, left_out: set[str]) -> None:
    """A row a pair: id, group, source, category, every score (null: not available), place in the ranking from 1."""
    place = {i: n for n, i in enumerate(ranking.lowest(len(ranking.values)), 1)}
    columns: dict[str, Any] = {
        "id": pairs.ids, "group": [p.group for p in pairs], "source": [p.source for p in pairs],
        "category": [p.category for p in pairs], "left_out": [p.id in left_out for p in pairs],
        RANK: pa.array([place.get(p.id) for p in pairs], pa.int32()),
    }  # fmt: skip
    for method, scores in values.items():
        columns[method] = pa.array([scores.get(i) for i in pairs.ids], pa.float64())
    table = pa.table(columns)
    pq.write_table(table, folder / TABLE)
    with (folder / LINES).open("w", encoding="utf-8") as f:
        for batch in table.to_batches(max_chunksize=1000):
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def scores_by_id(folder: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of the table of scores for a few pairs."""
    table = pq.read_table(folder / TABLE)
    wanted = table.filter(pa.compute.is_in(table["id"], pa.array(list(ids))))
    return {row["id"]: row for row in wanted.to_pylist()}


def columns_of(folder: Path, *names: str) -> dict[str, dict[str, float]]:
    """{method: {pair id: score}} from the table of scores; methods that are not there are empty."""
    table = pq.read_table(folder / TABLE)
    ids = table["id"].to_pylist()
    found: dict[str, dict[str, float]] = {}
    for name in names:
        numbers = table[name].to_pylist() if name in table.column_names else [None] * len(ids)
        found[name] = {i: v for i, v in zip(ids, numbers, strict=True) if v is not None}
    return found


def groups_of(folder: Path) -> dict[str, str]:
    """{pair id: group} from the table of scores."""
    table = pq.read_table(folder / TABLE, columns=["id", "group"])
    return dict(zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True))


def look_for(
    folder: Path, data: Path, scan: Path, scores: Path, features: Path | None = None, *, target: str, sae_id: str,
    no_features: str, dimension: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Breakdown, shortcuts, overlap and reliance; each is its value or the reason why it is missing."""
    opened, pairs = Scan.open(scan / SCAN), load_pairs(data)
    chosen = None if features is None else FeatureSet.load(features / FEATURES)
    found = columns_of(scores, "margin", *JUDGES)
    judge = next((m for m in JUDGES if found[m]), None)
    values = found[judge] if judge else found["margin"]
    about = dimension_of(target, dimension)
    others = list(about.against) or [g for g in pairs.groups if g != target]
    parts: dict[str, Any] = {"judge": judge or "margin", "other": others}
    parts["breakdown"] = breakdown(values, pairs, wrong_share if judge else None, faults=load_faults(data))
    parts["shortcuts"] = _or_missing(lambda: shortcuts(found["margin"], pairs))
    if chosen is None:
        parts["overlap"] = parts["reliance"] = rd.Missing(missing=no_features)
    else:
        parts["reliance"] = _or_missing(lambda: reliance(opened, chosen, target, dimension=about))
        parts["overlap"] = (
            _or_missing(lambda: overlap(opened, chosen, target, others[0]))
            if others
            else rd.Missing(missing="there is no pair of another group")
        )
    write_json(folder / FINDINGS, parts)


def _or_missing(make: Callable[[], BaseModel]) -> BaseModel:
    try:
        return make()
    except SeamarkError as e:
        return rd.Missing(missing=e.what)


def gather_evidence(
    folder: Path, data: Path, scan: Path, scores: Path, reward: Path | None = None, sae: Path | None = None,
    features: Path | None = None, judged: Path | None = None, *, model: str, model_digest: str,
    sae_place: str | None, sae_digest: str, sae_id: str, count: int,
) -> None:  # fmt: skip
    """The most suspicious pairs token by token, and the texts in which the features fire most.

    Where the scan kept no latents of single tokens (large corpora), these few texts are read by the model again.
    """
    opened = Scan.open(scan / SCAN)
    chosen = FeatureSet(features=()) if features is None else FeatureSet.load(features / FEATURES)
    again = None
    if not opened.manifest["choices"]["keep_tokens"] and len(chosen):
        config = ScanConfig(**opened.config | {"precision": opened.manifest["choices"]["precision"]})
        suite = {sae_id: load_sae(sae, sae_place)}
        again = TextsReadAgain(opened.parts, opened.starts, load_reward(reward, model), suite, config)
    ranking = PairScores.load(scores / SCORES)
    picked = ranking.lowest(count)
    pairs = {p.id: p for p in load_pairs(data) if p.id in set(picked)}
    said, left_out = scores_by_id(scores, picked), load_faults(data).left_out
    opinions = {} if judged is None else read_json(judged)["values"]
    review = Review(opened, chosen, again)
    found = [
        pair_evidence(
            pairs[i], review, ranking.values[i], list(_facts(said[i] | {"judge": opinions.get(i)})), left_out.get(i, "")
        )
        for i in picked
    ]
    write_json(folder / SUSPICIOUS, {"pairs": found})
    contexts = feature_contexts(opened, chosen, again)
    write_json(folder / CONTEXTS, {f"{sae}/{latent}": texts for (sae, latent), texts in contexts.items()})


def _facts(row: Mapping[str, Any]) -> Iterator[rd.Fact]:
    """What methods say of a pair, for people."""
    if row.get(PROBABILITY) is not None:
        p = row[PROBABILITY]
        yield rd.Fact(name="P(wrong)", value="over 99 %" if p > 0.99 else f"{100 * p:.0f} %")
    for method in ("margin", "latents", "safer", "margin_crossfit", "voting", "judge"):
        if row.get(method) is not None:
            yield rd.Fact(name=NAMES.get(method, method), value=f"{row[method]:+.2f}".replace("-", "−"))


NAMES = {
    "margin": "reward margin", "latents": "latents (log-odds)", "safer": "SAFER's features", "probe": "linear probe",
    "direction": "difference of means", "length": "longer answer", "bag_of_words": "bag of words",
    "margin_crossfit": "cross-fitted margin", "voting": "ensemble vote", "judge": "LLM judge",
}  # fmt: skip
"""Methods as people read them."""
