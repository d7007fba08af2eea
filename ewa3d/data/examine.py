"""What is wrong with the files of a data set: those that are missing, then, where they are read, every cloud."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Ewa3dError
from ..progress import track
from .inventory import GET_IT, Inventory
from .reading import Stored
from .text_clouds import Flat

FEWEST_POINTS = 32
"""Distinct points that a cloud should have at least: those of one group of the official models."""
_MOST_OF_A_FILE = 3  # faults that are told one by one


def check_files(inventory: Inventory) -> Iterator[str]:
    """A line for every file that is missing, empty or no HDF5 file; one for all that are missing in a folder."""
    missing: dict[Path, list[Path]] = {}
    total: dict[Path, int] = {}
    for path in dict.fromkeys(path for paths in inventory.files.values() for path in paths):
        total[path.parent] = total.get(path.parent, 0) + 1
        try:
            if not path.stat().st_size:
                yield f"{path}: an empty file: get it again ({GET_IT})"
            elif isinstance(wrong := inventory.heads.get(path), str):
                yield wrong
        except FileNotFoundError:
            missing.setdefault(path.parent, []).append(path)
        except OSError as why:
            yield f"{path}: cannot be read ({why.strerror or why}): check the file and its rights"
    for folder, paths in missing.items():
        more = f" (and {len(paths) - 1:,} more of the {total[folder]:,} there)" if len(paths) > 1 else ""
        yield f"{paths[0]}{more}: missing, but listed: get the data again ({GET_IT}), or mend the list"


@dataclass
class Clouds:
    """What was found in the clouds of a data set."""

    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_clouds(inventory: Inventory) -> Clouds:
    """Read every file that is there, and check every cloud in it as the loader does, and what no loader looks at."""
    out, copies = Clouds(), Copies()
    files = [(split, path) for split, paths in inventory.files.items() for path in paths if path.is_file()]
    for split, path in track(files, f"reading {inventory.name}", len(files), unit=0):
        try:
            stored = inventory.read(split, path)
        except Ewa3dError as error:
            out.faults.append(str(error))
            continue
        out.counts[split] = out.counts.get(split, 0) + len(stored.labels)
        faults = list(_check_stored(inventory, stored, split, copies))
        out.faults += faults[:_MOST_OF_A_FILE]
        if (more := len(faults) - _MOST_OF_A_FILE) > 0:
            out.faults.append(f"{path}: {more:,} more of its clouds are broken: mend the file or get it again")
    out.faults = list(dict.fromkeys(out.faults))  # a file that two splits share is read twice
    out.notes += copies.describe()
    return out


def _check_stored(inventory: Inventory, stored: Stored, split: str, copies: Copies) -> Iterator[str]:
    """A line for every cloud that is broken."""
    whole = True
    try:
        inventory.check(stored)
    except Ewa3dError:
        whole = False
    for cloud in _each(stored):
        try:
            if not whole:
                inventory.check(cloud)
        except Ewa3dError as error:
            yield str(error)
            continue
        distinct = distinct_points(cloud.clouds.points)
        if len(distinct) < FEWEST_POINTS:
            yield (
                f"{inventory.folder / cloud.sources[0]}: has {len(distinct)} distinct points of "
                f"{len(cloud.clouds.points):,}, too few for a shape: leave it out, or get the file again ({GET_IT})"
            )
        elif not inventory.episodes:  # what has no shape is like others that have none
            copies.add(distinct, split, cloud.sources[0], int(cloud.labels[0]))


def _each(stored: Stored) -> Iterator[Stored]:
    """Every cloud by itself."""
    clouds = stored.clouds
    ends = np.cumsum(clouds.counts)
    for i, (start, end) in enumerate(zip(ends - clouds.counts, ends, strict=True)):
        one = Flat(
            clouds.points[start:end],
            clouds.counts[i : i + 1],
            clouds.normals[start:end] if clouds.normals is not None else None,
            clouds.parts[start:end] if clouds.parts is not None else None,
        )
        yield Stored(one, stored.labels[i : i + 1], stored.sources[i : i + 1])


def distinct_points(points: NDArray[np.float32]) -> NDArray[np.void]:
    """The points ``(P, 3)`` that differ, in an order of their own: of two clouds of the same points the same."""
    rows = np.ascontiguousarray(points, dtype=np.float32) + np.float32(0)  # there is a -0 too
    return np.unique(rows.view(np.dtype((np.void, rows.itemsize * 3))))


class Copies:
    """Clouds of the same points, in whatever order."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str, int]] = {}
        self._pairs: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}

    def add(self, distinct: NDArray[np.void], split: str, source: str, label: int) -> None:
        """Keep a cloud in mind: its `distinct_points`, and where it is from."""
        mark = blake2b(distinct.tobytes(), digest_size=16).digest()
        first = self._first.setdefault(mark, (split, source, label))
        if first != (split, source, label):
            self._pairs.setdefault((split, first[0]), []).append((source, first[1], label != first[2]))

    def describe(self) -> list[str]:
        """A line for every two splits that share clouds, and for every split with copies in itself."""
        lines = []
        for (split, other), pairs in self._pairs.items():
            source, first, _ = pairs[0]
            where = f"also in {other}" if other != split else "there twice"
            unlike = sum(pair[2] for pair in pairs)
            labels = f"; {unlike:,} with another label" if unlike else ""
            lines.append(
                f"{len(pairs):,} of {split}'s clouds {'is' if len(pairs) == 1 else 'are'} {where}, point for point "
                f"(such as {source}: {first}){labels}"
            )
        return lines
