"""Sampling and augmentation, on whole batches and on the device the batch is on.

Random draws come from PyTorch's global generator of that device, which training seeds and checkpoints keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import farthest_point_sample, gather_points

Transform = Callable[[Tensor], Tensor]

# the official recipe draws 1024 of 1200 (2048 of 2400, 4096 of 4800) farthest points: COMPAT's 1200/1024
_OVERSAMPLING = 1200 / 1024


def sample_farthest(points: Tensor, num_points: int) -> Tensor:
    """``num_points`` of each cloud by farthest point sampling: what the official evaluation takes. Deterministic.

    Args:
        points: ``(B, P, 3)``.
        num_points: how many; with fewer stored, points repeat (one warning).

    Returns:
        ``(B, num_points, 3)``. Clouds that have exactly ``num_points`` come back as they are.
    """
    if points.shape[1] == num_points:
        return points
    if points.shape[1] < num_points:
        return _repeat(points, num_points)
    return gather_points(points, farthest_point_sample(points, num_points))


def sample_training(points: Tensor, num_points: int) -> Tensor:
    """The official training draw: farthest point sampling to 1200 points a 1024, then ``num_points`` of them at random.

    Where a cloud stores no more than that oversample, the farthest-point step is left out, and for clouds of exactly
    ``num_points`` the draw is a permutation.

    Args:
        points: ``(B, P, 3)``.
        num_points: how many; with fewer stored, points repeat (one warning).

    Returns:
        ``(B, num_points, 3)``.
    """
    oversample = round(num_points * _OVERSAMPLING)
    if points.shape[1] > oversample:
        points = sample_farthest(points, oversample)
    return sample_random(points, num_points)


def sample_random(points: Tensor, num_points: int) -> Tensor:
    """``num_points`` of each cloud, uniformly without replacement, in random order. ``(B, P, 3)`` in and out."""
    batch, count, _ = points.shape
    if count < num_points:
        return _repeat(points, num_points)
    order = torch.rand(batch, count, device=points.device).topk(num_points, dim=1, sorted=False).indices
    return gather_points(points, order)


def scale_and_shift(
    points: Tensor, scale: tuple[float, float] = (2 / 3, 3 / 2), shift: float = 0.2, isotropic: bool = False
) -> Tensor:
    """The official augmentation: per cloud and axis, a factor U(scale) and an offset U(−shift, shift).

    Args:
        points: ``(B, N, 3)``.
        scale: range of the factors.
        shift: bound of the offsets.
        isotropic: one factor for all three axes.
    """
    size = (len(points), 1, 1 if isotropic else 3)
    factor = torch.empty(size, device=points.device).uniform_(*scale)
    offset = torch.empty(len(points), 1, 3, device=points.device).uniform_(-shift, shift)
    return points * factor + offset


def _repeat(points: Tensor, num_points: int) -> Tensor:
    """Every point at least once, the rest drawn with replacement."""
    batch, count, _ = points.shape
    warnings.warn(
        f"clouds of {count} points, {num_points} asked for: points repeat; set data.num_points={count} to avoid it",
        stacklevel=3,
    )
    extra = torch.randint(count, (batch, num_points - count), device=points.device)
    return torch.cat([points, gather_points(points, extra)], dim=1)
