"""The progress bar of all long work: rate and time left, on stderr, and only where a person is looking."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int, *, unit: int = 1, enabled: bool = True) -> Iterator[T]:
    """Yield ``items`` under a bar that vanishes when done.

    ``unit`` is how many clouds an item holds; 0 where items are long pieces of work, of which no rate is shown.
    """
    if not enabled or not sys.stderr.isatty():
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # what is printed meanwhile goes above the bar, but not where stdout is a file or a pipe: it would never get there
    above, console = sys.stdout.isatty(), Console(stderr=True)
    # the time left is judged by the last half minute; none of several long pieces of work may have ended in it
    period = 30.0 if unit else math.inf
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=above, speed_estimate_period=period
    ) as progress:
        task = progress.add_task(label, total=total, rate="")
        for item in items:
            yield item
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed * unit:.0f} clouds/s" if speed and unit else "")
