"""What every dataset of ewa3d is once loaded: tensors in memory, served a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..ops import farthest_point_sample, gather_points
from ..progress import track
from .part_map import PartMap

C = TypeVar("C", bound="Clouds")
P = TypeVar("P", bound="PointClouds")
Q = TypeVar("Q", bound="PartClouds")


class Clouds(Dataset):
    """Labelled point clouds in memory: what `PointClouds` and `PartClouds` share.

    ``dataset[i]`` is one sample and ``dataset.batch([i, j, ...])`` a collated batch; both are dicts of tensors.
    A batch is cut from the tensors with one indexing call a key, so a loader copies every point once.
    Sampling and augmentation come later, on whole batches and on the model's device (`ewa3d.data.transforms`).

    Args:
        labels: ``(n,)`` int64, each below ``len(class_names)``.
        class_names: one name a class.
        sources: one text a cloud that says where it came from (file and row); ``None`` numbers them.
    """

    def __init__(self, labels: Tensor, class_names: Sequence[str], sources: Sequence[str] | None = None):
        self.labels = labels
        self.class_names = list(class_names)
        self.sources = list(sources) if sources is not None else [f"cloud {i}" for i in range(len(labels))]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the tensors are, and where batches come to lie."""
        return self.labels.device

    @property
    def nbytes(self) -> int:
        """How much memory the tensors take."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def to(self: C, device: torch.device | str) -> C:
        """A copy of this dataset with its tensors on ``device``: batches are cut there, and only places go over."""
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def source(self, index: int) -> str:
        """The file and row that cloud ``index`` (the ``index`` of a batch) came from."""
        return self.sources[index]

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The clouds ``index`` as one batch."""
        raise NotImplementedError

    def subset(self: C, index: ArrayLike) -> C:
        """A copy of this dataset with the clouds ``index`` only, in that order; ``source`` still names their files."""
        raise NotImplementedError

    @property
    def metadata(self) -> dict[str, Any]:
        """What the labels mean, as JSON can hold it: checkpoints and exports carry it."""
        return {"class_names": self.class_names}

    def _places(self, index: ArrayLike) -> Tensor:
        """``index`` beside the data. Nobody waits for a GPU to take it: the driver keeps a copy for it."""
        return torch.as_tensor(index, dtype=torch.long).to(self.device, non_blocking=True)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def __getitems__(self, index: Sequence[int]) -> dict[str, Tensor]:  # PyTorch's batched fetch
        return self.batch(index)


class PointClouds(Clouds):
    """Labelled point clouds of equal size.

    Args:
        points: ``(n, P, 3)`` float32, normalised to the unit sphere.
        labels: ``(n,)`` int64, each below ``len(class_names)``.
        class_names: one name a class.
        sources: one text a cloud that says where it came from (file and row); ``None`` numbers them.
        normals: ``(n, P, 3)`` float32, optional.

    A sample holds ``points (P, 3)``, ``label ()``, ``index ()`` and, where known, ``normals (P, 3)``.
    """

    shuffled = False  # whether the points of every cloud are in random order, so that the first n are a draw of them

    def __init__(
        self,
        points: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        *,
        sources: Sequence[str] | None = None,
        normals: Tensor | None = None,
    ):
        super().__init__(labels, class_names, sources)
        self.points = points
        self.normals = normals

    def __repr__(self) -> str:
        n, p, _ = self.points.shape
        return f"{type(self).__name__}({n} clouds of {p} points, {len(self.class_names)} classes)"

    def farthest_first(self, count: int) -> PointClouds:
        """This dataset with each cloud cut to its ``count`` farthest points, in the order in which they are sampled.

        Farthest point sampling from a fixed start draws the same points every time, and a shorter sample is the
        beginning of a longer one: done once here, it serves every epoch of training and every evaluation after.
        Clouds of no more than ``count`` points keep them all.
        """
        count = min(count, self.points.shape[1])
        chunks = self.points.split(64)
        orders = track(chunks, "farthest points", len(chunks), unit=64)
        index = torch.cat([farthest_point_sample(points, count) for points in orders])
        ordered = copy(self)
        ordered.points = gather_points(self.points, index)
        if self.normals is not None:
            ordered.normals = gather_points(self.normals, index)
        return ordered

    def subset(self: P, index: ArrayLike) -> P:
        chosen, where = copy(self), self._places(np.asarray(index))
        PointClouds.__init__(
            chosen,
            self.points[where],
            self.labels[where],
            self.class_names,
            sources=[self.sources[i] for i in where.tolist()],
            normals=self.normals[where] if self.normals is not None else None,
        )
        return chosen

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The clouds ``index`` as one batch."""
        where = self._places(index)
        out = {"points": self.points[where], "label": self.labels[where], "index": where}
        if self.normals is not None:
            out["normals"] = self.normals[where]
        return out


class PartClouds(Clouds):
    """Point clouds of any sizes, whole, with a part label on every point.

    Args:
        points: ``(total, 3)`` float32, one cloud after the other, each normalised to the unit sphere.
        counts: ``(n,)`` int64, the points of each cloud, 1 or more.
        parts: ``(total,)`` int64, the part id of every point, one of its category's.
        labels: ``(n,)`` int64, the category of each cloud.
        part_map: the categories and their parts.
        sources: one text a cloud that says where it came from (file and row); ``None`` numbers them.
        normals: ``(total, 3)`` float32, optional.

    A batch holds ``points (B, P, 3)`` and ``part (B, P)``, P being its largest cloud's count, ``count (B,)``,
    ``category (B,)``, ``label (B,)`` (the same), ``index (B,)`` and, where known, ``normals (B, P, 3)``. A cloud
    smaller than P is filled up with its last point, so nothing in a batch is not of its cloud; ``count`` says where
    the filling begins.
    """

    def __init__(
        self,
        points: Tensor,
        counts: Tensor,
        parts: Tensor,
        labels: Tensor,
        part_map: PartMap,
        *,
        sources: Sequence[str] | None = None,
        normals: Tensor | None = None,
    ):
        super().__init__(labels, part_map.categories, sources)
        self.points = points
        self.counts = counts
        self.parts = parts
        self.part_map = part_map
        self.normals = normals
        self._ends = counts.cumsum(0)
        self._sizes = counts.tolist()  # for the host: to read a count from a GPU is to wait for all that it has to do

    def __repr__(self) -> str:
        low, high = min(self._sizes), max(self._sizes)
        size = f"{low}" if low == high else f"{low} to {high}"
        parts = len(self.part_map.part_names)
        return (
            f"{type(self).__name__}({len(self)} clouds of {size} points, {len(self.class_names)} categories, "
            f"{parts} parts)"
        )

    def subset(self: Q, index: ArrayLike) -> Q:
        chosen, where = copy(self), self._places(np.asarray(index))
        counts = self.counts[where]
        first = torch.repeat_interleave(self._ends[where] - counts.cumsum(0), counts)  # of each point's cloud
        rows = first + torch.arange(len(first), device=self.device)
        PartClouds.__init__(
            chosen,
            self.points[rows],
            counts,
            self.parts[rows],
            self.labels[where],
            self.part_map,
            sources=[self.sources[i] for i in where.tolist()],
            normals=self.normals[rows] if self.normals is not None else None,
        )
        return chosen

    @property
    def metadata(self) -> dict[str, Any]:
        return {**super().metadata, "parts": {name: list(parts) for name, parts in self.part_map.parts.items()}}

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The clouds ``index`` as one batch."""
        where = self._places(index)
        counts, ends = self.counts[where], self._ends[where]
        largest = max(self._sizes[i] for i in index)
        places = torch.arange(largest, device=self.device) + (ends - counts)[:, None]
        places = torch.minimum(places, ends[:, None] - 1)
        out = {
            "points": self.points[places],
            "part": self.parts[places],
            "count": counts,
            "category": self.labels[where],
            "label": self.labels[where],
            "index": where,
        }
        if self.normals is not None:
            out["normals"] = self.normals[places]
        return out


def to_unit_sphere(points: ArrayLike) -> NDArray[np.float64]:
    """Subtract each cloud's centroid and divide by its largest norm.

    In float64, so that neither many points nor large coordinates cost digits.

    Args:
        points: ``(..., P, 3)``, finite, of any size; of a cloud whose points are all one, all become the origin.
    """
    centred: NDArray[np.float64] = np.array(points, dtype=np.float64)
    centred[(centred == centred[..., :1, :]).all(axis=(-2, -1))] = 0  # their mean may not be quite what they are
    # a power of two costs no digit, and then neither the sum nor the squares leave the range of floats
    np.ldexp(centred, -np.frexp(np.abs(centred).max(axis=(-2, -1), keepdims=True))[1], out=centred)
    centred -= centred.mean(axis=-2, keepdims=True)
    largest = np.sqrt(np.einsum("...c,...c->...", centred, centred).max(axis=-1))[..., None, None]
    return centred / np.where(largest > 0, largest, 1)
