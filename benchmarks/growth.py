"""How time and memory grow with points, batch, experts and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ewa3d
from ewa3d.data import SHAPENETPART
from ewa3d.engine.build import place

from .suites import Row, Setting, ms, row, training_step
from .timing import in_turn, peak_memory

POINTS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
BATCHES = (2, 4, 8, 16, 32, 64, 128)  # BatchNorm in the head wants two
EXPERTS = (1, 2, 4, 8, 16)
DEPTHS = (2, 4, 8, 12, 16, 24)


def growth(setting: Setting) -> list[Row]:
    """Inference against points; training steps (bf16) against batch, experts in every second block, and depth."""
    rows = against_points(setting)
    for axis, values in {"batch": BATCHES, "experts": EXPERTS, "depth": DEPTHS}.items():
        for value in values:
            clouds = value if axis == "batch" else setting.batch_size
            rows += measure({"training step": step(setting, **{axis: value})}, setting, axis, value, clouds=clouds)
    return rows


def against_points(setting: Setting) -> list[Row]:
    """`ewa3d.predict` on clouds of any size: a class a cloud, or a part a point."""
    device = torch.device(setting.device)
    classifier = place(ewa3d.create_model(setting.model), device).eval()
    segmenter = place(ewa3d.create_model(setting.model, "part_segmentation"), device).eval()
    segmenter.metadata = {"parts": {name: list(parts) for name, parts in SHAPENETPART.parts.items()}}
    classifier.metadata = {"class_names": [f"class {i}" for i in range(40)]}
    rows = []
    for count in POINTS:
        cloud = torch.randn(count, 3).numpy()
        calls: dict[str, Callable[[], Any]] = {
            "classification": partial(ewa3d.predict, classifier, cloud),
            "part segmentation": partial(ewa3d.predict, segmenter, cloud, category=SHAPENETPART.categories[0]),
        }
        rows += measure(calls, setting, "points", count, rounds=3)
    return rows


def step(setting: Setting, batch: int | None = None, experts: int = 1, **options: Any) -> Callable[[], None]:
    """A training step in bf16 on ``batch`` clouds, by default the setting's."""
    device = torch.device(setting.device)
    model = place(ewa3d.create_model(setting.model, **options), device)
    averager = None
    if experts > 1:
        averager = ewa3d.ExpertAverager(ewa3d.upcycle(model, experts, every=2), 0.3, "constant")
    points = torch.randn(batch or setting.batch_size, setting.num_points, 3, device=device)
    labels = torch.randint(40, (len(points),), device=device)
    return partial(training_step(model, "bf16", averager), points, labels)


def measure(
    calls: dict[str, Callable[[], Any]], setting: Setting, axis: str, value: int, *, clouds: int = 1, rounds: int = 5
) -> list[Row]:
    """Time and memory of calls at one place of an axis."""
    times = in_turn(calls, min(rounds, setting.rounds), warmup=1, label=f"{value} {axis}")
    return [
        row(
            f"{name}, {axis} {value:,}",
            ms(times, name, clouds),
            "ms/cloud",
            peak_mib=peak_memory(call),
            curve=name,
            axis=axis,
            value=value,
        )
        for name, call in calls.items()
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time (solid) and memory (dashed) along every axis."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(r["axis"] for r in rows))
    figure = Figure(figsize=(9, 3 * ((len(axes) + 1) // 2)), layout="constrained")
    for number, axis in enumerate(axes, 1):
        plot = figure.add_subplot((len(axes) + 1) // 2, 2, number)
        memory = plot.twinx()
        for color, curve in enumerate(dict.fromkeys(r["curve"] for r in rows if r["axis"] == axis)):
            found = [r for r in rows if (r["axis"], r["curve"]) == (axis, curve)]
            x = [r["value"] for r in found]
            plot.plot(x, [r["median"] for r in found], "o-", color=f"C{color}", label=curve)
            memory.plot(x, [r["peak_mib"] for r in found], "s--", color=f"C{color}", alpha=0.5, markersize=3)
        plot.set(xlabel=axis, ylabel="ms a cloud (solid)")
        memory.set(ylabel="peak MiB (dashed)", ylim=(0, None))
        if axis == "points":  # three decades of both
            plot.set(xscale="log", yscale="log")
            plot.legend(loc="upper left", frameon=False)
        else:
            plot.set(xscale="linear" if axis == "depth" else "log", ylim=(0, None))
            plot.set_xticks(x, labels=map(str, x))
            plot.minorticks_off()
    figure.savefig(path, dpi=100)
