"""Scores of a model on a dataset, by protocol."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import IDENTITY, Clouds
from ..errors import Ewa3dError
from ..ewa import expert_layers, is_routed, merge
from ..models import PointTransformer, from_pretrained
from .batches import run_batches
from .build import eval_loader, make_accelerator, open_split, output_sizes, place, restore_model
from .config import load_config
from .probe import describe_probe, probe_model
from .run import ROUTED, load_run_config
from .schema import Config
from .tasks import Batch, Classification, Task, make_task, score_line


def tally_model(
    model: nn.Module,
    task: Task,
    loader: DataLoader,
    accelerator: Accelerator,
    precision: str = "fp32",
    label: str = "evaluating",
) -> tuple[Tensor, ...]:
    """What `Task.scores` makes a model's scores of; the model is put into eval mode for the time. See `run_batches`."""
    was_training = model.training
    model.eval()

    def step(batch: Batch) -> tuple[Tensor, ...]:
        logits, truth = task.predict(model, batch)
        return task.tally(logits.float(), truth, batch)

    tallies = run_batches(step, loader, accelerator, precision, label)
    model.train(was_training)
    return tallies


def evaluate(
    model: PointTransformer, task: Task, loader: DataLoader, accelerator: Accelerator, config: Config
) -> tuple[dict[str, dict[str, Any]], tuple[Tensor, ...]]:
    """Scores by protocol, in fp32: the task's own and, where asked for, others.

    For classification with ``eval.vote``, ``vote10`` (or another number): the mean logits of several passes on randomly
    drawn and augmented points, always from the same seed. With ``eval.probe`` the linear probes of `probe_model`.
    Protocols are not to be compared with each other.

    Returns:
        The scores, and the tallies behind those of the task's own protocol, for `draw_scores`.
    """
    tallies = tally_model(model, task, loader, accelerator)
    scores = {task.protocol: task.scores(*tallies)}
    if config.eval.vote and isinstance(task, Classification):
        scores[f"vote{config.eval.vote}"] = _vote(model, task, loader, accelerator, config)
    if config.eval.probe:
        scores |= probe_model(model, task, loader, accelerator, config)
    return scores, tallies


def describe_data(config: Config) -> str:
    """The dataset's name for people, with what it depends on, and the folder where the configuration names one."""
    options = ", ".join(f"{option}={getattr(config.data, option)}" for option in IDENTITY.get(config.data.name, ()))
    name = config.data.name + (f" ({options})" if options else "")
    return name + (f" in {Path(config.data.root).name}" if config.data.root else "")


def draw_scores(
    folder: Path, task: Task, config: Config, scores: dict[str, dict[str, Any]], tallies: tuple[Tensor, ...]
) -> Path:
    """Write the task's picture of what `evaluate` returned into ``folder`` and return its path."""
    title = f"{describe_data(config)}, {score_line(config.eval.split, task.protocol, scores[task.protocol])}"
    task.draw(folder / task.picture, title, *tallies)
    return folder / task.picture


def _vote(
    model: nn.Module, task: Classification, loader: DataLoader, accelerator: Accelerator, config: Config
) -> dict[str, Any]:
    total, labels = torch.zeros(()), torch.zeros(())
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(config.eval.seed + accelerator.process_index)
        for i in range(config.eval.vote):
            label = f"vote {i + 1}/{config.eval.vote}"
            step = partial(task.predict, model.eval(), draw=task.augmented)
            logits, labels = run_batches(step, loader, accelerator, label=label)
            total = total + logits
    return task.scores(total, labels)


class Evaluation(NamedTuple):
    """A model, a plain one mostly, and the split of its dataset that it is looked at with."""

    model: PointTransformer  # on the accelerator's device, in eval mode
    task: Task
    dataset: Clouds
    loader: DataLoader
    accelerator: Accelerator
    config: Config


def open_evaluation(
    folder: Path, overrides: Sequence[str] = (), *, model: PointTransformer | None = None
) -> Evaluation:
    """Load the model of a run or an export, and the split ``eval.split`` of its dataset.

    Args:
        folder: of the run or the export.
        overrides: ``key=value`` settings.
        model: to be looked at instead: the folder's with its experts, for example.

    Raises:
        Ewa3dError: nothing of the kind is in ``folder``, or the dataset's labels do not mean what the model's mean.
    """
    model = load_model(folder) if model is None else model
    file = folder / "config.yaml"
    if file.is_file():
        config = load_config(file, overrides)
    else:
        known = {"task": model.config["task"], "data": model.metadata.get("data", {})}
        known |= {"train": {"select": "last"}}  # nothing is trained: no validation split is needed
        config = load_config(overrides=overrides, base=known)
    if config.task != model.config["task"]:
        raise Ewa3dError(f"{folder} was made for task={model.config['task']}, not {config.task}: leave task out")
    accelerator = make_accelerator(config.train)
    dataset = open_split(config, config.eval.split)
    _check_labels(model, dataset.metadata, folder, config)
    place(model, accelerator.device)
    task, loader = make_task(config, dataset.metadata), eval_loader(dataset, config, accelerator)
    return Evaluation(model, task, dataset, loader, accelerator, config)


def evaluate_folder(
    folder: Path, overrides: Sequence[str] = (), plots: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Score the model of a run or an export on its dataset: what ``tools/evaluate.py`` does.

    Args:
        folder: of the run or the export.
        overrides: ``key=value`` settings.
        plots: a folder for the picture that a run draws of its scores (``confusion.png``, …); made where it
            is not there.

    Returns:
        ``{"source", "split", protocol: scores}``, and what these were measured on, in a line for people.
    """
    model, task, dataset, loader, accelerator, config = open_evaluation(folder, overrides)
    if plots is not None:
        make_folder(plots)  # before the work, not after it
    scores, tallies = evaluate(model, task, loader, accelerator, config)
    if plots is not None and accelerator.is_main_process:
        draw_scores(plots, task, config, scores, tallies)
    what = f"{folder}: {len(dataset)} clouds of {describe_data(config)}, {config.data.num_points} points, fp32"
    if accelerator.num_processes > 1:
        what += f", {accelerator.num_processes} processes"
    return {"source": str(folder), "split": config.eval.split, **scores}, what


def make_folder(folder: Path) -> None:
    """Make a folder for results, where it is not there.

    Raises:
        Ewa3dError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Ewa3dError(f"{folder}: this folder cannot be made: {error.strerror}: name another one") from error


def _check_labels(model: PointTransformer, labels: dict[str, Any], folder: Path, config: Config) -> None:
    """Raise where a model's outputs do not mean what the dataset's labels mean."""
    if config.task == "pretraining":  # any clouds can be reconstructed
        return
    known = {key: model.metadata[key] for key in labels if key in model.metadata}
    for key, size in output_sizes(config.task, labels).items():
        if model.config[key] != size:
            raise Ewa3dError(
                f"{folder} has {key}={model.config[key]}, {config.data.name} here {size}: "
                "name the right dataset with data.name= and data.root="
            )
    if any(labels[key] != value for key, value in known.items()):
        raise Ewa3dError(
            f"{folder} was trained on other classes or parts than those of {config.data.name} here: "
            "name the right dataset with data.name= and data.root="
        )


def load_model(folder: Path) -> PointTransformer:
    """The model of an export folder or of a run: as it was exported, or from its best checkpoint; in eval mode.

    It is plain, but for a run with a learned router: there it is what was trained and validated, router and all.

    Raises:
        Ewa3dError: nothing of the kind is in ``folder``.
    """
    for export in (folder, folder / ROUTED, folder / "export"):
        if (export / "config.json").is_file():
            return from_pretrained(export)
    model = restore_model(folder, load_run_config(folder))
    return (merge(model) if expert_layers(model) and not is_routed(model) else model).eval()


def describe_evaluation(scores: dict[str, Any], what: str) -> str:
    """What `evaluate_folder` returned, for people: a line a protocol and, for part segmentation, one a category."""
    lines = [what]
    for protocol, found in scores.items():
        if isinstance(found, dict):
            lines += [f"  {name:<12} {score:6.2f} %" for name, score in found.get("per_category", {}).items()]
            lines.append(score_line(scores["split"], protocol, found) + describe_probe(found))
    return "\n".join(lines)
