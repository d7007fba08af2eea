"""The keys of a run's configuration: typed, with their meaning, defaults and the values they may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data import DATASETS
from ..data.transforms import AUGMENTATIONS
from ..ewa import ROUTINGS
from ..ewa.averaging import SCHEDULES
from ..models import list_models
from ..models.pretraining import MASK_TYPES
from ..ops.chamfer import NORMS


def option(default: Any, help: str, choices: Sequence[str] = (), least: float | None = None) -> Any:
    """A dataclass field with the text for ``--help`` and the values it may take."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices), "least": least})


@dataclass
class ModelConfig:
    name: str = option("point_mae_small", "architecture", list_models())
    embed_dim: int | None = option(None, "channels of a token (default: the size's)", least=1)
    depth: int | None = option(None, "number of blocks (default: the size's)", least=1)
    num_heads: int | None = option(None, "attention heads (default: the size's)", least=1)
    num_groups: int = option(64, "tokens a cloud", least=1)
    group_size: int = option(32, "points a token", least=1)
    drop_path_rate: float = option(0.1, "stochastic depth at the last block", least=0)
    fps_min_norm: float | None = option(None, "never sample points this near to the origin (official: 0.0316)", least=0)
    decoder_depth: int | None = option(None, "pretraining only: blocks of the decoder (default: 4)", least=1)
    mask_ratio: float | None = option(
        None, "pretraining only: part of the groups that is hidden (default: 0.6)", least=0
    )
    mask_type: str | None = option(
        None, "pretraining only: hide random groups, or a block of neighbours (default: random)", MASK_TYPES
    )
    chamfer: str | None = option(None, "pretraining only: the loss, Chamfer-L1 or -L2 (default: l2)", NORMS)
    pretrained: str | None = option(None, "weights to start from: official .pth, .safetensors or an export folder")


@dataclass
class DataConfig:
    name: str = option("shapes", "dataset", sorted({name for names in DATASETS.values() for name in names}))
    root: str | None = option(
        None, "where it lies (default: EWA3D_DATASETS, else the repository's datasets/), or a name there"
    )
    num_points: int = option(1024, "points a cloud that the model sees", least=1)
    train_split: str = option(
        "train", "train on: train (the rest of the official one is val) or all of it", ("train", "trainval")
    )
    val_fraction: float = option(
        0.1,
        "modelnet40, scanobjectnn and shapenet55: part of the official training split kept for validation",
        least=0,
    )
    fraction: float = option(
        1.0, "part of the training labels that is used, of every class alike and at least one; above 0 to 1", least=0
    )
    subset_seed: int = option(
        0,
        "of the draw of data.fraction; not train.seed, so that repeated trainings learn from the same labels",
        least=0,
    )
    augmentation: str = option(
        "scale_shift",
        "classification only: of training clouds and votes; rotate turns them about y (scanobjectnn in later work)",
        tuple(AUGMENTATIONS),
    )
    per_class: int | None = option(None, "shapes only: shapes a class and split", least=1)
    unit_sphere: bool = option(
        True,
        "scanobjectnn only: normalise the clouds, as predict.py does with all; false takes them as stored (official)",
    )
    way: int = option(5, "few-shot only: classes of the episode", least=2)
    shot: int = option(10, "few-shot only: training shapes a class", least=1)
    fold: int = option(0, "few-shot only: which episode; tools/fewshot.py runs all ten", least=0)


@dataclass
class RouterConfig:
    top_k: int = option(1, "experts a token goes to", least=1)
    shared: bool = option(False, "with an expert besides that sees every token")
    balance: float = option(0.01, "weight of the load-balancing loss", least=0)
    z: float = option(0.001, "weight of the z-loss, which keeps the router's logits small", least=0)
    jitter: float = option(0.0, "random factor on the router's input in training: 1 - jitter to 1 + jitter", least=0)
    capacity_factor: float | None = option(
        None, "times its even share of the tokens that an expert takes in training (null: all that come)", least=0
    )


@dataclass
class EwaConfig:
    num_experts: int = option(4, "experts a layer", least=2)
    every: int = option(2, "every how many blocks an FFN becomes experts", least=1)
    routing: str = option(
        "random",
        "tokens are dealt at random (EWA), by a learned router (topk: a naive MoE; see ewa.router), or the experts are "
        "fused into one by learned weights (fused: ExFusion, with share_rate=0 and init=independent)",
        tuple(ROUTINGS),
    )
    share_rate: float = option(0.3, "β at the end of training, 0 to (N-1)/N; 0: no averaging", least=0)
    schedule: str = option("linear", "how β gets there", SCHEDULES)
    average_until: float = option(
        1.0, "part of training after which experts are free: early EWA; above 0 to 1", least=0
    )
    init: str = option("copy", "experts start as copies or anew", ("copy", "independent"))
    expert_lr: float = option(
        1.0, "the experts' learning rate, times the others'; the square root of num_experts evens their pace", least=0
    )
    router: RouterConfig = field(default_factory=RouterConfig)


@dataclass
class EmaConfig:
    decay: float = option(0.999, "part of the average that a step keeps, below 1", least=0)
    warmup: bool = option(True, "keep less in the beginning: 1 - 1/t^(2/3) in step t, until that is the decay")


@dataclass
class OptimConfig:
    lr: float = option(5e-4, "AdamW's peak learning rate", least=0)
    weight_decay: float = option(0.05, "not on biases, norms and tokens", least=0)
    min_lr: float = option(1e-6, "where the cosine ends", least=0)
    warmup_lr: float = option(1e-6, "where warm-up begins", least=0)
    warmup_epochs: float = option(10, "epochs of linear warm-up", least=0)
    clip_grad: float | None = option(10.0, "largest gradient norm (null: no clipping)", least=0)
    label_smoothing: float = option(0.0, "of the cross entropy", least=0)
    layer_decay: float | None = option(
        None, "for fine-tuning: a block learns at this part of the next one's rate, the head at the full one", least=0
    )


@dataclass
class TrainConfig:
    epochs: int = option(300, "passes over the training split", least=1)
    batch_size: int = option(32, "clouds a process and step", least=2)
    accumulation: int = option(1, "batches an optimizer step", least=1)
    seed: int = option(0, "of everything random in the run", least=0)
    precision: str = option("fp32", "bf16 is faster on GPUs and on CPUs with AVX512-BF16 or AMX", ("fp32", "bf16"))
    device: str = option("auto", "auto takes a GPU where there is one", ("auto", "cpu", "cuda", "mps"))
    cuda_graph: bool = option(
        False,
        "record a step once and replay it, to spare the host its kernel launches; one process on an NVIDIA GPU, "
        "without accumulation",
    )
    num_workers: int = option(0, "loader processes; the data is in memory, so 0 is fastest", least=0)
    skip_nonfinite: bool = option(
        False, "leave out and count steps whose loss or gradients are not finite, instead of stopping"
    )
    select: str = option(
        "val", "what chooses the best epoch; test only in recipes called official", ("val", "last", "test")
    )


@dataclass
class EvalConfig:
    split: str = option("test", "split that is scored", ("train", "val", "trainval", "test"))
    batch_size: int = option(64, "clouds a batch", least=1)
    vote: int = option(
        0,
        "classification only: besides the single pass, the mean logits of this many augmented draws (official: 10)",
        least=0,
    )
    protocol: str = option(
        "whole",
        "part segmentation only: whole scores every point of a cloud, official a draw of data.num_points of them",
        ("whole", "official"),
    )
    seed: int = option(0, "of the draws, and of the weights of eval.untrained", least=0)
    probe: bool = option(
        False, "besides, a linear SVM on the frozen features, trained on data.train_split: a score of its own"
    )
    untrained: bool = option(False, "with eval.probe, the same for the same model untrained")


@dataclass
class RunConfig:
    dir: str | None = option(None, "the run's folder (default: runs/RECIPE)")
    resume: bool = option(False, "go on from the run's last checkpoint")
    overwrite: bool = option(False, "delete a run that is there already")


@dataclass
class Config:
    recipe: str = option("shapes_classification", "name of the recipe (the file's)")
    task: str = option("classification", "what is learned", tuple(DATASETS))
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    ewa: EwaConfig | None = field(default_factory=EwaConfig)
    ema: EmaConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "ewa": EwaConfig,
    "ewa.router": RouterConfig,
    "ema": EmaConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "run": RunConfig,
}
