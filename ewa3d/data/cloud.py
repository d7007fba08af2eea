"""One cloud in memory, and what the readers of its files share.

These raise ValueError with what is wrong; `ewa3d.data.io.read_cloud` adds where, and the mend.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AXES = ("x", "y", "z")
_NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))  # as PLY and as PCD files call them

COLUMNS = (*_AXES, *_NORMALS[0], *_NORMALS[1], "label")
"""The columns that `from_columns` looks at."""


@dataclass(frozen=True)
class Cloud:
    """What a file holds, in the file's own units and order.

    Args:
        points: ``(N, 3)`` float64; rows may be NaN or infinite, but not all of them.
        normals: ``(N, 3)`` float64, where known.
        labels: ``(N,)`` int64, where known.
        is_mesh: whether the points were sampled on the faces of a mesh.
        siblings: how many clouds the file holds, this one among them.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None
    is_mesh: bool = False
    siblings: int = 1


def from_columns(columns: Mapping[str, np.ndarray]) -> Cloud:
    """A cloud from columns called ``x y z``, and perhaps ``nx ny nz`` or ``normal_x …``, and ``label``."""
    if missing := [axis for axis in _AXES if axis not in columns]:
        raise ValueError(f"its points have no {' '.join(missing)}")

    def table(names: Sequence[str]) -> NDArray[np.float64]:
        return np.stack([columns[name] for name in names], axis=1, dtype=np.float64)

    points = table(_AXES)
    normals = next((table(names) for names in _NORMALS if columns.keys() >= set(names)), None)
    return Cloud(points, normals, as_labels(columns.get("label"), len(points)))


def as_labels(values: np.ndarray | None, count: int) -> NDArray[np.int64] | None:
    """``values`` as labels, where they are one integer a point."""
    if values is None or values.shape != (count,) or values.dtype.kind not in "iuf":
        return None
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.int64)
    return labels if np.array_equal(labels, values) else None


def as_points(values: Any, what: str) -> NDArray[np.float64]:
    """The first three columns of a table of numbers."""
    if values.dtype.kind not in "iuf" or values.ndim != 2 or values.shape[1] < 3:
        raise ValueError(f"{what} is {values.dtype} {values.shape}, not numbers (N, 3)")
    return np.array(values[:, :3], dtype=np.float64)


def load_rows(lines: Iterable[str], columns: Sequence[int], delimiter: str | None = None) -> NDArray[np.float64]:
    """``(rows, columns)`` of lines of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's on no lines at all
        return np.loadtxt(lines, np.float64, comments="#", delimiter=delimiter, usecols=columns, ndmin=2)


def text_lines(data: bytes) -> Iterator[str]:
    """The lines that are not blank."""
    return (line for line in io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", errors="replace") if line.strip())
