"""What `change` found between two checkpoints, and the rules it goes by."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from seamark.stats import Estimate

Measure = Literal["activation", "firing", "contrast", "attribution", "margin"]
State = Literal["appears", "vanishes", "moved", "not moved", "not judged"]
MEASURES: dict[Measure, str] = {
    "activation": "mean over texts of the mean activation at scoring positions, in units of Q_f",
    "firing": "mean over texts of the share of scoring positions at which it fires",
    "contrast": "contrastive score s, chosen against rejected",
    "attribution": "mean over texts of what its firing adds to the reward, to first order",
    "margin": "mean over pairs of the attribution in the chosen answer − that in the rejected one",
}
FDR, QUANTILE, NEIGHBOURS, TENTH = 0.05, 0.95, 50, 0.1
RULE = (
    "moved: q ≤ 0.05 (Wilcoxon's signed-rank test over prompts, Benjamini-Hochberg over the judged features), and "
    "|change| above the 95 % quantile of |change| in the null, over the 51 features of nearest level before. Of the "
    "null itself 5 % lie above it. appears: fires in enough texts after, and before in at most a tenth of as many; "
    "vanishes: the reverse. That comes of counts alone: other trainings of the model before may do the same, and how "
    "many do stands beside it. Features that fire in too few texts of both are not judged."
)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Moved(Record):
    """One measure of one feature."""

    before: float
    after: float
    change: Estimate
    """after − before; the interval resamples prompts."""
    p: float | None
    """None: fewer than 6 prompts differ."""
    q: float | None
    null: float | None
    """The 95 % quantile of |change| in the null, over features of nearest level."""
    moved: bool


class TextMove(Record):
    """A text in which a feature changed."""

    text_id: str
    pair_id: str | None
    side: str | None
    before: float
    """Mean activation at scoring positions, in units of Q_f."""
    after: float
    tokens: tuple[str, ...] = ()
    """Of the answer; empty where the scans kept no tokens."""
    tokens_before: tuple[float, ...] = ()
    """Activation at each of them, in the autoencoder's units."""
    tokens_after: tuple[float, ...] = ()


class FeatureMove(Record):
    """One feature."""

    sae: str
    latent: int
    sign: Literal[1, -1] | None
    """Its sign in the given feature set; None: not in it."""
    q_f: float | None
    """The unit: the larger of the two checkpoints' Q_f."""
    texts_before: int
    """Texts in which it fires at a scoring position."""
    texts_after: int
    state: State
    """By the measure that features are ordered by; `appears` and `vanishes` by the two counts of texts alone."""
    null_same: int | None = None
    """In how many of the null's trainings it appears, or vanishes, just so; None: it does neither, or there is none."""
    measures: dict[Measure, Moved]
    texts: tuple[TextMove, ...]
    """Those that changed most, in the direction of the change first."""


class MeasureChange(Record):
    """One measure over all features that are judged."""

    measure: Measure
    judged: int
    significant: int
    """q ≤ 0.05."""
    moved: int
    median: float
    """Median |change|."""
    null_median: float
    """The same in the null."""
    with_null: Estimate
    """Spearman's correlation of |change| with |change| in the null: what moves in any retraining moves here too."""


class SetChange(Record):
    """Whether the features of a set moved more than others, by one measure."""

    measure: Measure
    n: int
    """Features of the set that are judged."""
    moved: int
    auroc: float
    """How well |change| tells them from the other judged features."""
    p: float
    """Share of random sets of as many features that reach it (one-sided)."""
    p_matched: float
    """The same for sets of features of about the same level before: larger features move more in any case."""
    null_auroc: float
    """The AUROC with |change| in the null."""
    excess_auroc: float
    """The AUROC with |change| less that in the null."""
    along: Estimate
    """Mean of sign · change: negative where features of safe answers fall and those of unsafe ones rise."""
    null_along: float
    """The same in the null."""
    along_beyond: Estimate
    """`along` − that of the other trainings, on the same draws of prompts; their number does not widen the interval."""


class GroupChange(Record):
    """Rewards of one group of pairs."""

    group: str
    n_pairs: int
    chosen: Estimate
    """Mean change of the reward of chosen answers. Rewards have no zero: only differences between answers count."""
    rejected: Estimate
    margin: Estimate
    margin_before: Estimate
    margin_after: Estimate
    accuracy_before: Estimate
    accuracy_after: Estimate
    accuracy: Estimate
    """after − before; a tie counts one half."""
    reranked: Estimate
    """Share of pairs that the two rank otherwise."""
    to_right: int
    to_wrong: int
    null_reranked: tuple[float, ...]
    """The share in each null model that gives rewards."""


class PairChange(Record):
    """A pair whose ranking changed."""

    pair_id: str
    group: str
    before: float
    """Margin r(chosen) − r(rejected)."""
    after: float


class Fit(Record):
    """How well the autoencoder reconstructs one model."""

    who: str
    model: str
    fvu: float | None
    l0: float
    dead_share: float
    n: int
    """Positions measured."""


class NullAbout(Record):
    """What "no change" looks like here."""

    kind: Literal["other trainings", "swapped halves"]
    models: tuple[str, ...]
    n: int
    """Comparisons in it."""


class ChangeReport(Record):
    """Two checkpoints through one autoencoder."""

    before: str
    after: str
    sae: str
    sae_model: str
    """The model that the autoencoder names as its own."""
    hookpoint: str
    d_sae: int
    group: str
    n_texts: int
    n_pairs: int
    n_prompts: int
    judged: int
    least: int
    appears: int
    vanishes: int
    null_appears: tuple[int, ...]
    """Features that appear by the same count in each other training; empty: there is none."""
    null_vanishes: tuple[int, ...]
    by: Measure
    null: NullAbout
    fits: tuple[Fit, ...]
    measures: tuple[MeasureChange, ...]
    features: tuple[FeatureMove, ...]
    feature_set: tuple[SetChange, ...]
    groups: tuple[GroupChange, ...]
    reranked: tuple[PairChange, ...]
    """Of all groups, largest change of the margin first."""
    truncated_texts: int
    caveats: tuple[str, ...]
    reasons: dict[str, str]
    """{what is not there: why}."""
    seed: int
    rule: str = RULE
    key: str
    """Digest of scans, features and settings."""
