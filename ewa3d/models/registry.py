"""Models by name."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import Any

from .backbone import PointTransformer
from .classification import PointClassifier
from .pretraining import MaskedAutoencoder
from .segmentation import PartSegmenter

FAMILIES: dict[str, dict[str, Any]] = {"point_mae": {}, "point_bert": {"encoder_dim": 256}}
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},  # the official models
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
TASKS: dict[str, type[PointTransformer]] = {
    "classification": PointClassifier,
    "part_segmentation": PartSegmenter,
    "pretraining": MaskedAutoencoder,
}
# the classes of ModelNet40, the parts of ShapeNetPart
_NUM_CLASSES = {"classification": 40, "part_segmentation": 50}
_PRETRAINING = {"decoder_depth", "mask_ratio", "mask_type", "chamfer"}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, those matching a shell-style ``pattern``."""
    return fnmatch.filter([f"{family}_{size}" for family in FAMILIES for size in SIZES], pattern)


def create_model(
    name: str,
    task: str = "classification",
    *,
    num_classes: int | None = None,
    num_categories: int | None = None,
    pretrained: str | Path | None = None,
    **overrides: Any,
) -> PointTransformer:
    """Build a model.

    Args:
        name: one of `list_models`, e.g. ``point_mae_small``.
        task: ``classification`` (`PointClassifier`), ``part_segmentation`` (`PartSegmenter`) or ``pretraining``
            (`MaskedAutoencoder`; Point-MAE's, so for its family only).
        num_classes: size of the logits: classes, or the parts of all categories; not for pretraining. Where ``None``,
            as many as the head in ``pretrained`` has; else 40 classes, 50 parts.
        num_categories: part segmentation only: categories of whole shapes; where ``None``, as with ``num_classes``,
            else 16.
        pretrained: weights to start from: see `ewa3d.load_pretrained`.
        overrides: any of ``embed_dim``, ``depth``, ``num_heads``, ``num_groups`` (64), ``group_size`` (32),
            ``drop_path_rate`` (0.1), ``fps_min_norm`` (``None``; ``1e-3**0.5`` is the official rule); for
            pretraining ``decoder_depth`` (4), ``mask_ratio`` (0.6), ``mask_type`` (``random``), ``chamfer`` (``l2``).

    Returns:
        The model. Its ``config`` attribute is the call that makes it again: ``create_model(**model.config)``.

    Raises:
        ValueError: an unknown name, task or override, or one that is another task's; ``embed_dim`` that ``num_heads``
            does not divide.

    Example:
        >>> model = create_model("point_mae_small", num_classes=15, num_groups=128)
    """
    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(list_models())}"
        raise ValueError(f"unknown model {name!r}: {hint}")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    known = {"embed_dim", "depth", "num_heads", "num_groups", "group_size", "drop_path_rate", "fps_min_norm"}
    if task == "pretraining":
        known |= _PRETRAINING
    if unknown := sorted(set(overrides) - known):
        if unknown[0] in _PRETRAINING:
            raise ValueError(f"{unknown[0]} is for pretraining: leave it out, or take task='pretraining'")
        raise ValueError(f"unknown model option {unknown[0]!r}: choose from {', '.join(sorted(known))}")
    family, size = name.rsplit("_", 1)
    if task == "pretraining" and family != "point_mae":
        raise ValueError(f"pretraining is Point-MAE's, and {name} is none: take point_mae_{size}")
    arguments = FAMILIES[family] | SIZES[size] | overrides
    if arguments["embed_dim"] % arguments["num_heads"]:
        raise ValueError(f"embed_dim {arguments['embed_dim']} is no multiple of num_heads {arguments['num_heads']}")
    if pretrained is not None:
        from .pretrained import head_sizes, load_pretrained, read_weights

        found = head_sizes(read_weights(pretrained)[0], task)
        num_classes = found.get("num_classes") if num_classes is None else num_classes
        num_categories = found.get("num_categories") if num_categories is None else num_categories
    labels: dict[str, int] = {}
    if task != "pretraining":
        labels["num_classes"] = _NUM_CLASSES[task] if num_classes is None else num_classes
    elif num_classes is not None:
        raise ValueError("num_classes means nothing to pretraining, which uses no labels: leave it out")
    if task == "part_segmentation":
        labels["num_categories"] = 16 if num_categories is None else num_categories
    elif num_categories is not None:
        raise ValueError("num_categories is for part segmentation: leave it out, or take task='part_segmentation'")
    elif task == "classification":
        arguments["head_norm"] = family == "point_mae"
    build: Any = TASKS[task]
    model: PointTransformer = build(**labels, **arguments)
    model.config = {"name": name, "task": task, **labels, **overrides}
    if pretrained is not None:
        load_pretrained(model, pretrained)
    return model
