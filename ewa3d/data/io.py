"""Single clouds and meshes from files of any common kind, and labelled clouds to files.

Every reader checks what a file claims against the bytes that it has before it allocates anything.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Ewa3dError, first_line
from ..files import write_atomically
from . import hdf5
from .cloud import Cloud, as_labels, as_points, load_rows, text_lines
from .pcd import read_pcd
from .ply import read_off, read_ply

_LONGEST_HEADER = 1 << 16  # bytes before an array
_ARRAYS = ("points", "data", "xyz")  # what files of several arrays call the points


def read_cloud(path: str | Path, *, mesh_points: int = 10_000, seed: int = 0) -> Cloud:
    """Read one cloud, or sample one on the surface of a mesh.

    ===================  =============================================================================================
    ``.ply``             text or binary; ``nx ny nz`` are normals, ``label`` is labels; with faces it is a mesh
    ``.pcd``             text, binary or compressed; ``normal_x …`` are normals, ``label`` is labels
    ``.xyz .txt``        three or more columns, by white space or commas; ``#`` comments and header lines are skipped
    ``.npy``             ``(N, 3)`` or wider
    ``.npz``             the same, called ``points``, ``data``, ``xyz`` or alone; ``normals``; ``label`` or ``part``
    ``.h5``              ``points`` or ``data``, ``(N, 3)``, or ``(n, P, 3)``: the first, or that of ``file.h5:17``
    ``.off .obj .stl``   meshes, or without faces clouds
    ===================  =============================================================================================

    Args:
        path: the file; its suffix says what it is.
        mesh_points: points to sample on a mesh, uniformly by area.
        seed: of that draw.

    Raises:
        Ewa3dError: no such file, of an unknown kind, not whole, or without a point that is finite.
    """
    file, row = split_row(path)
    suffix = file.suffix.lower()
    if suffix not in _READERS:
        raise Ewa3dError(f"{path}: is of no kind that is read: make it one of {' '.join(SUFFIXES)}")
    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        read = _READERS[suffix](file) if row is None else _read_h5(file, row)
        cloud = read if isinstance(read, Cloud) else _sample_surface(read, mesh_points, seed)
        if not len(cloud.points):
            raise ValueError("it holds no points")
        if not np.isfinite(cloud.points).all(axis=1).any():
            raise ValueError("none of its points is finite")
    except FileNotFoundError:
        raise Ewa3dError(f"{path}: no such file: check the path") from None
    except IsADirectoryError:
        raise Ewa3dError(f"{path}: is a folder: name a file") from None
    except PermissionError:
        raise Ewa3dError(f"{path}: may not be read: check its rights") from None
    except MemoryError:
        raise Ewa3dError(f"{path}: does not fit into memory: make it smaller") from None
    except Exception as error:  # on bytes that are no such file, NumPy and trimesh raise whatever they stumble over
        detail = first_line(error).rstrip(".")
        raise Ewa3dError(f"{path}: not read as {suffix} ({detail}): get or make the file again") from error
    return cloud


def find_clouds(pattern: str) -> list[str]:
    """The files that a word of a command line names: itself, all clouds in and under a folder, or those of a glob.

    Raises:
        Ewa3dError: a folder or a glob without clouds.
    """
    path = Path(pattern)
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file())
        found = [str(file) for file in inside if not file.name.startswith(".")]
    elif path.exists() or not any(sign in pattern for sign in "*?["):
        return [pattern]
    else:
        found = [file for file in sorted(glob(pattern, recursive=True)) if not Path(file).is_dir()]
    if not found:
        raise Ewa3dError(f"{pattern}: no clouds there: name files, folders or globs of {' '.join(SUFFIXES)}")
    return found


def write_labelled_ply(
    path: Path, points: ArrayLike, labels: ArrayLike, colors: ArrayLike, comments: Iterable[str] = ()
) -> None:
    """Write a binary PLY of coloured, labelled points: ``x y z red green blue label``.

    Args:
        path: the file, replaced atomically.
        points: ``(N, 3)``; written as float where that loses nothing, else as double.
        labels: ``(N,)`` integers, written as int.
        colors: ``(N, 3)`` uint8.
        comments: lines for the header.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    with np.errstate(over="ignore"):
        single = np.array_equal(points.astype(np.float32), points, equal_nan=True)
    kind, code = ("float", "<f4") if single else ("double", "<f8")
    rows = np.empty(len(points), dtype=[("points", code, 3), ("colors", "u1", 3), ("label", "<i4")])
    rows["points"], rows["colors"], rows["label"] = points, np.asarray(colors), labels
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {' '.join(line.split())}" for line in comments)]
    header += [f"element vertex {len(rows)}", *(f"property {kind} {axis}" for axis in "xyz")]
    header += [f"property uchar {color}" for color in ("red", "green", "blue")] + ["property int label", "end_header"]
    write_atomically(path, "".join(f"{line}\n" for line in header).encode("ascii", "replace") + rows.tobytes())


def split_row(path: str | Path) -> tuple[Path, int | None]:
    """``file.h5:17`` as the file and the row."""
    found = re.fullmatch(r"(.+\.h5):(\d+)", str(path), re.IGNORECASE | re.DOTALL)
    return (Path(found[1]), int(found[2])) if found else (Path(path), None)


# Columns of numbers, and arrays


def _read_text(path: Path) -> Cloud:
    data = path.read_bytes()
    if b"\0" in data[:4096]:
        raise ValueError("it is binary, not text")
    lines = text_lines(data)
    for line in lines:
        delimiter = "," if "," in line else None
        try:
            load_rows([line], range(3), delimiter)[0]
        except (ValueError, IndexError):
            continue  # a header or a comment
        return Cloud(load_rows(chain([line], lines), range(3), delimiter))
    raise ValueError("it has no line of three numbers")


def _read_npy(path: Path) -> Cloud:
    # mapped: then a file's size is checked before anything is allocated, and no object in it can be loaded
    return Cloud(as_points(np.lib.format.open_memmap(path, mode="r"), "the array"))


def _read_npz(path: Path) -> Cloud:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        most = hdf5.MOST_DEFLATED * path.stat().st_size
        names = [name for name in _ARRAYS if name in members] or (list(members) if len(members) == 1 else [])
        if not names:
            raise ValueError(f"its arrays are {', '.join(members) or 'none'}; the points should be {_ARRAYS[0]!r}")
        points = as_points(_read_member(archive, members[names[0]], most), names[0])
        also = [name for name in ("normals", "label", "part") if name in members]
        more = {name: _read_member(archive, members[name], most) for name in also}
    normals = more.get("normals")
    labels = (as_labels(more.get(name), len(points)) for name in ("label", "part"))
    return Cloud(
        points,
        as_points(normals, "normals") if normals is not None and normals.shape == points.shape else None,
        next((found for found in labels if found is not None), None),
    )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> np.ndarray:
    """An array of an ``.npz``, of at most ``most`` bytes."""
    with archive.open(info) as file:
        start = io.BytesIO(file.read(_LONGEST_HEADER))  # a header says how long it is, and would be read whole
        version = np.lib.format.read_magic(start)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"{info.filename} is of NumPy's format {version}")
        shape, _, dtype = header[version](start)
    _check_size(shape, dtype, min(info.file_size, most))
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_h5(path: Path, row: int | None = None) -> Cloud:
    with hdf5.Reader() as reader:
        found = [(name, item) for name, item in reader.open(path, _ARRAYS).items() if item is not None]
        if not found:
            raise ValueError(f"it has no dataset {' or '.join(map(repr, _ARRAYS))}")
        name, item = found[0]
        if item.kind not in "iuf" or item.shape is None:
            raise ValueError(f"{name} is {item.type} {item.shape}, not numbers (N, 3)")
        if len(item.shape) != 3:
            if row is not None:
                raise ValueError("it holds a single cloud, without a row")
            return Cloud(as_points(reader.read(name, item, np.float64), name))
        if not (row or 0) < item.shape[0]:
            raise ValueError(f"row {row or 0} of {item.shape[0]} clouds, which count from 0")
        return Cloud(as_points(reader.read(name, item, np.float64, row or 0), name), siblings=item.shape[0])


def _check_size(shape: tuple[int, ...], dtype: np.dtype, most: int) -> None:
    """Raise where an array claims more bytes than there can be."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size > most:
        raise ValueError(f"it claims {dtype} {shape}, and has {most} bytes at most")


# Meshes


def _read_mesh(path: Path) -> Cloud | NDArray[np.float64]:
    import trimesh

    kind = path.suffix[1:].lower()
    with path.open("rb") as file, warnings.catch_warnings():
        # NumPy's before 2.4, on text that is no number: trimesh would go on with what came before it
        warnings.filterwarnings("error", "string or file could not be read", DeprecationWarning)
        scene: Any = trimesh.load_scene(file, file_type=kind, process=False, skip_materials=True)
    shapes = list(scene.geometry.values())
    triangles = [shape.triangles for shape in shapes if len(getattr(shape, "faces", ()))]
    if triangles:
        return np.concatenate([np.empty((0, 3, 3)), *triangles])
    return Cloud(np.concatenate([np.empty((0, 3)), *(shape.vertices for shape in shapes)]))


def _sample_surface(triangles: NDArray[np.float64], count: int, seed: int) -> Cloud:
    """Points uniformly by area on ``triangles (T, 3, 3)``, those with corners that are not finite left out."""
    triangles = triangles[np.isfinite(triangles).all(axis=(1, 2))]
    corner, edges = triangles[:, :1], triangles[:, 1:] - triangles[:, :1]
    # to about 1, by a power of two: no area is too small or too large for a float
    unit = np.ldexp(edges, -np.frexp(np.abs(edges).max(initial=0))[1])
    normals = np.cross(unit[:, 0], unit[:, 1])
    areas = np.linalg.norm(normals, axis=1)
    if not areas.sum() > 0:
        raise ValueError("its faces have no area")
    draw = np.random.default_rng(seed)
    pick = draw.choice(len(areas), count, p=areas / areas.sum())
    along = draw.random((count, 2, 1))
    along = np.where(along.sum(axis=1, keepdims=True) > 1, 1 - along, along)  # the other half of the parallelogram
    points = corner[pick, 0] + (along * edges[pick]).sum(axis=1)
    return Cloud(points, normals[pick] / areas[pick, None], is_mesh=True)


_READERS: dict[str, Callable[[Path], Cloud | NDArray[np.float64]]] = {
    ".ply": read_ply,
    ".pcd": read_pcd,
    ".xyz": _read_text,
    ".txt": _read_text,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".off": read_off,
    ".obj": _read_mesh,
    ".stl": _read_mesh,
}

SUFFIXES = tuple(_READERS)
"""The kinds of files that `read_cloud` reads."""
