"""Plots of a run, with matplotlib (imported where used, as scikit-learn is)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Ewa3dError

# Okabe and Ito's palette, which colour-blind readers can tell apart (2008), without its yellow: too pale on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 110


def training_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw over epochs: loss, learning rate and, where there are, accuracy, mIoU, Chamfer and the experts' distance.

    Args:
        rows: of ``metrics.jsonl``; those with an ``epoch`` are drawn.
        path: the picture to write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    epochs = [row | row.get("expert_distances", {}) for row in rows if "epoch" in row]
    panels: list[tuple[str, dict[str, str]]] = [
        ("training loss", {"train_loss": "loss"}),
        ("overall accuracy, %", {"train_oa": "train (augmented)", "val_oa": "val", "test_oa": "test"}),
        ("instance mIoU, %", {"val_instance_miou": "val", "test_instance_miou": "test"}),
        ("Chamfer-L2 of hidden groups", {"val_chamfer_l2": "val", "test_chamfer_l2": "test"}),
        ("Chamfer-L1 of hidden groups", {"val_chamfer_l1": "val", "test_chamfer_l1": "test"}),
        ("learning rate", {"lr": "learning rate"}),
    ]
    panels = [panel for panel in panels if any(key in row for row in epochs for key in panel[1])]
    layers = list(dict.fromkeys(name for row in epochs for name in row.get("expert_distances", {})))
    if any("expert_distance" in row for row in epochs):
        curves = {name: name for name in layers} | {"expert_distance": "mean of layers" if layers else "distance"}
        panels.append(("experts: distance from mean / norm of mean", curves))
    depths = np.linspace(0.1, 0.85, len(layers))  # of viridis, whose ends are too dark and too pale
    styles = {name: {"color": color} for name, color in zip(layers, colormaps["viridis"](depths), strict=True)}
    if layers:
        styles["expert_distance"] = {"color": "black", "linestyle": "--"}
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.set_prop_cycle(color=COLORS)
        for key, label in curves.items():
            points = [(row["epoch"], row[key]) for row in epochs if key in row]
            if points:
                marker = "." if len(points) < 40 else None
                axis.plot(*zip(*points, strict=True), label=label, marker=marker, **styles.get(key, {}))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if "expert_distance" in curves and any(row.get("expert_distance") for row in epochs):
            axis.set_yscale("log")  # it falls by orders of magnitude
        if len(axis.lines) > 1:
            axis.legend(fontsize=8 if len(axis.lines) < 8 else 6)
    figure.savefig(path, dpi=DPI)


def confusion_matrix(matrix: ArrayLike, names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw what the clouds of each class are taken for: hits blue, confusions orange, in percent of their row.

    Confusions are coloured by the root of their share, so that a few percent are seen. Confusions that round to 0
    have no number, and nothing has one where cells are too small.

    Args:
        matrix: ``(classes, classes)`` counts: rows are the truth, columns the prediction.
        names: one a class; the rows say how many clouds there are, too.
        path: the picture to write.
        title: above it.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=np.float64)
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]
    size = len(names)
    colors = colormaps["Oranges"](0.7 * np.sqrt(share))
    np.einsum("iik->ik", colors)[:] = colormaps["Blues"](np.diagonal(share))  # a view of the diagonal
    colors[share == 0] = 1

    side = min(max(4.2, 0.27 * size), 24)  # inches
    cell = 72 * side / size  # points, as fonts are measured
    rows = [f"{name} ({total:.0f})" for name, total in zip(names, totals, strict=True)]
    font = min(10, 0.55 * cell)
    upright = max(map(len, names)) * 0.65 * font > cell
    margin = max(map(len, rows)) * 0.6 * font / 72 + 0.4
    figure = Figure(figsize=(side + margin, side + (margin if upright else 0.6) + 0.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(colors, interpolation="nearest")
    axis.set_xticks(range(size), names, rotation=90 if upright else 0, fontsize=font)
    axis.set_yticks(range(size), rows, fontsize=font)
    axis.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_color("0.6")
    axis.set_xlabel("prediction, % of the row")
    axis.set_ylabel("truth (clouds)")
    if cell >= 14:
        numbered = (share >= 0.005) | (np.eye(size, dtype=bool) & (totals > 0))
        for row, column in zip(*np.nonzero(numbered), strict=True):
            dark = colors[row, column, :3] @ (0.299, 0.587, 0.114) < 0.55
            text, color = f"{100 * share[row, column]:.0f}", "white" if dark else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=min(11, 0.38 * cell), color=color)
    _entitle(axis, title, side)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def category_bars(
    scores: Mapping[str, float], path: Path, title: str = "", label: str = "IoU, %", limit: float | None = 100
) -> None:
    """Draw a bar with its value for every category, and their mean as a line.

    Args:
        scores: by name; drawn in this order, from above.
        path: the picture to write.
        title: above it.
        label: what is measured.
        limit: how far the axis goes; as far as the bars where ``None``.
    """
    from matplotlib.figure import Figure

    mean = sum(scores.values()) / len(scores)
    figure = Figure(figsize=(7, 0.26 * len(scores) + 1.4), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(range(len(scores)), list(scores.values()), height=0.72, color=COLORS[0])
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set_ylim(len(scores) - 0.4, -0.6)
    axis.axvline(mean, color=COLORS[1], linestyle="--", linewidth=1.2)
    axis.text(mean, -0.7, f"mean {mean:.1f}", color=COLORS[1], ha="center", va="bottom", fontsize=9)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # where a value meets the line of the mean
    axis.bar_label(bars, fmt="%.1f", padding=4, fontsize=9, bbox=paper, zorder=3)
    axis.set_xlim(0, limit or 1.12 * max(scores.values()))
    axis.set_xlabel(label)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    _entitle(axis, title, 6, above=20)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def feature_map(
    features: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    path: Path,
    method: Literal["pca", "tsne"] = "pca",
    title: str = "",
    seed: int = 0,
) -> None:
    """Draw clouds as points of a plane where alike features are near each other, with a colour and marker a class.

    A class is named above the point nearest to its median, unless that would cover another name; the legend has all.

    Args:
        features: ``(n, C)``, one row a cloud.
        labels: ``(n,)``, each below ``len(names)``.
        names: one a class; those without clouds are left out.
        path: the picture to write.
        method: ``pca``, the plane of the largest variance, where distances mean what they say, or ``tsne`` (van der
            Maaten and Hinton 2008), which keeps neighbours together and no distances.
        title: above it.
        seed: of t-SNE; the same seed draws the same picture.

    Raises:
        Ewa3dError: fewer than three clouds.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    places, axis_names = _project(np.asarray(features, dtype=np.float64), method, seed)
    labels = np.asarray(labels)
    counts = np.bincount(labels, minlength=len(names))
    present = np.flatnonzero(counts).tolist()
    columns = math.ceil(len(present) / 30)
    figure = Figure(figsize=(8 + 1.4 * columns, 7), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(16000 / len(labels), 12, 60))  # points²
    halo = [withStroke(linewidth=2.5, foreground="white")]
    texts: dict[int, Any] = {}
    for label in present:
        own = places[labels == label]
        color, marker = _style(label)
        order = 2 - counts[label] / len(labels)  # rare classes above the others
        look = {"s": size, "color": color, "marker": marker, "linewidths": 0, "alpha": 0.75, "zorder": order}
        axis.scatter(own[:, 0], own[:, 1], label=names[label], **look)
        middle = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        texts[label] = axis.annotate(
            names[label],
            middle,
            xytext=(0, 0.5 * math.sqrt(size) + 1),  # points: above the marker
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=[0.65 * part for part in to_rgb(color)],
            path_effects=halo,
            zorder=3,
        )
    axis.set_aspect("equal", "datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(axis_names[0])
    axis.set_ylabel(axis_names[1])
    axis.spines[:].set_color("0.6")
    scale = 6 / math.sqrt(size)  # all markers of the legend are 6 points wide
    figure.legend(loc="outside right center", ncols=columns, fontsize=8, frameon=False, markerscale=scale)
    _entitle(axis, title, 8)
    figure.draw_without_rendering()  # where names lie is known only now
    placed: list[Any] = []
    for label in sorted(present, key=lambda label: -counts[label]):
        box = texts[label].get_window_extent()
        if any(box.overlaps(other) for other in placed):
            texts[label].remove()
        else:
            placed.append(box)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def _style(index: int) -> tuple[str, str]:
    """Colour and marker of a class: all different for 56 of them."""
    return COLORS[index % len(COLORS)], _MARKERS[index // len(COLORS) % len(_MARKERS)]


def _project(features: NDArray[np.float64], method: str, seed: int) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Features ``(n, C)`` in the plane, ``(n, 2)``, and the names of its axes."""
    if len(features) < 3:
        raise Ewa3dError(f"a map of features needs three clouds or more, not {len(features)}")
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(features) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features), ("", "")
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    places = pca.fit_transform(features)
    first, second = 100 * pca.explained_variance_ratio_
    return places, (f"1st component, {first:.0f} % of the variance", f"2nd component, {second:.0f} %")


def _entitle(axis: Any, title: str, width: float, above: float = 8) -> None:
    """A title over a panel ``width`` inches wide, in as many lines as it takes, ``above`` points above the panel."""
    if title:
        font = min(14, max(10, 1.2 * width))
        title = title.replace(" %", "\N{NO-BREAK SPACE}%")
        axis.set_title(textwrap.fill(title, int(72 * width / (0.56 * font))), fontsize=font, pad=above)
