"""What a configuration describes, built: accelerator, datasets, loaders, models."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from ..data import PointClouds, create_dataset
from ..data.transforms import oversampled
from ..errors import Ewa3dError
from ..ewa import expert_layers, upcycle
from ..models import PointTransformer, create_model, load_pretrained
from .checkpoint import load_weights, read_state, require_checkpoint
from .config import Config, DataConfig, TrainConfig


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system (no effect elsewhere).

    Every training step frees and takes the same large blocks; by default glibc unmaps them, and the kernel zeroes each
    page again at its next touch: 90,000 page faults a second were counted while training on two cores, none with this.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # parameters of mallopt(3)
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device and processes. Precision is an explicit autocast in the loop, so the model itself is never wrapped."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Ewa3dError("train.device=cuda: PyTorch finds no GPU here: take auto or cpu")
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise Ewa3dError("train.device=mps: PyTorch finds no Apple GPU here: take auto or cpu")
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        gradient_accumulation_steps=config.accumulation,
        # the order of an epoch depends on seed and epoch alone, so that a resumed run sees the same one
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def open_split(config: DataConfig, split: str) -> PointClouds:
    """A split of the configured dataset, reduced to the farthest points that training and evaluation draw from."""
    dataset = create_dataset(
        config.name,
        split,
        root=config.root,
        num_points=config.num_points,
        val_fraction=config.val_fraction,
        per_class=config.per_class,
    )
    if dataset.points.shape[1] <= config.num_points:
        return dataset
    return dataset.farthest_first(oversampled(config.num_points))


def train_loader(dataset: PointClouds, config: TrainConfig) -> DataLoader:
    """Shuffled whole batches; the last incomplete one is dropped (BatchNorm fails on a batch of one)."""
    return DataLoader(
        dataset,
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.num_workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(dataset: PointClouds, config: Config, accelerator: Accelerator) -> DataLoader:
    """Every cloud once, in the dataset's order, shared among processes."""
    return accelerator.prepare_data_loader(DataLoader(dataset, config.eval.batch_size, collate_fn=_as_is))


def build_model(config: Config, num_classes: int) -> tuple[PointTransformer, list[str]]:
    """The configured model, with pretrained weights and experts where asked for, and what is to be said of it."""
    options = {k: v for k, v in asdict(config.model).items() if v is not None and k not in ("name", "pretrained")}
    notes = []
    try:
        model = create_model(config.model.name, config.task, num_classes=num_classes, **options)
        if config.model.pretrained:
            notes.append(f"{config.model.pretrained}: {load_pretrained(model, config.model.pretrained)}")
        if config.ewa is not None:
            upcycle(model, config.ewa.num_experts, every=config.ewa.every, init=config.ewa.init)
            notes.append(f"EWA: {config.ewa.num_experts} experts in {', '.join(expert_layers(model))}")
    except ValueError as error:
        raise Ewa3dError(str(error)) from error
    return model, notes


def restore_model(folder: Path, config: Config, checkpoint: str = "best") -> PointTransformer:
    """A run's model, experts and all, with the weights of its ``best`` or ``last`` checkpoint."""
    saved = require_checkpoint(folder, checkpoint)
    fresh = replace(config, model=replace(config.model, pretrained=None))  # the checkpoint has all weights
    model, _ = build_model(fresh, len(read_state(saved)["class_names"]))
    load_weights(saved, model)
    return model


def _as_is(batch: Any) -> Any:  # the dataset collates
    return batch
