"""Cutting a validation split from a training split."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Ewa3dError


def stratified_split(labels: ArrayLike, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut ``fraction`` of every class off, at random.

    Of a class of ``count`` samples, ``round(fraction * count)`` go to the second part; at least 1 and at most
    ``count - 1`` where the class has 2 or more, and none where it has 1. ``fraction=0`` cuts nothing. The draw of a
    class depends on the seed, the class and its members only, so it stays when other classes come or go.

    Args:
        labels: ``(n,)`` class of every sample, integers from 0.
        fraction: the part of each class to cut off, 0 <= fraction < 1.
        seed: the seed of the draw; the only source of randomness.

    Returns:
        Indices ``(n_train,)`` and ``(n_val,)``, int64, both ascending: disjoint, together ``0 … n - 1``.

    Raises:
        Ewa3dError: a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise Ewa3dError(f"validation fraction {fraction} is not in [0, 1): take one such as 0.1")
    classes = np.asarray(labels, dtype=np.int64).reshape(-1)
    chosen = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes) if fraction > 0 else ():
        members = np.flatnonzero(classes == label)
        if len(members) < 2:
            continue
        take = min(max(1, round(fraction * len(members))), len(members) - 1)
        # RandomState and not default_rng: NumPy keeps its streams as they are, so a split is the same everywhere.
        draw = np.random.RandomState([seed % 2**32, int(label)])
        chosen[draw.permutation(members)[:take]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
