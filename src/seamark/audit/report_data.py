"""What an audit report says: one frozen value per section, filled by the pipeline, drawn by `audit.report`.

Every section may be `Missing` instead, with its reason: a report never leaves out in silence what could not be had.
Shares are fractions 0-1; the report prints percent.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from seamark.show.tables import ResultRow
from seamark.stats import Estimate


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Missing(Section):
    """Stands for a section that is not available, with the reason."""

    missing: str


class Fact(Section):
    """A named value, printed as it is."""

    name: str
    value: str


class RunInfo(Section):
    """What was run."""

    recipe: str
    model: str
    hookpoint: str
    sae: str = ""
    seeds: tuple[int, ...]
    date: str
    """When the run was made (ISO date), taken from the run: the same run always gives the same report."""
    facts: tuple[Fact, ...] = ()
    """Anything else: device, precision, command line."""
    versions: dict[str, str] = {}


class GroupSummary(Section):
    """Rows of one group, from the files to the splits."""

    group: str
    read: int
    rejected: int
    duplicates: int
    train: int
    test: int
    truncated: int | None = None
    """Texts that were longer than the model's limit and lost their beginning; None: not counted."""


class RejectReason(Section):
    reason: str
    rows: int


class DataSummary(Section):
    groups: tuple[GroupSummary, ...]
    reject_reasons: tuple[RejectReason, ...] = ()
    facts: tuple[Fact, ...] = ()


class AccuracyRow(Section):
    """How often the chosen answer of a held-out pair gets the higher reward, beside what needs no model."""

    group: str
    category: str = ""
    """Empty: the whole group."""
    pairs: int
    model: Estimate
    length: Estimate
    """"The longer answer wins"."""
    bag_of_words: Estimate | None
    """Logistic regression on word counts, trained on the same training pairs."""


class Accuracy(Section):
    rows: tuple[AccuracyRow, ...]


class SaeStage(Section):
    """Reconstruction of held-out activations after one stage of training."""

    name: str
    positions: str
    """Which positions it trained on: `tokens`, `clauses`."""
    n_positions: int | None = None
    fvu: Estimate
    l0: Estimate
    dead_share: Estimate
    cosine: Estimate


class SaeQuality(Section):
    d_in: int
    d_sae: int
    k: int
    stages: tuple[SaeStage, ...]


class TokenText(Section):
    """A text as tokens with one value each, to be highlighted. See `show.tokens.token_view`."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    """Signed: positive speaks for the text's being safe, negative against; 0 is not shaded."""
    unit: float | None = 1.0
    """The value of full shade (Q_f); None: not available."""
    unit_name: str = "Q"
    """What the unit is called where a value is shown; sums over features are not in units of one Q_f."""
    ends: tuple[int, ...] | None = None
    """Where values were read at clause ends only, those positions: a clause takes its end's shade."""
    note: str = ""
    """What of the text the model did not read, and is not shown."""


class Context(Section):
    """One of the texts in which a feature fires most."""

    text: TokenText
    label: str
    """Where it comes from: `safety, chosen`."""


class FeatureRow(Section):
    sae: str
    latent: int
    sign: Literal[1, -1]
    """+1: fires on preferred answers; -1: on rejected ones."""
    score: float
    """Contrastive score in [-1, 1]."""
    rating: int | None = None
    rating_method: str = ""
    why: str = ""
    """Why it is rated so, or why it is not rated."""
    effect: Estimate
    """Mean change of the reward when the latent is raised by Q_f."""
    contexts: tuple[Context, ...] = ()


class FeatureTable(Section):
    features: tuple[FeatureRow, ...]
    selection: str = ""
    """How they were chosen, in one sentence."""


class GroupHistogram(Section):
    group: str
    counts: tuple[int, ...]


class ScoreSummary(Section):
    """Pair scores of the training pairs, binned."""

    method: str
    edges: tuple[float, ...]
    groups: tuple[GroupHistogram, ...]


class Against(Section):
    """A feature that speaks against a pair's label, and how much of the pair's score it takes."""

    sae: str
    latent: int
    sign: Literal[1, -1]
    share: float
    """Its part of g(chosen) - g(rejected); negative: against the label."""
    why: str = ""


class SuspiciousPair(Section):
    id: str
    group: str
    category: str = ""
    source: str = ""
    score: float
    margin: float | None = None
    """Reward of chosen minus reward of rejected, of the clean reward model."""
    prompt: str
    chosen: TokenText
    rejected: TokenText
    against: tuple[Against, ...] = ()
    note: str = ""
    facts: tuple[Fact, ...] = ()
    """What several methods say of it, shown in place of `score` and `margin`."""


class Experiment(Section):
    """Retraining on edited data: shares right on held-out pairs, mean and 95 % interval over seeds and prompts."""

    kind: Literal["poison", "denoise"]
    intro: str = ""
    rows: tuple[ResultRow, ...]
    """With the unedited row: `method="none"`, `rate=None`."""
    plotted: tuple[str, ...]
    """Names of the measures that are drawn."""


class Check(Section):
    """A target or a failure sign, with the number that decides it."""

    name: str
    rule: str
    """What must hold, in words: `at least 5 points lost`."""
    value: Estimate
    unit: Literal["share", "points", "number", "signed"] = "points"
    holds: bool | None
    """None: cannot be decided; `value.reason` says why."""
    note: str = ""


class Checks(Section):
    intro: str = ""
    checks: tuple[Check, ...]


class StageCost(Section):
    stage: str
    seconds: float | None
    peak_rss_mb: float | None


class Costs(Section):
    stages: tuple[StageCost, ...]
    facts: tuple[Fact, ...] = ()


class ReportData(Section):
    """Everything a report shows."""

    schema_version: Literal[1] = 1
    title: str
    summary: tuple[str, ...] = ()
    """A few sentences on what was found, first on the page."""
    run: RunInfo
    data: DataSummary | Missing
    accuracy: Accuracy | Missing
    sae: SaeQuality | Missing
    features: FeatureTable | Missing
    scores: ScoreSummary | Missing
    suspicious: tuple[SuspiciousPair, ...] | Missing
    poisoning: Experiment | Missing
    denoising: Experiment | Missing
    targets: Checks | Missing
    failure_signs: Checks | Missing
    costs: Costs | Missing
    notes: tuple[str, ...] = ()


Unit = Literal["text", "code", "count", "share", "points", "number", "signed"]
Cell = Estimate | str | int | float | None
"""A cell of a table; None prints as a dash."""


class Column(Section):
    name: str
    unit: Unit = "text"
    """How its cells are written: `share` as percent, `count` with thousands; `text` and `code` as they are."""


class Table(Section):
    """Any table: the first column names its rows."""

    title: str
    note: str = ""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: int = 0
    """Rows that are left out here; the files have them."""


class Plot(Section):
    """Shares with their intervals: {series: ((x label, estimate), …)}."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, tuple[tuple[str, Estimate], ...]]


class Block(Section):
    """A section of prose, facts, charts and tables, in this order."""

    intro: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    plots: tuple[Plot, ...] = ()
    histogram: ScoreSummary | None = None
    tables: tuple[Table, ...] = ()
    after: tuple[str, ...] = ()
    """Sentences below the tables."""


class AuditData(Section):
    """Everything the report of `seamark audit report` shows."""

    schema_version: Literal[1] = 1
    title: str
    summary: tuple[str, ...] = ()
    run: RunInfo
    wrong: Block | Missing
    suspicious: tuple[SuspiciousPair, ...] | Missing
    suspicious_rule: str = ""
    """What they are ranked by."""
    breakdown: Block | Missing
    data: Block | Missing
    shortcuts: Block | Missing
    beside: Block | Missing
    """The reward model beside judges that know less."""
    features: FeatureTable | Missing
    overlap: Block | Missing
    reliance: Block | Missing
    sae: SaeQuality | Missing
    failure_signs: Checks | Missing
    edits: Block | Missing
    extras: Block | Missing
    """What would cost more, and what it would add."""
    costs: Costs | Missing
    notes: tuple[str, ...] = ()
