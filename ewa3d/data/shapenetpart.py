"""ShapeNetPart (Yi et al., SIGGRAPH Asia 2016): shapes with a part label on every point, in both layouts it comes in.

Sets of other categories and parts load too, if they are laid out like it and carry a ``parts.json``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import Ewa3dError, quoted
from .categories import CATEGORIES_FILE, Categories, read_categories
from .dataset import PartClouds, to_unit_sphere
from .part_map import SHAPENETPART, PartMap
from .reading import Stored, check, check_name, check_split, read_h5, read_json
from .roots import find_root
from .text_clouds import PART_ROWS, Flat, load_text_clouds

_GET_IT = "`python datasets/prepare_shapenetpart.py` gets it"
_OFFICIAL = ("train", "val", "test")
FOLDERS = (
    "shapenetcore_partanno_segmentation_benchmark_v0_normal",
    "hdf5_data",
    "shapenet_part_seg_hdf5_data",
)
Shape = tuple[str, str]
"""A shape's synset and id."""


class ShapeNetPart(PartClouds):
    """ShapeNetPart in memory, each cloud whole and normalised to the unit sphere on all of its points.

    ``root`` itself is taken if it is a layout, else the first of these under it:
    ``shapenetcore_partanno_segmentation_benchmark_v0_normal`` (text), ``hdf5_data``, ``shapenet_part_seg_hdf5_data``
    (hdf5). ``datasets/README.md`` shows the layouts. ``.folder`` and ``.layout`` (``"text"`` or ``"hdf5"``) say what
    was taken. Categories and parts are those of the folder's ``parts.json``, without one ShapeNetPart's own 16 and 50,
    whichever of them the folder has.

    Args:
        root: the folder of data sets, or the folder of one layout. ``None`` is ``EWA3D_DATASETS``, else the
            repository's ``datasets/``; a relative one may lie in either.
        split: ``"train"``, ``"val"``, ``"trainval"`` (one after the other) or ``"test"``: the official ones, of 12,137,
            1,870, 13,998 and 2,874 shapes in the text layout. The official lists share shapes, and scores compare with
            the field's only if they stay: 9 of ``"val"`` are in ``"train"`` too (``"trainval"`` holds them once), of
            ``"test"`` 23 are in ``"train"`` and 3 in ``"val"``. In a set of one's own, with ``parts.json``, a shape in
            two splits is an error.
        normals: load normals too.
        cache: keep parsed text files under ``EWA3D_CACHE`` (default ``~/.cache/ewa3d``), so they are parsed once.

    Raises:
        Ewa3dError: data that is missing, broken or not finite, a shape in two splits, a part that is not its
            category's, an unknown split, or normals where there are none.
    """

    def __init__(
        self, root: str | Path | None = None, split: str = "train", *, normals: bool = False, cache: bool = True
    ):
        check_split("ShapeNetPart", split)
        self.split = split
        self.folder, self.layout = find_layout(root)
        categories = read_categories(self.folder, self.layout, _GET_IT)
        official = ("train", "val") if split == "trainval" else (split,)
        if self.layout == "text":
            stored = _read_text(self.folder, official, categories, normals, cache)
        else:
            stored = _read_hdf5(self.folder, official, normals)
        if normals and stored.clouds.normals is None:
            raise Ewa3dError(
                f"{self.folder}: not all of its files hold normals (layout {self.layout}): load without them, or point "
                f"root at {FOLDERS[0]}"
            )
        clouds, part_map = stored.clouds, categories.part_map
        named = f"{categories.named} has {len(part_map.parts)} categories"
        check(stored, self.folder, len(part_map.parts), named, _GET_IT)
        check_parts(stored, self.folder, part_map)
        _normalise(clouds)
        super().__init__(
            torch.from_numpy(clouds.points),
            torch.from_numpy(clouds.counts),
            torch.from_numpy(clouds.parts),
            torch.from_numpy(stored.labels),
            part_map,
            sources=stored.sources,
            normals=torch.from_numpy(clouds.normals) if clouds.normals is not None else None,
        )


def find_layout(root: str | Path | None) -> tuple[Path, str]:
    """The ShapeNetPart folder at or under ``root`` (see `find_root`), and its layout: ``"text"`` or ``"hdf5"``.

    Raises:
        Ewa3dError: no such root, or no layout there.
    """
    home = find_root(root, _GET_IT)
    try:
        for folder in (home, *(home / name for name in FOLDERS)):
            if (folder / CATEGORIES_FILE).is_file() or (folder / "train_test_split").is_dir():
                return folder, "text"
            if any(_named_for(folder, split) for split in _OFFICIAL):
                return folder, "hdf5"
    except OSError as why:
        raise Ewa3dError(f"{home}: cannot be read ({why.strerror or why}): check its rights") from None
    raise Ewa3dError(
        f"{home}: no ShapeNetPart in it; looked for {', '.join(FOLDERS)}: give the right root, or {_GET_IT}"
    )


# Text


def list_of(folder: Path, split: str) -> Path:
    """Where the list of an official split's shapes is."""
    return folder / "train_test_split" / f"shuffled_{split}_file_list.json"


def read_split_list(path: Path, synsets: Collection[str]) -> list[Shape]:
    """The shapes that an official list names: a JSON list of ``shape_data/<synset>/<id>``.

    Args:
        path: the list. Of an entry only the last two components count.
        synsets: those that are known.

    Raises:
        Ewa3dError: a file that is missing or no such list, an unknown synset, an entry that leaves the folder, or a
            shape twice.
    """
    content = read_json(path, _GET_IT)
    if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
        raise Ewa3dError(f"{path}: is no list of texts shape_data/<synset>/<id>: get the data again ({_GET_IT})")
    shapes: dict[Shape, None] = {}
    for entry in content:
        names = entry.split("/")
        if len(names) < 2 or not {"", ".", ".."}.isdisjoint(names):
            raise Ewa3dError(f"{path}: {quoted(entry)} is no shape_data/<synset>/<id> inside the folder: mend the list")
        synset, shape = names[-2:]
        check_name(synset, path)
        check_name(shape, path)
        if synset not in synsets:
            raise Ewa3dError(
                f"{path}: {quoted(entry)} is of a synset that is not known: mend the list, or add parts.json with the "
                "synset"
            )
        if (synset, shape) in shapes:
            raise Ewa3dError(f"{path}: names {synset}/{shape} twice: mend the list")
        shapes[synset, shape] = None
    return list(shapes)


def _read_text(folder: Path, official: Sequence[str], categories: Categories, normals: bool, cache: bool) -> Stored:
    """The splits ``official``, one after the other, each from a cache of its own; no shape twice."""
    lists = _read_lists(folder, official, categories)
    label_of = {synset: label for label, synset in enumerate(categories.synsets)}
    out: list[Stored] = []
    for split in official:
        sources = [f"{synset}/{shape}.txt" for synset, shape in lists[split]]
        labels = np.array([label_of[synset] for synset, _ in lists[split]], dtype=np.int64)
        clouds = load_text_clouds(folder, sources, f"shapenetpart-{split}", PART_ROWS, normals=normals, cache=cache)
        stored = Stored(clouds, labels, sources)
        out.append(stored.without(out[0].sources) if out else stored)
    return Stored.join(out)


def _read_lists(folder: Path, official: Sequence[str], categories: Categories) -> dict[str, list[Shape]]:
    """All split lists that there are; those of ``official`` have shapes."""
    paths = {split: list_of(folder, split) for split in _OFFICIAL}
    lists = {
        split: read_split_list(path, categories.synsets)
        for split, path in paths.items()
        if split in official or path.is_file()
    }
    for split in official:
        if not lists[split]:
            raise Ewa3dError(f"{paths[split]}: names no shape: take another split, or get the data again ({_GET_IT})")
        for other in (name for name in lists if name != split and categories.part_map is not SHAPENETPART):
            elsewhere = set(lists[other])
            if both := [shape for shape in lists[split] if shape in elsewhere]:
                more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
                raise Ewa3dError(
                    f"{paths[split]}: names {'/'.join(both[0])}{more}, as {paths[other].name} does, and no shape may "
                    "be in two splits: mend the lists"
                )
    return lists


# hdf5


def _read_hdf5(folder: Path, official: Sequence[str], normals: bool) -> Stored:
    paths = [path for split in official for path in list_hdf5(folder, split)]
    return read_h5(paths, _GET_IT, normals=normals, parts=True)


def list_hdf5(folder: Path, split: str) -> list[Path]:
    """The hdf5 files of a split.

    Raises:
        Ewa3dError: there is none, or the name of one says another split too.
    """
    found = _named_for(folder, split)
    if not found:
        raise Ewa3dError(f"{folder}: has no *{split}*.h5: take another split, or get the data again ({_GET_IT})")
    for path in found:
        if any(other in path.name for other in _OFFICIAL if other != split):
            raise Ewa3dError(f"{path}: its name says two splits: rename it")
    return found


def _named_for(folder: Path, split: str) -> list[Path]:
    """The hdf5 files of a split, 10 after 9."""
    found = [path for path in folder.glob(f"*{split}*.h5") if not path.name.startswith(".")]
    return sorted(found, key=lambda path: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", path.name)])


# What both layouts share


def check_parts(stored: Stored, folder: Path, part_map: PartMap) -> None:
    """Raise where a point has a part that is not its category's."""
    counts, parts = stored.clouds.counts, stored.clouds.parts
    assert parts is not None
    ranges = [part_map.range_of(label) for label in range(len(part_map.categories))]
    starts = np.cumsum(counts) - counts
    first = np.array([ids.start for ids in ranges])[stored.labels]
    stop = np.array([ids.stop for ids in ranges])[stored.labels]
    wrong = np.flatnonzero((np.minimum.reduceat(parts, starts) < first) | (np.maximum.reduceat(parts, starts) >= stop))
    if len(wrong):
        cloud = int(wrong[0])
        label, own = int(stored.labels[cloud]), parts[starts[cloud] : starts[cloud] + counts[cloud]]
        point = int(np.flatnonzero(~np.isin(own, ranges[label]))[0])
        raise Ewa3dError(
            f"{folder / stored.sources[cloud]}: point {point} has part {own[point]}, and the parts of "
            f"{part_map.categories[label]} are {', '.join(map(str, ranges[label]))}: mend the file or get it again "
            f"({_GET_IT})"
        )


def _normalise(clouds: Flat) -> None:
    """`to_unit_sphere` of every cloud, in place."""
    ends = np.cumsum(clouds.counts)
    for start, end in zip(ends - clouds.counts, ends, strict=True):
        clouds.points[start:end] = to_unit_sphere(clouds.points[start:end])
