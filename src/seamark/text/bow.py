"""Baselines that read no meaning: how far word counts, or length alone, tell chosen from rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from seamark.errors import DataError
from seamark.stats import Estimate, bootstrap_by_cluster, cluster_codes
from seamark.text.pairs import Pairs, PreferencePair
from seamark.text.rows import text_of

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse penalties C that cross-validation chooses from."""
FOLDS = 5
WORDS = r"(?u)\b\w+\b|[^\w\s]"
"""What counts as a word: letters and digits, or one mark."""


def bag_of_words_accuracy(train: Pairs, test: Pairs) -> dict[str, Estimate]:
    """Accuracy per group of `test` of a bag-of-words judge fitted on all of `train`.

    Logistic regression without intercept on the difference of counts (chosen − rejected response) of words and word
    pairs that occur in at least two training responses; the prompt is not read. Swapping a pair's sides swaps its
    score's sign, ties count one half, C is chosen by 5-fold cross-validation grouped by prompt. A reward model that
    does no better has learned words, not safety.

    Returns:
        Group name to an Estimate whose interval resamples prompts; not available where train or test is too small.

    Raises:
        DataError: `train` is empty.
    """
    if len(train) == 0:
        raise DataError("no pairs to fit the bag-of-words baseline on")
    from sklearn.feature_extraction.text import CountVectorizer  # here, because it is slow to import

    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=WORDS, min_df=min(2, len(train)))
    try:
        vectorizer.fit([text_of(t) for p in train for t in (p.chosen, p.rejected)])
    except ValueError:  # no word occurs twice
        return {g: Estimate.not_available("the training responses share no words") for g in test.groups}
    x = _differences(vectorizer, train)
    model = _fit(x, _choose_strength(x, cluster_codes([p.prompt_key for p in train])))
    result = {}
    for group in test.groups:
        pairs = test.group(group)
        clusters = cluster_codes([p.prompt_key for p in pairs])
        result[group] = bootstrap_by_cluster(_correct(model, _differences(vectorizer, pairs)), clusters)
    return result


def longer_wins(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Share of pairs, by group, whose chosen response has more characters; ties count one half."""
    wins: dict[str, list[float]] = {}
    for pair in pairs:
        longer = len(text_of(pair.chosen)) - len(text_of(pair.rejected))
        wins.setdefault(pair.group, []).append((float(np.sign(longer)) + 1) / 2)
    return {group: float(np.mean(won)) for group, won in wins.items()}


def count_differences(pairs: Pairs, most: int = 20_000) -> sp.csr_matrix | None:
    """Counts of words and word pairs in chosen minus those in rejected responses, [pairs, columns]; None where no two
    pairs have a difference in common.

    Words are hashed into 2^18 columns, so that no vocabulary grows with the data, and the `most` columns in which the
    largest number of pairs differ are kept.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # here, because it is slow to import

    vectorizer = HashingVectorizer(n_features=1 << 18, ngram_range=(1, 2), token_pattern=WORDS, norm=None,
                                   alternate_sign=False)  # fmt: skip
    x = _differences(vectorizer, pairs)
    used = x.getnnz(axis=0)
    kept = np.sort(np.lexsort((np.arange(len(used)), -used))[:most])
    kept = kept[used[kept] > 1]
    return x[:, kept] if len(kept) else None


def _differences(vectorizer: Any, pairs: Sequence[PreferencePair]) -> sp.csr_matrix:
    """Counts of chosen minus rejected, [pairs, words]."""
    chosen = vectorizer.transform([text_of(p.chosen) for p in pairs])
    rejected = vectorizer.transform([text_of(p.rejected) for p in pairs])
    return (chosen - rejected).astype(np.float64).tocsr()


def _fit(x: sp.csr_matrix, strength: float) -> NDArray[np.float64]:
    """Word weights [words]. Every pair is seen both ways round, so no side is learned."""
    from sklearn.linear_model import LogisticRegression

    both = sp.vstack([x, -x]).tocsr()
    label = np.r_[np.ones(x.shape[0]), np.zeros(x.shape[0])]
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500, tol=1e-3)
    with threadpool_limits(1):  # short sums by the thousand: threads only wait for one another
        weights: NDArray[np.float64] = model.fit(both, label).coef_[0]
    return weights


def _correct(weights: NDArray[np.float64], x: sp.csr_matrix) -> NDArray[np.float64]:
    """1 where chosen scores higher, 0 where lower, 0.5 for ties. [pairs]"""
    margins = np.asarray(x @ weights)
    return (np.sign(margins) + 1) / 2


def _choose_strength(x: sp.csr_matrix, prompts: NDArray[np.int64]) -> float:
    """The C with the best mean accuracy on held-out prompts; the smallest of the best."""
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(prompts)))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    splits = list(GroupKFold(n_splits=folds).split(x, groups=prompts))
    scores = [
        float(np.mean([_correct(_fit(x[fit], strength), x[held]).mean() for fit, held in splits]))
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]
