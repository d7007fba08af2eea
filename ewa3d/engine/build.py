"""What a configuration describes, built: accelerator, datasets, loaders, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType
from torch import nn
from torch.utils.data import DataLoader

from ..data import IDENTITY, Clouds, PointClouds, create_dataset
from ..data.splits import stratified_subset
from ..data.transforms import oversampled
from ..errors import Ewa3dError
from ..ewa import expert_layers, upcycle
from ..models import PointTransformer, create_model, load_pretrained
from .checkpoint import load_weights, read_state, require_checkpoint
from .cpu import tune_process, use_plain_attention
from .schema import Config, TrainConfig
from .stopping import ignore_signals

Model = TypeVar("Model", bound=nn.Module)
_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_ROUTINGS = {"random": "EWA", "topk": "mixture of experts", "fused": "ExFusion"}  # for people


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
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True,
            data_seed=config.seed,
            non_blocking=torch.cuda.is_available(),  # the copy of a batch to a GPU is not waited for
        ),
    )
    if (kind := accelerator.distributed_type) in _SHARDING:
        raise Ewa3dError(
            f"accelerate is configured for {kind.value}, which cuts weights up among processes, and EWA averages whole "
            "experts: start with torchrun, or choose multi-GPU in `accelerate config` (the models fit any GPU)"
        )
    if accelerator.device.type == "cpu":
        tune_process()
    return accelerator


def open_split(config: Config, split: str) -> Clouds:
    """A split of the configured dataset.

    Whole clouds for part segmentation; else the farthest points that training and evaluation draw from, but all points
    of ShapeNet55, as officially. Of ``train`` and ``trainval``, the part ``data.fraction``.
    """
    data = config.data
    drawn_from = oversampled(data.num_points)
    dataset = create_dataset(
        data.name,
        split,
        task=config.task,
        root=data.root,
        num_points=drawn_from if config.task == "part_segmentation" else data.num_points,
        val_fraction=data.val_fraction,
        per_class=data.per_class,
        unit_sphere=data.unit_sphere,
        way=data.way,
        shot=data.shot,
        fold=data.fold,
    )
    if split in ("train", "trainval") and data.fraction < 1:
        dataset = dataset.subset(stratified_subset(dataset.labels, data.fraction, data.subset_seed))
    if not isinstance(dataset, PointClouds) or dataset.shuffled or dataset.points.shape[1] <= data.num_points:
        return dataset
    return dataset.farthest_first(drawn_from)


def beside_the_model(dataset: Clouds, config: TrainConfig, device: torch.device) -> Clouds:
    """``dataset`` on a GPU, where it takes less than a quarter of the memory that is free there; else as it is.

    Loader processes cannot share what is on a GPU: with ``train.num_workers`` it stays on the host too.
    """
    if device.type != "cuda" or config.num_workers:
        return dataset
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.to(device) if dataset.nbytes < free / 4 else dataset


def train_loader(dataset: Clouds, config: TrainConfig, device: torch.device) -> DataLoader:
    """Shuffled whole batches; the last incomplete one is dropped (BatchNorm fails on a batch of one)."""
    dataset = beside_the_model(dataset, config, device)
    return DataLoader(
        dataset,
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.num_workers,
        collate_fn=_as_is,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda" and dataset.device.type == "cpu",
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
    options |= output_sizes(config.task, metadata)
    notes = []
    try:
        model = create_model(config.model.name, config.task, **options)
        if config.model.pretrained:
            notes.append(f"{config.model.pretrained}: {load_pretrained(model, config.model.pretrained)}")
        if config.ewa is not None:
            ewa = config.ewa
            router = asdict(ewa.router) if ewa.routing == "topk" else {}
            upcycle(model, ewa.num_experts, every=ewa.every, init=ewa.init, routing=ewa.routing, **router)
            notes.append(f"{_ROUTINGS[ewa.routing]}: {ewa.num_experts} experts in {', '.join(expert_layers(model))}")
    except ValueError as error:
        raise Ewa3dError(str(error)) from error
    return model, notes


def place(model: Model, device: torch.device) -> Model:
    """The same model, on ``device`` and set up for it."""
    if device.type == "cpu":
        use_plain_attention(model)
    return model.to(device)


def output_sizes(task: str, metadata: Mapping[str, Any]) -> dict[str, int]:
    """The ``create_model`` options that follow from what the labels mean; to pretraining they mean nothing."""
    if task == "pretraining":
        return {}
    if "parts" not in metadata:
        return {"num_classes": len(metadata["class_names"])}
    parts = metadata["parts"].values()
    return {"num_classes": sum(len(names) for names in parts), "num_categories": len(parts)}


def restore_model(folder: Path, config: Config, checkpoint: str = "best") -> PointTransformer:
    """A run's model, experts and all, with the weights of its ``best`` or ``last`` checkpoint.

    Of a run with a moving average of the weights, that average.
    Its ``metadata`` say what its outputs mean and what it was trained on; `merge` keeps them, and exports have them.
    """
    saved = require_checkpoint(folder, checkpoint)
    fresh = replace(config, model=replace(config.model, pretrained=None))  # the checkpoint has all weights
    labels = read_state(saved)["labels"]
    model, _ = build_model(fresh, labels)
    load_weights(saved, model, ema=config.ema is not None)
    options = ("name", "num_points", *IDENTITY.get(config.data.name, ()))
    data = {option: getattr(config.data, option) for option in options}
    model.metadata = {"task": config.task, **labels, "data": data}
    return model


def _as_is(batch: Any) -> Any:  # the dataset collates
    return batch
