"""Self-supervised pretraining: the masked autoencoder of Point-MAE."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ops import chamfer_distance, gather_points, knn
from ..ops.chamfer import NORMS, Norm
from .backbone import PointTransformer, make_blocks
from .patch_embed import as_points, position_embed

MaskType = Literal["random", "block"]
MASK_TYPES = ("random", "block")


class MaskedAutoencoder(PointTransformer):
    """Point-MAE (Pang et al., ECCV 2022, arXiv 2203.06604, sections 3.1 to 3.3): most groups are hidden and rebuilt.

    `PointTransformer` encodes the visible groups alone; a shallow decoder, told where the hidden ones are, says which
    points they have. Only the encoder is kept afterwards: `ewa3d.load_pretrained` takes it into any other model.

    Hidden groups are not embedded at all, as in the paper; the official code embeds them and throws the tokens away,
    so that its BatchNorm sees them while training. In eval mode the numbers are the same.

    Args:
        decoder_depth: blocks of the decoder; they have the encoder's width and heads.
        mask_ratio: part of the groups that is hidden, rounded down.
        mask_type: ``random`` groups, or a ``block``: the groups nearest to a random one.
        chamfer: the loss: ``l2`` or ``l1``, see `ewa3d.ops.chamfer_distance`.
        kwargs: of `PointTransformer`.

    Shape:
        points ``(B, N, 3)`` and mask ``(B, G)`` bool, True = hidden, drawn where ``None``, to a dict of

        - ``loss ()``: mean Chamfer distance between hidden groups and what the decoder says of them;
        - ``reconstruction (B, H, K, 3)``: the H hidden groups of each cloud in their order, as offsets from their
          centers;
        - ``target (B, H, K, 3)``: what they are;
        - ``mask (B, G)``, ``centers (B, G, 3)``, ``groups (B, G, K, 3)``: of all groups.

    Raises:
        ValueError: a ``mask_ratio`` that hides no group or all, unknown names; when called, a mask of another shape or
            type, or one that does not hide equally many groups of every cloud.
    """

    no_experts = ("decoder",)  # it is not shipped: see `ewa3d.ewa.conversion.find_ffns`

    def __init__(
        self,
        decoder_depth: int = 4,
        mask_ratio: float = 0.6,
        mask_type: MaskType = "random",
        chamfer: Norm = "l2",
        *,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(num_heads=num_heads, drop_path_rate=drop_path_rate, **kwargs)
        num_groups, group_size = self.patch_embed.num_groups, self.patch_embed.group_size
        self.num_masked = int(mask_ratio * num_groups)
        if not 0 < self.num_masked < num_groups:
            raise ValueError(
                f"mask_ratio={mask_ratio} hides {self.num_masked} of {num_groups} groups: at least one must be hidden "
                "and one visible"
            )
        if mask_type not in MASK_TYPES:
            raise ValueError(f"unknown mask_type {mask_type!r}: choose {' or '.join(MASK_TYPES)}")
        if chamfer not in NORMS:
            raise ValueError(f"unknown chamfer {chamfer!r}: choose {' or '.join(NORMS)}")
        self.mask_type, self.chamfer = mask_type, chamfer
        self.apply(self._init_weights)  # so far, that is the encoder
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = MaskedDecoder(self.embed_dim, decoder_depth, num_heads, drop_path_rate)
        self.increase_dim = nn.Linear(self.embed_dim, 3 * group_size)

    def forward(self, points: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        groups, centers = self.patch_embed.group(as_points(points))
        if mask is None:
            return self.reconstruct(groups, centers, self.draw_mask(centers), self.num_masked)
        return self.reconstruct(groups, centers, mask, _count_masked(mask, centers))

    def forward_features(self, points: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised tokens of the visible groups in their order, ``(B, V, C)``; of all groups without a mask."""
        groups, centers = self.patch_embed.group(as_points(points))
        if mask is not None:
            visible, _ = _places(mask, _count_masked(mask, centers))
            groups, centers = _take(groups, visible), gather_points(centers, visible)
        return self.encode(self.patch_embed.embed(groups), self.pos_embed(centers))

    def draw_mask(self, centers: Tensor, order: Tensor | None = None) -> Tensor:
        """A mask of ``mask_type`` with ``mask_ratio`` of the groups hidden, ``(B, G)`` bool.

        Args:
            centers: ``(B, G, 3)``, of all groups.
            order: ``(B, G)`` int64, the groups of each cloud in random order, which decides everything; drawn where
                ``None``.
        """
        batch, num_groups, _ = centers.shape
        if order is None:
            order = torch.rand(batch, num_groups, device=centers.device).argsort(dim=1)
        masked = order[:, : self.num_masked]
        if self.mask_type == "block":
            middle = gather_points(centers, order[:, :1])
            masked = knn(middle, centers, self.num_masked).squeeze(1)
        return torch.zeros(batch, num_groups, dtype=torch.bool, device=centers.device).scatter(1, masked, True)

    def reconstruct(self, groups: Tensor, centers: Tensor, mask: Tensor, num_masked: int) -> dict[str, Tensor]:
        """What `forward` returns, of groups ``(B, G, K, 3)`` of which ``num_masked`` of every cloud are hidden.

        The number is given, and not asked of the mask, so that nobody waits for a GPU.
        """
        visible, masked = _places(mask, num_masked)
        seen, hidden = (gather_points(centers, places) for places in (visible, masked))
        tokens = self.encode(self.patch_embed.embed(_take(groups, visible)), self.pos_embed(seen))
        decoded = self.decoder(tokens, self.mask_token, seen, hidden)
        target = _take(groups, masked)
        reconstruction = self.increase_dim(decoded).view_as(target)
        distance = chamfer_distance(reconstruction.flatten(0, 1), target.flatten(0, 1), self.chamfer)
        return {
            "loss": distance.mean(),
            "reconstruction": reconstruction,
            "target": target,
            "mask": mask,
            "centers": centers,
            "groups": groups,
        }

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        """Of the official encoder: truncated normal weights of deviation 0.02, no biases."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class MaskedDecoder(nn.Module):
    """Point-MAE's decoder: the encoder's tokens and mask tokens through a few more blocks, with positions of their own.

    Args:
        embed_dim: C, channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        drop_path_rate: stochastic depth at the last block.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, drop_path_rate: float):
        super().__init__()
        self.blocks = make_blocks(embed_dim, depth, num_heads, drop_path_rate)
        self.norm = nn.LayerNorm(embed_dim)
        self.apply(self._init_weights)
        self.pos_embed = position_embed(embed_dim)  # with PyTorch's own initial values, as officially

    def forward(self, tokens: Tensor, mask_token: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Tokens of the hidden groups.

        Args:
            tokens: ``(B, V, C)``, of the visible groups.
            mask_token: ``(1, 1, C)``, what stands for each hidden one.
            visible: ``(B, V, 3)``, centers.
            masked: ``(B, H, 3)``, centers.

        Returns:
            ``(B, H, C)``.
        """
        hidden = mask_token.to(tokens.dtype).expand(*masked.shape[:2], -1)
        tokens = torch.cat([tokens, hidden], dim=1)
        position = self.pos_embed(torch.cat([visible, masked], dim=1))
        for block in self.blocks:
            tokens = block(tokens + position)
        return self.norm(tokens[:, visible.shape[1] :])

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _count_masked(mask: Tensor, centers: Tensor) -> int:
    """How many groups of each cloud a mask hides; raises `ValueError` where it is no such mask."""
    if mask.dtype != torch.bool or mask.shape != centers.shape[:2]:
        raise ValueError(
            f"mask must be bool {tuple(centers.shape[:2])}, True where a group is hidden, got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    counts = mask.sum(dim=1).tolist()
    if len(set(counts)) != 1 or not 0 < counts[0] < mask.shape[1]:
        raise ValueError(
            f"mask must hide equally many groups of every cloud, and neither none nor all, got {sorted(set(counts))} "
            f"of {mask.shape[1]}"
        )
    return int(counts[0])


def _places(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Places of the visible groups ``(B, V)`` and of the hidden ones ``(B, H)``, each in their order."""
    places = mask.byte().argsort(dim=1, stable=True)
    return places[:, : mask.shape[1] - num_masked], places[:, mask.shape[1] - num_masked :]


def _take(groups: Tensor, places: Tensor) -> Tensor:
    """Groups ``(B, G, K, 3)`` at places ``(B, n)``: ``(B, n, K, 3)``."""
    return gather_points(groups.flatten(2), places).unflatten(2, groups.shape[2:])
