"""Parts of a training split: the one that is kept for validation, and the one whose labels are used."""

from __future__ import annotations

from pathlib import Path

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


def choose_split(
    labels: NDArray[np.int64], split: str, val_fraction: float, seed: int, folder: Path
) -> NDArray[np.int64]:
    """Which shapes are in ``split``, of the official train for ``train`` and ``val``, else of all that were read.

    Args:
        labels: ``(n,)`` class of every shape of the official split.
        split: ``train``, ``val``, ``trainval`` or ``test``.
        val_fraction: part of each class that is ``val`` (see `stratified_split`).
        seed: of that draw.
        folder: for the error.

    Returns:
        Indices ``(m,)`` int64, ascending.

    Raises:
        Ewa3dError: none is left.
    """
    if split not in ("train", "val"):
        return np.arange(len(labels))
    train, val = stratified_split(labels, val_fraction, seed)
    chosen = train if split == "train" else val
    if not len(chosen):
        raise Ewa3dError(
            f"{folder}: a validation fraction of {val_fraction} leaves no shape for {split!r} (one a class, or a "
            "fraction of 0): take a larger fraction, or the split 'trainval'"
        )
    return chosen


def stratified_subset(labels: ArrayLike, fraction: float, seed: int) -> NDArray[np.int64]:
    """Choose ``fraction`` of every class, at random: of ``count`` samples ``round(fraction * count)``, at least 1.

    The draw of a class depends on the seed, the class and its members only, and a smaller fraction's choice is a part
    of a larger one's.

    Args:
        labels: ``(n,)`` class of every sample, integers from 0.
        fraction: the part of each class to choose, 0 < fraction <= 1.
        seed: the seed of the draw; the only source of randomness.

    Returns:
        Indices ``(m,)`` int64, ascending.

    Raises:
        Ewa3dError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise Ewa3dError(f"fraction {fraction} of the labels is not in (0, 1]: take one such as 0.1")
    classes = np.asarray(labels, dtype=np.int64).reshape(-1)
    chosen = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        # the third number keeps this draw apart from the validation split's, which may have the same seed
        draw = np.random.RandomState([seed % 2**32, int(label), 1])
        chosen.append(draw.permutation(members)[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))
