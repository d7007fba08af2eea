"""Class-by-expert heat maps of learned routers, with matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DPI = 110
_CELL = (0.36, 0.19)  # of a heat map, inches
_WIDTH = 15.0  # of a picture, inches, where a panel does not need more
_BARS = 0.8  # inches


def routing_maps(
    counts: Mapping[str, ArrayLike],
    names: Sequence[str],
    path: Path,
    titles: Mapping[str, str] | None = None,
    title: str = "",
) -> None:
    """Draw for each layer where the choices of each class go, in percent of its row, over bars of the experts' load.

    Classes come in the same order everywhere, by `class_order`, so that those that share an expert are neighbours.

    Args:
        counts: by layer, ``(classes, experts)``: how many choices of a class fell on an expert.
        names: one a class; those without choices are left out.
        path: the picture to write.
        titles: what to say of each layer, besides its name.
        title: above all.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tables = {layer: np.asarray(table, dtype=np.float64) for layer, table in counts.items()}
    order = class_order(list(tables.values()))
    columns, figure_size, heights = _layout(tables, len(order), max(len(names[i]) for i in order))
    rows = math.ceil(len(tables) / columns)
    figure = Figure(figsize=figure_size, layout="constrained")
    widths = [max(table.shape[1] for table in tables.values())] * columns
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=heights * rows, width_ratios=widths)
    top = max(float(_shares(table.sum(axis=0)).max()) for table in tables.values())
    image: Any = None
    for i, (layer, table) in enumerate(tables.items()):
        upper, lower = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        shares = _shares(table[order])
        image = upper.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            color = "white" if colormaps["Blues"](share)[0] < 0.45 else "0.25"
            number = upper.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=color)
            number.set_in_layout(False)  # there are thousands, all of them within the map
        said = (titles or {}).get(layer, "")
        upper.set_title(f"{layer}\n{said}" if said else layer, fontsize=9)
        upper.set_yticks(range(len(order)), [names[j] for j in order] if i % columns == 0 else [], fontsize=8)
        upper.set_xticks([])
        upper.tick_params(length=0)
        upper.spines[:].set_color("0.6")
        _draw_load(lower, _shares(table.sum(axis=0)), top, i % columns == 0)
    for i in range(len(tables), rows * columns):
        for axis in axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]:
            axis.remove()
    bar = figure.colorbar(image, ax=figure.axes, shrink=min(1.0, 2.5 / figure_size[1]), pad=0.01)
    bar.set_label("of the class's choices", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter(_percent)
    if title:
        figure.suptitle(textwrap.fill(title, int(72 * figure_size[0] / (0.56 * 11))), fontsize=11)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def class_order(tables: Sequence[NDArray[np.float64]]) -> list[int]:
    """The classes that have choices, by the expert that takes most of theirs, and by how much it takes.

    The layer whose classes differ the most says it, of all ``(classes, experts)`` tables.
    """
    present = np.flatnonzero(np.sum([table.sum(axis=1) for table in tables], axis=0))
    shares = [_shares(table[present]) for table in tables]
    telling = max(shares, key=lambda table: float(((table - table.mean(axis=0)) ** 2).sum() / table.shape[1]))
    return present[np.lexsort((-telling.max(axis=1), telling.argmax(axis=1)))].tolist()


def _draw_load(axis: Any, load: NDArray[np.float64], top: float, first: bool) -> None:
    experts = range(len(load))
    axis.bar(experts, load, width=0.8, color="#0072B2")
    axis.axhline(1 / len(load), color="#D55E00", linestyle="--", linewidth=1)  # even
    axis.set_xlim(-0.5, len(load) - 0.5)
    axis.set_ylim(0, 1.1 * top)
    axis.set_xticks(experts, [str(i + 1) for i in experts], fontsize=8)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", labelsize=7)
    axis.yaxis.set_major_formatter(_percent)
    if first:
        axis.set_ylabel("load", fontsize=8)
    else:
        axis.set_yticklabels([])
    axis.set_xlabel("expert", fontsize=8, labelpad=1)
    axis.spines[["top", "right"]].set_visible(False)


def _percent(part: float, _: float) -> str:
    return f"{100 * part:.0f} %"


def _layout(
    tables: Mapping[str, NDArray[np.float64]], classes: int, longest: int
) -> tuple[int, tuple[float, float], list[float]]:
    """How many panels there are in a row, the size of the picture, and the heights of a map and its bars, in inches."""
    names = 0.085 * longest + 0.3
    panel = max(_CELL[0] * max(table.shape[1] for table in tables.values()), 1.75) + 0.15  # wide enough for its title
    columns = max(1, min(len(tables), int((_WIDTH - names) / panel)))
    rows = math.ceil(len(tables) / columns)
    columns = math.ceil(len(tables) / rows)
    heights = [_CELL[1] * max(classes, 6), _BARS]
    return columns, (names + columns * panel + 0.8, rows * (sum(heights) + 1.1) + 0.5), heights


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts over the sums of their last dimension."""
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
