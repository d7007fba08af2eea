"""Farthest point sampling and nearest neighbours as Triton kernels: one launch each, where PyTorch needs many.

Importable only where Triton is (PyTorch brings it on Linux); `ewa3d.ops.kernels` decides who uses it. The kernels
compute what the PyTorch code beside them computes, in the same order of operations: `tl.fma` where that calls
``addcmul``, which rounds once (seen with PyTorch 2.15 on x86-64), and a rounding after every other product and sum, so
the compiler may fuse nothing else.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_POINTS = 16384
"""The largest clouds. `_farthest_points` holds four numbers a point in registers: at this size, all that there are."""

MAX_NEIGHBORS = 64
"""The largest k: every neighbour takes one more pass over the distances."""

OPTIONS = {"enable_fp_fusion": False}
"""How both are compiled."""


@triton.jit(do_not_specialize=["count", "num_samples", "start"])
def _farthest_points(
    points,  # (B, 3, count) float32
    picks,  # (B, num_samples) int64
    count,
    num_samples,
    start,
    min_norm_squared,
    BLOCK: tl.constexpr,  # a power of two, at least count
):
    """One program a cloud; a lane holds a point and its squared distance to the nearest pick."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * 3 * count
    picks += cloud * num_samples
    lane = tl.arange(0, BLOCK)
    real = lane < count
    x = tl.load(points + lane, mask=real, other=0.0)
    y = tl.load(points + count + lane, mask=real, other=0.0)
    z = tl.load(points + 2 * count + lane, mask=real, other=0.0)
    # points that may not be picked are below every distance, lanes without a point below those
    nearest = tl.where(x * x + y * y + z * z <= min_norm_squared, -1.0, float("inf"))
    nearest = tl.where(real, nearest, -2.0)
    pick = start
    tl.store(picks, pick)
    for i in range(1, num_samples):
        dx = x - tl.load(points + pick)
        dy = y - tl.load(points + count + pick)
        dz = z - tl.load(points + 2 * count + pick)
        distance = tl.fma(dz, dz, tl.fma(dy, dy, dx * dx))
        nearest = tl.minimum(nearest, distance)
        pick = tl.argmax(nearest, axis=0)  # of equals the first
        tl.store(picks + i, pick)


@triton.jit(do_not_specialize=["num_queries", "count", "k"])
def _nearest_points(
    queries,  # (B, num_queries, 3) float32
    points,  # (B, 3, count) float32
    neighbors,  # (B, num_queries, k) int64
    num_queries,
    count,
    k,
    QUERIES: tl.constexpr,  # a program's
    BLOCK: tl.constexpr,  # a power of two, at least count
):
    """A tile of squared distances, queries by points; k times each row's smallest is written down and crossed out."""
    tiles = tl.cdiv(num_queries, QUERIES)
    cloud = (tl.program_id(0) // tiles).to(tl.int64)
    points += cloud * 3 * count
    query = tl.program_id(0) % tiles * QUERIES + tl.arange(0, QUERIES)
    asked = query < num_queries
    row = cloud * num_queries + query
    lane = tl.arange(0, BLOCK)
    real = lane < count
    distance = tl.zeros((QUERIES, BLOCK), tl.float32)
    for axis in tl.static_range(3):
        q = tl.load(queries + row * 3 + axis, mask=asked, other=0.0)
        p = tl.load(points + axis * count + lane, mask=real, other=0.0)
        difference = q[:, None] - p[None, :]
        distance = tl.fma(difference, difference, distance)
    # finite, so that infinity marks what is out: a lane without a point, or one that was taken
    distance = tl.minimum(distance, 3.4028234663852886e38)
    distance = tl.where(real[None, :], distance, float("inf"))
    for i in range(k):
        nearest = tl.argmin(distance, axis=1)
        tl.store(neighbors + row * k + i, nearest, mask=asked)
        distance = tl.where(lane[None, :] == nearest[:, None], float("inf"), distance)


def farthest_point_sample(points: Tensor, num_samples: int, start: int, min_norm: float | None) -> Tensor:
    """`ewa3d.ops.farthest_point_sample` for clouds of at most `MAX_POINTS`; its arguments are taken as checked."""
    batch, count, _ = points.shape
    picks = torch.empty(batch, num_samples, dtype=torch.long, device=points.device)
    block = _lanes(count)
    with torch.cuda.device_of(points):  # Triton launches on the current device
        _farthest_points[(batch,)](
            _by_axis(points),
            picks,
            count,
            num_samples,
            start,
            -1.0 if min_norm is None else float(min_norm) ** 2,  # no squared norm is at most -1
            BLOCK=block,
            num_warps=_warps(block),
            **OPTIONS,
        )
    return picks


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`ewa3d.ops.knn` for k up to `MAX_NEIGHBORS` of at most `MAX_POINTS`; its arguments are taken as checked."""
    batch, num_queries, _ = queries.shape
    count = points.shape[1]
    neighbors = torch.empty(batch, num_queries, k, dtype=torch.long, device=points.device)
    block = _lanes(count)
    tile = max(1, 1024 // block)  # small clouds: several queries a program
    with torch.cuda.device_of(points):
        _nearest_points[(batch * triton.cdiv(num_queries, tile),)](
            queries.detach().float().contiguous(),
            _by_axis(points),
            neighbors,
            num_queries,
            count,
            k,
            QUERIES=tile,
            BLOCK=block,
            num_warps=_warps(tile * block),
            **OPTIONS,
        )
    return neighbors


def _by_axis(points: Tensor) -> Tensor:
    """``(B, N, 3)`` to ``(B, 3, N)`` float32, so that neighbouring lanes read neighbouring addresses."""
    return points.detach().float().transpose(1, 2).contiguous()


def _lanes(count: int) -> int:
    """The power of two that holds a cloud; a warp's 32 lanes at least."""
    return max(triton.next_power_of_2(count), 32)


def _warps(lanes: int) -> int:
    """Eight lanes a thread, and no more threads than a program may have."""
    return min(max(lanes // 256, 1), 32)
