"""What the loaders of files share: lists and HDF5 files read with every fault named, and checks of what was read.

``get_it`` is throughout how a user gets the data set, for the ends of the errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Ewa3dError, first_line, quoted
from . import hdf5
from .text_clouds import Flat

_LONGEST_NAME = 200  # bytes; with a suffix, what file systems take
SPLITS = ("train", "val", "trainval", "test")


@dataclass
class Stored:
    """Labelled clouds as they lie on the disk."""

    clouds: Flat  # n clouds
    labels: NDArray[np.int64]  # (n,)
    sources: list[str]  # n texts

    @classmethod
    def join(cls, all_of: Sequence[Stored]) -> Stored:
        """One after the other; with normals or parts where all have them."""
        if len(all_of) == 1:
            return all_of[0]

        def rows(name: str) -> Any:
            arrays = [getattr(stored.clouds, name) for stored in all_of]
            return None if any(array is None for array in arrays) else np.concatenate(arrays)

        return cls(
            Flat(rows("points"), rows("counts"), rows("normals"), rows("parts")),
            np.concatenate([stored.labels for stored in all_of]),
            [source for stored in all_of for source in stored.sources],
        )

    def without(self, sources: Collection[str]) -> Stored:
        """Less the clouds of these sources."""
        keep = ~np.isin(self.sources, list(sources))
        if keep.all():
            return self
        clouds, rows = self.clouds, np.repeat(keep, self.clouds.counts)
        return Stored(
            Flat(
                clouds.points[rows],
                clouds.counts[keep],
                clouds.normals[rows] if clouds.normals is not None else None,
                clouds.parts[rows] if clouds.parts is not None else None,
            ),
            self.labels[keep],
            [source for source, kept in zip(self.sources, keep, strict=True) if kept],
        )


def check_split(dataset: str, split: str) -> None:
    """Raise where ``split`` is none of `SPLITS`."""
    if split not in SPLITS:
        raise Ewa3dError(f"{dataset} has no split {split!r}: take one of {', '.join(SPLITS)}")


# Text


def read_lines(path: Path, get_it: str) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        Ewa3dError: a file that is missing, not readable or empty.
    """
    lines = [line.strip() for line in _read_text(path, get_it).splitlines()]
    if not any(lines):
        raise Ewa3dError(f"{path}: empty, and should have one name a line: get the data again ({get_it})")
    return [line for line in lines if line]


def check_names(names: Sequence[str], listing: Path) -> None:
    """Raise where a list has no plain names of files, see `check_name`, or one twice: its data would count double."""
    seen: set[str] = set()
    for name in names:
        check_name(name, listing)
        if name in seen:
            raise Ewa3dError(f"{listing}: names {quoted(name)} twice: mend the list")
        seen.add(name)


def check_name(name: str, listing: Path) -> None:
    """Raise where what a list names is not a plain name of a file: it could be one outside of the data set's folder.

    Args:
        name: a file or a folder, without what is before it.
        listing: the list, for the error.
    """
    outside = name in ("", ".", "..") or not {"/", "\\", ":"}.isdisjoint(name)
    if outside or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise Ewa3dError(f"{listing}: {quoted(name)} is no name of a file inside the folder: mend the list")


def read_json(path: Path, get_it: str) -> Any:
    """What a JSON file holds.

    Raises:
        Ewa3dError: a file that is missing, not readable or not JSON, or an object with a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in pairs:
            if name in out:
                raise ValueError(f"{quoted(name)} is there twice")
            out[name] = value
        return out

    try:
        return json.loads(_read_text(path, get_it), object_pairs_hook=once)
    except (ValueError, RecursionError) as why:
        raise Ewa3dError(
            f"{path}: not valid JSON ({first_line(why)}): mend it, or get the data again ({get_it})"
        ) from None


def _read_text(path: Path, get_it: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as why:
        detail = "missing" if isinstance(why, FileNotFoundError) else f"not readable ({first_line(why)})"
        raise Ewa3dError(f"{path}: {detail}: get the data again ({get_it})") from None


# HDF5


def read_h5(paths: Sequence[Path], get_it: str, *, normals: bool = False, parts: bool = False) -> Stored:
    """The clouds of HDF5 files, one file after the other.

    A file has ``data (n, P, 3)`` and ``label (n,)`` or ``(n, 1)``, with ``parts`` also the part ids ``pid (n, P)``; of
    its ``normal (n, P, 3)`` it is asked with ``normals``, and it may lack them.

    Raises:
        Ewa3dError: a file that is not whole, or a dataset that is missing or of another shape or type.
    """
    with hdf5.Reader() as reader:
        return Stored.join([_read_one(reader, path, get_it, normals, parts) for path in paths])


def _read_one(reader: hdf5.Reader, path: Path, get_it: str, normals: bool, parts: bool) -> Stored:
    found: dict[str, hdf5.Described | None] = {}

    def read(name: str, kinds: str, fits: Callable[[tuple[int, ...]], bool], want: str) -> np.ndarray:
        item = found.get(name)
        if item is None:
            raise Ewa3dError(f"{path}: has no dataset {name!r}: get the file again ({get_it})")
        if item.kind not in kinds or item.shape is None or not fits(item.shape):
            raise Ewa3dError(
                f"{path}: dataset {name!r} is {item.type} {item.shape}, and should be {want}: get the file again "
                f"({get_it})"
            )
        return reader.read(name, item, np.float32 if "f" in kinds else np.int64)

    normal = part = None
    try:
        found |= reader.open(path, ["data", "label", *["pid"] * parts, *["normal"] * normals])
        data = read("data", "fiu", lambda shape: len(shape) == 3 and shape[2] == 3, "numbers (n, points, 3)")
        n, size, _ = data.shape
        label = read("label", "iu", lambda shape: shape in ((n,), (n, 1)), f"integers ({n}, 1)")
        if parts:
            part = read("pid", "iu", lambda shape: shape == (n, size), f"integers {(n, size)}").reshape(-1)
        if "normal" in found:
            normal = read("normal", "fiu", lambda shape: shape == data.shape, f"numbers {data.shape}")
            normal = normal.reshape(-1, 3)
    except (OSError, ValueError) as why:
        raise Ewa3dError(f"{path}: not a whole HDF5 file ({first_line(why)}): get the file again ({get_it})") from None
    clouds = Flat(data.reshape(-1, 3), np.full(n, size, dtype=np.int64), normal, part)
    return Stored(clouds, label.reshape(-1), [f"{path.name}:{row}" for row in range(n)])


# Checks


def check(stored: Stored, folder: Path, num_labels: int, named: str, get_it: str) -> None:
    """Raise where there is no cloud, one is empty or not finite, or a label has no name.

    Args:
        stored: what was read.
        folder: of which the sources are.
        num_labels: labels run from 0 to ``num_labels - 1``.
        named: where this number is from, such as ``"shape_names.txt names 40 classes"``.
        get_it: how to get the data set.
    """
    again = f"mend the file or get it again ({get_it})"
    clouds, labels = stored.clouds, stored.labels
    if not len(labels):
        raise Ewa3dError(f"{folder}: its files hold no clouds: {again}")
    if len(empty := np.flatnonzero(clouds.counts == 0)):
        raise Ewa3dError(f"{folder / stored.sources[empty[0]]}: an empty cloud: {again}")
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= num_labels))):
        where = folder / stored.sources[wrong[0]]
        raise Ewa3dError(f"{where}: label {labels[wrong[0]]} is out of range, {named}: {again}")
    for what, values in (("point", clouds.points), ("normal", clouds.normals)):
        if values is not None and (row := _first_not_finite(values)) is not None:
            ends = np.cumsum(clouds.counts)
            cloud = int(np.searchsorted(ends, row, side="right"))
            place = row - int(ends[cloud] - clouds.counts[cloud])
            raise Ewa3dError(f"{folder / stored.sources[cloud]}: {what} {place} is NaN or infinite: {again}")


def _first_not_finite(values: NDArray[np.float32], chunk: int = 1 << 20) -> int | None:
    """The first row of ``values (n, 3)`` with a NaN or an infinity."""
    for start in range(0, len(values), chunk):
        part = np.isfinite(values[start : start + chunk])
        if not part.all():
            return start + int(np.flatnonzero(~part.all(axis=1))[0])
    return None
