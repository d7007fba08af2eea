"""Datasets by name, sampling and augmentation."""

from __future__ import annotations

from pathlib import Path

from .dataset import PointClouds
from .modelnet40 import ModelNet40
from .shapes import Shapes

__all__ = ["ModelNet40", "PointClouds", "Shapes", "create_dataset"]


def create_dataset(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    num_points: int = 1024,
    val_fraction: float = 0.1,
    per_class: int | None = None,
) -> PointClouds:
    """A split (``train``, ``val``, ``trainval``, ``test``) of a dataset by name.

    Args:
        name: ``shapes`` (built in) or ``modelnet40``.
        split: which part.
        root: where the files lie; ``EWA3D_DATASETS``, else ``datasets/``, where ``None``.
        num_points: points a cloud; the built-in shapes are made with as many, files are sampled later.
        val_fraction: part of the official training split that is ``val``.
        per_class: shapes a class, for the built-in ones.
    """
    if name == "shapes":
        return Shapes(split, num_points=num_points, per_class=per_class)
    if name == "modelnet40":
        return ModelNet40(root, split, val_fraction=val_fraction)
    raise ValueError(f"unknown dataset {name!r}: choose shapes or modelnet40")
