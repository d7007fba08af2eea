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
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import Ewa3dError
from ..progress import track
from .roots import cache_root

_CACHE_FORMAT = 1  # raise it when the content of a cache file changes: older ones are then written anew
_FILES_A_TASK = 16


@dataclass
class Flat:
    """Clouds of any sizes, one after the other: ``points`` and ``normals (total, 3)`` float32, ``counts (n,)``."""

    points: NDArray[np.float32]
    normals: NDArray[np.float32] | None
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, clouds: Sequence[np.ndarray], normals: bool = True) -> Flat:
        """From arrays ``(P, 3)`` or ``(P, 6 or more)``, normals in columns 3 to 5; without them where one has none."""
        has_normals = normals and all(cloud.shape[1] >= 6 for cloud in clouds)
        return cls(
            np.concatenate([cloud[:, :3] for cloud in clouds], dtype=np.float32),
            np.concatenate([cloud[:, 3:6] for cloud in clouds], dtype=np.float32) if has_normals else None,
            np.array([len(cloud) for cloud in clouds], dtype=np.int64),
        )


def load_text_clouds(
    folder: Path, files: Sequence[str], name: str, *, normals: bool = True, cache: bool = True
) -> Flat:
    """Load clouds from text files of lines ``x,y,z`` or ``x,y,z,nx,ny,nz``, parsing them only the first time.

    The parsed clouds are kept in ``EWA3D_CACHE`` together with the names, sizes and times of the files; where one of
    these differs, or the cache file is damaged, the text is parsed anew.

    Args:
        folder: the data set; nothing is written into it.
        files: paths of the clouds in it.
        name: the data set's and split's name, for the progress bar and the cache file.
        normals: load the normals, where all files have them.
        cache: read and write the cache.

    Raises:
        Ewa3dError: a file that is missing, empty or no table of numbers.
    """
    fingerprint = _fingerprint(folder, files)
    # By folder and not by content: the cache of data that changed is replaced, not left behind.
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = cache_root() / "clouds" / f"{name}-{place}.h5"
    if cache and (kept := _read_cache(path, fingerprint, normals)) is not None:
        return kept
    parsed = Flat.of(_parse_all([folder / file for file in files], name))
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


def _read_cache(path: Path, fingerprint: str, normals: bool) -> Flat | None:
    """What the cache file holds, or ``None`` where it is absent, of other files, or damaged."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("fingerprint") != fingerprint:
                return None
            normal = file["normal"][()] if normals and "normal" in file else None
            return Flat(file["data"][()], normal, file["counts"][()])
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
            file["counts"] = clouds.counts
            for key, values in (("data", clouds.points), ("normal", clouds.normals)):
                if values is not None:
                    # Checksums, so that a damaged file is noticed and never trained on.
                    chunks = (min(len(values), 1 << 16), 3) if len(values) else None
                    file.create_dataset(key, data=values, chunks=chunks, fletcher32=chunks is not None)
        with open(temporary, "rb+") as whole:
            os.fsync(whole.fileno())
        os.replace(temporary, path)
    except OSError as why:
        # The data is there; without a cache the next start is only slower.
        warnings.warn(f"{path}: parsed clouds could not be kept ({why}); set EWA3D_CACHE elsewhere", stacklevel=2)
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _parse_all(paths: Sequence[Path], name: str) -> list[NDArray[np.float32]]:
    """Parse all files on all cores, under a progress bar."""
    label = f"parsing {name} (once)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(paths) // _FILES_A_TASK)
    if workers < 2:
        return list(track(map(parse_text_cloud, paths), label, len(paths)))
    # On Linux by fork, as torch's loaders do: the workers need nothing but NumPy, and a user's script needs no
    # `if __name__ == "__main__"`. They start with map, before the progress bar starts a thread.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(workers, mp_context=context) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on fork beside threads
        parsed = pool.map(parse_text_cloud, paths, chunksize=_FILES_A_TASK)
        return list(track(parsed, label, len(paths)))


def parse_text_cloud(path: Path) -> NDArray[np.float32]:
    """One text file as ``(P, 3)`` or ``(P, 6)`` float32; its points are finite.

    Raises:
        Ewa3dError: a file that is empty, a line that is too short or too long, or no number (file and line).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # NumPy's on an empty file
            table = np.loadtxt(path, dtype=np.float32, delimiter=",", comments=None, ndmin=2)
    except OSError as why:
        raise Ewa3dError(f"{path}: cannot be read ({why.strerror or why}): check the file and its rights") from None
    except ValueError:
        raise Ewa3dError(_blame(path)) from None
    if table.size == 0:
        raise Ewa3dError(f"{path}: an empty cloud, no line in it: get the file again")
    if table.shape[1] not in (3, 6) or not np.isfinite(table[:, :3]).all():
        raise Ewa3dError(_blame(path))
    return table


def _blame(path: Path) -> str:
    """Which line of a text file is not as it should be; read slowly, once it is known that one is not."""
    width = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            cells = line.split(",")
            width = width or (len(cells) if len(cells) in (3, 6) else 6)
            if len(cells) != width:
                return f"{path}, line {number}: {len(cells)} numbers where {width} should be: get the file again"
            for column, cell in enumerate(cells):
                try:
                    value = np.float32(float(cell))
                except ValueError:
                    return f"{path}, line {number}: {cell.strip()!r} is not a number: get the file again"
                if column < 3 and not np.isfinite(value):
                    return f"{path}, line {number}: a coordinate is NaN or infinite: get the file again"
    return f"{path}: not a text file of lines x,y,z,nx,ny,nz: get the file again"
