"""Clouds in text files, parsed once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import Ewa3dError, quoted
from ..progress import track
from .roots import cache_root

_CACHE_FORMAT = 1  # raise it when the content of a cache file changes: older ones are then written anew
_FILES_A_TASK = 16


@dataclass(frozen=True)
class RowFormat:
    """How a line of a text file writes a point: its coordinates, its normal or none, then its part if there are parts.

    Args:
        separator: what is between two numbers; ``None`` is any white space.
        parts: whether the last number is the id of the point's part.
    """

    separator: str | None = None
    parts: bool = False

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers in a line without a normal, and with one."""
        return 3 + self.parts, 6 + self.parts

    def __str__(self) -> str:
        return (self.separator or " ").join(["x", "y", "z", "nx", "ny", "nz", "part"][: self.widths[1]])


MODELNET_ROWS = RowFormat(separator=",")
PART_ROWS = RowFormat(parts=True)


@dataclass
class Flat:
    """Clouds of any sizes, one after the other.

    Args:
        points: ``(total, 3)`` float32.
        counts: ``(n,)`` int64, the points of each cloud.
        normals: ``(total, 3)`` float32, where known.
        parts: ``(total,)`` int64, the part id of every point, where known.
    """

    points: NDArray[np.float32]
    counts: NDArray[np.int64]
    normals: NDArray[np.float32] | None = None
    parts: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, clouds: Sequence[np.ndarray], *, normals: bool = True, parts: bool = False) -> Flat:
        """From tables of points: coordinates first, then normals, in a last column the parts if ``parts``.

        Without normals where one table has none.
        """
        has_normals = normals and all(cloud.shape[1] >= 6 for cloud in clouds)
        return cls(
            np.concatenate([cloud[:, :3] for cloud in clouds], dtype=np.float32),
            np.array([len(cloud) for cloud in clouds], dtype=np.int64),
            np.concatenate([cloud[:, 3:6] for cloud in clouds], dtype=np.float32) if has_normals else None,
            np.concatenate([cloud[:, -1].astype(np.int64) for cloud in clouds]) if parts else None,
        )


def load_text_clouds(
    folder: Path, files: Sequence[str], name: str, rows: RowFormat, *, normals: bool = True, cache: bool = True
) -> Flat:
    """Load clouds from text files, a point a line, parsing them only the first time.

    The parsed clouds are kept in ``EWA3D_CACHE`` together with the names, sizes and times of the files; where one of
    these differs, or the cache file is damaged, the text is parsed anew.

    Args:
        folder: the data set; nothing is written into it.
        files: paths of the clouds in it.
        name: the data set's and split's name, for the progress bar and the cache file.
        rows: how their lines are written.
        normals: load the normals, where all files have them.
        cache: read and write the cache.

    Raises:
        Ewa3dError: a file that is missing, empty or no table of numbers.
    """
    fingerprint = _fingerprint(folder, files)
    # By folder and not by content: the cache of data that changed is replaced, not left behind.
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = cache_root() / "clouds" / f"{name}-{place}.h5"
    if cache and (kept := _read_cache(path, fingerprint, normals, rows.parts)) is not None:
        return kept
    parsed = Flat.of(_parse_all([folder / file for file in files], name, rows), parts=rows.parts)
    if cache:
        _write_cache(path, fingerprint, parsed)
    return parsed if normals else replace(parsed, normals=None)


def _fingerprint(folder: Path, files: Sequence[str]) -> str:
    """A hash of the names, sizes and times of ``files``."""
    facts = []
    missing = []
    for file in files:
        try:
            stat = (folder / file).stat()
            facts.append([file, stat.st_size, stat.st_mtime_ns])
        except OSError:
            missing.append(file)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise Ewa3dError(f"{folder / missing[0]}{more}: missing, but listed: get the files, or mend the list")
    return hashlib.sha256(json.dumps([_CACHE_FORMAT, facts]).encode()).hexdigest()


def _read_cache(path: Path, fingerprint: str, normals: bool, parts: bool) -> Flat | None:
    """What the cache file holds, or ``None`` where it is absent, of other files, or damaged."""
    try:
        # read here and not by `hdf5.Reader`, as data is: we wrote it, to the user's own folder, with checksums
        with h5py.File(path, "r") as file:
            if file.attrs.get("fingerprint") != fingerprint:
                return None
            normal = file["normal"][()] if normals and "normal" in file else None
            part = file["part"].astype(np.int64)[()] if parts else None
            return Flat(file["data"][()], file["counts"][()], normal, part)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None


def _write_cache(path: Path, fingerprint: str, clouds: Flat) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        with h5py.File(temporary, "w") as file:
            file.attrs["fingerprint"] = fingerprint
            for key, values in _datasets(clouds).items():
                # Checksums, so that a damaged file is noticed and never trained on.
                chunks = (min(len(values), 1 << 16), *values.shape[1:])
                file.create_dataset(key, data=values, chunks=chunks, fletcher32=True)
        with open(temporary, "rb+") as whole:
            os.fsync(whole.fileno())
        os.replace(temporary, path)
    except OSError as why:
        # The data is there; without a cache the next start is only slower.
        warnings.warn(f"{path}: parsed clouds could not be kept ({why}); set EWA3D_CACHE elsewhere", stacklevel=2)
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _datasets(clouds: Flat) -> dict[str, np.ndarray]:
    """What a cache file holds of ``clouds``."""
    out: dict[str, np.ndarray] = {"data": clouds.points, "counts": clouds.counts}
    if clouds.normals is not None:
        out["normal"] = clouds.normals
    if (parts := clouds.parts) is not None:
        # Most sets have less than 256 parts: a byte each, where int64 takes eight.
        out["part"] = parts.astype(np.result_type(*(np.min_scalar_type(end) for end in (parts.min(), parts.max()))))
    return out


def _parse_all(paths: Sequence[Path], name: str, rows: RowFormat) -> list[NDArray[np.float32]]:
    """Parse all files on all cores, under a progress bar."""
    parse = partial(parse_text_cloud, rows=rows)
    label = f"parsing {name} (once)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(paths) // _FILES_A_TASK)
    if workers < 2:
        return list(track(map(parse, paths), label, len(paths)))
    # On Linux by fork, as torch's loaders do: the workers need nothing but NumPy, and a user's script needs no
    # `if __name__ == "__main__"`. They start with map, before the progress bar starts a thread.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on fork beside threads
        parsed = pool.map(parse, paths, chunksize=_FILES_A_TASK)
        return list(track(parsed, label, len(paths)))


def parse_text_cloud(path: Path, rows: RowFormat) -> NDArray[np.float32]:
    """One text file as ``(P, columns)`` float32; its points are finite and its parts integers.

    Raises:
        Ewa3dError: a file that is empty, a line that is too short or too long, or no number (file and line).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # NumPy's on an empty file
            table = np.loadtxt(path, dtype=np.float32, delimiter=rows.separator, comments=None, ndmin=2)
    except OSError as why:
        raise Ewa3dError(f"{path}: cannot be read ({why.strerror or why}): check the file and its rights") from None
    except ValueError:
        raise Ewa3dError(_blame(path, rows)) from None
    if table.size == 0:
        raise Ewa3dError(f"{path}: an empty cloud, no line in it: get the file again")
    whole = table.shape[1] in rows.widths and np.isfinite(table[:, :3]).all()
    if not whole or (rows.parts and not _is_part(table[:, -1]).all()):
        raise Ewa3dError(_blame(path, rows))
    return table


def _is_part(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which values are integers; beyond 2²⁴ float32 does not hold every one of them."""
    return (np.abs(values) <= 2**24) & (np.rint(values) == values)


def _blame(path: Path, rows: RowFormat) -> str:
    """Which line of a text file is not as it should be; read slowly, once it is known that one is not."""
    width = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            cells = line.split(rows.separator)
            width = width or (len(cells) if len(cells) in rows.widths else rows.widths[1])
            if len(cells) != width:
                return f"{path}, line {number}: {len(cells)} numbers where {width} should be: get the file again"
            for column, cell in enumerate(cells):
                try:
                    value = np.float32(float(cell))
                except ValueError:
                    return f"{path}, line {number}: {quoted(cell.strip())} is not a number: get the file again"
                if column < 3 and not np.isfinite(value):
                    return f"{path}, line {number}: a coordinate is NaN or infinite: get the file again"
            if rows.parts and not _is_part(value):
                return f"{path}, line {number}: {quoted(cell.strip())} is not the id of a part: get the file again"
    return f"{path}: not a text file of lines {rows}: get the file again"
