"""What the tasks do differently: what the model is given, what is counted, and which score chooses the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import PartMap
from ..data.transforms import (
    AUGMENTATIONS,
    random_index,
    sample_first,
    sample_random,
    scale_and_shift,
    seeded_index,
)
from ..ops import chamfer_distance, gather_points
from ..ops.chamfer import Norm
from ..viz.plots import category_bars, confusion_matrix
from .metrics import classification_scores, confusion_counts, part_counts, predict_parts, segmentation_scores
from .predict import segment_points
from .schema import Config

_NAMES = {"chamfer_l1": "Chamfer-L1", "chamfer_l2": "Chamfer-L2"}

Batch = dict[str, Tensor]
Draw = Callable[[Tensor, int], Tensor]


class Task:
    """Classification, part segmentation and pretraining have these in common.

    Args:
        config: of the run.
        metadata: of the dataset or the model: what the labels mean.
    """

    score: str  # which of `scores` chooses the epoch
    higher_is_better = True  # of that score
    outputs = "logits"  # what `predict` returns first, for people
    protocol: str  # the name of what `predict` does
    picture: str  # the file name of what `draw` draws

    def __init__(self, config: Config, metadata: Mapping[str, Any]):
        self.num_points = config.data.num_points
        self.seed = config.eval.seed

    def is_better(self, score: float, best: float) -> bool:
        """Whether ``score`` is better than the best so far."""
        return score > best if self.higher_is_better else score < best

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """The model's inputs, drawn and augmented, and the truth of every row of its logits, if it has logits."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and truth, without augmentation; the same for a cloud in every call, batch and process."""
        raise NotImplementedError

    def features(self, model: Any, batch: Batch) -> Tensor:
        """What the model makes of each whole cloud before its head, ``(B, features)``, from the points of `predict`.

        Unless a task knows better: maximum and mean over the tokens ``(B, T, C)`` of ``model.forward_features``.
        """
        tokens = model.forward_features(sample_first(batch["points"], self.num_points))
        return torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1)

    def tally(self, logits: Tensor, truth: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """What `scores` needs of a batch: tensors of one row a cloud, alike for clouds of all sizes."""
        raise NotImplementedError

    def losses(self, logits: Tensor, truth: Tensor, batch: Batch) -> Tensor:
        """The loss of each cloud ``(B,)`` in what `predict` returned, differentiable.

        Of logits it is the cross entropy, without label smoothing; of points with logits each, the mean over them.
        """
        rows = F.cross_entropy(logits.float().movedim(-1, 1), truth, ignore_index=-1, reduction="none")
        real = (truth >= 0).reshape(len(truth), -1)  # where it is not, the row is 0
        return rows.reshape(len(truth), -1).sum(dim=1) / real.sum(dim=1)

    def scores(self, *tallies: Tensor) -> dict[str, Any]:
        """Scores of the tallies of a whole dataset, in percent where `describe_scores` says so."""
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
        self._augment = AUGMENTATIONS[config.data.augmentation]

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        return (self.augmented(batch["points"], self.num_points),), batch["label"]

    def augmented(self, points: Tensor, num_points: int) -> Tensor:
        """A random draw of ``num_points`` of each cloud, augmented: what training sees, and each pass of a vote."""
        return self._augment(sample_random(points, num_points))

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


class Pretraining(Task):
    """No labels: a masked autoencoder rebuilds what is hidden of a cloud.

    Evaluated with a mask for each cloud that depends on the cloud's place and ``eval.seed`` alone. The score is the
    loss: the Chamfer distance of the hidden groups, where a cloud has radius 1.
    """

    higher_is_better = False
    outputs = "reconstructions"
    protocol = "masked"
    picture = "chamfer.png"

    def __init__(self, config: Config, metadata: Mapping[str, Any]):
        super().__init__(config, metadata)
        self.norm: Norm = "l1" if config.model.chamfer == "l1" else "l2"
        self.score = f"chamfer_{self.norm}"
        self.class_names = metadata["class_names"]

    def training_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        points = scale_and_shift(sample_random(batch["points"], self.num_points))
        return (points,), points.new_empty(0, dtype=torch.long)

    def reconstruct(self, model: Any, batch: Batch) -> Batch:
        """What the model returns of each cloud under the mask that is always this cloud's."""
        groups, centers = model.patch_embed.group(sample_first(batch["points"], self.num_points))
        batch_size, num_groups, _ = centers.shape
        every = torch.full((batch_size,), num_groups, device=centers.device)
        mask = model.draw_mask(centers, seeded_index(every, batch["index"], num_groups, seed=self.seed))
        return model.reconstruct(groups, centers, mask, model.num_masked)

    def predict(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model says of the hidden groups and what they are, both ``(B, H, K, 3)``."""
        output = self.reconstruct(model, batch)
        return output["reconstruction"], output["target"]

    def features(self, model: Any, batch: Batch) -> Tensor:
        tokens = model.forward_features(sample_first(batch["points"], self.num_points))
        return torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1)

    def losses(self, logits: Tensor, truth: Tensor, batch: Batch) -> Tensor:
        distance = chamfer_distance(logits.flatten(0, 1), truth.flatten(0, 1), self.norm)
        return distance.view(truth.shape[:2]).mean(dim=1)

    def tally(self, logits: Tensor, truth: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return self.losses(logits, truth, batch), batch["label"]

    def scores(self, *tallies: Tensor) -> dict[str, Any]:
        distance, _ = tallies
        return {self.score: float(distance.double().mean())}

    def draw(self, path: Path, title: str, *tallies: Tensor) -> None:
        distance, label = tallies
        of_class = {
            name: 1000 * float(distance[label == i].mean()) for i, name in enumerate(self.class_names) if i in label
        }
        category_bars(
            of_class, path, title, f"mean {_NAMES[self.score]} of the class's clouds, thousandths", limit=None
        )


def make_task(config: Config, metadata: Mapping[str, Any]) -> Task:
    """The configured task on a dataset with this ``metadata``."""
    kinds: dict[str, type[Task]] = {
        "classification": Classification,
        "part_segmentation": PartSegmentation,
        "pretraining": Pretraining,
    }
    return kinds[config.task](config, metadata)


def describe_scores(scores: Mapping[str, Any]) -> str:
    """The scores of one protocol in a line for people."""
    names = {
        "instance_miou": "instance mIoU",
        "class_miou": "class mIoU",
        "oa": "overall accuracy" if "instance_miou" not in scores else "point accuracy",
        "macc": "mean class accuracy" if "instance_miou" not in scores else "mean part accuracy",
    }
    said = [f"{name} {scores[key]:.2f} %" for key, name in names.items() if key in scores]
    # one exponent for all, so that a column of them can be compared at a glance
    said += [f"{name} {1000 * scores[key]:.3f}e-3" for key, name in _NAMES.items() if key in scores]
    return ", ".join(said)


def score_line(split: str, protocol: str, scores: Mapping[str, Any]) -> str:
    """`describe_scores` with what is never left out: the split and the protocol."""
    return f"{split} split, {protocol}: {describe_scores(scores)}"
