"""Scores, as pure functions of predictions and truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def classification_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Overall accuracy ``oa`` and mean class accuracy ``macc`` (over the classes present in ``labels``), in percent.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.
    """
    return label_scores(logits.argmax(dim=1), labels)


def label_scores(predicted_labels: Tensor, labels: Tensor) -> dict[str, float]:
    """`classification_scores` of classes instead of logits, both ``(n,)`` int64."""
    from sklearn.metrics import accuracy_score, recall_score

    truth, predicted = labels.cpu().numpy(), predicted_labels.cpu().numpy()
    # recall of the classes present is balanced accuracy, without its warning about predicted classes that are absent
    recalls = recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    return {"oa": 100 * float(accuracy_score(truth, predicted)), "macc": 100 * float(recalls)}


def confusion_counts(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """How many clouds of each class (rows) are taken for each class (columns), ``(classes, classes)``.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.
    """
    from sklearn.metrics import confusion_matrix

    truth, predicted = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    return confusion_matrix(truth, predicted, labels=np.arange(logits.shape[1]))


def predict_parts(logits: Tensor, category: Tensor, part_mask: Tensor) -> Tensor:
    """The most likely part of every point, of those that its shape's category has.

    Args:
        logits: ``(B, N, parts)``.
        category: ``(B,)`` int64.
        part_mask: ``(categories, parts)`` bool, see `ewa3d.data.PartMap.mask`.

    Returns:
        ``(B, N)`` int64.
    """
    return logits.masked_fill(~part_mask[category].unsqueeze(1), -torch.inf).argmax(dim=-1)


def part_counts(predicted: Tensor, truth: Tensor, num_parts: int) -> Tensor:
    """How many points of every shape and part are predicted right, are there, and are predicted.

    All scores of part segmentation follow from these, and shapes of any sizes have equally many of them: processes can
    gather them.

    Args:
        predicted: ``(B, N)`` int64 part ids.
        truth: ``(B, N)`` int64 part ids; points where it is negative do not count.
        num_parts: parts of all categories.

    Returns:
        ``(B, num_parts, 3)`` int64: intersection, truth, prediction.
    """
    real = truth >= 0

    def count(part: Tensor, where: Tensor) -> Tensor:
        zeros = torch.zeros(len(part), num_parts, dtype=torch.long, device=part.device)
        return zeros.scatter_add_(1, part.clamp(min=0), where.long())

    right = count(truth, real & (predicted == truth))
    return torch.stack([right, count(truth, real), count(predicted, real)], dim=-1)


def segmentation_scores(
    counts: Tensor, category: Tensor, part_mask: Tensor, categories: Sequence[str]
) -> dict[str, Any]:
    """The scores of ShapeNetPart (Yi et al., SIGGRAPH Asia 2016, as PointNet and its successors report them).

    The IoU of a part that a shape neither has nor is predicted to have is 1; a shape's IoU is the mean over its
    category's parts.

    Args:
        counts: ``(n, parts, 3)``, see `part_counts`.
        category: ``(n,)`` int64.
        part_mask: ``(categories, parts)`` bool, see `ewa3d.data.PartMap.mask`.
        categories: their names.

    Returns:
        In percent: ``instance_miou``, the mean over shapes; ``class_miou``, the mean of the categories' means;
        ``per_category``, these means by name (categories with shapes only); ``oa``, the part of all points that is
        right; ``macc``, the mean of that over parts (those that occur).
    """
    right, there, said = counts.cpu().double().unbind(dim=-1)
    category, own = category.cpu(), part_mask.cpu()[category.cpu()].double()
    union = there + said - right
    iou = torch.where(union > 0, right / union.clamp(min=1), 1.0)
    shape_iou = 100 * (iou * own).sum(dim=1) / own.sum(dim=1)
    means = {categories[c]: float(shape_iou[category == c].mean()) for c in category.unique().tolist()}
    occurs = there.sum(dim=0) > 0
    recall = right.sum(dim=0)[occurs] / there.sum(dim=0)[occurs]
    return {
        "instance_miou": float(shape_iou.mean()),
        "class_miou": sum(means.values()) / len(means),
        "oa": 100 * float(right.sum() / there.sum()),
        "macc": 100 * float(recall.mean()),
        "per_category": means,
    }
