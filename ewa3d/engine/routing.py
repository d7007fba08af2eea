"""What the learned routers of a model do with the clouds of each class: what ``tools/visualize.py routing`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import Ewa3dError
from ..ewa.routing_analysis import CRITERION, LayerRouting, analyse_routing, count_choices, routed_layers
from ..files import write_atomically
from ..models import PointTransformer
from ..viz.routing import routing_maps
from .batches import run_batches
from .build import restore_model
from .evaluate import Evaluation, describe_data, load_model, make_folder, open_evaluation
from .run import load_run_config
from .tasks import Batch


def draw_routing(folder: Path, path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Draw the class-by-expert maps of a run's or an export's routed layers, and write their numbers beside it.

    Clouds are those of ``eval.split``; where it is not named, those of a run's validation split, where it chose the
    epoch with one: whoever follows the advice lets them choose too. Labels are classes or, for part segmentation,
    categories.

    Args:
        folder: of the run (its best checkpoint is looked at) or the export.
        path: the picture to write; the numbers go to the ``.json`` of its name. Its folder is made where it is not
            there.
        overrides: ``key=value`` settings.

    Returns:
        A table of the layers and the advice, in lines for people.

    Raises:
        Ewa3dError: the model has no routed layers, the picture has no place, and what `open_evaluation` raises.
    """
    if path.suffix.lower() != ".png":
        raise Ewa3dError(f"{path}: its name must end in .png")
    make_folder(path.parent)
    model, overrides = _open_routed(folder, overrides)
    opened = open_evaluation(folder, overrides, model=model)
    layers = analyse_layers(opened)
    clouds = f"{describe_data(opened.config)}, {opened.config.eval.split} split"
    title = f"{folder}: choices of {len(opened.dataset)} clouds of {clouds}"
    if opened.accelerator.is_main_process:
        counts = {name: layer.counts.numpy() for name, layer in layers.items()}
        said = {
            name: f"class entropy {layer.routing_entropy:.2f}\nspecialisation {layer.specialisation:.2f}"
            for name, layer in layers.items()
        }
        routing_maps(counts, opened.dataset.class_names, path, said, title)
        write_atomically(path.with_suffix(".json"), json.dumps(_numbers(folder, opened, layers), indent=2) + "\n")
    return [title, *describe_layers(layers), f"picture: {path}   numbers: {path.with_suffix('.json')}"]


def analyse_layers(opened: Evaluation) -> dict[str, LayerRouting]:
    """What the routers do with the clouds of a dataset, by layer name. ``eval.seed`` permutes labels, and draws the
    untrained routers.
    """
    model, task, dataset, loader, accelerator, config = opened
    layers = list(routed_layers(model))

    def step(batch: Batch) -> tuple[Tensor, ...]:
        counts = count_choices(model, partial(task.features, model, batch), len(batch["label"]), config.eval.seed)
        return batch["label"], *(counts[name] for name in layers)

    labels, *counts = run_batches(step, loader, accelerator, label="routing")
    classes = len(dataset.class_names)
    return {
        name: analyse_routing(own, labels, classes, config.eval.seed) for name, own in zip(layers, counts, strict=True)
    }


def describe_layers(layers: Mapping[str, LayerRouting]) -> list[str]:
    """A table for people: a row a layer, then what its columns and the advice mean."""
    width = max(map(len, layers))
    columns = ("load_entropy", "routing_entropy", "specialisation", "chance", "untrained")
    heads = ("load", "classes", "special.", "chance", "untrained")
    lines = [f"{'layer':<{width}}" + "".join(f"{head:>11}" for head in heads) + "  advice"]
    for name, layer in layers.items():
        numbers = "".join(f"{getattr(layer, column):11.3f}" for column in columns)
        lines.append(f"{name:<{width}}{numbers}  {_advice(layer)}: {layer.reason}")
    kept = ", ".join(name for name, layer in layers.items() if layer.keep)
    return [
        *lines,
        "load: entropy of the experts' load, 1 where it is even; classes: mean entropy of a class's choices, low where "
        "a class keeps to an expert",
        "special.: what the expert of a token tells of its class, mutual information over log N",
        "chance, untrained: special. that permuted labels and untrained routers reach, 95th percentiles",
        f"advice: keep {kept or 'none'}; it is {CRITERION}",
    ]


def _open_routed(folder: Path, overrides: Sequence[str]) -> tuple[PointTransformer, Sequence[str]]:
    """The model with its routers, and the overrides with the split that is looked at where none is named."""
    if (folder / "config.json").is_file():
        model = load_model(folder)
    else:
        config = load_run_config(folder)
        model = restore_model(folder, config).eval()
        if config.train.select == "val" and not any(item.startswith("eval.split=") for item in overrides):
            overrides = [*overrides, "eval.split=val"]
    try:
        routed_layers(model)
    except ValueError as error:
        raise Ewa3dError(f"{folder}: {error}; ewa.routing=topk trains a router") from error
    return model, overrides


def _advice(layer: LayerRouting) -> str:
    return "keep" if layer.keep else "merge"


def _numbers(folder: Path, opened: Evaluation, layers: Mapping[str, LayerRouting]) -> dict[str, Any]:
    return {
        "source": str(folder),
        "data": describe_data(opened.config),
        "split": opened.config.eval.split,
        "clouds": len(opened.dataset),
        "class_names": list(opened.dataset.class_names),
        "criterion": CRITERION,
        "layers": {
            name: {
                "load": layer.load.tolist(),
                "load_entropy": layer.load_entropy,
                "routing_entropy": layer.routing_entropy,
                "specialisation": layer.specialisation,
                "chance": layer.chance,
                "untrained": layer.untrained,
                "advice": _advice(layer),
                "reason": layer.reason,
                "counts": layer.counts.tolist(),
            }
            for name, layer in layers.items()
        },
    }
