"""A function of batches, over a whole dataset and all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..progress import track
from .tasks import Batch


@torch.inference_mode()
def run_batches(
    step: Callable[[Batch], tuple[Tensor, ...]],
    loader: DataLoader,
    accelerator: Accelerator,
    precision: str = "fp32",
    label: str = "evaluating",
) -> tuple[Tensor, ...]:
    """What ``step`` returns for every cloud of a dataset, on the CPU, in the dataset's order.

    Several processes share the work and each returns everything, whatever their number.

    Args:
        step: of a batch makes tensors of one row a cloud.
        loader: from `eval_loader`.
        accelerator: devices and processes.
        precision: ``fp32`` or ``bf16`` (autocast).
        label: what the progress bar says.
    """
    batches = []
    bar = {"unit": getattr(loader, "total_batch_size", 1), "enabled": accelerator.is_main_process}
    for batch in track(loader, label, len(loader), **bar):
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16"):
            rows = step(batch)
        batches.append([row.cpu() for row in accelerator.gather_for_metrics(rows)])
    return tuple(torch.cat(rows) for rows in zip(*batches, strict=True))
