"""Sections of an audit's page: what was found, as tables, charts and sentences for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seamark.audit import report_data as rd
from seamark.audit.breakdown import Breakdown
from seamark.audit.faults import KINDS, Faults
from seamark.audit.overlap import Overlap
from seamark.audit.reliance import Reliance
from seamark.audit.shortcuts import Shortcuts
from seamark.pipelines import audit_report_edits as edits
from seamark.pipelines.audit_report_price import Price
from seamark.pipelines.audit_report_scores import NAMES, SAW_NONE, columns_of, groups_of
from seamark.stats import Estimate

BINS = 40
OF_A_KIND = 8
LINES = 60
"""Rows of a table on the page; the files have all."""
Estimates = Mapping[str, Mapping[str, Estimate]]
"""{group: {method: estimate}}."""


def wrong_block(shares: Estimates, agreement: Estimates, scores: Path, judge: str) -> rd.Block:
    """The share of wrong labels by group, and how the judge's scores lie."""
    rows = tuple(
        (g, NAMES.get(m, m), e, agreement[g].get(m)) for g, of in shares.items() for m, e in of.items()
    )  # fmt: skip
    plot = rd.Plot(
        title="Estimated share of wrong labels", x_label="group", y_label="share of labels, 95 % interval",
        series={NAMES.get(m, m): tuple((g, of[m]) for g, of in shares.items() if m in of)
                for m in dict.fromkeys(m for of in shares.values() for m in of)},
    )  # fmt: skip
    known = any(e.available for of in shares.values() for e in of.values())
    histogram = _histogram(columns_of(scores, judge)[judge], groups_of(scores), judge)
    return rd.Block(
        intro=("If a share of labels is turned round, a judge that never saw them puts as many pairs surely against "
               "their label as it puts surely for it, times the odds of a wrong label. Where the judge is surest, that "
               "ratio bounds the share from above.",),
        plots=(plot,) if known else (), histogram=histogram,
        tables=(rd.Table(
            title="Share of wrong labels", columns=_columns("Group", "Judge", ("Estimate", "share"),
                                                             ("Sides with the label", "share")), rows=rows,
        ),),
        after=("Judges are cross-fitted: each pair is scored by what was fitted on other prompts. Cross-fitted margins "
               "and words saw none of the labels they judge; the others read a reward model that may have learned "
               "them, and then say too little. Intervals resample prompts.",),
    )  # fmt: skip


def _histogram(values: Mapping[str, float], group_of: Mapping[str, str], judge: str) -> rd.ScoreSummary | None:
    """The middle 99 % of a judge's scores by group; what lies outside counts in the outermost bins."""
    if len(values) < 2:
        return None
    numbers = np.asarray(list(values.values()))
    low, high = np.quantile(numbers, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    mine: dict[str, list[float]] = {}
    for pair, value in values.items():
        mine.setdefault(group_of[pair], []).append(value)
    groups = tuple(
        rd.GroupHistogram(group=g, counts=tuple(map(int, np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0])))
        for g, v in mine.items()
    )
    return rd.ScoreSummary(method=NAMES.get(judge, judge), edges=tuple(map(float, edges)), groups=groups)


def breakdown_block(found: Breakdown, judge: str) -> rd.Block:
    """Where suspicious pairs come from."""
    saw_none = judge in SAW_NONE
    columns = _columns(
        "Group", "Name", ("Pairs", "count"), ("Mean score", "signed"), ("Against the label", "share"),
        ("Wrong, at most" if saw_none else "Wrong, if not learned", "share"), ("Repeated", "count"),
        ("Contradicted", "count"),
    )  # fmt: skip

    def table(by: Any, title: str) -> rd.Table:
        rows = [(r.group, r.name or "(none)", r.n, r.mean, r.below_zero, r.wrong, r.duplicates, r.contradictions)
                for r in found.of(by)]  # fmt: skip
        return rd.Table(title=title, columns=columns, rows=tuple(rows[:LINES]), more=max(0, len(rows) - LINES))

    tables = [table("group", "By group")]
    tables += [table(by, f"By {by}") for by in ("source", "category") if found.of(by)]
    after = [] if len(tables) > 1 else ["The files name no more than one source and category in each group."]
    intro = f"Scores by {NAMES.get(judge, judge)}; below 0 they speak against the label."
    if not saw_none:
        intro += (" Shares of wrong labels are too low as far as the reward model has learned the labels "
                  "(--crossfit 5 judges by models that saw none; a given reward model needs --base too).")  # fmt: skip
    return rd.Block(intro=(intro,),
                    tables=tuple(tables), after=(*after, *found.notes))  # fmt: skip


def data_block(sizes: Mapping[str, Mapping[str, int]], faults: Faults) -> rd.Block:
    """Rows by group, faults by kind with their ids, rows that could not be read."""
    whole = sum(v["there"] for v in sizes.values())
    groups = rd.Table(
        title="Rows by group",
        columns=_columns("Group", ("Rows rejected", "count"), ("of these duplicates", "count"), ("Pairs", "count"),
                         ("Used", "count")),
        rows=tuple((g, v["rejected"], v["duplicates"], v["pairs"], v["usable"]) for g, v in sizes.items()),
    )  # fmt: skip
    kinds = rd.Table(
        title="Faults by kind",
        columns=_columns("Fault", "What it is", ("Found", "count"), ("Pairs", "count"), "What is done with them"),
        rows=tuple((_words(c.kind), c.about, c.faults, c.pairs, c.reason or c.treatment) for c in faults.counts),
    )
    named = [f for kind in KINDS for f in faults.of(kind)[:OF_A_KIND]]
    ids = rd.Table(
        title="Faulty pairs",
        note=f"The first {OF_A_KIND} of each kind.",
        columns=_columns("Fault", ("Pairs", "code"), "Groups", "Detail"),
        rows=tuple((_words(f.kind), _ids(f.ids), ", ".join(f.groups), f.detail or "–") for f in named),
        more=len(faults.faults) - len(named),
    )
    rejected = rd.Table(
        title="Rows that could not be used", columns=_columns("File", "Reason", ("Rows", "count")),
        rows=tuple((r.file, r.reason, r.rows) for r in faults.rejected[:LINES]),
        more=max(0, len(faults.rejected) - LINES),
    )  # fmt: skip
    return rd.Block(
        intro=("Pairs that are left out train no reward model and no autoencoder, and find no feature. They are "
               "scored, ranked and listed like all others, and cross-fitted judges are fitted on them too.",
               *([f"Only {sum(v['pairs'] for v in sizes.values()):,} of {whole:,} usable rows are audited "
                  "(data.max_pairs), picked by a hash of their ids. The others are in none of the files."]
                 if whole > sum(v["pairs"] for v in sizes.values()) else [])),
        tables=(groups, kinds, ids, rejected),
        after=("All ids are in data/faults.json, all rejected rows in data/rejected.jsonl. "
               + (f"{faults.made_ids:,} rows had no id of their own; theirs is a hash of the content."
                  if faults.made_ids else ""),),
    )  # fmt: skip


def _ids(ids: Sequence[str], most: int = 4) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most:,} more" if len(ids) > most else "")


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def shortcuts_block(found: Shortcuts | rd.Missing, *, in_sample: bool) -> rd.Block | rd.Missing:
    """How far margins follow length and refusals."""
    if isinstance(found, rd.Missing):
        return found
    own = "The model was trained on these pairs: what it memorised hides shortcuts." if in_sample else ""
    effects = rd.Table(
        title="What goes with the margin",
        columns=_columns("Group", ("Pairs", "count"), ("Correlation with length", "signed"),
                         ("Effect of length", "signed"), ("Effect of refusal", "signed"),
                         ("Explained by both", "share")),
        rows=tuple((g.group, g.n, g.length_correlation, g.length_effect, g.refusal_effect, g.explained)
                   for g in found.groups),
    )  # fmt: skip
    cells = [(g.group, name, c) for g in found.groups for name, c in (("length", g.length), ("refusal", g.refusal))]
    right = rd.Table(
        title="Where the label goes along with the shortcut, and where it goes against it",
        columns=_columns("Group", "Shortcut", ("Right along", "share"), ("Right against", "share"), ("Gap", "points")),
        rows=tuple((g, name, c.along, c.against, c.gap) for g, name, c in cells),
    )
    refusing = ", ".join(f"{g.group}: chosen in {g.n_refusing_chosen:,} pairs, rejected in {g.n_refusing_rejected:,}"
                         for g in found.groups)  # fmt: skip
    after = [f"{found.n_without_margin:,} pairs have no margin."] if found.n_without_margin else []
    return rd.Block(
        intro=("A shortcut shows where label and shortcut part: a model that leans on length is right where the chosen "
               f"answer is longer and wrong where it is shorter. {own}".strip(),),
        tables=(effects, right),
        after=("Effects are in standard deviations of the margin, each with the other held. Right along: where the "
               f"chosen answer is the longer one, or the one that refuses. Answers that refuse ({refusing}) are found "
               "by their phrases, a lower bound.", *after),
    )  # fmt: skip


def beside_block(agreement: Estimates, missing: Mapping[str, str], *, in_sample: bool) -> rd.Block:
    """How often each judge sides with the label."""
    seen = " (trained on these labels)" if in_sample else ""
    notes = {"margin": f"reward model{seen}", "latents": "cross-fitted on all latents",
             "probe": "cross-fitted on raw activations", "safer": "the features below",
             "direction": "cross-fitted difference of means of raw activations",
             "bag_of_words": "cross-fitted on words and word pairs", "length": "the longer answer wins"}  # fmt: skip
    rows = tuple((g, NAMES.get(m, m), notes.get(m, ""), e) for g, of in agreement.items() for m, e in of.items())
    plot = rd.Plot(
        title="Labels that a judge sides with", x_label="group", y_label="share of labels, 95 % interval",
        series={NAMES.get(m, m): tuple((g, of[m]) for g, of in agreement.items() if m in of)
                for m in ("margin", "latents", "bag_of_words", "length")
                if any(m in of for of in agreement.values())},
    )  # fmt: skip
    return rd.Block(
        intro=("What knows only words or only length shows how much of a judgement needs no understanding. A reward "
               "model that is no better has learned words.",),
        plots=(plot,),
        tables=(rd.Table(title="Agreement with the labels", rows=rows,
                         columns=_columns("Group", "Judge", "What it is", ("Sides with the label", "share"))),),
        after=tuple(f"{_named(m)} is not available: {why}." for m, why in missing.items()),
    )  # fmt: skip


def _named(method: str) -> str:
    name, _, rest = method.partition(" (")
    return NAMES.get(name, name) + (f" ({rest}" if rest else "")


def overlap_block(found: Overlap | rd.Missing) -> rd.Block | rd.Missing:
    """Whether the features also fire in the other group."""
    if isinstance(found, rd.Missing):
        return found
    g, o = found.group, found.other
    whole = rd.Table(
        title="The whole set", columns=_columns("Measure", ("Value", "signed")),
        rows=(("Correlation of mean activations over the features", found.correlation),
              ("The same of ranks", found.rank_correlation),
              ("The same of ranks over all latents", found.all_latents)),
    )  # fmt: skip
    each = rd.Table(
        title="Feature by feature",
        columns=_columns(("Feature", "code"), ("Sign", "text"), (f"Fires in {g} texts", "share"),
                         (f"in {o} texts", "share"), (f"Mean in {g}", "number"), (f"in {o}", "number"),
                         ("Outside", "share")),
        rows=tuple((f"{f.sae}/{f.latent}", "+" if f.sign > 0 else "−", f.rate_group, f.rate_other, f.mean_group,
                    f.mean_other, f.outside) for f in found.features[:LINES]),
        more=max(0, len(found.features) - LINES),
    )  # fmt: skip
    share = rd.Table(title="Activation outside the group", columns=_columns("Group", ("Share", "share")),
                     rows=((o, found.outside),))  # fmt: skip
    return rd.Block(
        intro=(f"Features that also fire in {o} texts move {o} too when labels are edited by them. One half outside: "
               "they know no difference.",),
        tables=(share, whole, each),
    )  # fmt: skip


def reliance_block(found: Reliance | rd.Missing) -> rd.Block | rd.Missing:
    """Latents that go with the margin and are not about the dimension."""
    if isinstance(found, rd.Missing):
        return found
    if found.reason:
        return rd.Missing(missing=found.reason)
    relevant = (
        ""
        if found.found_relevant is None
        else (
            f" Of the {found.rated:,} strongest others, {found.found_relevant:,} are about {found.dimension} after all."
        )
    )
    rows = tuple(
        (f"{r.sae}/{r.latent}", r.correlation, r.q_value, r.length, r.n_differing, r.rating, r.why)
        for r in found.latents
    )  # fmt: skip
    return rd.Block(
        intro=(f"Of {found.tested:,} latents tested on {found.n_pairs:,} pairs, {found.found:,} go with the reward "
               f"margin (false discovery rate 5 %), {found.found_in_set:,} of them in the feature set.{relevant}",
               "Below are the strongest that are not: an association, not a cause.",),
        tables=(rd.Table(
            title=f"Not about {found.dimension}", rows=rows,
            columns=_columns(("Latent", "code"), ("Correlation with margin", "signed"), ("q", "number"),
                             ("with length", "signed"), ("Pairs that differ", "count"), ("Rating", "count"), "Why"),
        ),),
    )  # fmt: skip


def edits_block(found: Mapping[str, Any], folder: Path) -> rd.Block:
    """The files and what undoes them."""
    n = found["edited"]
    what = (
        (
            edits.CLEAN,
            f"all pairs but the {n:,} lowest-ranked {found['group']} pairs",
            found["kept"],
            edits.CLEAN_MANIFEST,
        ),
        (edits.FLIPPED, "all pairs, the labels of these turned round", found["kept"] + n, edits.FLIPPED_MANIFEST),
        (edits.REMOVED, "these alone", n, "–"),
    )
    after = ["To go back, in the folder of this page: seamark audit undo "
             f"{folder.name}/{edits.CLEAN} {folder.name}/{edits.CLEAN_MANIFEST} --out original.jsonl. Rows come back "
             "field for field and in order. Exact duplicates are dropped when reading, as are rows that are no pair; "
             "rejected.jsonl names their rows."]  # fmt: skip
    if found["wrapped"]:
        after.append(f"{found['wrapped']:,} rows came with columns that others lack, or in another form: the whole row "
                     "is kept as text in the column `original`, so that the file loads anywhere.")  # fmt: skip
    if n == 0:
        after.append(f"{edits.NOTHING[0].upper()}{edits.NOTHING[1:]}; the other two files hold all pairs as they are.")
    return rd.Block(
        intro=(f"{100 * found['share']:g} % of the {found['group_size']:,} {found['group']} pairs, ranked by "
               f"{found['method']}. The files load into TRL as they are.",),
        tables=(rd.Table(title="Files", columns=_columns(("File", "code"), "What it holds", ("Pairs", "count"),
                                                         ("Manifest", "code")), rows=what),),
        after=tuple(after),
    )  # fmt: skip


def extras_block(found: Sequence[Price]) -> rd.Block:
    """What was run besides, what was not, and what it would take."""
    rows = tuple((p.name, "run" if p.asked else "not run", p.adds, p.estimate, p.how) for p in found)
    return rd.Block(
        intro=("The audit takes one pass of the model. These take more, so they run only when asked for.",),
        tables=(rd.Table(title="Extras", rows=rows,
                         columns=_columns("What", "Here", "What it adds", "What it takes", ("How", "code"))),),
    )  # fmt: skip


def _columns(*named: str | tuple[str, Any]) -> tuple[rd.Column, ...]:
    return tuple(rd.Column(name=c) if isinstance(c, str) else rd.Column(name=c[0], unit=c[1]) for c in named)
