"""Sampling and neighbours as textbooks have them, for `torch.export`.

A graph for any batch and any number of points can neither choose blocks by their size nor write into buffers of one.
What runs in PyTorch does so, and is faster; it picks the same, up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_point_sample(points: Tensor, num_samples: int, start: int, min_norm: float | None) -> Tensor:
    """See `ewa3d.ops.farthest_point_sample`. The loop is unrolled: the graph grows with ``num_samples``."""
    points = points.float()
    nearest = torch.full_like(points[..., 0], torch.inf)
    if min_norm is not None:
        nearest = nearest.masked_fill(points.square().sum(dim=-1) <= min_norm**2, -1.0)
    pick = torch.full_like(points[:, :1, 0], start, dtype=torch.long)
    picks = [pick]
    for _ in range(num_samples - 1):
        last = points.gather(1, pick.unsqueeze(-1).expand(-1, -1, 3))
        nearest = torch.minimum(nearest, (points - last).square().sum(dim=-1))
        pick = nearest.argmax(dim=1, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """See `ewa3d.ops.knn`."""
    difference = queries.float().unsqueeze(2) - points.float().unsqueeze(1)
    return difference.square().sum(dim=-1).topk(k, dim=-1, largest=False, sorted=False).indices
