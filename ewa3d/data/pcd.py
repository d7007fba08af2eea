"""PCD files (pointclouds.org, file format 0.7), in NumPy alone: Open3D is for pictures only."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .cloud import COLUMNS, Cloud, from_columns, load_rows, text_lines


@dataclass(frozen=True)
class _Field:
    name: str
    code: str  # NumPy's type
    at: int  # bytes of a point before it
    cell: int  # values of a point before it


@dataclass(frozen=True)
class _Header:
    fields: list[_Field]  # those that are read
    stride: int  # bytes of a point
    count: int  # points


def read_pcd(path: Path) -> Cloud:
    data = path.read_bytes()
    head = re.match(rb"\s*(?:#|VERSION|FIELDS).*?^DATA[ \t]+(\w+)[ \t]*\r?\n", data, re.DOTALL | re.MULTILINE)
    if not head:
        raise ValueError("it does not begin with a PCD header")
    header, kind = _read_header(head[0].decode("ascii", "replace")), head[1].decode().lower()
    if kind not in _BODIES:
        raise ValueError(f"DATA {kind}")
    return from_columns(_BODIES[kind](data[head.end() :], header))


def _read_header(text: str) -> _Header:
    lines = [line.split() for line in text.splitlines()]
    header = {words[0]: words[1:] for words in lines if words}
    if missing := {"FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT"} - header.keys():
        raise ValueError(f"its header has no {sorted(missing)[0]}")
    names, counts = header["FIELDS"], header.get("COUNT", ["1"] * len(header["FIELDS"]))
    if not len(names) == len(header["SIZE"]) == len(header["TYPE"]) == len(counts) > 0:
        raise ValueError("FIELDS, SIZE, TYPE and COUNT are not of one length")
    at = cell = 0
    fields = []
    for name, size, kind, of in zip(names, header["SIZE"], header["TYPE"], counts, strict=True):
        if kind + size not in ("F4", "F8", *(sign + width for sign in "IU" for width in "1248")) or not of.isdecimal():
            raise ValueError(f"field {name} of type {kind}, size {size}, count {of}")
        if name in COLUMNS and int(of) == 1:
            fields.append(_Field(name, f"<{kind.lower()}{size}", at, cell))
        at, cell = at + int(of) * int(size), cell + int(of)
    size = " ".join(header["WIDTH"] + header["HEIGHT"] + header.get("POINTS", []))
    found = re.fullmatch(r"(\d{1,12}) (\d{1,12})(?: (\d{1,12}))?", size)
    if not found or (found[3] and int(found[1]) * int(found[2]) != int(found[3])):
        raise ValueError(f"WIDTH, HEIGHT and POINTS are {size}")
    return _Header(fields, at, int(found[1]) * int(found[2]))


def _text_columns(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    table = load_rows(islice(text_lines(body), header.count), [of.cell for of in header.fields] or [0])
    if len(table) < header.count:
        raise ValueError(f"it claims {header.count} points, and ends after {len(table)}")
    return {of.name: table[:, i] for i, of in enumerate(header.fields)}


def _binary_columns(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    if header.count * header.stride > len(body):
        raise ValueError(f"it claims {header.count} points, and ends after {len(body) // header.stride}")
    names, codes, places = ([getattr(of, key) for of in header.fields] for key in ("name", "code", "at"))
    dtype: Any = {"names": names, "formats": codes, "offsets": places, "itemsize": header.stride}
    rows = np.frombuffer(body, np.dtype(dtype), header.count)
    return {name: rows[name] for name in names}


def _compressed_columns(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    """Field by field, of all points."""
    count = header.count
    packed, size = struct.unpack_from("<II", body)
    if size != count * header.stride or packed > len(body) - 8:
        raise ValueError(f"it claims {count} points in {packed} bytes, which are not there")
    raw = unpack_lzf(body[8 : 8 + packed], size)
    return {of.name: np.frombuffer(raw, of.code, count, count * of.at) for of in header.fields}


_BODIES: dict[str, Callable[[bytes, _Header], dict[str, np.ndarray]]] = {
    "ascii": _text_columns,
    "binary": _binary_columns,
    "binary_compressed": _compressed_columns,
}


def unpack_lzf(packed: bytes, size: int) -> bytearray:
    """LZF (Marc Lehmann's liblzf): runs of literal bytes, and copies of what was there up to 8 KB before."""
    out = bytearray()
    codes = iter(packed)
    try:
        for control in codes:
            if control < 32:
                out += bytes(islice(codes, control + 1))
            else:
                length = (control >> 5) + 2
                length += next(codes) if length == 9 else 0
                back = ((control & 31) << 8) + next(codes) + 1
                start = len(out) - back
                if start < 0 or len(out) > size:
                    break
                # a copy that overlaps what it makes repeats it
                out += (out[start : start + length] * (length // back + 1))[:length]
    except StopIteration:
        pass  # cut short: too little came out
    if len(out) != size:
        raise ValueError("its compressed data is damaged")
    return out
