"""PLY (Turk, 1994) and OFF (Geomview) files: clouds, and the triangles of meshes.

trimesh refuses binary PLY files of mixed polygons, and takes text files of either kind that are cut short for whole
ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cloud import COLUMNS, Cloud, from_columns, load_rows, text_lines

_NAMES = "char uchar short ushort int uint float double int8 uint8 int16 uint16 int32 uint32 float32 float64"
_TYPES = dict(zip(_NAMES.split(), 2 * ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"], strict=True))


@dataclass(frozen=True)
class _Property:
    name: str
    code: str  # NumPy's type, with its byte order
    length: str | None  # of a list: the type of its length


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property]

    def columns(self, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """By property: a list's as one array a row, others as one array."""
        own = dict(zip((of.name for of in self.properties), zip(*rows, strict=True), strict=False))
        return {of.name: own[of.name] if of.length else np.concatenate(own[of.name]) for of in self.properties if own}


@dataclass
class _Bytes:
    data: bytes
    at: int

    def take(self, code: str, count: int) -> np.ndarray:
        if count < 0:
            raise ValueError("a list of negative length")
        values = np.frombuffer(self.data, code, count, self.at)
        self.at += values.nbytes
        return values


def read_ply(path: Path) -> Cloud | NDArray[np.float64]:
    data = path.read_bytes()
    head = re.match(rb"ply\s.*?\nend_header[ \t]*\r?\n", data, re.DOTALL)
    if not head:
        raise ValueError("it does not begin with a PLY header")
    is_text, elements = _read_header(head[0].decode("ascii", "replace"))
    if is_text:
        lines = text_lines(data[head.end() :])
        return _from_elements({of.name: _text_columns(lines, of) for of in elements})
    body = _Bytes(data, head.end())
    return _from_elements({of.name: _binary_columns(body, of) for of in elements})


def read_off(path: Path) -> Cloud | NDArray[np.float64]:
    """OFF (Geomview) is text like PLY's, with a shorter header; ModelNet40 has the counts beside its first word."""
    bare = (line.partition("#")[0].strip() for line in text_lines(path.read_bytes()))
    lines = (line for line in bare if line)
    head = re.match(r"[A-Z]*OFF\b\s*|[A-Z]*OFF(?=\d)", first := next(lines, ""))
    if not head:
        raise ValueError("it does not begin with OFF")
    counts = (first[head.end() :] or next(lines, "")).split()
    if len(counts) < 2 or not (counts[0] + counts[1]).isdecimal():
        raise ValueError("it does not say how many points and faces it has")
    vertex = _Element("vertex", int(counts[0]), [_Property(axis, "f8", None) for axis in "xyz"])
    face = _Element("face", int(counts[1]), [_Property("vertex_indices", "i8", "i8")])
    return _from_elements({of.name: _text_columns(lines, of) for of in (vertex, face) if of.count})


def _from_elements(found: Mapping[str, dict[str, Any]]) -> Cloud | NDArray[np.float64]:
    """The points, or, where there are faces, their triangles."""
    cloud, faces = from_columns(found.get("vertex", {})), found.get("face", {})
    polygons = faces.get("vertex_indices", faces.get("vertex_index", ()))
    return cloud.points[_fans(polygons, len(cloud.points))] if len(polygons) else cloud


def _read_header(header: str) -> tuple[bool, list[_Element]]:
    """Whether the file is text, and what it holds, in order."""
    kind = order = ""
    elements: list[_Element] = []
    for line in header.splitlines()[1:-1]:
        match line.split():
            case ["format", "ascii" | "binary_little_endian" | "binary_big_endian" as kind, *_]:
                order = ">" if "big" in kind else "<"
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name, int(count), []))
            case ["property", "list", length, of, name] if elements and {length, of} <= _TYPES.keys():
                elements[-1].properties.append(_Property(name, order + _TYPES[of], order + _TYPES[length]))
            case ["property", of, name] if elements and of in _TYPES:
                elements[-1].properties.append(_Property(name, order + _TYPES[of], None))
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"header line {line.strip()[:80]!r}")
    if not order:
        raise ValueError("its header names no format")
    return kind == "ascii", [element for element in elements if element.count and element.properties]


def _text_columns(lines: Iterator[str], element: _Element) -> dict[str, Any]:
    own = islice(lines, element.count)
    if any(of.length for of in element.properties):
        rows = [_read_row(_take_cells(iter(line.split())), element) for line in own]
        got, columns = len(rows), element.columns(rows)
    else:
        wanted = [i for i, of in enumerate(element.properties) if of.name in COLUMNS] or [0]
        table = load_rows(own, wanted)
        got, columns = len(table), {element.properties[i].name: table[:, n] for n, i in enumerate(wanted)}
    if got < element.count:
        raise ValueError(f"it claims {element.count} of element {element.name}, and ends after {got}")
    return columns


def _binary_columns(body: _Bytes, element: _Element) -> dict[str, Any]:
    # nearly always every list is as long as the first: then one dtype serves all rows
    start = body.at
    first = _read_row(body.take, element)
    fields: list[Any] = []
    for of, values in zip(element.properties, first, strict=True):
        if of.length:
            fields += [(f"length of {of.name}", of.length), (of.name, of.code, values.shape)]
        else:
            fields.append((of.name, of.code))
    dtype = np.dtype(fields)
    if element.count * dtype.itemsize <= len(body.data) - start:
        table = np.frombuffer(body.data, dtype, element.count, start)
        lists = [name for name in table.dtype.names or () if name.startswith("length of ")]
        if all((table[name] == table[name][0]).all() for name in lists):
            body.at = start + table.nbytes
            return {of.name: table[of.name] for of in element.properties}
    if not any(of.length for of in element.properties):
        raise ValueError(f"it claims {element.count} of element {element.name}, and ends before")
    return element.columns([first, *(_read_row(body.take, element) for _ in range(element.count - 1))])


def _read_row(take: Callable[[str, int], np.ndarray], element: _Element) -> list[np.ndarray]:
    return [take(of.code, int(take(of.length, 1)[0]) if of.length else 1) for of in element.properties]


def _take_cells(cells: Iterator[str]) -> Callable[[str, int], np.ndarray]:
    def take(code: str, count: int) -> np.ndarray:
        values = np.array(list(islice(cells, count)), dtype=code)
        if len(values) < count:
            raise ValueError("a line is too short")
        return values

    return take


def _fans(polygons: Sequence[np.ndarray] | np.ndarray, count: int) -> NDArray[np.int64]:
    """``(T, 3)`` corners of the triangles of convex polygons of points, of which there are ``count``."""
    flat = (polygons.reshape(-1) if isinstance(polygons, np.ndarray) else np.concatenate(polygons)).astype(np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < count:
        raise ValueError("a face has a corner that is no point")
    sizes = np.array([len(polygon) for polygon in polygons])
    inner = np.maximum(sizes - 2, 0)
    first = np.repeat(np.cumsum(sizes) - sizes, inner)
    step = np.arange(len(first)) - np.repeat(np.cumsum(inner) - inner, inner)
    return flat[np.stack([first, first + step + 1, first + step + 2], axis=1)]
