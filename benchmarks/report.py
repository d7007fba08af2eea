"""Suites run, printed as tables and written as JSON."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from ewa3d.engine.cpu import tune_process
from ewa3d.engine.evaluate import make_folder
from ewa3d.errors import Ewa3dError
from ewa3d.files import write_atomically
from ewa3d.models import list_models

from . import growth, suites, training
from .suites import Row, Setting
from .timing import machine

_RUN = {
    "ops": suites.ops,
    "model": suites.model,
    "sizes": suites.sizes,
    "train": training.train,
    "data": training.data,
    "growth": growth.growth,
}


def run_suites(names: Sequence[str], args: Namespace) -> None:
    """Run suites and report them as ``tools/benchmark.py``'s arguments ask for."""
    if args.model not in list_models("point_mae_*"):
        raise Ewa3dError(f"--model {args.model}: the reference is Point-MAE's: {', '.join(list_models('point_mae_*'))}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise Ewa3dError("--device cuda: PyTorch finds no GPU here: take auto or cpu")
    if args.plot is not None and "growth" not in names:
        raise Ewa3dError("--plot draws the growth suite: take --suite growth or all")
    for path in (args.out, args.plot):
        if path is not None:
            make_folder(path.parent)  # before the work, not after it
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    if device == "cpu":
        tune_process()
    precisions = (args.precision,) if args.precision else tuple(suites.DTYPES)
    setting = Setting(device, args.model, args.batch_size, args.points, args.rounds, args.data, args.root, precisions)
    report = {"machine": machine(device, args.seed), "suites": {}}
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{key} {value}" for key, value in report["machine"].items() if value is not None))
    for name in names:
        torch.manual_seed(args.seed)
        rows = _RUN[name](setting)
        console.print(table(name, rows))
        report["suites"][name] = rows
        if args.out is not None:  # after every suite: what was measured is not lost
            write_atomically(args.out, json.dumps(report, indent=1) + "\n")
    if args.plot is not None:
        growth.draw(report["suites"]["growth"], args.plot)


def table(name: str, rows: Sequence[Row]) -> Table:
    """Rows as a table: the median, the quartiles, memory where it was measured."""
    out = Table(title=name, title_justify="left")
    for column, justify in (("", "left"), ("median", "right"), ("quartiles", "right"), ("unit", "left"), ("", "left")):
        out.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        quartiles = f"{figure(row['low'])} to {figure(row['high'])}" if "low" in row else ""
        notes = [row["precision"]] if "precision" in row else []
        if row.get("peak_mib") is not None:
            notes.append(f"{row['peak_mib']:,.0f} MiB")
        out.add_row(row["what"], figure(row["median"]), quartiles, row["unit"], ", ".join(notes))
    return out


def figure(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
