"""What lies in a run's folder, for tests that compare runs."""

import json
import multiprocessing
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from ewa3d.engine.checkpoint import find_checkpoint
from ewa3d.engine.config import load_config

TIMING = {"time", "train_seconds", "eval_seconds"}


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    saved = find_checkpoint(folder / "checkpoints")
    files = {file.stem: load_file(file) for file in saved.glob("*.safetensors")}
    return {f"{name}.{key}": value for name, tensors in files.items() for key, value in tensors.items()}


def assert_same_end(whole: Path, other: Path) -> None:
    """Weights, optimizer, training state, scores, best epoch and export of two runs are the same, bit for bit."""
    first, second = (find_checkpoint(folder / "checkpoints") for folder in (whole, other))
    assert first.name == second.name
    assert (whole / "checkpoints" / "best").read_text() == (other / "checkpoints" / "best").read_text()
    for folder, twin in ((first, second), (whole / "export", other / "export")):
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(path.name for path in twin.iterdir())
        for name in names:
            assert (folder / name).read_bytes() == (twin / name).read_bytes(), name
    told = [[{k: row[k] for k in row.keys() - TIMING} for row in rows_of(folder)] for folder in (whole, other)]
    assert told[0] == told[1]


def train_in_child(overrides: list[str]) -> None:
    """A training as a process of its own: the target of `multiprocessing.Process`."""
    from ewa3d.engine.train import train

    multiprocessing.set_start_method("fork", force=True)  # of the loader's processes, as the command line has it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    train(load_config(overrides=overrides))
