"""Weights in and out: official files, our exports, bare state dicts."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..errors import Ewa3dError, first_line
from ..ewa import RoutedExperts, expert_layers, upcycle
from ..files import write_atomically
from .backbone import PointTransformer
from .graph import save_onnx, save_program
from .hub import download
from .official import from_official, is_official, to_official
from .registry import create_model
from .relatives import name_relative
from .segmentation import PartSegmenter

_SUFFIXES = {"official": ".pth", "onnx": ".onnx", "pt2": ".pt2"}  # of save_pretrained's single files
_TOLD = 4  # keys of a kind that a report names
_COUNTS = {"depth", "decoder_depth", "num_experts"}  # options of which every one more makes more weights
_SPARE = 10_000_000  # values by which a model and its file may differ before the model is made
_CONTAINERS = ("base_model", "model", "model_state_dict", "state_dict")

# where a shape that differs means another architecture; elsewhere (a head for other classes) it is left fresh
_BACKBONE = ("patch_embed.", "pos_embed.", "blocks.", "norm.", "cls_token", "cls_pos")


@dataclass
class LoadReport:
    """What `load_pretrained` did, key by key; ``str(report)`` is the summary for a person.

    ``missing`` are the model's keys that the file lacks (they keep their initial values), ``unexpected`` the file's
    keys, as it spells them, that the model lacks, ``mismatched`` the keys whose shapes differ: ``(key, file, model)``.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"matched {len(self.matched)} keys"]
        for name in ("missing", "unexpected"):
            keys = getattr(self, name)
            if keys:
                lines.append(f"{name} {len(keys)}: {_shorten(keys)}")
        for key, theirs, ours in self.mismatched[:_TOLD]:
            lines.append(f"shape of {key}: {theirs} in the file, {ours} in the model; left at its initial value")
        if (more := len(self.mismatched) - _TOLD) > 0:
            lines.append(f"shapes of {more} more keys differ")
        return "\n".join(lines)


def load_pretrained(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = False) -> LoadReport:
    """Load weights into ``model``, in place.

    Args:
        model: a plain model (load first, upcycle after).
        path: an official Point-MAE or Point-BERT file (pretraining, classifier or part segmentation), a bare ``.pth``
            state dict, a ``.safetensors`` file, or a folder that `save_pretrained` wrote.
        strict: raise unless every key matches.

    Returns:
        A `LoadReport`. Keys that are missing or differ in shape (a head for other classes) keep their initial values.

    Raises:
        Ewa3dError: the file is absent, unreadable, holds more than tensors and plain values, is of another
            architecture or of a backbone of other sizes, or none of its keys matches; with ``strict``, any difference.
            The model is as it was then.
    """
    own = model.state_dict()
    state, left_over = read_weights(path, own)
    report = LoadReport(unexpected=list(left_over))
    for key, value in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif value.shape != own[key].shape:
            report.mismatched.append((key, tuple(value.shape), tuple(own[key].shape)))
        else:
            report.matched.append(key)
    report.missing = [key for key in own if key not in state]
    if not report.matched:
        raise Ewa3dError(f"{path}: none of its {len(state) + len(left_over)} keys fits {type(model).__name__}")
    blocks = [key for key in own if key.startswith("blocks.")]
    if blocks and not any(key in state for key in blocks):
        raise Ewa3dError(
            f"{path}: {len(report.matched)} of its keys fit {type(model).__name__}, none of its transformer blocks: it "
            "is of another architecture; take weights of Point-MAE or Point-BERT"
        )
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise Ewa3dError(f"{path} does not fit {type(model).__name__} exactly: " + "; ".join(str(report).split("\n")))
    if other := [shapes for shapes in report.mismatched if shapes[0].startswith(_BACKBONE)]:
        key, theirs, ours = other[0]
        more = f" and {len(other) - 1} more keys" if len(other) > 1 else ""
        raise Ewa3dError(
            f"{path}: its backbone is {_describe_sizes(state)}, this model's {_describe_sizes(own)} ({key}{more}: "
            f"{theirs} in the file, {ours} in the model): create the model that the file is of"
        )
    model.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report


def read_weights(
    path: str | os.PathLike[str], known: Container[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file or export folder under our names, and the official keys that have no name of ours.

    With ``known``, an official key also counts as nameless where its name is none of these.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise Ewa3dError(f"{path}: no such weights file: name a .pth or .safetensors file, or the export of a run")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except Exception as error:  # its own errors, the system's, and those of types that PyTorch lacks
            raise Ewa3dError(f"{path} is no readable safetensors file ({first_line(error)}): get it again") from error
    else:
        state = _load_pth(path)
        for container in _CONTAINERS:
            if isinstance(state.get(container), Mapping):
                state = state[container]
                break
        state = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if relative := name_relative(state):
        raise Ewa3dError(f"{path}: {relative}; take weights of Point-MAE or Point-BERT")
    if is_official(state):
        return from_official(state, known)
    return {key.removeprefix("module."): value for key, value in state.items()}, []


# the bias of the last layer of each task's head
_OUTPUTS = {
    "classification": re.compile(r"head\.(\d+)\.bias"),
    "part_segmentation": re.compile(r"head\.classify\.(\d+)\.bias"),
}


def head_sizes(state: Mapping[str, Tensor], task: str) -> dict[str, int]:
    """The options of `create_model` that a task's head in a state dict (under our names) tells; empty without one."""
    sizes = {}
    if task in _OUTPUTS:
        layers = {int(found[1]): len(state[key]) for key in state if (found := _OUTPUTS[task].fullmatch(key))}
        if layers:
            sizes["num_classes"] = layers[max(layers)]
    if task == "part_segmentation" and "head.category_embed.0.weight" in state:
        sizes["num_categories"] = state["head.category_embed.0.weight"].shape[1]
    return sizes


def save_pretrained(
    model: PointTransformer,
    path: str | os.PathLike[str],
    format: str = "ewa3d",
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a plain model, or one with a learned router.

    Args:
        model: from `create_model` or `merge`; or with routed experts, which only ``ewa3d`` can hold.
        path: a folder for ``ewa3d``; else a file (its suffix is added where it has none).
        format: ``ewa3d`` (``model.safetensors`` and ``config.json``, which `from_pretrained` reads), ``official``
            (the ``.pth`` that the Point-MAE or Point-BERT code loads), or the model as a graph: ``onnx``, or ``pt2``
            for ``torch.export.load``; see `export_program`.
        metadata: more for ``config.json`` (a run adds ``class_names`` and ``data``); `from_pretrained` gives it back as
            the model's ``metadata``.

    Returns:
        The folder or file written.

    Raises:
        ValueError: the model still has experts that are to be merged, an unknown format, a model that has no official
            counterpart.
    """
    check_format(model, format)
    layers = expert_layers(model)
    path = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if format == "ewa3d":
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "model.safetensors", save(state, metadata={"format": "pt"}))
        config = {"model": model.config, **(model.metadata if metadata is None else metadata)}
        if layers:
            first = next(iter(layers.values()))
            call = {"num_experts": first.num_experts, "routing": first.routing, **first.options()}
            config["experts"] = {"where": list(layers), **call}
        write_atomically(path / "config.json", json.dumps(config, indent=2) + "\n")
        return path
    path = path if path.suffix else path.with_suffix(_SUFFIXES[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "official":
        content = io.BytesIO()
        theirs = to_official(state)
        if isinstance(model, PartSegmenter):
            torch.save({"model_state_dict": theirs, "epoch": 0}, content)
        else:
            torch.save({"base_model": theirs, "epoch": 0, "metrics": {}, "best_metrics": {}}, content)
        write_atomically(path, content.getvalue())
    elif format == "onnx":
        save_onnx(model, path)
    else:
        save_program(model, path)
    return path


def check_format(model: nn.Module, format: str) -> None:
    """Raise `ValueError` where `save_pretrained` cannot write a model in a format."""
    for name, layer in expert_layers(model).items():
        if format != "ewa3d" or not isinstance(layer, RoutedExperts):
            raise ValueError(f"{name} is an expert layer: save ewa3d.merge(model) instead")
    if format != "ewa3d" and format not in _SUFFIXES:
        raise ValueError(f"unknown format {format!r}: choose one of ewa3d, {', '.join(_SUFFIXES)}")


def from_pretrained(path: str | os.PathLike[str], **options: Any) -> PointTransformer:
    """The model in a folder that `save_pretrained` (or a run's ``export/``) wrote, or on the Hugging Face Hub, in eval
    mode; with its experts where these are routed.

    Args:
        path: the folder; or, as a text that is none, the name of a model on the Hub, ``user/name``. It is downloaded
            once and then comes from the cache.
        options: for the Hub, of `huggingface_hub.snapshot_download`: ``revision``, ``token``, ``cache_dir``,
            ``force_download``, ``local_files_only``.

    Raises:
        Ewa3dError: no such folder, or its files are not those of an export; no such model on the Hub, or no answer.
    """
    folder = Path(path)
    if isinstance(path, str) and not folder.exists():
        folder = download(path, **options)
    file = folder / "config.json"
    if not file.is_file():
        raise Ewa3dError(f"{folder} is no export: it has no config.json; a run's is in its export/ folder")
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        call, experts = metadata.pop("model"), metadata.pop("experts", None) or {}
        _check_claims(call, experts, read_weights(folder)[0])
        model = _build(call, experts)
    except Ewa3dError:
        raise
    except Exception as error:  # a value of a wrong type or size may fail anywhere
        raise Ewa3dError(f"{file} does not describe a model ({first_line(error)}): export it again") from error
    model.metadata = metadata
    load_pretrained(model, folder, strict=True)
    return model.eval()


def _check_claims(options: Mapping[str, Any], experts: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Raise where a model would be far larger than its weights, or read those of another file."""
    if "pretrained" in options:
        raise ValueError("pretrained: an export has its own weights")
    for name, count in (*options.items(), *experts.items()):
        if name in _COUNTS and count is not None and count > len(state):
            raise ValueError(f"{name}={count}, and there are {len(state)} weights")
    with torch.device("meta"):  # without memory
        claimed = sum(value.numel() for value in _build(options, experts).state_dict().values())
    found = sum(value.numel() for value in state.values())
    if claimed > 2 * found + _SPARE:
        raise ValueError(f"it has {claimed} values, and its weights have {found}")


def _build(options: Mapping[str, Any], experts: Mapping[str, Any]) -> PointTransformer:
    model = create_model(**options)
    return upcycle(model, **experts) if experts else model


class _Score:
    """Stand-in for NumPy's scalars and their types, which official files hold as scores: read over, never built.

    NumPy's own constructors trust what a file gives them.
    """

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


# the names by which such a score is pickled, before and since NumPy 2; nothing but these and tensors is let in
_SCALARS: list[Any] = [
    (_Score, name) for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]


def _load_pth(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(_SCALARS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Ewa3dError(
            f"{path} is no weights file, or holds more than weights and is not opened, for safety ({first_line(error)})"
        ) from error
    except Exception as error:  # on bytes that are no such file, the reader raises whatever it stumbles over
        raise Ewa3dError(f"{path} is no readable PyTorch file ({first_line(error)}): get it again") from error
    if not isinstance(state, Mapping):
        raise Ewa3dError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def _describe_sizes(state: Mapping[str, Tensor]) -> str:
    """The sizes of a backbone's state dict, as far as it has the keys that tell."""
    family = "Point-BERT" if "patch_embed.proj.weight" in state else "Point-MAE"
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    channels = state["norm.weight"].shape[0] if "norm.weight" in state else "?"
    return f"{family}, {channels} channels, {depth} blocks"


def _shorten(keys: list[str], most: int = _TOLD) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
