"""Predictions for single clouds, however many points they have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..data import PartMap
from ..data.dataset import to_unit_sphere
from ..data.transforms import seeded_index
from ..errors import Ewa3dError
from ..models import MaskedAutoencoder, PartSegmenter, PointTransformer
from ..ops import farthest_point_sample, gather_points
from .metrics import predict_parts

_POINTS_AT_ONCE = 1 << 13  # 0.25 GB of activations in point_mae_small; more at once is no faster on a CPU
_DRAWN_FROM = 10  # times num_points: of a larger cloud the farthest points are sought in a draw of so many


@dataclass(frozen=True)
class ClassPrediction:
    """What a classifier says of a cloud.

    Args:
        probabilities: ``(classes,)`` float32, of sum 1, on the CPU.
        class_names: one name a class.
    """

    probabilities: Tensor
    class_names: list[str]

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """The ``k`` most likely classes with their probabilities, the most likely first."""
        values, classes = self.probabilities.topk(min(k, len(self.class_names)))
        return [(self.class_names[i], value) for i, value in zip(classes.tolist(), values.tolist(), strict=True)]


@dataclass(frozen=True)
class PartPrediction:
    """What a segmentation model says of a cloud.

    Args:
        labels: ``(N,)`` int64 part ids, one a point in the cloud's order; -1 where the point is NaN or infinite.
        probabilities: ``(N,)`` float32 of the labels among the category's parts; 0 where the label is -1.
        category: the category that the model was told.
        part_map: what the part ids mean.
    """

    labels: Tensor
    probabilities: Tensor
    category: str
    part_map: PartMap

    def counts(self) -> dict[str, int]:
        """How many points each part of the category has, by name."""
        own = self.part_map.range_of(self.part_map.categories.index(self.category))
        found = torch.bincount(self.labels[self.labels >= 0], minlength=own.stop)[own.start : own.stop]
        return dict(zip(self.part_map.parts[self.category], found.tolist(), strict=True))


def predict(
    model: PointTransformer,
    points: ArrayLike | Tensor,
    category: str | None = None,
    *,
    num_points: int | None = None,
    seed: int = 0,
) -> ClassPrediction | PartPrediction:
    """What a model says of one cloud of any number of points, at any place and of any size.

    The cloud is moved and scaled into the unit sphere, as the training data are; rows that are NaN or infinite are left
    out. A classifier sees its ``num_points`` farthest points, as in evaluation (of more than ten times as many, the
    farthest of a seeded draw). A segmentation model sees a seeded draw of ``num_points`` and then labels every point,
    in chunks. Where a cloud has fewer points they repeat: of one point, or of points that are all one, the model
    makes a prediction too, which means little.

    Args:
        model: a classifier or a segmentation model, on any device, in either mode (it is left in that mode).
        points: ``(N, 3)``, N ≥ 1.
        category: for segmentation, the name of the shape's category; may be left out where there is only one.
        num_points: how many the model sees; what it was trained with where ``None`` (1024 where that is not known).
        seed: of the draws.

    Returns:
        `ClassPrediction` or `PartPrediction`.

    Raises:
        ValueError: ``points`` that are not ``(N, 3)``, or ``num_points`` smaller than the model's groups.
        Ewa3dError: no point that is finite; an unknown or missing category.
    """
    array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must be one cloud (N, 3), got {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"points must be numbers (N, 3), got {array.dtype}")
    if num_points is None:
        num_points = (model.metadata.get("data") or {}).get("num_points", 1024)
    if num_points < model.patch_embed.group_size:
        raise ValueError(f"num_points={num_points} is less than a group of the model, {model.patch_embed.group_size}")
    part_map, told = check_category(model, category)
    finite = np.isfinite(array).all(axis=1)
    if not finite.any():
        raise Ewa3dError(f"a cloud of {len(array)} points, none of them finite: give one point or more")
    cloud = _normalise(array[finite])
    if not isinstance(model, PartSegmenter):
        logits = _class_logits(model, cloud, num_points, seed)
        names = model.metadata.get("class_names") or [f"class {i}" for i in range(len(logits))]
        return ClassPrediction(logits.softmax(dim=0), names)
    labels, probabilities = torch.full((len(array),), -1), torch.zeros(len(array))
    where = torch.from_numpy(finite)
    labels[where], probabilities[where] = _label_parts(model, cloud, told, part_map.mask(), num_points, seed)
    return PartPrediction(labels, probabilities, part_map.categories[told], part_map)


def check_category(model: PointTransformer, category: str | None) -> tuple[PartMap, int]:
    """What the parts of a segmentation model are called, and the label of a category; of a classifier, nothing and 0.

    Raises:
        Ewa3dError: an unknown or missing category, or one for a classifier; a model that does not say what its parts
            are, or has no head.
    """
    if isinstance(model, MaskedAutoencoder):
        raise Ewa3dError("a pretraining model predicts nothing: train a classifier from it with model.pretrained=")
    if not isinstance(model, PartSegmenter):
        if category is not None:
            raise Ewa3dError(f"category {category!r} is for part segmentation, and this model classifies: leave it out")
        return PartMap({}), 0
    part_map = PartMap(model.metadata.get("parts", {}))
    names = part_map.categories
    if (len(names), len(part_map.part_names)) != (model.num_categories, model.num_classes):
        raise Ewa3dError(
            f"the model has {model.num_classes} parts and does not say which: set model.metadata['parts'] to the part "
            "names of every category (ewa3d.data.SHAPENETPART.parts are ShapeNetPart's)"
        )
    if category is None and len(names) == 1:
        return part_map, 0
    if category in names:
        return part_map, names.index(category)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches((category or "").casefold(), folded, n=1)
    what = f"no category {category!r}" if category else "the shape's category is to be named"
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"choose one of {', '.join(names)}"
    raise Ewa3dError(f"{what}: {hint}")


def segment_points(model: PartSegmenter, sample: Tensor, points: Tensor, category: Tensor) -> Tensor:
    """Logits of every point of clouds of which the model sees a sample.

    Args:
        model: in eval mode.
        sample: ``(B, num_points, 3)``, drawn from the clouds: the tokens come from these.
        points: ``(B, P, 3)``, all points; decoded in chunks, so that memory does not grow with them but for the logits.
        category: ``(B,)`` int64.

    Returns:
        ``(B, P, parts)``.
    """
    return torch.cat(list(_decode(model, sample, points, category)), dim=1)


def _decode(model: PartSegmenter, sample: Tensor, points: Tensor, category: Tensor) -> Iterator[Tensor]:
    """The logits of `segment_points`, chunk by chunk, on the sample's device."""
    groups = model.forward_features(sample)
    for chunk in points.split(max(1, _POINTS_AT_ONCE // len(points)), dim=1):
        yield model.forward_head(groups, chunk.to(sample.device), category)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inference in eval mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _normalise(points: NDArray[Any]) -> Tensor:
    """A finite cloud ``(N, 3)`` in the unit sphere, as ``(1, N, 3)`` float32 on the CPU."""
    return torch.from_numpy(to_unit_sphere(points).astype(np.float32)).unsqueeze(0)


def _draw(cloud: Tensor, num_points: int, seed: int) -> Tensor:
    """``num_points`` of a cloud ``(1, N, 3)``, as evaluation draws them of a dataset's first cloud."""
    index = seeded_index(torch.tensor([cloud.shape[1]]), torch.tensor([0]), num_points, seed=seed)
    return gather_points(cloud, index)


def _class_logits(model: PointTransformer, cloud: Tensor, num_points: int, seed: int) -> Tensor:
    """``(classes,)`` on the CPU."""
    if cloud.shape[1] > _DRAWN_FROM * num_points:
        cloud = _draw(cloud, _DRAWN_FROM * num_points, seed)
    if cloud.shape[1] > num_points:
        cloud = gather_points(cloud, farthest_point_sample(cloud, num_points))
    cloud = cloud[:, torch.arange(num_points) % cloud.shape[1]]
    with _evaluating(model):
        logits = model(cloud.to(_device(model)))
    return logits[0].float().cpu()


def _label_parts(
    model: PartSegmenter, cloud: Tensor, category: int, part_mask: Tensor, num_points: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels ``(N,)`` and their probabilities ``(N,)``, on the CPU. The logits are never there all at once."""
    device = _device(model)
    told, part_mask = torch.tensor([category], device=device), part_mask.to(device)
    sample = _draw(cloud, num_points, seed).to(device)
    labels, probabilities = torch.empty(cloud.shape[1], dtype=torch.long), torch.empty(cloud.shape[1])
    start = 0
    with _evaluating(model):
        for logits in _decode(model, sample, cloud, told):
            part = predict_parts(logits, told, part_mask)[0]
            likely = logits[0].float().masked_fill(~part_mask[category], -torch.inf).softmax(dim=-1)
            own = slice(start, start := start + len(part))
            labels[own], probabilities[own] = part.cpu(), likely.gather(1, part[:, None])[:, 0].cpu()
    return labels, probabilities


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
