"""From points to tokens: groups around sampled centers, each embedded by a small PointNet."""

from __future__ import annotations

from typing import Any

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
        self.mlp1: Any = _mlp(3, 128, 256)
        self.mlp2: Any = _mlp(512, 512, encoder_dim)
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
        """Tokens ``(B, G, embed_dim)`` of groups ``(B, G, K, 3)``.

        What the modules say, ``mlp2(cat(max(local), local))`` of ``local = mlp1(groups)``, in fewer products: the half
        of ``mlp2``'s first layer that reads the maximum is applied once a group, not once a point; the half that reads
        ``local`` follows upon ``mlp1``'s last layer with nothing in between, so the two are one layer.
        """
        batch, num_groups, size, _ = groups.shape
        last, first, norm = self.mlp1[3], self.mlp2[0], self.mlp2[1]
        weight, bias = first.weight, first.bias
        if not norm.training:  # a fixed scale and shift of every channel: into the layer before it
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weight, bias = weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias
        from_shared, from_local = weight.chunk(2, dim=1)

        hidden = self.mlp1[:3](groups.reshape(-1, 3)).view(batch * num_groups, size, -1)
        shared = _max_of_linear(hidden, last)
        hidden = F.linear(hidden, from_local @ last.weight)
        hidden += F.linear(shared, from_shared, bias + from_local @ last.bias).unsqueeze(1)
        if norm.training:
            hidden = norm(hidden.flatten(0, 1)).view_as(hidden)
        tokens = _max_of_linear(F.relu_(hidden), self.mlp2[3])
        return self.proj(tokens.view(batch, num_groups, -1))


def _max_of_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(x).max(dim=1).values`` of ``x (G, K, C)``: ``(G, C')``. Of equal maxima one gets the gradient.

    Pooling over channels-last images is several times faster on a CPU than ``max(dim=1)``; the bias moves no maximum.
    """
    y = F.linear(x, linear.weight)
    pooled = F.max_pool2d(y.unsqueeze(2).permute(0, 3, 1, 2), (x.shape[1], 1)).permute(0, 2, 3, 1)
    return pooled.flatten(1) + linear.bias.to(pooled.dtype)


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
    """Check that ``points`` is ``(B, N, 3)`` of any floating type, or raise `ValueError` saying what was given."""
    if not isinstance(points, torch.Tensor) or points.ndim != 3 or points.shape[-1] != 3:
        shape = tuple(points.shape) if isinstance(points, torch.Tensor) else type(points).__name__
        raise ValueError(f"points must be a (B, N, 3) tensor, got {shape}; drop normals with points[..., :3]")
    if not points.is_floating_point():
        raise ValueError(f"points must be floating point, got {points.dtype}; convert them with points.float()")
    return points
