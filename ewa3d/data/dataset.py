"""What every dataset of ewa3d is once loaded: rectangular tensors in memory, served a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..ops import farthest_point_sample, gather_points
from ..progress import track


class PointClouds(Dataset):
    """Labelled point clouds of equal size, in memory.

    ``dataset[i]`` is one sample and ``dataset.batch([i, j, ...])`` a collated batch; both are dicts of tensors.
    A batch is cut from the tensors with one indexing call a key, so a loader copies every point once.
    Sampling and augmentation come later, on whole batches and on the model's device (`ewa3d.data.transforms`).

    Args:
        points: ``(n, P, 3)`` float32, normalised to the unit sphere.
        labels: ``(n,)`` int64, each below ``len(class_names)``.
        class_names: one name a class.
        sources: one text a cloud that says where it came from (file and row); ``None`` numbers them.
        normals: ``(n, P, 3)`` float32, optional.
        parts: ``(n, P)`` int64 part label of every point, optional.
        part_names: one name a part, where there are parts.

    A sample holds ``points (P, 3)``, ``label ()``, ``index ()`` and, where known, ``normals (P, 3)``, ``part (P,)``
    and ``category ()`` (the label again, for part segmentation).
    """

    def __init__(
        self,
        points: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        *,
        sources: Sequence[str] | None = None,
        normals: Tensor | None = None,
        parts: Tensor | None = None,
        part_names: Sequence[str] = (),
    ):
        self.points = points
        self.labels = labels
        self.class_names = list(class_names)
        self.normals = normals
        self.parts = parts
        self.part_names = list(part_names)
        self.sources = list(sources) if sources is not None else [f"cloud {i}" for i in range(len(points))]

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        n, p, _ = self.points.shape
        return f"{type(self).__name__}({n} clouds of {p} points, {len(self.class_names)} classes)"

    def source(self, index: int) -> str:
        """The file and row that cloud ``index`` (the ``index`` of a batch) came from."""
        return self.sources[index]

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
        if self.parts is not None:
            ordered.parts = self.parts.gather(1, index)
        return ordered

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """The clouds ``index`` as one batch."""
        where = torch.as_tensor(index, dtype=torch.long)
        out = {"points": self.points[where], "label": self.labels[where], "index": where}
        if self.normals is not None:
            out["normals"] = self.normals[where]
        if self.parts is not None:
            out["part"] = self.parts[where]
            out["category"] = out["label"]
        return out

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def __getitems__(self, index: Sequence[int]) -> dict[str, Tensor]:  # PyTorch's batched fetch
        return self.batch(index)
