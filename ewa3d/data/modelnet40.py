"""ModelNet40 (Wu et al., 3D ShapeNets, CVPR 2015): 40 classes of shapes, in each of the three layouts it comes in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import Ewa3dError
from .dataset import PointClouds
from .pickles import load_arrays
from .roots import datasets_root
from .splits import stratified_split
from .text_clouds import Flat, load_text_clouds

SPLITS = ("train", "val", "trainval", "test")
_GET_IT = "`python datasets/prepare_modelnet40.py` gets it"


@dataclass
class _Stored:
    """An official split as it lies on the disk."""

    clouds: Flat  # n clouds
    labels: NDArray[np.int64]  # (n,)
    sources: list[str]  # n texts


class ModelNet40(PointClouds):
    """ModelNet40 in memory, each cloud normalised to the unit sphere on all of its stored points.

    Of several layouts under ``root`` the first of these is taken: ``modelnet40_ply_hdf5_2048``, other
    ``modelnet40_ply_hdf5_*`` (most points first; an hdf5 folder that lacks files comes last of all),
    ``modelnet40_normal_resampled``, ``ModelNet/modelnet40_normal_resampled``. In the last two the text files are
    taken before their ``.dat`` cache. ``datasets/README.md`` shows the layouts. ``.folder`` and ``.layout`` say what
    was taken.

    Every point is kept: 2,048 a cloud from hdf5, 10,000 from text, 8,192 from ``.dat``. Clouds that differ from the
    most common count are brought to it by a seeded draw of their own points, and one warning says so.

    Args:
        root: the folder of data sets, or the folder of one layout. ``None`` is ``EWA3D_DATASETS``, else the
            repository's ``datasets/``.
        split: ``"train"`` (the official one less the validation part), ``"val"``, ``"trainval"`` (the whole official
            train) or ``"test"``.
        normals: load normals too.
        val_fraction: part of each class of the official train that is ``"val"`` (see `stratified_split`).
        split_seed: seed of that draw.
        cache: keep parsed text files under ``EWA3D_CACHE`` (default ``~/.cache/ewa3d``), so they are parsed once.

    Raises:
        Ewa3dError: data that is missing, broken or not finite, an unknown split, or normals where there are none.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        *,
        normals: bool = False,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        cache: bool = True,
    ):
        if split not in SPLITS:
            raise Ewa3dError(f"ModelNet40 has no split {split!r}: take one of {', '.join(SPLITS)}")
        self.split = split
        self.folder, self.layout = find_layout(Path(root).expanduser() if root is not None else datasets_root())
        official = "test" if split == "test" else "train"
        names_file = self.folder / ("shape_names.txt" if self.layout == "hdf5" else "modelnet40_shape_names.txt")
        class_names = _lines(names_file)
        if self.layout == "text":
            stored = _read_text(self.folder, official, class_names, normals, cache)
        else:
            stored = {"hdf5": _read_hdf5, "dat": _read_dat}[self.layout](self.folder, official, normals)
        if normals and stored.clouds.normals is None:
            raise Ewa3dError(
                f"{self.folder}: holds no normals (layout {self.layout}): load without them, or point root at "
                "modelnet40_normal_resampled"
            )
        _check(stored, self.folder, names_file, len(class_names))

        chosen: NDArray[np.int64] = np.arange(len(stored.labels))
        if split in ("train", "val"):
            train, val = stratified_split(stored.labels, val_fraction, split_seed)
            chosen = train if split == "train" else val
            if not len(chosen):
                raise Ewa3dError(
                    f"{self.folder}: a validation fraction of {val_fraction} leaves no shape for {split!r} (one a "
                    "class, or a fraction of 0): take a larger fraction, or the split 'trainval'"
                )
        points, normal = _rectangle(stored, chosen, f"{self.folder} ({official})")
        super().__init__(
            torch.from_numpy(points),
            torch.from_numpy(stored.labels[chosen]),
            class_names,
            sources=[stored.sources[i] for i in chosen],
            normals=torch.from_numpy(normal) if normal is not None else None,
        )


def find_layout(root: Path) -> tuple[Path, str]:
    """The ModelNet40 folder at or under ``root``, and its layout: ``"hdf5"``, ``"text"`` or ``"dat"``.

    Raises:
        Ewa3dError: no such root, or no layout there.
    """
    try:
        found = _layouts(root)
    except OSError as why:
        raise Ewa3dError(f"{root}: cannot be read ({why.strerror or why}): check its rights") from None
    if found is None:
        raise Ewa3dError(f"{root}: no such folder of data sets: set EWA3D_DATASETS or give a root ({_GET_IT})")
    if not found:
        raise Ewa3dError(
            f"{root}: no ModelNet40 in it; looked for modelnet40_ply_hdf5_*, modelnet40_normal_resampled (text or "
            f".dat) and ModelNet/modelnet40_normal_resampled: give the right root, or {_GET_IT}"
        )
    # Stable: the order above stays among the whole ones.
    return min(found, key=lambda item: item[1] == "hdf5" and not _is_whole(item[0]))


def _layouts(root: Path) -> list[tuple[Path, str]] | None:
    """The folders at and under ``root`` with their layouts, in the order of preference; ``None``: no such root."""
    if not root.is_dir():
        return None
    hdf5 = sorted(root.glob("modelnet40_ply_hdf5_*"), key=_hdf5_rank)
    resampled = [root / "modelnet40_normal_resampled", root / "ModelNet" / "modelnet40_normal_resampled"]
    return [(folder, layout) for folder in [root, *hdf5, *resampled] if (layout := _layout(folder)) is not None]


def _hdf5_rank(folder: Path) -> tuple[bool, int]:
    count = folder.name.rpartition("_")[2]
    return count != "2048", -int(count) if count.isdecimal() else 0


def _layout(folder: Path) -> str | None:
    def has(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    if has("train_files.txt", "test_files.txt"):
        return "hdf5"
    if has(_dat_name("train"), _dat_name("test")) and not any(item.is_dir() for item in folder.iterdir()):
        return "dat"
    return "text" if has("modelnet40_shape_names.txt", "modelnet40_train.txt", "modelnet40_test.txt") else None


def _is_whole(folder: Path) -> bool:
    """Whether an hdf5 folder has all the files it lists."""
    try:
        return all(path.is_file() for split in ("train", "test") for path in _listed_h5(folder, split))
    except Ewa3dError:
        return False


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as why:
        detail = "missing" if isinstance(why, FileNotFoundError) else f"not readable ({why})"
        raise Ewa3dError(f"{path}: {detail}, and ModelNet40 needs it: get the data again ({_GET_IT})") from None
    if not any(lines):
        raise Ewa3dError(f"{path}: empty, and should have one name a line: get the data again ({_GET_IT})")
    return [line for line in lines if line]


# hdf5


def _listed_h5(folder: Path, split: str) -> list[Path]:
    # The official lists have paths of the machine that made them: only the file names count.
    return [folder / re.split(r"[\\/]", line)[-1] for line in _lines(folder / f"{split}_files.txt")]


def _read_hdf5(folder: Path, split: str, normals: bool) -> _Stored:
    paths = _listed_h5(folder, split)
    for path in paths:
        if not path.is_file():
            raise Ewa3dError(f"{path}: missing, but {split}_files.txt lists it: get the data again ({_GET_IT})")
    blocks = [_read_h5(path, normals) for path in paths]
    points, normal, labels = zip(*blocks, strict=True)
    counts = np.concatenate([np.full(len(block), block.shape[1], dtype=np.int64) for block in points])
    clouds = Flat(
        np.concatenate([block.reshape(-1, 3) for block in points]),
        np.concatenate([block.reshape(-1, 3) for block in normal]) if all(n is not None for n in normal) else None,
        counts,
    )
    sources = [f"{path.name}:{row}" for path, block in zip(paths, points, strict=True) for row in range(len(block))]
    return _Stored(clouds, np.concatenate(labels), sources)


def _read_h5(path: Path, normals: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """``data (n, P, 3)`` and ``normal (n, P, 3)`` as float32, ``label (n,)`` as int64, of one file."""

    def read(file: h5py.File, name: str, kinds: str, fits: Callable[[tuple[int, ...]], bool], want: str) -> np.ndarray:
        item = file.get(name)
        if not isinstance(item, h5py.Dataset):
            raise Ewa3dError(f"{path}: has no dataset {name!r}: get the file again ({_GET_IT})")
        if item.dtype.kind not in kinds or item.shape is None or not fits(item.shape):
            raise Ewa3dError(
                f"{path}: dataset {name!r} is {item.dtype} {item.shape}, and should be {want}: get the file again "
                f"({_GET_IT})"
            )
        return item.astype(np.int64 if name == "label" else np.float32)[()]

    try:
        with h5py.File(path, "r") as file:
            data = read(file, "data", "fiu", lambda shape: len(shape) == 3 and shape[2] == 3, "numbers (n, points, 3)")
            n = len(data)
            label = read(file, "label", "iu", lambda shape: shape in ((n,), (n, 1)), f"integers ({n}, 1)")
            normal = None
            if normals and "normal" in file:
                normal = read(file, "normal", "fiu", lambda shape: shape == data.shape, f"numbers {data.shape}")
    except (OSError, RuntimeError, KeyError, ValueError) as why:
        detail = " ".join(str(why).split())
        raise Ewa3dError(f"{path}: not a whole HDF5 file ({detail}): get the file again ({_GET_IT})") from None
    return data, normal, label.reshape(-1)


# modelnet40_normal_resampled


def _dat_name(split: str) -> str:
    return f"modelnet40_{split}_8192pts_fps.dat"


def _read_dat(folder: Path, split: str, normals: bool) -> _Stored:
    path = folder / _dat_name(split)
    content = load_arrays(path)
    try:
        clouds, labels = content
        whole = len(clouds) == len(labels) > 0
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise Ewa3dError(f"{path}: is not [clouds, labels], two lists of one length: make the file again")
    for row, (cloud, label) in enumerate(zip(clouds, labels, strict=True)):
        if not isinstance(cloud, np.ndarray) or cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.dtype.kind != "f":
            raise Ewa3dError(f"{path}:{row}: a cloud is no array (points, 6) of floats: make the file again")
        if np.size(label) != 1 or np.asarray(label).dtype.kind not in "iu":
            raise Ewa3dError(f"{path}:{row}: a label is no single integer: make the file again")
    labelled = np.array([np.asarray(label).item() for label in labels], dtype=np.int64)
    sources = [f"{path.name}:{row}" for row in range(len(clouds))]
    return _Stored(Flat.of(clouds, normals), labelled, sources)


def _read_text(folder: Path, split: str, class_names: list[str], normals: bool, cache: bool) -> _Stored:
    listing = folder / f"modelnet40_{split}.txt"
    ids = _lines(listing)
    classes = [name.rpartition("_")[0] for name in ids]
    known = {name: label for label, name in enumerate(class_names)}
    for name, of in zip(ids, classes, strict=True):
        if of not in known:
            raise Ewa3dError(
                f"{listing}: {name!r} is of no class that modelnet40_shape_names.txt names (label out of range): "
                "mend the lists"
            )
    sources = [f"{of}/{name}.txt" for name, of in zip(ids, classes, strict=True)]
    labels = np.array([known[of] for of in classes], dtype=np.int64)
    clouds = load_text_clouds(folder, sources, f"modelnet40-{split}", normals=normals, cache=cache)
    return _Stored(clouds, labels, sources)


# What all layouts share


def _check(stored: _Stored, folder: Path, names_file: Path, num_classes: int) -> None:
    """Raise where a cloud is empty or not finite, or a label has no name."""
    again = f"mend the file or get it again ({_GET_IT})"
    if not len(stored.labels):
        raise Ewa3dError(f"{folder}: its files hold no clouds: {again}")
    if len(empty := np.flatnonzero(stored.clouds.counts == 0)):
        raise Ewa3dError(f"{folder / stored.sources[empty[0]]}: an empty cloud: {again}")
    if len(wrong := np.flatnonzero((stored.labels < 0) | (stored.labels >= num_classes))):
        first = int(wrong[0])
        raise Ewa3dError(
            f"{folder / stored.sources[first]}: label {stored.labels[first]} is out of range, {names_file.name} names "
            f"{num_classes} classes: {again}"
        )
    for what, values in (("point", stored.clouds.points), ("normal", stored.clouds.normals)):
        if values is not None and (row := _first_not_finite(values)) is not None:
            ends = np.cumsum(stored.clouds.counts)
            cloud = int(np.searchsorted(ends, row, side="right"))
            place = row - int(ends[cloud] - stored.clouds.counts[cloud])
            raise Ewa3dError(f"{folder / stored.sources[cloud]}: {what} {place} is NaN or infinite: {again}")


def _first_not_finite(values: NDArray[np.float32], chunk: int = 1 << 20) -> int | None:
    """The first row of ``values (n, 3)`` with a NaN or an infinity."""
    for start in range(0, len(values), chunk):
        part = np.isfinite(values[start : start + chunk])
        if not part.all():
            return start + int(np.flatnonzero(~part.all(axis=1))[0])
    return None


def _rectangle(
    stored: _Stored, chosen: NDArray[np.int64], where: str
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
        points[out] = normalise(clouds.points[span][None].copy())[0, pick]
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
    """Subtract each cloud's centroid and divide by its largest norm, in place.

    Args:
        points: ``(n, P, 3)`` float32. A cloud whose points are all one becomes the origin.
        chunk: clouds at a time.
    """
    for start in range(0, len(points), chunk):
        # In float64, so that neither many points nor large coordinates cost digits.
        part = points[start : start + chunk].astype(np.float64)
        part -= part.mean(axis=1, keepdims=True)
        largest = np.sqrt(np.einsum("npc,npc->np", part, part).max(axis=1))
        part /= np.where(largest > 0, largest, 1)[:, None, None]
        points[start : start + chunk] = part
    return points
