"""How far a run's experts differ, and whether they are in one basin: what ``tools/visualize.py diagnostics`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data import FEW_SHOT
from ..errors import Ewa3dError
from ..ewa import (
    expert_alone,
    expert_layers,
    gradient_agreement,
    interpolated,
    mean_norm,
    merge,
    pairwise_distances,
    random_layers,
)
from ..files import write_atomically
from .batches import run_batches
from .build import eval_loader, open_split, restore_model, train_loader
from .checkpoint import require_checkpoint
from .evaluate import Evaluation, describe_data, make_folder, open_evaluation, tally_model
from .run import load_run_config, read_rows
from .schema import Config
from .step import training_loss
from .tasks import Batch, describe_scores

PLACES = 9  # on a line between two experts, its ends included
BATCHES = 8  # whose gradients are compared


def has_validation(config: Config) -> bool:
    """Whether there are clouds for validation that the run was not trained on."""
    data = config.data
    has_own = data.name in ("shapes", "shapenetpart")  # the others cut them off the training split
    return data.train_split == "train" and data.name not in FEW_SHOT and (has_own or data.val_fraction > 0)


def open_experts(folder: Path, overrides: Sequence[str] = (), checkpoint: str = "best") -> Evaluation:
    """A run's model with its experts, and a split: ``eval.split``; where it is not named, ``val`` where the run has
    one, else the one that chose the epoch.

    Raises:
        Ewa3dError: no run, no experts, or experts that work together, and what `open_evaluation` raises.
    """
    config = load_run_config(folder)
    model = restore_model(folder, config, checkpoint).eval()
    try:
        random_layers(model)
    except ValueError as error:
        raise Ewa3dError(f"{folder}: {error}") from error
    chose = {"last": config.data.train_split}.get(config.train.select, config.train.select)
    split = "val" if has_validation(config) else chose
    usual = [f"eval.split={split}", "eval.probe=false", "eval.untrained=false"]
    return open_evaluation(folder, [*usual, *overrides], model=model)


def draw_diagnostics(folder: Path, path: Path, overrides: Sequence[str] = (), clouds: int | None = None) -> list[str]:
    """Draw what `diagnose` finds in a run's best checkpoint, and write its numbers beside the picture.

    Args:
        folder: of the run.
        path: the picture to write; the numbers go to the ``.json`` of its name. Its folder is made where it is not
            there.
        overrides: ``key=value`` settings.
        clouds: see `diagnose`; 256 where ``None``.

    Returns:
        The numbers and where they lie, in lines for people.

    Raises:
        Ewa3dError: a picture of another kind or without a place, and what `open_experts` raises.
    """
    from ..viz.diagnostics import diagnostics_figure

    if path.suffix.lower() != ".png":
        raise Ewa3dError(f"{path}: its name must end in .png")
    if clouds is not None and clouds < 1:
        raise Ewa3dError(f"--shapes {clouds}: the loss is measured on 1 cloud or more")
    make_folder(path.parent)
    opened = open_experts(folder, overrides)
    found: dict[str, Any] = {"source": str(folder), "checkpoint": require_checkpoint(folder, "best").name}
    found |= diagnose(opened, clouds or 256)
    found["training"] = [row for row in read_rows(folder) if "expert_distance" in row]
    numbers = path.with_suffix(".json")
    title = (
        f"{folder}, {found['checkpoint']}: experts on the {found['split']} split of {describe_data(opened.config)}"
        f" ({len(opened.dataset)} clouds)"
    )
    if opened.accelerator.is_main_process:
        diagnostics_figure(found, path, title)
        write_atomically(numbers, json.dumps(found, indent=2) + "\n")
    return [title, *describe_diagnosis(found), f"picture: {path}   numbers: {numbers}"]


def diagnose(opened: Evaluation, clouds: int = 256) -> dict[str, Any]:
    """Scores of each expert as a model by itself, losses between them, distances, and whether gradients agree.

    Args:
        opened: see `open_experts`.
        clouds: how many of the split, drawn by ``eval.seed``, the losses are measured on.

    Returns:
        As JSON can hold it: ``split``, ``protocol``, ``score`` (which of the scores counts), ``alone`` (the scores of
        each expert), ``merged`` (those of the mean); ``lines``, see `losses_between`; ``gradients``, see
        `training_gradients`; ``layers``: by name, ``distances`` ``(N, N)`` and ``norm`` of the mean.
    """
    model, task, _, loader, accelerator, config = opened

    def scores(plain: nn.Module, label: str) -> dict[str, Any]:
        return task.scores(*tally_model(plain, task, loader, accelerator, label=label))

    layers = expert_layers(model)
    count = min(layer.num_experts for layer in layers.values())
    distances = pairwise_distances(model)
    return {
        "split": config.eval.split,
        "protocol": task.protocol,
        "score": task.score,
        "alone": [scores(expert_alone(model, i), f"expert {i} alone") for i in range(count)],
        "merged": scores(merge(model), "merged"),
        "lines": losses_between(opened, count, clouds),
        "gradients": training_gradients(opened),
        "layers": {n: {"distances": distances[n].tolist(), "norm": mean_norm(layer)} for n, layer in layers.items()},
    }


def losses_between(opened: Evaluation, count: int, clouds: int) -> dict[str, Any]:
    """Losses in eval mode along the lines between ``count`` experts, on so many clouds of the split.

    Returns:
        ``clouds``; ``t``, the places on a line, 0 to 1; ``merged``, the loss of the mean; ``pairs``: for each two
        experts ``i``, ``j``, the ``loss`` at every t, and the ``barrier``: how far the loss rises above the straight
        line between its ends, at most.
    """
    model, _, dataset, _, accelerator, config = opened
    chosen = np.random.default_rng(config.eval.seed).permutation(len(dataset))[:clouds]
    loader = eval_loader(dataset.subset(np.sort(chosen)), config, accelerator)

    def loss(plain: nn.Module, label: str) -> float:
        return mean_loss(opened, plain, loader, label)

    places = np.linspace(0, 1, PLACES)
    ends = [loss(expert_alone(model, i), f"loss of expert {i}") for i in range(count)]
    pairs = []
    for i, j in combinations(range(count), 2):
        inner = [loss(interpolated(model, i, j, t), f"from expert {i} to {j}") for t in places[1:-1].tolist()]
        losses = np.array([ends[i], *inner, ends[j]])
        barrier = float((losses - (1 - places) * ends[i] - places * ends[j]).max())
        pairs.append({"i": i, "j": j, "loss": losses.tolist(), "barrier": barrier})
    return {"clouds": len(chosen), "t": places.tolist(), "merged": loss(merge(model), "merged"), "pairs": pairs}


def mean_loss(opened: Evaluation, model: nn.Module, loader: DataLoader, label: str) -> float:
    """The task's loss of a model in eval mode, the mean over the clouds of ``loader``, in fp32."""

    def step(batch: Batch) -> tuple[Tensor, ...]:
        return (opened.task.losses(*opened.task.predict(model, batch), batch),)

    (losses,) = run_batches(step, loader, opened.accelerator, label=label)
    return float(losses.double().mean())


def training_gradients(opened: Evaluation) -> dict[str, Any]:
    """`gradient_agreement` of the training loss on a few batches, in fp32; the model is left as it is.

    Returns:
        ``batch_size`` and ``layers``: by name, the mean cosine of each batch.
    """
    _, task, _, _, accelerator, config = opened
    model = deepcopy(opened.model).train()  # BatchNorm counts
    train_set = open_split(config, config.data.train_split)
    loader = accelerator.prepare_data_loader(train_loader(train_set, config.train, accelerator.device))
    found: dict[str, list[float]] = {name: [] for name in expert_layers(model)}
    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        torch.manual_seed(config.eval.seed)
        for _, batch in zip(range(BATCHES), loader, strict=False):
            inputs, truth = task.training_batch(batch)
            loss, _ = training_loss(model(*inputs), truth, config.optim.label_smoothing)
            model.zero_grad()
            loss.backward()
            for name, cosine in gradient_agreement(model).items():
                found[name].append(cosine)
    return {"batch_size": config.train.batch_size, "layers": found}


def describe_diagnosis(found: Mapping[str, Any]) -> list[str]:
    """What `diagnose` found, in lines for people."""
    lines = [f"expert {i} alone: {describe_scores(scores)}" for i, scores in enumerate(found["alone"])]
    lines.append(f"merged: {describe_scores(found['merged'])}")
    between = found["lines"]
    losses = [loss for pair in between["pairs"] for loss in pair["loss"]]
    worst = max(between["pairs"], key=lambda pair: pair["barrier"])
    barrier = f"highest barrier {worst['barrier']:.2g} ({worst['i']} to {worst['j']})"
    lines.append(
        f"loss on {between['clouds']} clouds: merged {between['merged']:.4g}, on the lines between experts "
        f"{min(losses):.4g} to {max(losses):.4g}, {barrier if worst['barrier'] > 0 else 'no barrier'}"
    )
    means = {name: sum(cosines) / len(cosines) for name, cosines in found["gradients"]["layers"].items()}
    for name, layer in found["layers"].items():
        relative = np.array(layer["distances"])[np.triu_indices(len(layer["distances"]), 1)] / layer["norm"]
        lines.append(
            f"{name}: experts {relative.min():.2g} to {relative.max():.2g} of the mean's norm apart, "
            f"gradients agree to {means[name]:.2f} (cosine)"
        )
    return lines
