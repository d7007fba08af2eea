"""Logits and scores of a model on a dataset: a single pass, and the vote as a score of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.transforms import sample_first, sample_random, scale_and_shift
from ..errors import Ewa3dError
from ..ewa import expert_layers, merge
from ..models import PointTransformer, from_pretrained
from ..progress import track
from .build import eval_loader, make_accelerator, open_split, restore_model
from .config import Config, load_config
from .metrics import classification_scores
from .run import load_run_config

Draw = Callable[[Tensor, int], Tensor]


def _vote_draw(points: Tensor, num_points: int) -> Tensor:
    return scale_and_shift(sample_random(points, num_points))


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    loader: DataLoader,
    accelerator: Accelerator,
    config: Config,
    precision: str = "fp32",
    *,
    draw: Draw = sample_first,
    label: str = "evaluating",
) -> tuple[Tensor, Tensor]:
    """Logits ``(n, classes)`` and labels ``(n,)`` of a whole dataset, on the CPU, in its order.

    Several processes share the work and each returns everything, whatever their number.

    Args:
        model: put into eval mode for the time.
        loader: from `eval_loader`.
        accelerator: devices and processes.
        config: its ``data.num_points`` are taken of every cloud.
        precision: ``fp32`` or ``bf16`` (autocast).
        draw: how they are taken.
        label: what the progress bar says.
    """
    was_training = model.training
    model.eval()
    logits, labels = [], []
    bar = {"unit": config.eval.batch_size, "enabled": accelerator.is_main_process}
    for batch in track(loader, label, len(loader), **bar):
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = model(draw(batch["points"], config.data.num_points))
        out, truth = accelerator.gather_for_metrics((out.float(), batch["label"]))
        logits.append(out.cpu())
        labels.append(truth.cpu())
    model.train(was_training)
    return torch.cat(logits), torch.cat(labels)


def evaluate(
    model: nn.Module, loader: DataLoader, accelerator: Accelerator, config: Config
) -> dict[str, dict[str, float]]:
    """Scores by protocol, in fp32: ``single`` and, with ``eval.vote``, ``vote10`` (or as many as asked for).

    ``single``: one pass on farthest points. ``vote``: the mean logits of several passes on randomly drawn, scaled and
    shifted points, always from the same seed. The two are different protocols: compare like with like.
    """
    logits, labels = predict_logits(model, loader, accelerator, config)
    scores = {"single": classification_scores(logits, labels)}
    if votes := config.eval.vote:
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        total = torch.zeros_like(logits)
        with torch.random.fork_rng(devices):
            torch.manual_seed(accelerator.process_index)
            for i in range(votes):
                label = f"vote {i + 1}/{votes}"
                total += predict_logits(model, loader, accelerator, config, draw=_vote_draw, label=label)[0]
        scores[f"vote{votes}"] = classification_scores(total, labels)
    return scores


def evaluate_folder(folder: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Score the plain model of a run or an export on its dataset: what ``tools/evaluate.py`` does.

    Returns:
        ``{"source", "split", protocol: {"oa", "macc"}}``, and the same in lines for people.
    """
    model = load_model(folder)
    file = folder / "config.yaml"
    if file.is_file():
        config = load_config(file, overrides)
    else:
        config = load_config(overrides=overrides, base={"data": model.metadata.get("data", {})})
    accelerator = make_accelerator(config.train)
    dataset = open_split(config.data, config.eval.split)
    if len(dataset.class_names) != model.config["num_classes"]:
        raise Ewa3dError(
            f"{folder} tells {model.config['num_classes']} classes apart, {config.data.name} has "
            f"{len(dataset.class_names)}: name the right dataset with data.name="
        )
    model.to(accelerator.device)
    scores = evaluate(model, eval_loader(dataset, config, accelerator), accelerator, config)
    split = config.eval.split
    what = f"{folder}: {len(dataset)} clouds of {config.data.name}, {config.data.num_points} points, fp32"
    return {"source": str(folder), "split": split, **scores}, [what, *describe_scores(scores, split)]


def load_model(folder: Path) -> PointTransformer:
    """The plain model of an export folder, of a run's ``export/``, or merged from a run's best checkpoint; eval mode.

    Raises:
        Ewa3dError: nothing of the kind is in ``folder``.
    """
    for export in (folder, folder / "export"):
        if (export / "config.json").is_file():
            return from_pretrained(export)
    model = restore_model(folder, load_run_config(folder))
    return (merge(model) if expert_layers(model) else model).eval()


def describe_scores(scores: dict[str, dict[str, float]], split: str) -> list[str]:
    """One line a protocol, for people."""
    return [
        f"{split} split, {protocol}: overall accuracy {s['oa']:.2f} %, mean class accuracy {s['macc']:.2f} %"
        for protocol, s in scores.items()
    ]
