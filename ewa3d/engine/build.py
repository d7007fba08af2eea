"""What a configuration describes, built: accelerator, datasets, loaders, models."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from ..data import Clouds, PointClouds, create_dataset
from ..data.transforms import oversampled
from ..errors import Ewa3dError
from ..ewa import expert_layers, upcycle
from ..models import PointTransformer, create_model, load_pretrained
from .checkpoint import load_weights, read_state, require_checkpoint
from .config import Config, TrainConfig


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


def open_split(config: Config, split: str) -> Clouds:
    """A split of the configured dataset.

    Whole clouds for part segmentation; for classification, the farthest points that training and evaluation draw from.
    """
    data = config.data
    drawn_from = oversampled(data.num_points)
    dataset = create_dataset(
        data.name,
        split,
        task=config.task,
        root=data.root,
        num_points=data.num_points if config.task == "classification" else drawn_from,
        val_fraction=data.val_fraction,
        per_class=data.per_class,
    )
    if not isinstance(dataset, PointClouds) or dataset.points.shape[1] <= data.num_points:
        return dataset
    return dataset.farthest_first(drawn_from)


def train_loader(dataset: Clouds, config: TrainConfig) -> DataLoader:
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


def eval_loader(dataset: Clouds, config: Config, accelerator: Accelerator) -> DataLoader:
    """Every cloud once, in the dataset's order, shared among processes."""
    return accelerator.prepare_data_loader(DataLoader(dataset, config.eval.batch_size, collate_fn=_as_is))


def build_model(config: Config, metadata: Mapping[str, Any]) -> tuple[PointTransformer, list[str]]:
    """The configured model, with pretrained weights and experts where asked for, and what is to be said of it.

    Args:
        config: of the run.
        metadata: of its dataset: the model's outputs follow from it.
    """
    options = {k: v for k, v in asdict(config.model).items() if v is not None and k not in ("name", "pretrained")}
    options |= output_sizes(metadata)
    notes = []
    try:
        model = create_model(config.model.name, config.task, **options)
        if config.model.pretrained:
            notes.append(f"{config.model.pretrained}: {load_pretrained(model, config.model.pretrained)}")
        if config.ewa is not None:
            upcycle(model, config.ewa.num_experts, every=config.ewa.every, init=config.ewa.init)
            notes.append(f"EWA: {config.ewa.num_experts} experts in {', '.join(expert_layers(model))}")
    except ValueError as error:
        raise Ewa3dError(str(error)) from error
    return model, notes


def output_sizes(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ``create_model`` options that follow from what the labels mean."""
    if "parts" not in metadata:
        return {"num_classes": len(metadata["class_names"])}
    parts = metadata["parts"].values()
    return {"num_classes": sum(len(names) for names in parts), "num_categories": len(parts)}


def restore_model(folder: Path, config: Config, checkpoint: str = "best") -> PointTransformer:
    """A run's model, experts and all, with the weights of its ``best`` or ``last`` checkpoint.

    Its ``metadata`` say what its outputs mean and what it was trained on; `merge` keeps them, and exports have them.
    """
    saved = require_checkpoint(folder, checkpoint)
    fresh = replace(config, model=replace(config.model, pretrained=None))  # the checkpoint has all weights
    labels = read_state(saved)["labels"]
    model, _ = build_model(fresh, labels)
    load_weights(saved, model)
    data = {"name": config.data.name, "num_points": config.data.num_points}
    model.metadata = {"task": config.task, **labels, "data": data}
    return model


def _as_is(batch: Any) -> Any:  # the dataset collates
    return batch
