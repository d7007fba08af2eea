"""From points to tokens: groups around sampled centers, each embedded by a small PointNet."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import farthest_point_sample, gather_points, group


class PointPatchEmbed(nn.Module):
    """Group a cloud around farthest-point centers and embed each group (Point-BERT, arXiv 2111.14819, section 3.1).

    A group goes through two shared MLPs, each followed by a maximum over the group; the first maximum is concatenated
    before every point's own features on the way into the second. The layers are linear on channels-last tensors, where
    the official code has 1×1 convolutions.

    Args:
        embed_dim: channels of a token.
        num_groups: tokens a cloud.
        group_size: points a token.
        encoder_dim: channels of the group encoder's output; where it differs from ``embed_dim`` (Point-BERT: 256), a
            linear projection follows.
        fps_min_norm: see `farthest_point_sample`.

    Shape:
        ``(B, N, 3)`` to tokens ``(B, num_groups, embed_dim)`` and centers ``(B, num_groups, 3)``; N ≥ group_size.
    """

    def __init__(
        self,
        embed_dim: int = 384,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dim: int | None = None,
        fps_min_norm: float | None = None,
    ):
        super().__init__()
        encoder_dim = encoder_dim or embed_dim
        self.num_groups = num_groups
        self.group_size = group_size
        self.fps_min_norm = fps_min_norm
        self.mlp1 = _mlp(3, 128, 256)
        self.mlp2 = _mlp(512, 512, encoder_dim)
        self.proj = nn.Linear(encoder_dim, embed_dim) if encoder_dim != embed_dim else nn.Identity()

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        groups, centers = self.group(points)
        return self.embed(groups), centers

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Groups ``(B, G, K, 3)`` as offsets from their centers, and the centers ``(B, G, 3)``, both float32."""
        points = points.float()
        index = farthest_point_sample(points, self.num_groups, min_norm=self.fps_min_norm)
        centers = gather_points(points, index)
        return group(points, centers, self.group_size), centers

    def embed(self, groups: Tensor) -> Tensor:
        """Tokens ``(B, G, embed_dim)`` of groups ``(B, G, K, 3)``."""
        batch, num_groups, size, _ = groups.shape
        local = self.mlp1(groups.reshape(-1, 3))
        shared = local.view(-1, size, 256).max(dim=1).values
        # linear(cat(shared, local)) in two products: the shared half once a group, not once a point
        first = cast(nn.Linear, self.mlp2[0])
        weight, bias = first.weight, first.bias
        hidden = F.linear(local, weight[:, 256:]).view(-1, size, 512)
        hidden = hidden + F.linear(shared, weight[:, :256], bias).unsqueeze(1)
        tokens = self.mlp2[1:](hidden.view(-1, 512))
        tokens = tokens.view(batch, num_groups, size, -1).max(dim=2).values
        return self.proj(tokens)


def _mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out_features),
    )


def position_embed(embed_dim: int) -> nn.Sequential:
    """Position embedding of Point-BERT and Point-MAE: an MLP on center coordinates, ``(..., 3)`` to ``(..., C)``."""
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, embed_dim))


def as_points(points: Tensor) -> Tensor:
    """Check that ``points`` is ``(B, N, 3)`` floating point, or raise `ValueError` saying what was given."""
    if not isinstance(points, torch.Tensor) or points.ndim != 3 or points.shape[-1] != 3:
        shape = tuple(points.shape) if isinstance(points, torch.Tensor) else type(points).__name__
        raise ValueError(f"points must be a (B, N, 3) tensor, got {shape}; drop normals with points[..., :3]")
    return points
