"""Between our state dicts and those of the official Point-MAE and Point-BERT code, both ways, losslessly.

The official modules and ours hold the same numbers under other names; their 1×1 convolutions hold them with a last
dimension of 1. Facts: the public Point-MAE (commit 7445a68) and Point-BERT (ce5a6e1) sources.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from torch import Tensor

# (official prefix, our prefix); the first that matches counts
_PREFIXES = (
    ("encoder.first_conv.", "patch_embed.mlp1."),
    ("encoder.second_conv.", "patch_embed.mlp2."),
    ("reduce_dim.", "patch_embed.proj."),
    ("blocks.blocks.", "blocks."),
    ("label_conv.", "head.category_embed."),
    ("propagation_0.mlp_convs.0.", "head.propagate.0."),
    ("propagation_0.mlp_bns.0.", "head.propagate.1."),
    ("propagation_0.mlp_convs.1.", "head.propagate.3."),
    ("propagation_0.mlp_bns.1.", "head.propagate.4."),
    ("convs1.", "head.classify.0."),
    ("bns1.", "head.classify.1."),
    ("convs2.", "head.classify.4."),
    ("bns2.", "head.classify.5."),
    ("convs3.", "head.classify.7."),
    ("cls_head_finetune.", "head."),
    ("decoder_pos_embed.", "decoder.pos_embed."),
    ("MAE_decoder.", "decoder."),
    ("increase_dim.0.", "increase_dim."),
)
_SAME = ("cls_token", "cls_pos", "mask_token", "pos_embed.", "norm.")
_CONVOLUTIONS = (
    "patch_embed.mlp1.",
    "patch_embed.mlp2.",
    "head.category_embed.",
    "head.propagate.",
    "head.classify.",
    "increase_dim.",
)

# what precedes the encoder's keys in the files of pretrained models
_PRETRAINING = ("MAE_encoder.", "transformer_q.")
_NOT_ENCODER = ("transformer_q.cls_head", "transformer_q.mask_token")
# what our keys of a pretraining model begin with where they are not the encoder's
_NOT_ENCODER_OURS = ("mask_token", "decoder.", "increase_dim.")


def our_key(key: str) -> str | None:
    """Our name of an official key, or ``None`` where our models have nothing of the kind."""
    for theirs, ours in _PREFIXES:
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key if key.startswith(_SAME) else None


def official_key(key: str) -> str | None:
    """The official name of one of our keys, or ``None``."""
    for theirs, ours in _PREFIXES:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    return key if key.startswith(_SAME) else None


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the official names (wrapped or of a pretraining model, too)."""
    return any("encoder.first_conv." in key for key in state)


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Official keys without ``module.`` and a pretrained encoder's prefix: ``{bare key: (key in the file, value)}``.

    In a pretraining file only the encoder's keys (``MAE_encoder.…``, ``transformer_q.…``) lose their prefix, and
    Point-BERT's ``transformer_q.cls_head`` and ``transformer_q.mask_token`` keep it: they are no part of the backbone,
    nor what Point-MAE calls so.
    """
    stripped = {}
    for original, value in state.items():
        key = original.removeprefix("module.")
        if not key.startswith(_NOT_ENCODER):
            for prefix in _PRETRAINING:
                key = key.removeprefix(prefix)
        stripped[key] = (original, value)
    return stripped


def from_official(
    state: Mapping[str, Tensor], known: Container[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate an official state dict to our names and shapes.

    Args:
        state: of any of the official models.
        known: the keys of our model, where only these are wanted.

    Returns:
        Our state dict, and the keys (as the file has them) that have no counterpart in our models, or in this one.
    """
    ours: dict[str, Tensor] = {}
    left_over = []
    for key, (original, value) in strip_wrappers(state).items():
        name = our_key(key)
        if name is None or (known is not None and name not in known):
            left_over.append(original)
        else:
            is_kernel = name.startswith(_CONVOLUTIONS) and value.ndim == 3 and value.shape[-1] == 1
            ours[name] = value.squeeze(-1) if is_kernel else value
    return ours, left_over


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate our state dict to the official names and shapes.

    Raises:
        ValueError: a key that the official models do not have (experts: merge them first).
    """
    theirs: dict[str, Tensor] = {}
    encoder = "MAE_encoder." if "mask_token" in state else ""
    for key, value in state.items():
        name = official_key(key)
        if name is None or ".experts." in key:
            raise ValueError(f"{key} has no official counterpart" + (": merge the experts first" if name else ""))
        is_kernel = key.startswith(_CONVOLUTIONS) and key.endswith("weight") and value.ndim == 2
        prefix = "" if key.startswith(_NOT_ENCODER_OURS) else encoder
        theirs[prefix + name] = value.unsqueeze(-1) if is_kernel else value
    return theirs
