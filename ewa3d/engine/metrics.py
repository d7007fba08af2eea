"""Scores, as pure functions of predictions and truth."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Overall accuracy ``oa`` and mean class accuracy ``macc`` (over the classes present in ``labels``), in percent.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.
    """
    from sklearn.metrics import accuracy_score, recall_score

    truth, predicted = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    # recall of the classes present is balanced accuracy, without its warning about predicted classes that are absent
    recalls = recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    return {"oa": 100 * float(accuracy_score(truth, predicted)), "macc": 100 * float(recalls)}
