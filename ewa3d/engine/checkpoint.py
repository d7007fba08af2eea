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

from ..errors import Ewa3dError, first_line, shorten
from ..files import write_atomically

_MEND = "run.resume=true goes on from the checkpoint before it"
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

    Raises:
        Ewa3dError: it cannot be written, as on a full disk. What was there before is as it was.
    """
    final = folder / f"step-{state['step']}"
    temporary = folder / f".{final.name}.tmp"
    tensors, groups = _flatten_optimizer(optimizer)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_atomically(temporary / _WEIGHTS[False], save(_weights(model)))
        if ema is not None:
            write_atomically(temporary / _WEIGHTS[True], save(_weights(ema)))
        write_atomically(temporary / "optimizer.safetensors", save(tensors))
        write_atomically(temporary / "state.json", json.dumps({**state, "groups": groups}))
        shutil.rmtree(final, ignore_errors=True)  # a training that was killed before it could point `last` at it
        os.replace(temporary, final)
        if best:  # before `last`, which resuming believes: killed in between, the epoch is trained and judged again
            point_at(final, "best")
        point_at(final)
    except OSError as why:
        shutil.rmtree(temporary, ignore_errors=True)
        good = next(iter(checkpoints(folder)), None)
        kept = f"{good.name} is kept, run.resume=true goes on from it" if good else "nothing was saved before"
        raise Ewa3dError(f"{final}: cannot be written ({why.strerror or why}): make room; {kept}") from why
    _prune(folder)
    return final


def point_at(checkpoint: Path, name: str = "last") -> None:
    """Make ``last`` or ``best`` name this checkpoint."""
    write_atomically(checkpoint.parent / name, checkpoint.name + "\n")


def checkpoints(folder: Path) -> list[Path]:
    """The step folders to resume from, in this order: the one that ``last`` names, then those before it."""
    last = _step(_named(folder, "last") or "")
    steps = {step: path for path in folder.glob("step-*") if (step := _step(path.name)) is not None}
    return [steps[step] for step in sorted(steps, reverse=True) if last is None or step <= last]


def find_checkpoint(folder: Path, name: str = "last") -> Path | None:
    """The step folder that ``last`` or ``best`` names, or ``None`` where nothing was saved yet."""
    named = _named(folder, name)
    if named is None:
        return None
    if _step(named) is None or not (folder / named / "state.json").is_file():
        raise Ewa3dError(f"{folder / name} names {named[:80]!r}, which is no checkpoint there: {_MEND}")
    return folder / named


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
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise Ewa3dError(f"{file} is damaged ({first_line(error)}): {_MEND}") from error
    if not isinstance(state, dict) or not {"epoch", "labels", "groups"} <= state.keys():
        raise Ewa3dError(f"{file} is not what tools/train.py writes: {_MEND}")
    return state


def load_optimizer(checkpoint: Path, optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Load the optimizer's state in place; ``groups`` is that of `read_state`.

    Raises:
        ValueError: it is another optimizer's.
    """
    per_param: dict[int, dict[str, Tensor]] = {}
    for key, value in _read_tensors(checkpoint / "optimizer.safetensors").items():
        place, _, name = key.partition(".")
        per_param.setdefault(int(place), {})[name] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in per_param.items():
        for name, value in values.items():
            if value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} has the shape {tuple(value.shape)}")
    for own, saved in zip(optimizer.param_groups, groups, strict=True):
        for name, value in own.items():
            if name != "params" and not _alike(value, saved[name]):
                raise ValueError(f"its optimizer's {name} is {shorten(repr(saved[name]))}")
    optimizer.load_state_dict({"state": per_param, "param_groups": groups})


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


def _alike(own: Any, saved: Any) -> bool:
    """Whether ``saved``, which JSON held, can stand for a setting of this kind."""
    if isinstance(own, (list, tuple)):
        return isinstance(saved, list) and len(own) == len(saved) and all(map(_alike, own, saved))
    if own is None or isinstance(own, bool):
        return type(own) is type(saved)
    return isinstance(saved, (int, float)) and not isinstance(saved, bool)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Ewa3dError(f"{path} is damaged or missing ({error}): {_MEND}") from error


def _named(folder: Path, pointer: str) -> str | None:
    """What ``last`` or ``best`` says, whether or not that is there."""
    file = folder / pointer
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None


def _step(name: str) -> int | None:
    """The step of a checkpoint's name, ``None`` for any other name."""
    kind, _, number = name.partition("-")
    return int(number) if kind == "step" and number.isdecimal() and number.isascii() else None


def _prune(folder: Path) -> None:
    """Delete what is not needed any more: the older checkpoints but the best, and halves that a kill has left."""
    best = _named(folder, "best")
    for old in checkpoints(folder)[_KEEP:]:
        if old.name != best:
            shutil.rmtree(old, ignore_errors=True)
    for half in folder.glob(".step-*.tmp"):
        shutil.rmtree(half, ignore_errors=True)
