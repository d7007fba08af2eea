"""Farthest point sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from . import textbook
from .kernels import kernels_for


@torch.no_grad()
def farthest_point_sample(points: Tensor, num_samples: int, *, start: int = 0, min_norm: float | None = None) -> Tensor:
    """Indices of ``num_samples`` points, each the farthest from those picked before it.

    One Triton kernel on an NVIDIA GPU, for clouds of up to 16,384 points; PyTorch otherwise. The picks are the same.

    Args:
        points: ``(B, N, 3)``, finite; computed in float32 whatever the dtype or autocast.
        num_samples: how many points to pick. With more samples than distinct points, picks repeat.
        start: the index picked first.
        min_norm: never pick a point whose distance from the origin is at most this (the first pick excepted; index 0
            again where no candidate is left). ``1e-3**0.5`` is the rule of the official operator (pointnet2_ops).

    Returns:
        ``(B, num_samples)`` int64. Of equally far points the first is taken.

    Raises:
        ValueError: ``points`` not ``(B, N, 3)`` or empty, ``num_samples`` < 1, ``start`` out of range.
    """
    if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] == 0:
        raise ValueError(f"points must be (B, N, 3) with N > 0, got {tuple(points.shape)}")
    count = points.shape[1]
    if num_samples < 1:
        raise ValueError(f"num_samples must be 1 or more, got {num_samples}")
    if not 0 <= start < count:
        raise ValueError(f"start must be an index below {count}, got {start}")

    if torch.compiler.is_exporting():
        return textbook.farthest_point_sample(points, num_samples, start, min_norm)
    kernels = kernels_for(points.device)
    if kernels is not None and count <= kernels.MAX_POINTS:
        return kernels.farthest_point_sample(points, num_samples, start, min_norm)
    return _sample_loop(points, num_samples, start, min_norm)


def _sample_loop(points: Tensor, num_samples: int, start: int, min_norm: float | None) -> Tensor:
    """In PyTorch, a pick a step.

    Coordinates are kept as three contiguous tensors and every step writes into the same buffers: a step touches no
    strided and no new memory, which is what makes the textbook loop slow.
    """
    x, y, z = (axis.contiguous() for axis in points.detach().float().unbind(-1))
    nearest = torch.full_like(x, torch.inf)  # squared distance of every point to its nearest pick
    if min_norm is not None:
        # below every distance, so that such a point is never the farthest; where all are, index 0 is the first maximum
        nearest.masked_fill_(x * x + y * y + z * z <= min_norm**2, -1)
    distance, term = torch.empty_like(x), torch.empty_like(x)
    pick = torch.full((len(points), 1), start, dtype=torch.long, device=points.device)
    picks = torch.empty(len(points), num_samples, dtype=torch.long, device=points.device)
    picks[:, :1] = pick
    for i in range(1, num_samples):
        torch.sub(x, x.gather(1, pick), out=distance)
        distance.mul_(distance)
        for axis in (y, z):
            torch.sub(axis, axis.gather(1, pick), out=term)
            distance.addcmul_(term, term)
        torch.minimum(nearest, distance, out=nearest)
        torch.argmax(nearest, dim=1, keepdim=True, out=pick)
        picks[:, i : i + 1] = pick
    return picks
