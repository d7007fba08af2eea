"""Nearest neighbours, and the groups that a point-cloud transformer takes for tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """``points[b, index[b, ...]]``: ``(B, N, C)`` by ``(B, ...)`` int64 gives ``(B, ..., C)``. Differentiable."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).view(*index.shape, points.shape[-1])


@torch.no_grad()
def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` points nearest to each query, in no particular order; a query among the points counts.

    Distances are computed from coordinate differences in float32, whatever the dtype or autocast: the shorter
    |q|² + |p|² − 2q·p loses the digits that decide between close neighbours.

    Args:
        queries: ``(B, M, 3)``.
        points: ``(B, N, 3)``.
        k: 1 to N.

    Returns:
        ``(B, M, k)`` int64.

    Raises:
        ValueError: ``k`` out of range.
    """
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k must be between 1 and the number of points ({points.shape[1]}), got {k}")
    q, p = queries.detach().float(), points.detach().float()
    distance = torch.zeros(q.shape[0], q.shape[1], p.shape[1], device=q.device)
    difference = torch.empty_like(distance)
    for axis in range(3):
        torch.sub(q[:, :, None, axis], p[:, None, :, axis], out=difference)
        distance.addcmul_(difference, difference)
    return distance.topk(k, dim=-1, largest=False, sorted=False).indices


def group(points: Tensor, centers: Tensor, group_size: int) -> Tensor:
    """The ``group_size`` points around each center, as offsets from it (subtraction only, no rescaling).

    Args:
        points: ``(B, N, 3)``.
        centers: ``(B, G, 3)``.
        group_size: points a group, 1 to N.

    Returns:
        ``(B, G, group_size, 3)`` float32. Differentiable in ``points`` and ``centers``.
    """
    neighbors = gather_points(points.float(), knn(centers, points, group_size))
    return neighbors - centers.float().unsqueeze(2)
