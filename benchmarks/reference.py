"""The baseline of the benchmarks: the Point-MAE classifier written the straightforward way.

The same architecture and the same keys as the official code, in the form that its facts suggest at first reading: 1×1
convolutions on channels-first tensors, the global feature expanded and concatenated before every point, attention
spelled out, farthest point sampling as in the textbooks, augmentation of one cloud at a time in the loader, PyTorch's
default AdamW. It loads what ``ewa3d.save_pretrained(format="official")`` writes and computes the same logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ewa3d.data import PointClouds
from ewa3d.models import PointClassifier
from ewa3d.models.official import to_official


def farthest_point_sample(points: Tensor, num_samples: int) -> Tensor:
    """The textbook loop: ``(B, N, 3)`` to indices ``(B, num_samples)``, starting at point 0."""
    batch, count, _ = points.shape
    picks = torch.zeros(batch, num_samples, dtype=torch.long, device=points.device)
    nearest = torch.full((batch, count), 1e10, device=points.device)
    pick = torch.zeros(batch, dtype=torch.long, device=points.device)
    rows = torch.arange(batch, device=points.device)
    for i in range(num_samples):
        picks[:, i] = pick
        center = points[rows, pick, :].view(batch, 1, 3)
        distance = torch.sum((points - center) ** 2, dim=-1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        pick = nearest.max(dim=-1)[1]
    return picks


def knn(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices ``(B, M, k)`` of the nearest points, by all pairwise distances."""
    return torch.cdist(queries, points).topk(k, dim=-1, largest=False)[1]


class Group(nn.Module):
    def __init__(self, num_groups: int, group_size: int):
        super().__init__()
        self.num_groups, self.group_size = num_groups, group_size

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, _ = points.shape
        rows = torch.arange(batch, device=points.device)[:, None]
        centers = points[rows, farthest_point_sample(points, self.num_groups)]
        index = knn(centers, points, self.group_size)
        index = (index + torch.arange(batch, device=points.device).view(-1, 1, 1) * count).view(-1)
        groups = points.reshape(batch * count, 3)[index].view(batch, self.num_groups, self.group_size, 3)
        return groups - centers.unsqueeze(2), centers


class Encoder(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(inplace=True), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Conv1d(512, channels, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        batch, num_groups, size, _ = groups.shape
        points = groups.reshape(batch * num_groups, size, 3)
        feature = self.first_conv(points.transpose(2, 1))
        shared = torch.max(feature, dim=2, keepdim=True)[0]
        feature = torch.cat([shared.expand(-1, -1, size), feature], dim=1)
        feature = self.second_conv(feature)
        return torch.max(feature, dim=2)[0].reshape(batch, num_groups, self.channels)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ReferenceClassifier(nn.Module):
    """Point-MAE's classifier under the official keys: ``(B, N, 3)`` to logits ``(B, num_classes)``."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, num_groups: int, group_size: int, num_classes: int, drop_path: float
    ):
        super().__init__()
        self.group_divider = Group(num_groups, group_size)
        self.encoder = Encoder(dim)
        self.cls_token, self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks: Any = nn.ModuleDict({"blocks": nn.ModuleList(Block(dim, num_heads, rate) for rate in rates)})
        self.norm = nn.LayerNorm(dim)
        self.cls_head_finetune = nn.Sequential(
            *(nn.Linear(2 * dim, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            nn.Linear(256, num_classes),
        )

    def forward(self, points: Tensor) -> Tensor:
        groups, centers = self.group_divider(points)
        tokens = self.encoder(groups)
        batch = tokens.shape[0]
        x = torch.cat((self.cls_token.expand(batch, -1, -1), tokens), dim=1)
        pos = torch.cat((self.cls_pos.expand(batch, -1, -1), self.pos_embed(centers)), dim=1)
        for block in self.blocks["blocks"]:
            x = block(x + pos)
        x = self.norm(x)
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))


def reference_of(model: PointClassifier) -> ReferenceClassifier:
    """The reference with the options and the weights of one of our plain Point-MAE classifiers, in the same mode."""
    block = model.blocks[-1]
    reference = ReferenceClassifier(
        model.embed_dim,
        len(model.blocks),
        block.attn.num_heads,
        model.patch_embed.num_groups,
        model.patch_embed.group_size,
        model.num_classes,
        getattr(block.drop_path1, "drop_prob", 0.0),
    )
    reference.load_state_dict(to_official(model.state_dict()))
    return reference.train(model.training)


class AugmentedClouds(Dataset):
    """One augmented cloud at a time: a random draw of ``num_points``, scaled and shifted axis by axis."""

    def __init__(self, dataset: PointClouds, num_points: int):
        self.points, self.labels = dataset.points.numpy(), dataset.labels.numpy()
        self.num_points = num_points

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        points = self.points[index]
        points = points[np.random.choice(len(points), self.num_points, replace=False)]
        scale = np.random.uniform(2 / 3, 3 / 2, size=3)
        shift = np.random.uniform(-0.2, 0.2, size=3)
        return torch.from_numpy((points * scale + shift).astype(np.float32)), self.labels[index]


def reference_loader(dataset: PointClouds, num_points: int, batch_size: int) -> DataLoader:
    """Shuffled whole batches of `AugmentedClouds`, in this process."""
    return DataLoader(AugmentedClouds(dataset, num_points), batch_size, shuffle=True, drop_last=True)
