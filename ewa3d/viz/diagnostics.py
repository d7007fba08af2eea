"""The picture of a run's experts, with matplotlib: scores, losses between them, distances, gradients."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .plots import COLORS, DPI

_SCORES = {
    "oa": ("overall accuracy, %", 1),
    "instance_miou": ("instance mIoU, %", 1),
    "chamfer_l1": ("Chamfer-L1, thousandths", 1000),
    "chamfer_l2": ("Chamfer-L2, thousandths", 1000),
}


def diagnostics_figure(found: Mapping[str, Any], path: Path, title: str = "") -> None:
    """Draw what `ewa3d.engine.diagnose.diagnose` found.

    Experts that are equal, or all but equal, are drawn as such: no axis is stretched until rounding fills it.

    Args:
        found: what it returned and, where known, ``training``: the run's rows with ``expert_distance``.
        path: the picture to write.
        title: above it.
    """
    from matplotlib.figure import Figure

    below = ["distances", "gradients", "training" if found.get("training") else "gradients"]
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    rows: list[Any] = [["scores", "losses", "losses"], below]
    axes = figure.subplot_mosaic(rows)
    _draw_scores(axes["scores"], found)
    _draw_losses(axes["losses"], found["lines"])
    _draw_distances(axes["distances"], found["layers"])
    _draw_gradients(axes["gradients"], found["gradients"])
    if found.get("training"):
        _draw_training(axes["training"], found["training"])
    figure.suptitle(textwrap.fill(title, 120), fontsize=12)
    figure.savefig(path, dpi=DPI)


def _draw_scores(axis: Any, found: Mapping[str, Any]) -> None:
    label, unit = _SCORES[found["score"]]
    values = [unit * scores[found["score"]] for scores in (*found["alone"], found["merged"])]
    names = [f"expert {i}" for i in range(len(found["alone"]))] + ["merged"]
    colors = [COLORS[0]] * len(found["alone"]) + [COLORS[1]]
    axis.axvline(values[-1], color=COLORS[1], linestyle="--", linewidth=1)
    axis.scatter(values, range(len(names)), color=colors, s=50, zorder=3)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # where a value meets the line
    for place, value in enumerate(values):
        look = {"textcoords": "offset points", "ha": "center", "fontsize": 9, "bbox": paper}
        axis.annotate(f"{value:.2f}", (value, place), (0, 8), **look)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -1)
    axis.set_xlim(_limits(values))
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(f"each expert alone ({found['split']} split, {found['protocol']})", fontsize=10)


def _draw_losses(axis: Any, lines: Mapping[str, Any]) -> None:
    pairs = lines["pairs"]
    worst = max(pairs, key=lambda pair: pair["barrier"])
    for number, pair in enumerate(pairs):
        look: dict[str, Any] = {"label": f"{pair['i']} to {pair['j']}", "marker": "."}
        if len(pairs) <= 10:
            look |= {"color": COLORS[number % 6], "linestyle": "-" if number < 6 else "--"}  # black is the merged one
        elif pair is not worst:
            named = number == (1 if pairs[0] is worst else 0)  # one of them, for the legend
            look = {"color": COLORS[0], "alpha": 0.4, "linewidth": 1, "label": "two experts" if named else None}
        else:
            look |= {"color": COLORS[1], "zorder": 3}
        axis.plot(lines["t"], pair["loss"], **look)
    axis.axhline(lines["merged"], color="black", linestyle="--", linewidth=1, label="merged")
    axis.set_ylim(_limits([lines["merged"], *(loss for pair in pairs for loss in pair["loss"])]))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_xlabel("from one expert (0) to another (1)")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    highest = f"highest barrier {worst['barrier']:.2g}, {worst['i']} to {worst['j']}"
    said = highest if worst["barrier"] > 0 else "no barrier"
    axis.set_title(f"loss between experts ({lines['clouds']} clouds): {said}", fontsize=10)


def _draw_distances(axis: Any, layers: Mapping[str, Mapping[str, Any]]) -> None:
    relative = np.mean([np.array(layer["distances"]) / layer["norm"] for layer in layers.values()], axis=0)
    count = len(relative)
    axis.imshow(relative, cmap="Blues", vmin=0, vmax=1.6 * relative.max() or 1)  # pale enough for black numbers
    digits, size = (2, 9) if count < 6 else (1, 6)
    for i, j in zip(*np.nonzero(~np.eye(count, dtype=bool)), strict=True):
        axis.text(j, i, f"{relative[i, j]:.{digits}g}", ha="center", va="center", fontsize=size)
    axis.set_xticks(range(count))
    axis.set_yticks(range(count))
    axis.tick_params(length=0)
    axis.set_xlabel("expert")
    axis.set_ylabel("expert")
    axis.set_title("distance / norm of mean (mean of layers)", fontsize=10)


def _draw_gradients(axis: Any, gradients: Mapping[str, Any]) -> None:
    names = list(gradients["layers"])
    for place, cosines in enumerate(gradients["layers"].values()):
        axis.scatter([place] * len(cosines), cosines, color=COLORS[0], s=12, alpha=0.4, linewidths=0)
        axis.plot([place - 0.25, place + 0.25], [np.mean(cosines)] * 2, color=COLORS[1], linewidth=2)
    lowest = min(cosine for cosines in gradients["layers"].values() for cosine in cosines)
    axis.set_ylim(min(-0.05, lowest - 0.05), 1.05)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.axhline(0, color="0.6", linewidth=1)
    crowded = len(names) > 4
    axis.set_xticks(range(len(names)), names, rotation=90 if crowded else 0, fontsize=7 if crowded else 8)
    axis.grid(axis="y", alpha=0.3)
    batches = len(next(iter(gradients["layers"].values())))
    axis.set_title(f"cosine of experts' gradients ({batches} batches)", fontsize=10)


def _draw_training(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib import colormaps

    layers = list(rows[-1].get("expert_distances", {}))
    epochs = [row["epoch"] for row in rows]
    for depth, name in zip(np.linspace(0.1, 0.85, len(layers)), layers, strict=True):  # of viridis, without its ends
        distances = [row.get("expert_distances", {}).get(name, np.nan) for row in rows]
        axis.plot(epochs, distances, color=colormaps["viridis"](depth), marker=".", label=name)
    means = [row["expert_distance"] for row in rows]
    label = "mean of layers" if layers else "distance"
    axis.plot(epochs, means, color="black", linestyle="--", marker=".", label=label)
    if any(means):
        axis.set_yscale("log")  # it falls by orders of magnitude
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8 if len(layers) < 7 else 6)
    axis.set_title("distance from mean / norm, in training", fontsize=10)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Of an axis with some room for these values; the room is 1 % of them at least, so that equal ones look equal."""
    low, high = min(values), max(values)
    room = max(0.15 * (high - low), 0.01 * max(abs(low), abs(high))) or 1.0
    return low - room, high + room
