"""What a model makes of whole clouds before its head, and how much of their class a linear SVM reads from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..models import PointTransformer, create_model
from .batches import run_batches
from .build import eval_loader, open_split, place
from .metrics import label_scores
from .schema import Config
from .tasks import Batch, Task

C = 0.01  # of the SVM, the field's usual one


def pooled_features(
    model: PointTransformer, task: Task, loader: DataLoader, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Pooled features and label of every cloud of a dataset, in its order; see `run_batches`.

    Classification pools the class token and the maximum over the groups, which is what its head is given; part
    segmentation the maximum over the groups, of three depths.

    Args:
        model: in eval mode.
        task: says from which points.
        loader: from `eval_loader`.
        accelerator: devices and processes.

    Returns:
        ``(n, 2C)`` or ``(n, 3C)`` float32, and ``(n,)`` int64: the class, or the category.
    """

    def step(batch: Batch) -> tuple[Tensor, ...]:
        return task.features(model, batch).float(), batch["label"]

    features, labels = run_batches(step, loader, accelerator, label="features")
    return features, labels


def probe_model(
    model: PointTransformer, task: Task, loader: DataLoader, accelerator: Accelerator, config: Config
) -> dict[str, dict[str, Any]]:
    """The linear probe: a linear SVM on frozen features, trained on ``data.train_split`` and scored on ``loader``.

    The features are those of `pooled_features`, in fp32, without augmentation. This is the field's standard check of
    what pretraining has learned, on ModelNet40.

    Returns:
        Scores by protocol: ``linear_probe`` and, with ``eval.untrained``, ``linear_probe_untrained``, the same for a
        model of this architecture with fresh weights drawn from ``eval.seed``.
    """
    probed = {"linear_probe": model}
    if config.eval.untrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.eval.seed)
            probed["linear_probe_untrained"] = place(create_model(**model.config), accelerator.device)
    train_loader = eval_loader(open_split(config, config.data.train_split), config, accelerator)
    scores: dict[str, dict[str, Any]] = {}
    for protocol, network in probed.items():
        network.eval()
        known, labels = pooled_features(network, task, train_loader, accelerator)
        rows, truth = pooled_features(network, task, loader, accelerator)
        found = label_scores(predict_linear(known, labels, rows), truth)
        scores[protocol] = {**found, "trained_on": config.data.train_split, "C": C}
    return scores


def predict_linear(known: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """What a linear SVM (scikit-learn's ``LinearSVC``) that was fitted to some clouds says of others.

    Args:
        known: features to fit, ``(n, features)``.
        labels: their classes, ``(n,)`` int64, of two classes or more.
        rows: features of the others, ``(m, features)``.

    Returns:
        Their classes, ``(m,)`` int64.
    """
    from sklearn.svm import LinearSVC

    # the primal problem: the same result in every run, without a random order of the rows
    svm = LinearSVC(C=C, dual=False, max_iter=10_000).fit(known.numpy(), labels.numpy())
    return torch.from_numpy(svm.predict(rows.numpy()).astype(np.int64))


def describe_probe(scores: Mapping[str, Any]) -> str:
    """How the scores of a probe came about, to stand behind them; nothing for those of other protocols."""
    if "trained_on" not in scores:
        return ""
    return f" (linear SVM with C = {scores['C']:g} on the frozen features of the {scores['trained_on']} split)"
