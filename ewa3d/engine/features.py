"""A map of what a model makes of whole clouds before its head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..viz.plots import feature_map
from .evaluate import describe_data, make_folder, open_evaluation
from .probe import pooled_features


def draw_features(
    folder: Path, path: Path, method: Literal["pca", "tsne"] = "pca", overrides: Sequence[str] = ()
) -> str:
    """Draw a map of the pooled features of a run's or an export's model on the split ``eval.split``.

    Args:
        folder: of the run or the export.
        path: the picture to write; its folder is made where it is not there.
        method: see `ewa3d.viz.plots.feature_map`; its seed is ``eval.seed``.
        overrides: ``key=value`` settings.

    Returns:
        What is drawn, in a line for people.
    """
    make_folder(path.parent)
    model, task, dataset, loader, accelerator, config = open_evaluation(folder, overrides)
    features, labels = pooled_features(model, task, loader, accelerator)
    name = {"pca": "PCA", "tsne": "t-SNE"}[method]
    what = f"{describe_data(config)}, {config.eval.split} split: pooled features of {len(dataset)} clouds, {name}"
    if accelerator.is_main_process:
        feature_map(features.numpy(), labels.numpy(), dataset.class_names, path, method, what, config.eval.seed)
    return what
