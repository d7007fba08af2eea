"""The picture of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .plots import COLORS, DPI


class Interval(NamedTuple):
    """An arm's differences to the baseline."""

    name: str
    values: Sequence[float]  # one a seed
    mean: float
    bounds: tuple[float, float] | None  # of the mean; of one seed there are none


def draw_differences(
    panels: Mapping[str, Sequence[Interval]], baseline: str, path: Path, *, same_scale: bool = False
) -> None:
    """Draw, in a panel a task and a row an arm: every seed's difference as a dot, their mean and its interval.

    Args:
        panels: the arms' differences, by the panel's title.
        baseline: the arm that is zero.
        path: the picture to write.
        same_scale: all panels have one scale, as their scores have one unit.
    """
    from matplotlib.figure import Figure  # no pyplot: no display and no global state

    heights = [0.42 * len(arms) + 0.9 for arms in panels.values()]
    figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
    ratios = {"height_ratios": heights}
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=same_scale, gridspec_kw=ratios)[:, 0]
    for axis, (title, arms) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color="0.4", linewidth=1)
        for row, arm in enumerate(arms):
            if arm.bounds is not None:
                axis.plot(arm.bounds, (row, row), color=COLORS[0], linewidth=5, alpha=0.35, solid_capstyle="butt")
            axis.plot(arm.mean, row, "|", color=COLORS[0], markersize=16, markeredgewidth=2.5)
            axis.plot(arm.values, [row] * len(arm.values), "o", color="black", markersize=4, alpha=0.7, linewidth=0)
        axis.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_title(title, fontsize=10, loc="left")
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel(f"difference to {baseline}: dots are seeds, bars the mean's 95 % intervals")
    figure.savefig(path, dpi=DPI)
