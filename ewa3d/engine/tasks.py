"""What the tasks do differently: what the model is given, what is counted, and which score chooses the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import PartMap
from ..data.transforms import random_index, sample_first, sample_random, scale_and_shift, seeded_index
from ..ops import gather_points
from ..viz.plots import category_bars, confusion_matrix
from .config import Config
from .metrics import classification_scores, confusion_counts, part_counts, predict_parts, segmentation_scores
from .predict import segment_points

Batch = dict[str, Tensor]
Draw = Callable[[Tensor, int], Tensor]


class Task:
    """Classification and part segmentation have these in common.

    Args:
        config: of the run.
        metadata: of the dataset or the model: what the labels mean.
    """

    score: str  # which of `scores` chooses the epoch
    protocol: str  # the name of what `predict` does
    picture: str  # the file name of what `draw` draws

    def __init__(self, config: Config, metadata: Mapping[str, Any]):
        self.num_points = config.data.num_points
        self.seed = config.eval.seed

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """The model's inputs, drawn and augmented, and the truth of every row of its logits."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and truth, without augmentation; the same for a cloud in every call, batch and process."""
        raise NotImplementedError

    def features(self, model: Any, batch: Batch) -> Tensor:
        """What the model makes of each whole cloud before its head, ``(B, features)``, from the points of `predict`."""
        raise NotImplementedError

    def tally(self, logits: Tensor, truth: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """What `scores` needs of a batch: tensors of one row a cloud, alike for clouds of all sizes."""
        raise NotImplementedError

    def scores(self, *tallies: Tensor) -> dict[str, Any]:
        """Scores in percent of the tallies of a whole dataset."""
        raise NotImplementedError

    def draw(self, path: Path, title: str, *tallies: Tensor) -> None:
        """Write a picture of what is right and what is wrong in the tallies of a whole dataset."""
        raise NotImplementedError


class Classification(Task):
    """One label a cloud. Evaluated in a single pass on the cloud's farthest points."""

    score = "oa"
    protocol = "single"
    picture = "confusion.png"

    def __init__(self, config: Config, metadata: Mapping[str, Any]):
        super().__init__(config, metadata)
        self.class_names = metadata["class_names"]

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        return (scale_and_shift(sample_random(batch["points"], self.num_points)),), batch["label"]

    def predict(self, model: nn.Module, batch: Batch, draw: Draw = sample_first) -> tuple[Tensor, Tensor]:
        return model(draw(batch["points"], self.num_points)), batch["label"]

    def features(self, model: Any, batch: Batch) -> Tensor:
        tokens = model.forward_features(sample_first(batch["points"], self.num_points))
        return model.forward_head(tokens, pre_logits=True)

    def tally(self, logits: Tensor, truth: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return logits, truth

    def scores(self, *tallies: Tensor) -> dict[str, Any]:
        logits, labels = tallies
        return classification_scores(logits, labels)

    def draw(self, path: Path, title: str, *tallies: Tensor) -> None:
        logits, labels = tallies
        confusion_matrix(confusion_counts(logits, labels), self.class_names, path, title)


class PartSegmentation(Task):
    """One label a point, of the parts that the cloud's category has.

    Evaluated by one of two protocols: ``whole``, every point of the cloud once, the tokens coming from one seeded draw;
    ``official``, a seeded draw of ``num_points`` with replacement, which alone is scored.
    """

    score = "instance_miou"
    picture = "iou.png"

    def __init__(self, config: Config, metadata: Mapping[str, Any]):
        super().__init__(config, metadata)
        part_map = PartMap(metadata["parts"])
        self.categories = part_map.categories
        self.part_mask = part_map.mask()
        self.protocol = config.eval.protocol

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        index = random_index(batch["count"], self.num_points, batch["points"].shape[1])
        points = scale_and_shift(gather_points(batch["points"], index), (0.8, 1.25), 0.1, isotropic=True)
        return (points, batch["category"]), batch["part"].gather(1, index)

    def predict(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        points, part, count, category = (batch[key] for key in ("points", "part", "count", "category"))
        index = self._drawn(batch)
        sample = gather_points(points, index)
        if self.protocol == "official":
            return model(sample, category), part.gather(1, index)
        filling = torch.arange(points.shape[1], device=count.device) >= count[:, None]
        return segment_points(model, sample, points, category), part.masked_fill(filling, -1)

    def features(self, model: Any, batch: Batch) -> Tensor:
        groups = model.forward_features(gather_points(batch["points"], self._drawn(batch)))
        return groups.features.amax(dim=1)

    def tally(self, logits: Tensor, truth: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        predicted = predict_parts(logits, batch["category"], self.part_mask.to(logits.device))
        return part_counts(predicted, truth, logits.shape[-1]), batch["category"]

    def scores(self, *tallies: Tensor) -> dict[str, Any]:
        counts, category = tallies
        return segmentation_scores(counts, category, self.part_mask, self.categories)

    def draw(self, path: Path, title: str, *tallies: Tensor) -> None:
        category_bars(self.scores(*tallies)["per_category"], path, title, "mean IoU of the category's clouds, %")

    def _drawn(self, batch: Batch) -> Tensor:
        """Which points the tokens come from, ``(B, num_points)``."""
        official = self.protocol == "official"
        return seeded_index(batch["count"], batch["index"], self.num_points, replacement=official, seed=self.seed)


def make_task(config: Config, metadata: Mapping[str, Any]) -> Task:
    """The configured task on a dataset with this ``metadata``."""
    kinds: dict[str, type[Task]] = {"classification": Classification, "part_segmentation": PartSegmentation}
    return kinds[config.task](config, metadata)


def describe_scores(scores: Mapping[str, Any]) -> str:
    """The scores of one protocol in a line for people."""
    names = {
        "instance_miou": "instance mIoU",
        "class_miou": "class mIoU",
        "oa": "overall accuracy" if "instance_miou" not in scores else "point accuracy",
        "macc": "mean class accuracy" if "instance_miou" not in scores else "mean part accuracy",
    }
    return ", ".join(f"{name} {scores[key]:.2f} %" for key, name in names.items() if key in scores)


def score_line(split: str, protocol: str, scores: Mapping[str, Any]) -> str:
    """`describe_scores` with what is never left out: the split and the protocol."""
    return f"{split} split, {protocol}: {describe_scores(scores)}"
