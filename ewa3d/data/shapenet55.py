"""ShapeNet55 (Yu et al., PoinTr, ICCV 2021): 52,470 clouds of ShapeNet in 55 categories, to pretrain on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import Ewa3dError, first_line, quoted
from ..progress import track
from .cloud import as_points
from .dataset import PointClouds, to_unit_sphere
from .reading import check_names, check_split, read_lines
from .roots import find_root
from .splits import choose_split

_GET_IT = "datasets/README.md says where to get it"
FOLDERS = ("ShapeNet55-34", "ShapeNet55")
_ENTRY = re.compile(r"(?P<synset>[^-/\\]+)-[^/\\]+\.npy")


class ShapeNet55(PointClouds):
    """ShapeNet55 in memory, each cloud normalised to the unit sphere on all of its points (officially 8,192).

    ``root`` itself is taken if it is the layout, else ``ShapeNet55-34`` or ``ShapeNet55`` under it: a folder with
    ``shapenet_pc/<synset>-<id>.npy`` and the lists ``ShapeNet-55/train.txt`` and ``test.txt``, which may name a part of
    the files. All of the training split takes 4.1 GB. The points of a cloud are put in a random order, always the
    same: the first n of them are a fair draw.

    Labels number the synsets that the lists name, in their order; there is no other name of a class in this layout.

    Args:
        root: the folder of data sets, or the folder of the layout. ``None`` is ``EWA3D_DATASETS``, else the
            repository's ``datasets/``.
        split: ``"train"`` (the official one less the validation part), ``"val"``, ``"trainval"`` (the whole official
            train, 41,952 clouds) or ``"test"`` (10,518).
        val_fraction: part of each synset of the official train that is ``"val"`` (see `stratified_split`).
        split_seed: seed of that draw.

    Raises:
        Ewa3dError: data that is missing, broken or not finite, clouds of different sizes, or an unknown split.
    """

    shuffled = True

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ):
        check_split("ShapeNet55", split)
        self.split = split
        self.folder = find_layout(root)
        official = "test" if split == "test" else "train"
        lists = {name: read_list(path) for name in ("train", "test") if (path := list_of(self.folder, name)).is_file()}
        if official not in lists:
            raise Ewa3dError(f"{list_of(self.folder, official)}: missing: get the data again ({_GET_IT})")
        synsets = sorted({_synset(entry) for entries in lists.values() for entry in entries})
        entries = lists[official]
        label_of = {synset: label for label, synset in enumerate(synsets)}
        labels = np.array([label_of[_synset(entry)] for entry in entries], dtype=np.int64)

        chosen = choose_split(labels, split, val_fraction, split_seed, self.folder)
        sources = [f"shapenet_pc/{entries[i]}" for i in chosen]
        points = _read_clouds(self.folder, sources, chosen)
        super().__init__(torch.from_numpy(points), torch.from_numpy(labels[chosen]), synsets, sources=sources)


def find_layout(root: str | Path | None) -> Path:
    """The ShapeNet55 folder at or under ``root`` (see `find_root`).

    Raises:
        Ewa3dError: no such root, or no such folder there.
    """
    home = find_root(root, _GET_IT)
    for folder in (home, *(home / name for name in FOLDERS)):
        if (folder / "shapenet_pc").is_dir() and (folder / "ShapeNet-55").is_dir():
            return folder
    raise Ewa3dError(
        f"{home}: no ShapeNet55 in it; looked for the folders shapenet_pc and ShapeNet-55 there and in "
        f"{' and '.join(FOLDERS)}: give the right root ({_GET_IT})"
    )


def list_of(folder: Path, official: str) -> Path:
    return folder / "ShapeNet-55" / f"{official}.txt"


def read_list(path: Path) -> list[str]:
    """The file names that a list has."""
    entries = read_lines(path, _GET_IT)
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise Ewa3dError(f"{path}: {quoted(entry)} is no file name <synset>-<id>.npy: mend the list")
    check_names(entries, path)
    return entries


def _synset(entry: str) -> str:
    return entry.partition("-")[0]


def _read_clouds(folder: Path, sources: Sequence[str], seeds: NDArray[np.int64]) -> NDArray[np.float32]:
    """The files ``sources``, normalised, each in a random order of its own: ``(n, P, 3)``."""
    clouds: NDArray[np.float32] | None = None
    for row, source in enumerate(track(sources, "reading ShapeNet55", len(sources))):
        cloud = to_unit_sphere(read_cloud(folder / source))
        if clouds is None:
            clouds = np.empty((len(sources), *cloud.shape), dtype=np.float32)
        if len(cloud) != clouds.shape[1]:
            raise Ewa3dError(
                f"{folder / source}: has {len(cloud)} points, and {sources[0]} has {clouds.shape[1]}: all must have "
                "equally many, mend the files"
            )
        clouds[row] = np.random.RandomState(int(seeds[row])).permutation(cloud)
    assert clouds is not None
    return clouds


def read_cloud(path: Path) -> NDArray[np.float64]:
    """The points ``(P, 3)`` of an ``.npy`` file."""
    again = f"mend the file or get it again ({_GET_IT})"
    try:
        # mapped: a file's size is checked before anything is allocated, and no object in it can be loaded
        points = as_points(np.lib.format.open_memmap(path, mode="r"), "the array")
    except FileNotFoundError:
        raise Ewa3dError(f"{path}: missing, but listed: get the file, or mend the list") from None
    except Exception as why:  # on bytes that are no such file, NumPy raises whatever it stumbles over
        raise Ewa3dError(f"{path}: no readable array of points ({first_line(why)}): {again}") from None
    if not len(points):
        raise Ewa3dError(f"{path}: an empty cloud: {again}")
    if not np.isfinite(points).all():
        place = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise Ewa3dError(f"{path}: point {place} is NaN or infinite: {again}")
    return points
