"""Stored clouds as tensors of one shape: what the loaders of classification sets share."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from .dataset import to_unit_sphere
from .reading import Stored


def rectangle(
    stored: Stored, chosen: NDArray[np.int64], where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The chosen clouds, normalised, as ``points (n, P, 3)`` and ``normals (n, P, 3)``; P is the most common count."""
    clouds = stored.clouds
    sizes, often = np.unique(clouds.counts, return_counts=True)
    common = int(sizes[len(sizes) - 1 - np.argmax(often[::-1])])  # of equally common ones the largest
    if len(sizes) == 1:
        rows = slice(None) if len(chosen) == len(clouds.counts) else chosen  # all of them: no second copy
        points = clouds.points.reshape(-1, common, 3)[rows]
        normal = clouds.normals.reshape(-1, common, 3)[rows] if clouds.normals is not None else None
        return normalise(points), normal

    odd = np.flatnonzero(clouds.counts != common)
    warnings.warn(
        f"{where}: {len(odd)} of {len(clouds.counts)} clouds have not the {common} points of the others (first "
        f"{stored.sources[odd[0]]} with {clouds.counts[odd[0]]}); a seeded draw of their own points brings them to it",
        stacklevel=3,
    )
    points = np.empty((len(chosen), common, 3), dtype=np.float32)
    normal = np.empty_like(points) if clouds.normals is not None else None
    starts = np.cumsum(clouds.counts) - clouds.counts
    for out, cloud in enumerate(chosen):
        span = slice(starts[cloud], starts[cloud] + clouds.counts[cloud])
        pick = _resample(int(clouds.counts[cloud]), common, int(cloud))
        points[out] = to_unit_sphere(clouds.points[span])[pick]
        if normal is not None and clouds.normals is not None:
            normal[out] = clouds.normals[span][pick]
    return points, normal


def _resample(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """``wanted`` of ``count`` places: all of them and some again where there are too few, else a draw of them."""
    draw = np.random.RandomState(seed)
    if count <= wanted:
        return np.concatenate([np.arange(count), draw.randint(count, size=wanted - count)])
    return draw.permutation(count)[:wanted]


def normalise(points: NDArray[np.float32], chunk: int = 256) -> NDArray[np.float32]:
    """`to_unit_sphere` of ``(n, P, 3)``, in place, ``chunk`` clouds at a time."""
    for start in range(0, len(points), chunk):
        points[start : start + chunk] = to_unit_sphere(points[start : start + chunk])
    return points
