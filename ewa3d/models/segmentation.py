"""Part segmentation with the head of Point-MAE."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import three_nn_interpolate
from .backbone import PointTransformer
from .patch_embed import as_points


class GroupFeatures(NamedTuple):
    """What the segmentation head decodes points from."""

    features: Tensor  # (B, G, 3C)
    centers: Tensor  # (B, G, 3)


class PartSegmenter(PointTransformer):
    """`PointTransformer` with Point-MAE's part segmentation head (arXiv 2203.06604).

    Features after a third, two thirds and all of the blocks are concatenated; `PartHead` carries them to any points.

    Args:
        num_classes: parts of all categories: size of the logits.
        num_categories: categories of whole shapes; the head is told which one a shape is of.
        kwargs: of `PointTransformer`.

    Shape:
        points ``(B, N, 3)`` and category ``(B,)`` int64 to logits ``(B, N, num_classes)``.
    """

    def __init__(self, num_classes: int = 50, num_categories: int = 16, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_categories = num_categories
        self.head = PartHead(self.embed_dim, num_classes, num_categories)

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(points), points, category)

    def forward_features(self, points: Tensor) -> GroupFeatures:
        """Features of the groups and where these are."""
        tokens, centers = self.patch_embed(as_points(points))
        depth = len(self.blocks)
        levels = [-(-depth * third // 3) for third in (1, 2, 3)]
        return GroupFeatures(torch.cat(self.encode_levels(tokens, self.pos_embed(centers), levels), dim=-1), centers)

    def forward_head(self, groups: GroupFeatures, points: Tensor, category: Tensor) -> Tensor:
        """Logits ``(B, N, num_classes)`` of any points ``(B, N, 3)`` of the clouds that the groups were cut from."""
        return self.head(groups, as_points(points), category)

    def reset_classifier(self, num_classes: int, num_categories: int | None = None) -> None:
        """A fresh head for other parts, and other categories where given."""
        self.num_classes, self.num_categories = num_classes, num_categories or self.num_categories
        self.head = PartHead(self.embed_dim, num_classes, self.num_categories).to(self.norm.weight.device)


class PartHead(nn.Module):
    """Point-MAE's part segmentation head: group features are interpolated to points, and classified there.

    Two of its layers take a concatenation of something that every point has for itself and something that it shares,
    with the cloud or with the groups it is interpolated from. A product with a concatenation is a sum of products, and
    interpolation is linear with weights of sum 1, so the shared part is computed once a cloud or once a group and not
    once a point: the numbers are the official head's, at less than half of its multiplications.

    Args:
        embed_dim: C, channels of a token. The widths follow it; at 384 they are the official ones.
        num_classes: parts of all categories.
        num_categories: categories of shapes.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_categories: int):
        super().__init__()
        features = 3 * embed_dim
        widths = [4 * embed_dim, 8 * embed_dim // 3, 4 * embed_dim // 3, 2 * embed_dim // 3]
        self.num_categories = num_categories
        self.category_embed = nn.Sequential(
            nn.Linear(num_categories, 64, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2)
        )
        self.propagate = nn.Sequential(
            nn.Linear(3 + features, widths[0]),
            nn.BatchNorm1d(widths[0]),
            nn.ReLU(inplace=True),
            nn.Linear(widths[0], widths[1]),
            nn.BatchNorm1d(widths[1]),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Sequential(
            nn.Linear(widths[1] + 2 * features + 64, widths[2]),
            nn.BatchNorm1d(widths[2]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(widths[2], widths[3]),
            nn.BatchNorm1d(widths[3]),
            nn.ReLU(inplace=True),
            nn.Linear(widths[3], num_classes),
        )

    def forward(self, groups: GroupFeatures, points: Tensor, category: Tensor) -> Tensor:
        features, centers = groups
        batch, count, _ = points.shape
        one_hot = F.one_hot(category, self.num_categories).to(features.dtype)
        shared = torch.cat(
            [features.max(dim=1).values, features.mean(dim=1), self.category_embed(one_hot)], dim=-1
        )  # (B, 6C + 64): official order

        first = cast(nn.Linear, self.propagate[0])
        carried = three_nn_interpolate(points, centers, F.linear(features, first.weight[:, 3:], first.bias))
        hidden = (carried + F.linear(points.to(first.weight.dtype), first.weight[:, :3])).flatten(0, 1)
        hidden = self.propagate[1:](hidden)  # (B·N, 8C/3)

        first = cast(nn.Linear, self.classify[0])
        own = first.in_features - shared.shape[1]
        hidden = F.linear(hidden, first.weight[:, :own]).view(batch, count, -1)
        hidden = hidden + F.linear(shared, first.weight[:, own:], first.bias).unsqueeze(1)
        return self.classify[1:](hidden.flatten(0, 1)).view(batch, count, -1)
