"""How well a pair score finds wrong labels of known ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sklearn.metrics import roc_auc_score

from seamark.stats import Estimate


def detection_auroc(values: Mapping[str, float], wrong: Collection[str]) -> Estimate:
    """AUROC of "low score" as a sign of a wrong label, over the ids of `values`.

    Not available where all or none of the ids are wrong.
    """
    ids = sorted(values)
    labels = [i in wrong for i in ids]
    if not any(labels) or all(labels):
        return Estimate.not_available("needs both right and wrong labels", len(ids))
    return Estimate(value=float(roc_auc_score(labels, [-values[i] for i in ids])), n=len(ids))
