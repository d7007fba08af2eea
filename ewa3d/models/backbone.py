"""The point-cloud transformer that every head stands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .hub import HubModel
from .patch_embed import PointPatchEmbed, position_embed


def make_blocks(embed_dim: int, depth: int, num_heads: int, drop_path_rate: float) -> nn.ModuleList:
    """Transformer blocks; stochastic depth rises linearly from 0 at the first to ``drop_path_rate`` at the last."""
    rates = (drop_path_rate * i / max(depth - 1, 1) for i in range(depth))
    return nn.ModuleList(Block(embed_dim, num_heads, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates)


class PointTransformer(nn.Module, HubModel):
    """Group tokens through a standard pre-norm transformer (Point-BERT, arXiv 2111.14819; Point-MAE, 2203.06604).

    The blocks are timm's (scaled dot-product attention, exact GELU); the position embedding of the group centers is
    added before **every** block, as the official models do.

    Args:
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        num_groups: tokens a cloud.
        group_size: points a token.
        encoder_dim: channels of the group encoder, ``embed_dim`` where ``None``.
        drop_path_rate: stochastic depth, rising linearly from 0 at the first block to this at the last.
        fps_min_norm: see `ewa3d.ops.farthest_point_sample`.
    """

    config: dict[str, Any]  # the create_model call that makes this model again
    metadata: dict[str, Any]  # what an export says besides: class names, dataset

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dim: int | None = None,
        drop_path_rate: float = 0.1,
        fps_min_norm: float | None = None,
    ):
        super().__init__()
        self.config, self.metadata = {}, {}
        self.embed_dim = embed_dim
        self.patch_embed = PointPatchEmbed(embed_dim, num_groups, group_size, encoder_dim, fps_min_norm)
        self.pos_embed = position_embed(embed_dim)
        self.blocks: Any = make_blocks(embed_dim, depth, num_heads, drop_path_rate)
        self.norm = nn.LayerNorm(embed_dim)

    def encode(self, tokens: Tensor, position: Tensor) -> Tensor:
        """All blocks and the final norm: tokens and their position embeddings, both ``(B, T, C)``, to ``(B, T, C)``."""
        return self.encode_levels(tokens, position, [len(self.blocks)])[0]

    def encode_levels(self, tokens: Tensor, position: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """Like `encode`, after each of ``levels`` blocks; the norm is the same one."""
        outputs = {}
        for i, block in enumerate(self.blocks, 1):
            tokens = block(tokens + position)
            if i in levels:
                outputs[i] = self.norm(tokens)
        return [outputs[level] for level in levels]

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which layer a parameter is of, as timm asks for it: what makes tokens is the first, then the blocks with
        their experts; the norm, heads and whatever else there is are the last.
        """
        return {"stem": r"^(?:cls_token|cls_pos|pos_embed|patch_embed)", "blocks": r"^blocks\.(\d+)"}
