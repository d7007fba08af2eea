"""Plots of a run, with matplotlib (imported where used)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def training_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy, learning rate and, where there are, instance mIoU and the experts' distance, over epochs.

    Args:
        rows: of ``metrics.jsonl``; those with an ``epoch`` are drawn.
        path: the picture to write.
    """
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    epochs = [row for row in rows if "epoch" in row]
    panels: list[tuple[str, dict[str, str]]] = [
        ("training loss", {"train_loss": "loss"}),
        ("overall accuracy, %", {"train_oa": "train (augmented)", "val_oa": "val", "test_oa": "test"}),
        ("learning rate", {"lr": "learning rate"}),
    ]
    mious = {f"{split}_instance_miou": split for split in ("val", "test")}
    if any(key in row for row in epochs for key in mious):
        panels.insert(2, ("instance mIoU, %", mious))
    if any("expert_distance" in row for row in epochs):
        panels.append(("experts: distance from mean / norm of mean", {"expert_distance": "distance"}))
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for key, label in curves.items():
            points = [(row["epoch"], row[key]) for row in epochs if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if "expert_distance" in curves and any(row.get("expert_distance") for row in epochs):
            axis.set_yscale("log")  # it falls by orders of magnitude
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
