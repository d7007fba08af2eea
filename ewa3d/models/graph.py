"""A plain model as a graph for other runtimes: `torch.export`'s format, and ONNX."""

from __future__ import annotations

import io
import json
import warnings
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..errors import Ewa3dError
from ..files import write_atomically
from .backbone import PointTransformer
from .pretraining import MaskedAutoencoder
from .segmentation import PartSegmenter


def export_program(model: PointTransformer) -> ExportedProgram:
    """The graph of a model in eval mode, by `torch.export`: sampling and grouping are in it.

    Inputs are ``points`` ``(B, N, 3)`` float32, for any B and any N of at least the model's group size, and, of a part
    segmentation model, ``category`` ``(B,)`` int64; the output are the logits. All N points are sampled: give it as
    many as the model was trained with.

    Args:
        model: plain, for classification or part segmentation; left as it is.

    Raises:
        ValueError: a model for pretraining, whose output is a loss.
    """
    copy, inputs, sizes = _traceable(model)
    limits = {"batch": Dim("batch", min=1, max=1 << 16)}
    limits["points"] = Dim("points", min=copy.patch_embed.group_size, max=1 << 24)
    dynamic = {name: {axis: limits[size] for axis, size in axes.items()} for name, axes in sizes.items()}
    with torch.no_grad():  # the graph is for inference, and switches gradients neither on nor off
        return torch.export.export(copy, inputs, dynamic_shapes=dynamic)


def save_program(model: PointTransformer, path: Path) -> None:
    """Write `export_program`'s graph; ``torch.export.load(path).module()`` runs it without ewa3d."""
    content = io.BytesIO()
    torch.export.save(export_program(model), content)
    write_atomically(path, content.getvalue())


def save_onnx(model: PointTransformer, path: Path) -> None:
    """Write the same graph as ONNX; the model's ``metadata`` (class names, …) go along as JSON strings.

    Raises:
        Ewa3dError: the packages for ONNX are not installed.
        ValueError: see `export_program`.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise Ewa3dError("format='onnx' needs the packages onnx and onnxscript: pip install 'ewa3d[onnx]'")
    copy, inputs, sizes = _traceable(model)
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "output_names": ["logits"], "dynamic_shapes": sizes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        exported: Any = torch.onnx.export(copy, inputs, **options)
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in model.metadata.items()})
    write_atomically(path, exported.model_proto.SerializeToString())


def _traceable(model: PointTransformer) -> tuple[Any, tuple[Tensor, ...], dict[str, dict[int, str]]]:
    """A copy of the model to be traced, inputs to trace it with, and the names of their axes of any size."""
    if isinstance(model, MaskedAutoencoder):
        raise ValueError("a model for pretraining computes a loss, which is no graph to deploy: fine-tune it first")
    copy: Any = deepcopy(model).cpu().eval().requires_grad_(False)
    inputs: tuple[Tensor, ...] = (torch.rand(2, 4 * copy.patch_embed.group_size, 3),)
    sizes = {"points": {0: "batch", 1: "points"}}
    if isinstance(copy, PartSegmenter):
        inputs += (torch.zeros(2, dtype=torch.long),)
        sizes["category"] = {0: "batch"}
    return copy, inputs, sizes
