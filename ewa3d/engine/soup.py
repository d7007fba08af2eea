"""Merging a run's experts by other weights than those of the mean: ``tools/merge.py --weights``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Ewa3dError
from ..ewa import greedy_weights, learn_weights, merge, merge_report
from ..files import write_atomically
from ..models import PointTransformer, save_pretrained
from ..progress import track
from .checkpoint import require_checkpoint
from .diagnose import has_validation, mean_loss, open_experts
from .evaluate import Evaluation, tally_model
from .run import load_run_config
from .tasks import Batch, describe_scores

STEPS = 100  # of learning

Weights = dict[str, list[float]] | list[float]


def export_soup(folder: Path, method: str, checkpoint: str = "best") -> tuple[PointTransformer, dict[str, Any]]:
    """Merge a run's checkpoint by weights that its validation split chooses, and write ``export_METHOD/``.

    The run's ``export/``, which is the mean, stays. The report ``merge_report.json`` has the ``weights`` and the scores
    of the ``mean`` and of what was ``chosen`` on the split that chose them: these say nothing of other clouds.

    Args:
        folder: of the run.
        method: one of `METHODS`.
        checkpoint: ``best`` or ``last``.

    Returns:
        The plain model in eval mode, on the accelerator's device, and the report.

    Raises:
        Ewa3dError: the run has no validation split, or what `open_experts` raises.
    """
    config = load_run_config(folder)
    if not has_validation(config):
        trained_on_it = config.data.train_split == "trainval"
        reason = "was trained on its own (data.train_split=trainval)" if trained_on_it else "has none"
        raise Ewa3dError(f"{folder}: {method} weights need a validation split, and this run {reason}: take the mean")
    opened = open_experts(folder, ["eval.split=val"], checkpoint)
    weights = METHODS[method](opened)
    plain, mean = merge(opened.model, weights), merge(opened.model)
    report: dict[str, Any] = {
        "checkpoint": require_checkpoint(folder, checkpoint).name,
        "split": "val",
        "protocol": opened.task.protocol,
        "method": method,
        "weights": weights,
        "mean": _scores(opened, mean, "mean") | {"loss": mean_loss(opened, mean, opened.loader, "mean")},
        "chosen": _scores(opened, plain, method) | {"loss": mean_loss(opened, plain, opened.loader, method)},
        "layers": merge_report(opened.model),
    }
    if opened.accelerator.is_main_process:
        export = save_pretrained(plain, folder / f"export_{method}")
        write_atomically(export / "merge_report.json", json.dumps(report, indent=2) + "\n")
    return plain, report


def _learned(opened: Evaluation) -> Weights:
    """The weights of `learn_weights` for the task's loss on the split, in batches that ``eval.seed`` draws."""
    task, device = opened.task, opened.accelerator.device

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return task.losses(*task.predict(model, batch), batch).mean()

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(opened.config.eval.seed)
        while True:
            for index in torch.randperm(len(opened.dataset), generator=generator).split(opened.config.eval.batch_size):
                yield {key: value.to(device) for key, value in opened.dataset.batch(index.tolist()).items()}

    bar = {"unit": opened.config.eval.batch_size, "enabled": opened.accelerator.is_main_process}
    tracked = track(islice(batches(), STEPS), "learning weights", STEPS, **bar)
    return learn_weights(opened.model, loss, tracked, steps=STEPS)


def _greedy(opened: Evaluation) -> Weights:
    """The weights of `greedy_weights` for the score that chooses epochs."""
    sign = 1 if opened.task.higher_is_better else -1
    return greedy_weights(opened.model, lambda model: sign * _scores(opened, model, "greedy")[opened.task.score])


METHODS: dict[str, Callable[[Evaluation], Weights]] = {"learned": _learned, "greedy": _greedy}


def _scores(opened: Evaluation, model: nn.Module, label: str) -> dict[str, Any]:
    return opened.task.scores(*tally_model(model, opened.task, opened.loader, opened.accelerator, label=label))


def describe_soup(report: dict[str, Any]) -> list[str]:
    """The report of `export_soup` in lines for people."""
    shares = report["weights"] if isinstance(report["weights"], dict) else {"every layer": report["weights"]}
    lines = [f"{name}: weights {' '.join(f'{weight:.3f}' for weight in own)}" for name, own in shares.items()]
    where = f"{report['split']} split, {report['protocol']}"
    for name, key in (("mean of the experts", "mean"), (f"{report['method']} weights, chosen on it", "chosen")):
        lines.append(f"{name} ({where}): {describe_scores(report[key])}, loss {report[key]['loss']:.4f}")
    return lines
