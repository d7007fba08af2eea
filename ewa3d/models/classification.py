"""Whole-cloud classification with the heads of Point-MAE and Point-BERT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .backbone import PointTransformer
from .patch_embed import as_points


class PointClassifier(PointTransformer):
    """`PointTransformer` with a class token and a classification head on ``cat(class token, max over groups)``.

    Args:
        num_classes: size of the logits.
        head_norm: BatchNorm in the head and a second hidden layer, as Point-MAE has and Point-BERT has not.
        kwargs: of `PointTransformer`.

    Shape:
        points ``(B, N, 3)`` to logits ``(B, num_classes)``.
    """

    def __init__(self, num_classes: int = 40, head_norm: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.head_norm = head_norm
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, self.embed_dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_pos, std=0.02)
        self.head = self._make_head()

    def forward(self, points: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(points))

    def forward_features(self, points: Tensor) -> Tensor:
        """Normalised tokens ``(B, 1 + num_groups, C)``, the class token first."""
        tokens, centers = self.patch_embed(as_points(points))
        batch = points.shape[0]
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1).to(tokens.dtype), tokens], dim=1)
        position = self.pos_embed(centers)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1).to(position.dtype), position], dim=1)
        return self.encode(tokens, position)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of `forward_features`' tokens; with ``pre_logits`` the pooled features ``(B, 2C)`` instead."""
        pooled = torch.cat([features[:, 0], features[:, 1:].max(dim=1).values], dim=-1)
        return pooled if pre_logits else self.head(pooled)

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh head for ``num_classes`` classes."""
        self.num_classes = num_classes
        self.head = self._make_head().to(self.cls_token.device)

    def _make_head(self) -> nn.Sequential:
        features = 2 * self.embed_dim
        if not self.head_norm:
            return nn.Sequential(
                nn.Linear(features, 256), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(256, self.num_classes)
            )
        hidden: list[nn.Module] = []
        for width in (features, 256):
            hidden += [nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        return nn.Sequential(*hidden, nn.Linear(256, self.num_classes))
