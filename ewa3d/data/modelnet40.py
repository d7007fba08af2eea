"""ModelNet40 (Wu et al., 3D ShapeNets, CVPR 2015): 40 classes of shapes, in each of the three layouts it comes in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from ..errors import Ewa3dError, quoted
from .dataset import PointClouds
from .pickles import as_cloud, as_label, load_arrays
from .reading import Stored, check, check_name, check_names, check_split, read_h5, read_lines
from .rectangle import rectangle
from .roots import find_root
from .splits import choose_split
from .text_clouds import MODELNET_ROWS, Flat, load_text_clouds

_GET_IT = "`python datasets/prepare_modelnet40.py` gets it"


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
        check_split("ModelNet40", split)
        self.split = split
        self.folder, self.layout = find_layout(root)
        official = "test" if split == "test" else "train"
        names_file = self.folder / ("shape_names.txt" if self.layout == "hdf5" else "modelnet40_shape_names.txt")
        class_names = read_lines(names_file, _GET_IT)
        if self.layout == "text":
            stored = _read_text(self.folder, official, class_names, normals, cache)
        else:
            stored = {"hdf5": _read_hdf5, "dat": read_dat}[self.layout](self.folder, official, normals)
        if normals and stored.clouds.normals is None:
            raise Ewa3dError(
                f"{self.folder}: holds no normals (layout {self.layout}): load without them, or point root at "
                "modelnet40_normal_resampled"
            )
        named = f"{names_file.name} names {len(class_names)} classes"
        check(stored, self.folder, len(class_names), named, _GET_IT)

        chosen = choose_split(stored.labels, split, val_fraction, split_seed, self.folder)
        points, normal = rectangle(stored, chosen, f"{self.folder} ({official})")
        super().__init__(
            torch.from_numpy(points),
            torch.from_numpy(stored.labels[chosen]),
            class_names,
            sources=[stored.sources[i] for i in chosen],
            normals=torch.from_numpy(normal) if normal is not None else None,
        )


def find_layout(root: str | Path | None) -> tuple[Path, str]:
    """The ModelNet40 folder at or under ``root`` (see `find_root`) and its layout: ``"hdf5"``, ``"text"``, ``"dat"``.

    Raises:
        Ewa3dError: no such root, or no layout there.
    """
    home = find_root(root, _GET_IT)
    try:
        found = _layouts(home)
    except OSError as why:
        raise Ewa3dError(f"{home}: cannot be read ({why.strerror or why}): check its rights") from None
    if not found:
        raise Ewa3dError(
            f"{home}: no ModelNet40 in it; looked for modelnet40_ply_hdf5_*, modelnet40_normal_resampled (text or "
            f".dat) and ModelNet/modelnet40_normal_resampled: give the right root, or {_GET_IT}"
        )
    # Stable: the order above stays among the whole ones.
    return min(found, key=lambda item: item[1] == "hdf5" and not _is_whole(item[0]))


def _layouts(root: Path) -> list[tuple[Path, str]]:
    """The folders at and under ``root`` with their layouts, in the order of preference."""
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
    if has(dat_name("train"), dat_name("test")) and not any(item.is_dir() for item in folder.iterdir()):
        return "dat"
    return "text" if has("modelnet40_shape_names.txt", "modelnet40_train.txt", "modelnet40_test.txt") else None


def _is_whole(folder: Path) -> bool:
    """Whether an hdf5 folder has all the files it lists."""
    try:
        return all(path.is_file() for split in ("train", "test") for path in listed_files(folder, split))
    except Ewa3dError:
        return False


# hdf5


def listed_files(folder: Path, split: str) -> list[Path]:
    # The official lists have paths of the machine that made them: only the file names count.
    listing = folder / f"{split}_files.txt"
    names = [re.split(r"[\\/]", line)[-1] for line in read_lines(listing, _GET_IT)]
    check_names(names, listing)
    return [folder / name for name in names]


def _read_hdf5(folder: Path, split: str, normals: bool) -> Stored:
    paths = listed_files(folder, split)
    for path in paths:
        if not path.is_file():
            raise Ewa3dError(f"{path}: missing, but {split}_files.txt lists it: get the data again ({_GET_IT})")
    return read_h5(paths, _GET_IT, normals=normals)


# modelnet40_normal_resampled


def dat_name(split: str) -> str:
    return f"modelnet40_{split}_8192pts_fps.dat"


def read_dat(folder: Path, split: str, normals: bool) -> Stored:
    path = folder / dat_name(split)
    content = load_arrays(path)
    try:
        clouds, labels = content
        whole = len(clouds) == len(labels) > 0
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise Ewa3dError(f"{path}: is not [clouds, labels], two lists of one length: make the file again")
    tables = [as_cloud(cloud, f"{path}:{row}") for row, cloud in enumerate(clouds)]
    labelled = np.array([as_label(label, f"{path}:{row}") for row, label in enumerate(labels)], dtype=np.int64)
    sources = [f"{path.name}:{row}" for row in range(len(tables))]
    return Stored(Flat.of(tables, normals=normals), labelled, sources)


def _read_text(folder: Path, split: str, class_names: list[str], normals: bool, cache: bool) -> Stored:
    listing = folder / f"modelnet40_{split}.txt"
    ids = read_lines(listing, _GET_IT)
    classes = [name.rpartition("_")[0] for name in ids]
    known = {name: label for label, name in enumerate(class_names)}
    check_names(ids, listing)
    for name, of in zip(ids, classes, strict=True):
        check_name(of, listing)
        if of not in known:
            raise Ewa3dError(
                f"{listing}: {quoted(name)} is of no class that modelnet40_shape_names.txt names (label out of range): "
                "mend the lists"
            )
    sources = [f"{of}/{name}.txt" for name, of in zip(ids, classes, strict=True)]
    labels = np.array([known[of] for of in classes], dtype=np.int64)
    clouds = load_text_clouds(folder, sources, f"modelnet40-{split}", MODELNET_ROWS, normals=normals, cache=cache)
    return Stored(clouds, labels, sources)
