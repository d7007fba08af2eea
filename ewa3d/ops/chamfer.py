"""Chamfer distance between point sets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .neighbors import gather_points, knn

Norm = Literal["l1", "l2"]
NORMS = ("l1", "l2")


def chamfer_distance(a: Tensor, b: Tensor, norm: Norm = "l2") -> Tensor:
    """How far each point of a set is from the nearest one of the other, both ways, as Point-MAE measures it.

    ``l2``: the mean over ``a`` of the **squared** distance to the nearest point of ``b``, plus the same the other way.
    ``l1``: half the sum of the two means of the distances themselves.

    From coordinate differences in float32 (float64 stays), whatever the autocast. For a gradient only the nearest
    points are kept, no matrix of distances; of equally near ones one gets it, and at distance 0 it is 0.

    Args:
        a: ``(B, N, 3)``, finite.
        b: ``(B, M, 3)``, finite.
        norm: ``l1`` or ``l2``.

    Returns:
        ``(B,)``: one distance a pair of sets. In units of the coordinates for ``l1``, of their squares for ``l2``.

    Raises:
        ValueError: another shape, an empty set, or an unknown ``norm``.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}: choose {' or '.join(NORMS)}")
    if a.ndim == b.ndim == 3 and 0 in (a.shape[1], b.shape[1]):
        raise ValueError(f"a and b must have a point or more, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (points.to(torch.promote_types(points.dtype, torch.float32)) for points in (a, b))
    there, back = _to_nearest(a, b), _to_nearest(b, a)
    if norm == "l1":
        return (there.norm(dim=-1).mean(dim=1) + back.norm(dim=-1).mean(dim=1)) / 2
    return there.square().sum(dim=-1).mean(dim=1) + back.square().sum(dim=-1).mean(dim=1)


def _to_nearest(points: Tensor, others: Tensor) -> Tensor:
    """What has to be added to the nearest of ``others (B, M, 3)`` to reach each of ``points (B, N, 3)``."""
    nearest = knn(points, others, 1).squeeze(-1)
    return points - gather_points(others, nearest)
