"""Predictions for whole clouds, however many points they have."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import PartSegmenter

_POINTS_AT_ONCE = 1 << 15


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
    groups = model.forward_features(sample)
    chunks = points.split(max(1, _POINTS_AT_ONCE // len(points)), dim=1)
    return torch.cat([model.forward_head(groups, chunk, category) for chunk in chunks], dim=1)
