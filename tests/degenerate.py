"""Clouds that are hardly clouds, for the property tests of `ops` and `models`."""

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("one point", "origin", "line", "axis", "plane", "copies", "outlier", "shell", "far away")


@st.composite
def degenerate_clouds(draw, num_points: int | None = None, batch: int | None = None, largest: float = 1e12) -> Tensor:
    """``(B, N, 3)`` float32: points that coincide, lie on a line or in a plane, of any size up to ``largest``."""
    clouds, count = batch or draw(st.integers(1, 3)), num_points or draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scales = [scale for scale in (1e-45, 1e-30, 1e-6, 1.0, 1e3, 1e12, 1e18, 1e30) if scale <= largest]
    kinds = [(draw(st.sampled_from(KINDS)), draw(st.sampled_from(scales))) for _ in range(clouds)]
    return torch.stack([scale * _make(kind, count, generator) for kind, scale in kinds])


def _make(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """``(count, 3)`` within ±1."""
    points = 2 * torch.rand(count, 3, generator=generator) - 1
    if kind == "one point":
        points[:] = points[0].clone()
    elif kind == "origin":
        points[:] = 0
    elif kind == "line":
        points = points[:, :1] * points[0]
    elif kind == "axis":
        points[:, 1:] = 0
    elif kind == "plane":
        points[:, 2] = points[0, 2]
    elif kind == "copies":
        points = points[torch.randint(min(count, 3), (count,), generator=generator)]
    elif kind == "outlier":
        points[1:] *= 1e-6
    elif kind == "shell":
        points = points / points.norm(dim=1, keepdim=True)
    elif kind == "far away":
        points = 1 - 1e-6 * points.abs()
    return points
