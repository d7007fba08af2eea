"""Checkpoints that a run can be continued from as if it had never stopped.

A checkpoint is a folder ``checkpoints/step-N`` of safetensors and JSON; nothing in it is pickled. It is written under
a hidden name and renamed when complete. ``last`` and ``best`` beside it are small files that name such a folder.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import Ewa3dError
from ..files import write_atomically

_MEND = "write the name of the step before it into checkpoints/last"
_WEIGHTS = {False: "model.safetensors", True: "ema.safetensors"}  # whether of the moving average
_KEEP = 2  # the newest ones; the best is kept besides


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    *,
    best: bool,
    ema: nn.Module | None = None,
) -> Path:
    """Write ``folder/step-N`` and point ``last`` (and ``best``) at it; older ones than needed are deleted.

    Args:
        folder: the run's ``checkpoints``.
        model: unwrapped, so that its keys are plain.
        optimizer: its state tensors are saved, and its groups' settings.
        state: what else the run needs, as JSON can hold it; ``state["step"]`` is the number of optimizer steps.
        best: whether this is the best epoch so far.
        ema: the moving average of the model, where there is one.
    """
    step = state["step"]
    tensors, groups = _flatten_optimizer(optimizer)
    temporary = folder / f".step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_atomically(temporary / _WEIGHTS[False], save(_weights(model)))
    if ema is not None:
        write_atomically(temporary / _WEIGHTS[True], save(_weights(ema)))
    write_atomically(temporary / "optimizer.safetensors", save(tensors))
    write_atomically(temporary / "state.json", json.dumps({**state, "groups": groups}))
    final = folder / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    write_atomically(folder / "last", final.name + "\n")
    if best:
        write_atomically(folder / "best", final.name + "\n")
    _prune(folder)
    return final


def find_checkpoint(folder: Path, name: str = "last") -> Path | None:
    """The step folder that ``last`` or ``best`` names, or ``None`` where nothing was saved yet."""
    pointer = folder / name
    if not pointer.is_file():
        return None
    checkpoint = folder / pointer.read_text().strip()
    if not (checkpoint / "state.json").is_file():
        raise Ewa3dError(f"{pointer} names {checkpoint.name}, which is not there: write another step's name into it")
    return checkpoint


def require_checkpoint(folder: Path, name: str) -> Path:
    """The step folder that ``last`` or ``best`` of the run in ``folder`` names.

    Raises:
        Ewa3dError: nothing was saved yet.
    """
    saved = find_checkpoint(folder / "checkpoints", name)
    if saved is None:
        raise Ewa3dError(f"{folder} has no {name} checkpoint yet: let tools/train.py finish an epoch")
    return saved


def load_weights(checkpoint: Path, model: nn.Module, *, ema: bool = False) -> None:
    """Load a checkpoint's weights, or with ``ema`` their moving average, experts and all, into ``model``."""
    state = _read_tensors(checkpoint / _WEIGHTS[ema])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise Ewa3dError(f"{checkpoint} does not fit the run's model ({reason}): was config.yaml changed?") from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as ``state``, with the optimizer's ``groups``."""
    try:
        return json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise Ewa3dError(f"{checkpoint}/state.json is damaged ({error}): {_MEND}") from error


def load_training_state(checkpoint: Path, optimizer: Optimizer) -> dict[str, Any]:
    """Load the optimizer's state in place and return what `save_checkpoint` was given as ``state``."""
    state = read_state(checkpoint)
    flat = _read_tensors(checkpoint / "optimizer.safetensors")
    per_param: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        per_param.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": per_param, "param_groups": state.pop("groups")})
    return state


def random_state() -> dict[str, Any]:
    """Every random state of this process, as JSON can hold it."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": [bytes(state.tolist()).hex() for state in torch.cuda.get_rng_state_all()],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned (possibly read back from JSON)."""
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(list(bytes.fromhex(s)), dtype=torch.uint8) for s in state["cuda"]])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}


def _flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Ewa3dError(f"{path} is damaged or missing ({error}): {_MEND}") from error


def _prune(folder: Path) -> None:
    best = find_checkpoint(folder, "best")
    steps = sorted(folder.glob("step-*"), key=lambda p: int(p.name.partition("-")[2]))
    for old in steps[:-_KEEP]:
        if old != best:
            shutil.rmtree(old)
