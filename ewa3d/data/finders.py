"""Data sets found by the eyes of their own loaders: one function for each.

A function takes a root as its loader does, and gives what there is of the set, whole or not. It raises `Ewa3dError`
where there is nothing of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from ..errors import Ewa3dError
from . import fewshot, hdf5, modelnet40, scanobjectnn, shapenet55, shapenetpart
from .categories import read_categories
from .inventory import GET_IT, Inventory
from .part_map import SHAPENETPART, PartMap
from .reading import Stored, check, check_name, read_h5, read_lines
from .text_clouds import MODELNET_ROWS, PART_ROWS, Flat, RowFormat, parse_text_cloud

Root = str | Path | None


def find_modelnet40(root: Root) -> list[Inventory]:
    folder, layout = modelnet40.find_layout(root)
    out = Inventory("modelnet40", layout, folder)
    names: list[str] = []
    names_file = folder / ("shape_names.txt" if layout == "hdf5" else "modelnet40_shape_names.txt")
    with out.noting():
        names = read_lines(names_file, GET_IT)
        out.check = partial(_check, folder, len(names), f"{names_file.name} names {len(names)} classes", None)
    for split in ("train", "test"):
        with out.noting():
            if layout == "hdf5":
                out.files[split] = modelnet40.listed_files(folder, split)
            elif layout == "dat":
                out.files[split] = [folder / modelnet40.dat_name(split)]
            else:
                out.files[split] = list(_text_files(out, folder / f"modelnet40_{split}.txt", names))
    if layout == "dat":
        out.read = lambda split, path: modelnet40.read_dat(folder, split, True)
    elif layout == "text":
        out.read = partial(_read_text, folder, MODELNET_ROWS, {name: label for label, name in enumerate(names)})
    return [out]


def _text_files(out: Inventory, listing: Path, names: Sequence[str]) -> Iterator[Path]:
    """The files that a list of ModelNet40's text layout names; entries that are of no class are faults."""
    for entry in read_lines(listing, GET_IT):
        of = entry.rpartition("_")[0]
        try:
            check_name(entry, listing)
        except Ewa3dError as error:
            out.faults.append(str(error))
            continue
        if names and of not in names:
            out.faults.append(
                f"{listing}: {entry!r} is of no class that modelnet40_shape_names.txt names: mend the lists"
            )
        else:
            yield out.folder / of / f"{entry}.txt"


def find_scanobjectnn(root: Root) -> list[Inventory]:
    found: list[Inventory] = []
    missing: list[str] = []
    for variant in scanobjectnn.VARIANTS:
        out = Inventory(f"scanobjectnn_{variant}", "hdf5", Path())
        missing = []
        for split, official in (("train", "training"), ("test", "test")):
            try:
                out.files[split] = [scanobjectnn.find_file(variant, root, official)]
            except Ewa3dError as error:
                missing.append(str(error))
        if not out.files:  # the other variants do without it
            continue
        out.faults += missing
        out.folder = next(iter(out.files.values()))[0].parent
        classes = len(scanobjectnn.CLASS_NAMES)
        out.check = partial(_check, out.folder, classes, f"ScanObjectNN has {classes} classes", None)
        found.append(out)
    if not found:
        raise Ewa3dError(missing[0])
    return found


def find_shapenet55(root: Root) -> list[Inventory]:
    folder = shapenet55.find_layout(root)
    out = Inventory("shapenet55", "npy", folder, read=lambda split, path: _read_npy(folder, path))
    for split in ("train", "test"):
        with out.noting():
            listed = shapenet55.read_list(shapenet55.list_of(folder, split))
            out.files[split] = [folder / "shapenet_pc" / entry for entry in listed]
    return [out]


def find_episodes(root: Root) -> list[Inventory]:
    """The published few-shot episodes; their kinds stand for splits."""
    out = Inventory("modelnet40_fewshot_published", "pkl", Path(), read=_read_episode, episodes=True)
    missing: list[Ewa3dError] = []
    for way, shot, fold in product((5, 10), (10, 20), range(fewshot.NUM_FOLDS)):
        try:
            path = fewshot.find_episode(root, way, shot, fold)
        except Ewa3dError as error:
            missing.append(error)
            continue
        out.files.setdefault(f"{way}way_{shot}shot", []).append(path)
        out.folder = path.parent.parent
    if not out.files:
        raise missing[0]
    return [out]


def find_shapenetpart(root: Root) -> list[Inventory]:
    folder, layout = shapenetpart.find_layout(root)
    if layout == "hdf5" and folder.name not in shapenetpart.FOLDERS and not _has_parts(folder):
        raise Ewa3dError(f"{folder}: no ShapeNetPart in it: its HDF5 files have no parts (pid)")
    out = Inventory("shapenetpart", layout, folder, own=(folder / "parts.json").is_file())
    synsets: Sequence[str] | None = None
    part_map = SHAPENETPART
    with out.noting():
        categories = read_categories(folder, layout, GET_IT)
        synsets, part_map = categories.synsets, categories.part_map
        named = f"{categories.named} has {len(part_map.parts)} categories"
        out.check = partial(_check, folder, len(part_map.parts), named, part_map)
    if layout == "hdf5":
        out.read = lambda split, path: read_h5([path], GET_IT, normals=True, parts=True)
    elif synsets is None:  # the lists cannot be read without them
        return [out]
    else:
        out.read = partial(_read_text, folder, PART_ROWS, {synset: label for label, synset in enumerate(synsets)})
    for split in ("train", "val", "test"):
        with out.noting():
            if layout == "hdf5":
                out.files[split] = shapenetpart.list_hdf5(folder, split)
            elif synsets is not None:
                listed = shapenetpart.read_split_list(shapenetpart.list_of(folder, split), synsets)
                out.files[split] = [folder / synset / f"{shape}.txt" for synset, shape in listed]
    if part_map is not SHAPENETPART:  # the official lists share shapes; of other sets the loader refuses that
        out.faults += _shared(folder, out.files)
    return [out]


def _has_parts(folder: Path) -> bool:
    """Whether one of the HDF5 files in a folder has; those of other data sets are called alike."""
    with hdf5.Reader() as reader:
        for path in folder.glob("*.h5"):
            with suppress(OSError, ValueError):
                if "pid" in reader.open(path, ["pid"]):
                    return True
    return False


def _shared(folder: Path, files: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    times = Counter(path for of in files.values() for path in of)
    if both := [path for path, count in times.items() if count > 1]:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        yield f"{both[0]}{more}: is in two of the lists, and no shape may be in two splits: mend the lists"


# How one file is read and checked


def _check(folder: Path, num_labels: int, named: str, part_map: PartMap | None, stored: Stored) -> None:
    check(stored, folder, num_labels, named, GET_IT)
    if part_map is not None:
        shapenetpart.check_parts(stored, folder, part_map)


def _read_text(folder: Path, rows: RowFormat, labels: Mapping[str, int], split: str, path: Path) -> Stored:
    cloud = Flat.of([parse_text_cloud(path, rows)], parts=rows.parts)
    return Stored(cloud, np.array([labels.get(path.parent.name, 0)]), [str(path.relative_to(folder))])


def _read_npy(folder: Path, path: Path) -> Stored:
    cloud = Flat.of([shapenet55.read_cloud(path)], normals=False)
    return Stored(cloud, np.zeros(1, dtype=np.int64), [str(path.relative_to(folder))])


def _read_episode(kind: str, path: Path) -> Stored:
    way, shot = (int(number) for number in re.findall(r"\d+", kind))
    options = {"way": way, "shot": shot, "fold": int(path.stem)}
    both = [fewshot.PublishedFewShot(path.parent.parent, split, **options) for split in ("train", "test")]
    clouds = [cloud.numpy() for episode in both for cloud in episode.points]
    sources = [f"{path.parent.name}/{source}" for episode in both for source in episode.sources]
    return Stored(Flat.of(clouds, normals=False), np.zeros(len(clouds), dtype=np.int64), sources)


FINDERS = {
    find_modelnet40: ("modelnet40_ply_hdf5_*", "modelnet40_normal_resampled"),
    find_scanobjectnn: scanobjectnn.FOLDERS,
    find_shapenet55: shapenet55.FOLDERS,
    find_episodes: ("ModelNetFewshot",),
    find_shapenetpart: shapenetpart.FOLDERS,
}
"""With what the folders of each set are called."""
