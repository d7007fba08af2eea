"""Datasets by name, sampling and augmentation."""

from __future__ import annotations

from pathlib import Path

from .dataset import Clouds, PartClouds, PointClouds
from .modelnet40 import ModelNet40
from .part_map import SHAPENETPART, PartMap
from .shapenetpart import ShapeNetPart
from .shapes import ShapeParts, Shapes

__all__ = [
    "DATASETS",
    "SHAPENETPART",
    "Clouds",
    "ModelNet40",
    "PartClouds",
    "PartMap",
    "PointClouds",
    "ShapeNetPart",
    "ShapeParts",
    "Shapes",
    "create_dataset",
]

DATASETS = {"classification": ("shapes", "modelnet40"), "part_segmentation": ("shapes", "shapenetpart")}
"""The datasets of every task."""


def create_dataset(
    name: str,
    split: str,
    *,
    task: str = "classification",
    root: str | Path | None = None,
    num_points: int = 1024,
    val_fraction: float = 0.1,
    per_class: int | None = None,
) -> Clouds:
    """A split (``train``, ``val``, ``trainval``, ``test``) of a dataset by name.

    Args:
        name: ``shapes`` (built in), ``modelnet40`` or ``shapenetpart``.
        split: which part.
        task: ``classification`` for `PointClouds` (shapes, modelnet40), ``part_segmentation`` for `PartClouds` (shapes,
            shapenetpart).
        root: where the files lie; ``EWA3D_DATASETS``, else ``datasets/``, where ``None``.
        num_points: points a cloud; the built-in shapes are made with as many, files are sampled later.
        val_fraction: part of ModelNet40's official training split that is ``val``; ShapeNetPart has an official one.
        per_class: shapes a class, for the built-in ones.

    Raises:
        ValueError: no such dataset for the task.
        Ewa3dError: data that is missing or broken.
    """
    if name == "shapes":
        shapes = ShapeParts if task == "part_segmentation" else Shapes
        return shapes(split, num_points=num_points, per_class=per_class)
    if name == "modelnet40" and task == "classification":
        return ModelNet40(root, split, val_fraction=val_fraction)
    if name == "shapenetpart" and task == "part_segmentation":
        return ShapeNetPart(root, split)
    raise ValueError(f"no dataset {name!r} for {task}: choose one of {', '.join(DATASETS.get(task, ()))}")
