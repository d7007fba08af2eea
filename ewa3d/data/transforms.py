"""Sampling and augmentation, on whole batches and on the device the batch is on.

Random draws come from PyTorch's global generator of that device, which training seeds and checkpoints keep.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..ops import gather_points


def oversampled(num_points: int) -> int:
    """How many farthest points the official recipe draws ``num_points`` from: 1200 for 1024, 2400 for 2048."""
    return round(num_points * 1200 / 1024)


def sample_first(points: Tensor, num_points: int) -> Tensor:
    """The first ``num_points`` of each cloud: its farthest ones where it is stored farthest first. Deterministic.

    Args:
        points: ``(B, P, 3)``, from a dataset in `farthest_first` order.
        num_points: how many; with fewer stored, points repeat (one warning).

    Returns:
        ``(B, num_points, 3)``.
    """
    return points[:, :num_points] if points.shape[1] >= num_points else _repeat(points, num_points)


def sample_random(points: Tensor, num_points: int) -> Tensor:
    """``num_points`` of each cloud, uniformly without replacement, in random order: the official training draw.

    For clouds of exactly ``num_points`` it is a mere permutation.

    Args:
        points: ``(B, P, 3)``.
        num_points: how many; with fewer stored, points repeat (one warning).

    Returns:
        ``(B, num_points, 3)``.
    """
    batch, count, _ = points.shape
    if count < num_points:
        return _repeat(points, num_points)
    order = torch.rand(batch, count, device=points.device).topk(num_points, dim=1, sorted=False).indices
    return gather_points(points, order)


def random_index(counts: Tensor, num_points: int, width: int) -> Tensor:
    """Places of ``num_points`` points of clouds of different sizes, uniformly without replacement, in random order.

    Where a cloud has fewer points, each of them comes once and the rest are drawn again, with replacement.

    Args:
        counts: ``(B,)`` int64, the points of each cloud, 1 or more.
        num_points: how many of each.
        width: the largest count, or more; given so that a GPU need not be asked.

    Returns:
        ``(B, num_points)`` int64, each below its cloud's count.
    """
    batch, device = len(counts), counts.device
    keys = torch.rand(batch, width, device=device)
    keys.masked_fill_(torch.arange(width, device=device) >= counts[:, None], -1)  # behind all points that exist
    order = keys.topk(min(num_points, width), dim=1).indices
    again = (torch.rand(batch, num_points, device=device) * counts[:, None]).long()
    again = again.minimum(counts[:, None] - 1)  # the product may round up to the count
    order = torch.cat([order, again[:, order.shape[1] :]], dim=1)
    return torch.where(torch.arange(num_points, device=device) < counts[:, None], order, again)


def seeded_index(counts: Tensor, index: Tensor, num_points: int, *, replacement: bool = False, seed: int = 0) -> Tensor:
    """Like `random_index`, drawn for each cloud from a generator of its own: the same in every batch and process.

    Args:
        counts: ``(B,)`` int64, the points of each cloud, 1 or more.
        index: ``(B,)`` int64, the place of each cloud in its dataset.
        num_points: how many of each.
        replacement: draw with replacement, as the official part-segmentation test does.
        seed: of all draws.

    Returns:
        ``(B, num_points)`` int64, each below its cloud's count.
    """
    rows = []
    for count, cloud in zip(counts.tolist(), index.tolist(), strict=True):
        mixed = np.random.SeedSequence((seed, cloud)).generate_state(1)  # of a seed, PyTorch takes 32 bits
        generator = torch.Generator().manual_seed(int(mixed[0]))
        once = torch.randperm(count, generator=generator)[: 0 if replacement else num_points]
        again = torch.randint(count, (num_points - len(once),), generator=generator)
        rows.append(torch.cat([once, again]))
    return torch.stack(rows).to(counts.device)


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


def rotate_about_y(points: Tensor) -> Tensor:
    """Turn each cloud about the vertical axis, y, by an angle U(0, 2π).

    What later work augments ScanObjectNN with (PointMamba, Liang et al., NeurIPS 2024, appendix C.1); Point-MAE itself
    scales and shifts there too.

    Args:
        points: ``(B, N, 3)``.
    """
    angle = 2 * torch.pi * torch.rand(len(points), 1, device=points.device)
    cos, sin = angle.cos(), angle.sin()
    x, y, z = points.unbind(dim=-1)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=-1)


AUGMENTATIONS = {"scale_shift": scale_and_shift, "rotate": rotate_about_y}
"""What a classifier's training clouds go through, by name."""


def _repeat(points: Tensor, num_points: int) -> Tensor:
    """Every point at least once, the rest drawn with replacement."""
    batch, count, _ = points.shape
    warnings.warn(
        f"clouds of {count} points, {num_points} asked for: points repeat; set data.num_points={count} to avoid it",
        stacklevel=3,
    )
    extra = torch.randint(count, (batch, num_points - count), device=points.device)
    return torch.cat([points, gather_points(points, extra)], dim=1)
