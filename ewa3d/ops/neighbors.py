"""Nearest neighbours, and the groups that a point-cloud transformer takes for tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from . import textbook
from .kernels import kernels_for


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """``points[b, index[b, ...]]``: ``(B, N, C)`` by ``(B, ...)`` int64 gives ``(B, ..., C)``. Differentiable."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).view(*index.shape, points.shape[-1])


@torch.no_grad()
def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices of the ``k`` points nearest to each query, in no particular order; a query among the points counts.

    Distances are computed from coordinate differences in float32, whatever the dtype or autocast: the shorter
    |q|² + |p|² − 2q·p loses the digits that decide between close neighbours. One Triton kernel on an NVIDIA GPU, for
    up to 64 of up to 16,384 points; PyTorch otherwise. The neighbours are the same, but for the choice between equally
    near ones.

    Args:
        queries: ``(B, M, 3)``.
        points: ``(B, N, 3)``; like the queries, finite.
        k: 1 to N.

    Returns:
        ``(B, M, k)`` int64.

    Raises:
        ValueError: queries or points of another shape, or ``k`` out of range.
    """
    shapes = tuple(queries.shape), tuple(points.shape)
    if [len(shape) for shape in shapes] != [3, 3] or shapes[0][::2] != (shapes[1][0], 3) or shapes[1][2] != 3:
        raise ValueError(f"queries and points must be (B, M, 3) and (B, N, 3), got {shapes[0]} and {shapes[1]}")
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k must be between 1 and the number of points ({points.shape[1]}), got {k}")
    if torch.compiler.is_exporting():
        return textbook.knn(queries, points, k)
    kernels = kernels_for(points.device)
    if kernels is not None and k <= kernels.MAX_NEIGHBORS and points.shape[1] <= kernels.MAX_POINTS:
        return kernels.knn(queries, points, k)
    return _nearest_of_all(queries, points, k)


def _nearest_of_all(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """In PyTorch, from all distances; some rows of them at a time, which a processor's caches hold."""
    q, p = (x.detach().float().transpose(1, 2).contiguous() for x in (queries, points))
    (batch, _, num_queries), count = q.shape, p.shape[2]
    rows = max(1, (1 << 20 if q.device.type == "cpu" else 1 << 26) // count)
    clouds = max(1, rows // num_queries)
    neighbors = torch.empty(batch, num_queries, k, dtype=torch.long, device=q.device)
    for first_cloud in range(0, batch, clouds):
        own = slice(first_cloud, first_cloud + clouds)
        for first_row in range(0, num_queries, rows):
            block = slice(first_row, first_row + rows)
            distance = (q[own, 0, block, None] - p[own, 0, None, :]).square_()
            difference = torch.empty_like(distance)
            for axis in (1, 2):
                torch.sub(q[own, axis, block, None], p[own, axis, None, :], out=difference)
                distance.addcmul_(difference, difference)
            neighbors[own, block] = _smallest(distance, k)
    return neighbors


def _smallest(values: Tensor, k: int, folds: int = 8) -> Tensor:
    """Places of the ``k`` smallest values of every row, ``(..., N)`` to ``(..., k)``.

    ``topk`` is slow on long rows. A row is cut into N / folds columns of ``folds`` values each: as every column that
    holds one of the k smallest has a minimum among the k smallest minima, it is enough to search k columns.
    """
    columns, left = divmod(values.shape[-1], folds)
    if left or columns < 2 * k:
        return values.topk(k, dim=-1, largest=False, sorted=False).indices
    minima = values.unflatten(-1, (folds, columns)).amin(dim=-2)
    column = minima.topk(k, dim=-1, largest=False, sorted=False).indices
    candidates = torch.cat([column + fold * columns for fold in range(folds)], dim=-1)
    best = values.gather(-1, candidates).topk(k, dim=-1, largest=False, sorted=False).indices
    return candidates.gather(-1, best)


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
