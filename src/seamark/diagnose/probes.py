"""Detectors of a risk: latents (one, a rule, sparse linear models), and what they are judged against: a probe on raw
activations, the words of a text, a list of keywords, its length, and its source alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from threadpoolctl import threadpool_limits

from seamark.diagnose.risk_metrics import best_threshold
from seamark.diagnose.risk_splits import Fold, source_shares
from seamark.diagnose.risk_texts import UNIT, LabelledTexts
from seamark.diagnose.rules import LEAST_TEXTS, feature_auroc, find_rule

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pooling = Literal["max", "mean"]
DetectorName = Literal["single", "rule", "sparse_max", "sparse_mean", "sparse_few", "raw_probe", "words", "keywords",
                       "length", "source_alone"]  # fmt: skip

L1_STRENGTHS = (0.1, 0.5, 2.0, 10.0)
"""Inverse penalties C of the sparse models, of latents scaled to at most 1."""
L2_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""The same of the probe on raw activations, of standardised dimensions."""
WORD_STRENGTHS = (0.3, 3.0, 30.0)
"""The same of the bag of words, of TF-IDF rows of unit norm."""
FEW = 32
"""Latents of the model of few."""
KEYWORDS = 50


@dataclass(frozen=True, eq=False)
class RiskInputs:
    """What detectors read, a row a text."""

    texts: LabelledTexts
    maximum: csr_matrix
    """Largest positive activation of each latent over a text's positions [texts, d_sae]."""
    mean: csr_matrix
    """Mean of the positive activations over all its positions."""
    raw: NDArray[np.float32]
    """Mean raw activation [texts, d_in]."""
    words: csr_matrix
    """1 where a word or a pair of words occurs [texts, words]."""
    vocabulary: Sequence[str]
    n_words: Integers

    def pooled(self, pooling: Pooling) -> csr_matrix:
        """`maximum` or `mean`."""
        return self.maximum if pooling == "max" else self.mean


@dataclass(frozen=True, eq=False)
class LatentWeights:
    """A detector that is linear in pooled latents: Σ weight · pooled + bias."""

    pooling: Pooling
    latents: Integers
    weights: Floats
    bias: float

    def score(self, pooled: csr_matrix) -> Floats:
        """[texts] for pooled latents [texts, d_sae]."""
        return np.asarray(pooled[:, self.latents] @ self.weights).ravel() + self.bias


@dataclass(frozen=True)
class Calibration:
    """From a score to a probability: σ(slope · score + intercept), after Platt."""

    slope: float
    intercept: float

    def __call__(self, score: Floats) -> Floats:
        found: Floats = 1.0 / (1.0 + np.exp(-np.clip(self.slope * score + self.intercept, -700, 700)))
        return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector that was fitted: scores of rows, their calibration and threshold, and what it looks at."""

    score: Callable[[Integers], Floats]
    about: Mapping[str, Any] = field(default_factory=dict)
    weights: LatentWeights | None = None
    calibration: Calibration = field(default_factory=lambda: Calibration(1.0, 0.0))
    threshold: float = 0.5

    def probability(self, rows: Integers) -> Floats:
        return self.calibration(self.score(rows))


def fit(name: DetectorName, x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """Fit on a fold's training part; settings, calibration and threshold come of its validation part.

    Args:
        name: which detector.
        x: what detectors read.
        y: [texts] 1: of the domain, 0: not.
        fold: both parts hold both classes.
    """
    check = fold.validation
    with threadpool_limits(1):  # many short fits: threads gain little, and wait for one another on a busy machine
        made = _MAKERS[name](x, y, fold)
        calibration = calibrate(made.score(fold.train), made.score(check), y[check])
        threshold = best_threshold(y[check], calibration(made.score(check)))
    return Fitted(made.score, made.about, made.weights, calibration, threshold)


def calibrate(known: Floats, score: Floats, y: Integers) -> Calibration:
    """Platt's sigmoid on validation scores, standardised by those of the training part, with a penalty (C = 1) that
    keeps few texts from certainty. A score that falls as the class rises gets no slope: then only the share counts."""
    from sklearn.linear_model import LogisticRegression

    centre, spread = float(known.mean()), float(known.std()) or 1.0
    model = LogisticRegression(C=1.0).fit(((score - centre) / spread)[:, None], y)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        share = (y.sum() + 1) / (len(y) + 2)
        return Calibration(0.0, math.log(share / (1 - share)))
    return Calibration(slope / spread, intercept - slope * centre / spread)


def count_words(texts: LabelledTexts) -> tuple[csr_matrix, list[str]]:
    """(1 where a word or pair of words occurs [texts, words], the words): those of two texts at least. Characters
    count as words in scripts without spaces. Which of them a detector uses is decided by its training part."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=min(2, len(texts)), dtype=np.float64,
                              token_pattern=UNIT.pattern)  # fmt: skip
    try:
        found = counter.fit_transform([t.text for t in texts]).tocsr()
    except ValueError:  # no word occurs twice
        return csr_matrix((len(texts), 0)), []
    return found, counter.get_feature_names_out().tolist()


def _single(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    train = x.maximum[fold.train]
    strength = feature_auroc(train, y[fold.train])
    best = int(np.argmax(strength))
    weights = LatentWeights("max", np.asarray([best]), np.ones(1), 0.0)
    return _latents(x, weights, {"latent": best, "training_auroc": float(strength[best])})


def _rule(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    rule = find_rule(x.maximum[fold.train], y[fold.train], x.maximum[fold.validation], y[fold.validation])
    return Fitted(lambda rows: rule.holds(x.maximum[rows]).astype(np.float64),
                  {"rule": str(rule), "latents": [literal.latent for literal in rule.literals]})  # fmt: skip


def _sparse(x: RiskInputs, y: Integers, fold: Fold, pooling: Pooling) -> Fitted:
    """L1 logistic regression on pooled latents, each scaled by its largest training value so that it stays sparse."""
    pooled = x.pooled(pooling)
    kept, scale, train = _scaled(pooled, fold.train)
    if not len(kept):
        return _latents(x, LatentWeights(pooling, kept, np.zeros(0), 0.0), {"n_latents": 0})
    check = pooled[fold.validation][:, kept] @ diags(1 / scale)
    model, strength = _best(L1_STRENGTHS, train, y[fold.train], check, y[fold.validation], penalty="l1")
    coef, bias = model.coef_[0], float(model.intercept_[0])
    used = np.flatnonzero(coef)
    weights = LatentWeights(pooling, kept[used], (coef / scale)[used], bias)
    top = used[np.argsort(-np.abs(coef[used]), kind="stable")]
    about = {"n_latents": len(used), "C": strength,
             "strongest": [{"latent": int(kept[i]), "weight": float(coef[i])} for i in top[:10]]}  # fmt: skip
    return _latents(x, weights, about)


def _few(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """The strongest latents of the sparse model, fitted anew alone."""
    from sklearn.linear_model import LogisticRegression

    sparse = _sparse(x, y, fold, "max").weights
    assert sparse is not None  # noqa: S101 - for the type checker
    kept, scale, train = _scaled(x.maximum[:, sparse.latents], fold.train)
    if not len(kept):
        return _latents(x, sparse, {"n_latents": 0})
    strongest = np.argsort(-np.abs(sparse.weights[kept] * scale), kind="stable")[:FEW]
    chosen = np.sort(strongest)
    model = LogisticRegression(C=1.0, solver="liblinear").fit(train[:, chosen], y[fold.train])
    latents = sparse.latents[kept[chosen]]
    weights = LatentWeights("max", latents, model.coef_[0] / scale[chosen], float(model.intercept_[0]))
    return _latents(x, weights, {"n_latents": len(latents), "latents": latents.tolist()})


def _scaled(pooled: csr_matrix, rows: Integers) -> tuple[Integers, Floats, csr_matrix]:
    """(latents that fire in `LEAST_TEXTS` of the rows, the largest value of each, the rows of those, scaled)."""
    train = pooled[rows]
    firing = np.bincount(train.indices, minlength=train.shape[1])
    kept = np.flatnonzero(firing >= LEAST_TEXTS)
    train = train[:, kept]
    scale = np.asarray(train.max(0).todense()).ravel() if len(kept) else np.ones(0)
    return kept, scale, (train @ diags(1 / scale)).tocsr() if len(kept) else train


def _latents(x: RiskInputs, weights: LatentWeights, about: Mapping[str, Any]) -> Fitted:
    pooled = x.pooled(weights.pooling)
    return Fitted(lambda rows: weights.score(pooled[rows]), about, weights)


def _raw_probe(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """L2 logistic regression on standardised mean raw activations."""
    train = x.raw[fold.train].astype(np.float64)
    centre, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1.0

    def standard(rows: Integers) -> Floats:
        found: Floats = (x.raw[rows] - centre) / spread
        return found

    model, strength = _best(L2_STRENGTHS, standard(fold.train), y[fold.train], standard(fold.validation),
                            y[fold.validation])  # fmt: skip
    return Fitted(lambda rows: np.asarray(model.decision_function(standard(rows))), {"C": strength})


def _words(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """L2 logistic regression on TF-IDF of words and word pairs of two training texts at least."""
    seen = np.asarray(x.words[fold.train].sum(0)).ravel()
    kept = np.flatnonzero(seen >= min(2, len(fold.train)))
    if not len(kept):
        return Fitted(lambda rows: np.zeros(len(rows)), {"n_words": 0})
    idf = np.log((1 + len(fold.train)) / (1 + seen[kept])) + 1

    def weighed(rows: Integers) -> csr_matrix:
        found = (x.words[rows][:, kept] @ diags(idf)).tocsr()
        norm = np.sqrt(np.asarray(found.multiply(found).sum(1)).ravel())
        return (diags(1 / np.where(norm > 0, norm, 1.0)) @ found).tocsr()

    model, strength = _best(WORD_STRENGTHS, weighed(fold.train), y[fold.train], weighed(fold.validation),
                            y[fold.validation])  # fmt: skip
    return Fitted(lambda rows: np.asarray(model.decision_function(weighed(rows))),
                  {"C": strength, "n_words": len(kept)})  # fmt: skip


def _keywords(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """How many of a list occur: the words whose log-odds are most surely higher in training texts of the domain.

    z = (log-odds of occurring in a text of the domain − in another) / its standard error, counts + ½; the 50 largest
    above 1.96.
    """
    of_domain = y[fold.train] == 1
    train = x.words[fold.train]
    inside, outside = (np.asarray(train[side].sum(0)).ravel() + 0.5 for side in (of_domain, ~of_domain))
    without = [n + 1.0 - with_ for n, with_ in ((of_domain.sum(), inside), ((~of_domain).sum(), outside))]
    odds = np.log(inside / without[0]) - np.log(outside / without[1])
    z = odds / np.sqrt(1 / inside + 1 / without[0] + 1 / outside + 1 / without[1])
    chosen = np.argsort(-z, kind="stable")[:KEYWORDS]
    chosen = chosen[z[chosen] > 1.96]
    return Fitted(lambda rows: np.asarray(x.words[rows][:, chosen].sum(1), np.float64).ravel(),
                  {"n_keywords": len(chosen)})  # fmt: skip


def _length(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """Longer texts, or shorter ones, whichever the training part says."""
    said = np.log1p(x.n_words.astype(np.float64))
    rows = fold.train
    sign = 1.0 if said[rows[y[rows] == 1]].mean() >= said[rows[y[rows] == 0]].mean() else -1.0
    return Fitted(lambda rows: sign * said[rows], {"longer": sign > 0})


def _source_alone(x: RiskInputs, y: Integers, fold: Fold) -> Fitted:
    """The share of the domain among the training texts of a text's source; of an unknown one, the share over all."""
    shares, otherwise = source_shares(x.texts, y.astype(np.int8), fold.train), float(y[fold.train].mean())
    return Fitted(lambda rows: np.asarray([shares.get(x.texts[row].source, otherwise) for row in rows]))


def _best(
    strengths: Sequence[float], train: Any, y: Integers, check: Any, y_check: Integers, penalty: str = "l2"
) -> tuple[Any, float]:  # fmt: skip
    """The model with the smallest log loss on validation, and its C."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    best: tuple[float, Any, float] | None = None
    for strength in strengths:
        if penalty == "l1":
            model = LogisticRegression(C=strength, solver="liblinear", tol=1e-3, random_state=0, **_l1())
        else:
            model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unfinished fits are judged by validation like the others
            model.fit(train, y)
        loss = float(log_loss(y_check, model.predict_proba(check)[:, 1], labels=[0, 1]))
        if best is None or loss < best[0]:
            best = (loss, model, strength)
    assert best is not None  # noqa: S101 - strengths are never empty
    return best[1], best[2]


def _l1() -> dict[str, Any]:
    """How scikit-learn is told of an L1 penalty: another way since 1.8."""
    import sklearn

    major, minor = (int(part) for part in sklearn.__version__.split(".")[:2])
    return {"l1_ratio": 1.0} if (major, minor) >= (1, 8) else {"penalty": "l1"}


_MAKERS: dict[DetectorName, Callable[[RiskInputs, Integers, Fold], Fitted]] = {
    "single": _single, "rule": _rule, "sparse_max": lambda x, y, f: _sparse(x, y, f, "max"),
    "sparse_mean": lambda x, y, f: _sparse(x, y, f, "mean"), "sparse_few": _few, "raw_probe": _raw_probe,
    "words": _words, "keywords": _keywords, "length": _length, "source_alone": _source_alone,
}  # fmt: skip
DETECTORS: tuple[DetectorName, ...] = tuple(_MAKERS)
