"""Datasets by name, sampling and augmentation."""

from __future__ import annotations

from pathlib import Path

from .dataset import Clouds, PartClouds, PointClouds
from .fewshot import FewShotModelNet40, PublishedFewShot
from .modelnet40 import ModelNet40
from .part_map import SHAPENETPART, PartMap
from .scanobjectnn import VARIANTS, ScanObjectNN
from .shapenet55 import ShapeNet55
from .shapenetpart import ShapeNetPart
from .shapes import ShapeParts, Shapes

__all__ = [
    "DATASETS",
    "SHAPENETPART",
    "Clouds",
    "FewShotModelNet40",
    "ModelNet40",
    "PartClouds",
    "PartMap",
    "PointClouds",
    "PublishedFewShot",
    "ScanObjectNN",
    "ShapeNet55",
    "ShapeNetPart",
    "ShapeParts",
    "Shapes",
    "create_dataset",
]

FEW_SHOT = {"modelnet40_fewshot": FewShotModelNet40, "modelnet40_fewshot_published": PublishedFewShot}
"""The datasets of episodes."""
SCANOBJECTNN = {f"scanobjectnn_{variant}": variant for variant in VARIANTS}
"""A dataset a variant: scores on two of them do not compare."""
DATASETS = {
    "classification": ("shapes", "modelnet40", *SCANOBJECTNN, *FEW_SHOT),
    "part_segmentation": ("shapes", "shapenetpart"),
    "pretraining": ("shapes", "modelnet40", "shapenet55"),
}
"""The datasets of every task."""
IDENTITY = {**dict.fromkeys(FEW_SHOT, ("way", "shot", "fold")), **dict.fromkeys(SCANOBJECTNN, ("unit_sphere",))}
"""The options that a score of a dataset is nothing without."""


def create_dataset(
    name: str,
    split: str,
    *,
    task: str = "classification",
    root: str | Path | None = None,
    num_points: int = 1024,
    val_fraction: float = 0.1,
    per_class: int | None = None,
    unit_sphere: bool = True,
    way: int = 5,
    shot: int = 10,
    fold: int = 0,
) -> Clouds:
    """A split (``train``, ``val``, ``trainval``, ``test``) of a dataset by name.

    Args:
        name: one of `DATASETS`; ``shapes`` is built in.
        split: which part.
        task: ``classification`` or ``pretraining`` for `PointClouds`, ``part_segmentation`` for `PartClouds`.
        root: where the files lie; ``EWA3D_DATASETS``, else ``datasets/``, where ``None``.
        num_points: points a cloud; the built-in shapes are made with as many, files are sampled later.
        val_fraction: part of ModelNet40's, ScanObjectNN's and ShapeNet55's official training split that is ``val``;
            ShapeNetPart has an official one.
        per_class: shapes a class, for the built-in ones.
        unit_sphere: whether ScanObjectNN's clouds are normalised.
        way: classes of a few-shot episode.
        shot: its training shapes a class.
        fold: which episode.

    Raises:
        ValueError: no such dataset for the task.
        Ewa3dError: data that is missing or broken.
    """
    if name == "shapes":
        shapes = ShapeParts if task == "part_segmentation" else Shapes
        return shapes(split, num_points=num_points, per_class=per_class)
    if name == "modelnet40" and task != "part_segmentation":
        return ModelNet40(root, split, val_fraction=val_fraction)
    if name in SCANOBJECTNN and task == "classification":
        return ScanObjectNN(SCANOBJECTNN[name], root, split, unit_sphere=unit_sphere, val_fraction=val_fraction)
    if name in FEW_SHOT and task == "classification":
        return FEW_SHOT[name](root, split, way=way, shot=shot, fold=fold)
    if name == "shapenetpart" and task == "part_segmentation":
        return ShapeNetPart(root, split)
    if name == "shapenet55" and task == "pretraining":
        return ShapeNet55(root, split, val_fraction=val_fraction)
    raise ValueError(f"no dataset {name!r} for {task}: choose one of {', '.join(DATASETS.get(task, ()))}")
