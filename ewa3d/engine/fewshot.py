"""Few-shot classification: a model trained on every fold, and the mean of their scores."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from accelerate import PartialState

from ..data import FEW_SHOT
from ..data.fewshot import NUM_FOLDS
from ..errors import Ewa3dError
from ..files import write_atomically
from .run import check_same, load_run_config, read_rows
from .schema import Config
from .train import train


def train_folds(config: Config) -> dict[str, Any]:
    """Train and score a model on each of the ten folds of ``data.way`` and ``data.shot``, each a run of its own.

    The runs are ``run.dir/fold-0`` to ``fold-9``; the summary goes to ``run.dir/fewshot.json``. With ``run.resume`` a
    fold that is finished is not run again, and one that was interrupted goes on; ``run.overwrite`` deletes all of them.

    Args:
        config: as for `train`. ``data.fold`` is set here; ``run.dir`` is by default ``runs/RECIPE/5way_10shot``.

    Returns:
        ``dataset``, ``way``, ``shot``, ``split``, ``chosen_by``, ``dir``; ``folds``: a row a fold with its scores in
        percent, named ``PROTOCOL_SCORE``; ``mean`` and ``std`` (of the sample: over n - 1) of these scores.

    Raises:
        Ewa3dError: a dataset that has no folds; runs that are there already, or were made with another configuration;
            and what `train` raises.
    """
    if config.data.name not in FEW_SHOT:
        raise Ewa3dError(f"data.name={config.data.name} has no folds: take {' or '.join(FEW_SHOT)}")
    data = config.data
    folder = Path(config.run.dir or Path("runs") / config.recipe / f"{data.way}way_{data.shot}shot")
    runs = [_of_fold(config, folder, fold) for fold in range(NUM_FOLDS)]
    if config.run.overwrite and not config.run.resume and PartialState().is_main_process:
        for old in (Path(str(run.run.dir)) for run in runs):
            if (old / "config.yaml").is_file():  # never a folder that is no run
                shutil.rmtree(old)
    rows = [{"fold": run.data.fold, **(_finished(run) or train(run))} for run in runs]

    names = [name for name, value in rows[0].items() if isinstance(value, float) and name != "time"]
    kept = ("fold", "best_epoch", *names)
    summary = {
        "dataset": data.name,
        "way": data.way,
        "shot": data.shot,
        "split": config.eval.split,
        "chosen_by": config.train.select,
        "dir": str(folder),
        "folds": [{name: row[name] for name in kept} for row in rows],
        "mean": {name: fmean(row[name] for row in rows) for name in names},
        "std": {name: stdev(row[name] for row in rows) for name in names},
    }
    if PartialState().is_main_process:
        write_atomically(folder / "fewshot.json", json.dumps(summary, indent=2) + "\n")
    return summary


def describe_folds(summary: dict[str, Any]) -> str:
    """What `train_folds` returned as a table: a row a fold, then mean ± standard deviation."""
    names = list(summary["mean"])
    lines = ["".join([f"{'fold':<6}", *(f"{name:>16}" for name in names)])]
    for row in summary["folds"]:
        lines.append("".join([f"{row['fold']:<6}", *(f"{row[name]:16.2f}" for name in names)]))
    means = (f"{summary['mean'][name]:.2f} ± {summary['std'][name]:.2f}" for name in names)
    lines.append("".join([f"{'mean':<6}", *(f"{text:>16}" for text in means)]))
    what = f"{summary['dataset']}, {summary['way']}-way {summary['shot']}-shot, {summary['split']} split"
    lines.append(f"{what}: mean ± standard deviation over {len(summary['folds'])} folds, in percent")
    return "\n".join(lines)


def _of_fold(config: Config, folder: Path, fold: int) -> Config:
    """The configuration of one fold's run."""
    run = deepcopy(config)
    run.data.fold = fold
    run.run.dir = str(folder / f"fold-{fold}")
    return run


def _finished(config: Config) -> dict[str, Any] | None:
    """The result of a fold that is there to its end and may be taken."""
    folder = Path(str(config.run.dir))
    rows = read_rows(folder) if config.run.resume else []
    if not rows or "split" not in rows[-1]:
        return None
    check_same(load_run_config(folder), config, folder, scored=True)
    return rows[-1]
