"""From a run's checkpoint to a plain model, with the proof that nothing was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..ewa import expert_layers, is_routed, merge, merge_report
from ..files import write_atomically
from ..models import PointTransformer, save_pretrained
from .batches import run_batches
from .build import eval_loader, make_accelerator, open_split, place, restore_model
from .checkpoint import require_checkpoint
from .evaluate import tally_model
from .run import ROUTED, load_run_config
from .tasks import Batch, Task, describe_scores, make_task

TOLERANCE = 1e-4  # of a logit or a coordinate, between the experts in eval mode and the merged model, in fp32


class MergeError(RuntimeError):
    """The merged model does not compute what the trained one does: a bug, or damaged weights."""


def export_run(
    folder: Path, checkpoint: str = "best", *, accelerator: Accelerator | None = None
) -> tuple[PointTransformer, dict[str, Any]]:
    """Merge a run's checkpoint and write ``export/``: ``model.safetensors``, ``config.json``, ``merge_report.json``.

    The report has, for every expert layer, the experts' distances from their mean; the accuracy before and after the
    merge on the split that chose the epoch (never the test split, unless that chose); and the largest difference
    between logits of the trained model in eval mode and of the merged one, in fp32. A dense run is exported as it is.

    Returns:
        The plain model in eval mode, on the accelerator's device, and the report.

    Raises:
        MergeError: the logits differ by more than `TOLERANCE`, and not because of a router; nothing is written then.
        Ewa3dError: ``folder`` is no run, or has no such checkpoint.
    """
    config = load_run_config(folder)
    accelerator = accelerator or make_accelerator(config.train)
    trained = place(restore_model(folder, config, checkpoint), accelerator.device).eval()
    has_experts = bool(expert_layers(trained))
    plain = merge(trained).eval() if has_experts else trained

    split = {"last": config.data.train_split}.get(config.train.select, config.train.select)
    dataset = open_split(config, split)
    task = make_task(config, dataset.metadata)
    difference, before, after = _compare(trained, plain, task, eval_loader(dataset, config, accelerator), accelerator)
    report: dict[str, Any] = {
        "checkpoint": require_checkpoint(folder, checkpoint).name,
        "split": split,
        "protocol": task.protocol,
        "outputs": task.outputs,
        "before": before,
        "after": after,
        "max_logit_difference": difference,
        "layers": merge_report(trained),
    }
    if not is_routed(trained) and not report["max_logit_difference"] <= TOLERANCE:
        raise MergeError(
            f"{folder}: the merged model's {task.outputs} differ by {report['max_logit_difference']:.3g} "
            f"(at most {TOLERANCE:g} is rounding): nothing was exported"
        )
    if accelerator.is_main_process:
        export = save_pretrained(plain, folder / "export")
        write_atomically(export / "merge_report.json", json.dumps(report, indent=2) + "\n")
        if is_routed(trained):
            save_pretrained(trained, folder / ROUTED)
    return plain, report


def _compare(
    trained: nn.Module, plain: nn.Module, task: Task, loader: DataLoader, accelerator: Accelerator
) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """The largest difference between two models' logits on a dataset, and the scores of each."""
    if trained is plain:
        scores = task.scores(*tally_model(plain, task, loader, accelerator, label="scoring"))
        return 0.0, scores, scores

    def step(batch: Batch) -> tuple[Tensor, ...]:
        before, truth = task.predict(trained, batch)
        after, _ = task.predict(plain, batch)
        difference = (before - after).abs().flatten(1).amax(dim=1)
        return difference, *task.tally(before, truth, batch), *task.tally(after, truth, batch)

    difference, *tallies = run_batches(step, loader, accelerator, label="comparing")
    half = len(tallies) // 2
    return float(difference.max()), task.scores(*tallies[:half]), task.scores(*tallies[half:])


def describe_report(report: dict[str, Any]) -> list[str]:
    """The merge report in lines for people."""
    lines = [
        f"{name}: {layer['num_experts']} experts, {min(layer['distances']):.3g} to {max(layer['distances']):.3g} "
        f"from their mean ({100 * layer['relative']:.2g} % of its norm)"
        for name, layer in report["layers"].items()
    ]
    if lines:
        lines.append(
            f"{report['outputs']} before and after the merge differ by at most {report['max_logit_difference']:.1e}"
        )
    else:
        lines.append("no experts: the model is plain already and is exported as it is")
    for when in ("before", "after"):
        lines.append(
            f"{when} the merge ({report['split']} split, {report['protocol']}): {describe_scores(report[when])}"
        )
    return lines
