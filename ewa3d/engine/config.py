"""The configuration of a run: read from files and the command line, checked, described."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from ..data import DATASETS, FEW_SHOT, SCANOBJECTNN
from ..errors import Ewa3dError, first_line, quoted, shorten
from .schema import GROUPS, Config, RouterConfig

_LARGEST = 1 << 20  # bytes of a YAML file
_MOST_VALUES = 100_000  # in it


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), base: Any = None) -> Config:
    """A checked configuration: defaults, then ``base`` (a mapping), then the YAML file, then ``key=value`` overrides.

    Raises:
        Ewa3dError: no such file, bad YAML, an unknown key (named with the nearest right one), a value of the wrong type
            or out of range.
    """
    config = OmegaConf.structured(Config)
    layers: list[tuple[str, Any]] = [] if base is None else [("the run's own configuration", base)]
    if path is not None:
        path = Path(path)
        try:
            layers.append((str(path), read_yaml(path)))
        except FileNotFoundError:
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "recipes are in configs/"
            raise Ewa3dError(f"{path}: no such recipe: {hint}") from None
        except Exception as error:  # PyYAML and OmegaConf raise many kinds, all of them about this file
            raise Ewa3dError(f"{path} is no readable YAML: {first_line(error)}") from error
        if (path.parent / "checkpoints").is_dir():  # a run's own file: it keeps its recipe's name, and may have moved
            layers.append((str(path), {"run": {"dir": str(path.parent)}}))
        else:
            config.recipe = path.stem
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise Ewa3dError(f"{quoted(item)} is no key=value: write for example train.epochs=10")
        try:
            layers.append((quoted(item), OmegaConf.from_dotlist([item])))
        except Exception as error:
            raise Ewa3dError(f"{quoted(item)} cannot be read as YAML: {first_line(error)}") from error
    for where, layer in layers:
        if not isinstance(layer, DictConfig) and not isinstance(layer, dict):
            raise Ewa3dError(f"{where}: not a table of keys: write for example `train: {{epochs: 10}}`")
        try:
            config = cast(DictConfig, OmegaConf.merge(config, layer))
        except Exception as error:  # OmegaConf's own, and what its grammar of references stumbles over
            raise Ewa3dError(_explain(where, error)) from None
    try:
        checked = cast(Config, OmegaConf.to_object(config))  # now references to other keys are followed
    except Exception as error:
        raise Ewa3dError(_explain(str(path or "the configuration"), error)) from None
    _check(checked)
    return checked


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as OmegaConf has it.

    Raises:
        OSError: it cannot be opened.
        Exception: whatever PyYAML and OmegaConf say about what is no YAML; ValueError where it is far larger than a
            recipe is, perhaps only by what its aliases stand for.
    """
    text = path.read_bytes()
    if len(text) > _LARGEST:
        raise ValueError(f"it has {len(text)} bytes, and may have {_LARGEST}")
    _count(yaml.compose(text, yaml.SafeLoader), {})
    return OmegaConf.load(io.BytesIO(text))


def _count(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """How many values a node stands for, with all that aliases repeat."""
    if id(node) not in counts:
        counts[id(node)] = _MOST_VALUES  # were it in itself
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in inner for part in pair]
        counts[id(node)] = 1 + sum(_count(part, counts) for part in inner)
    if counts[id(node)] > _MOST_VALUES:
        raise ValueError(f"its aliases make more than {_MOST_VALUES} values of it")
    return counts[id(node)]


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe_keys() -> str:
    """Every key with its default and meaning, for ``--help``."""
    lines = ["recipe keys (key = default: meaning):", ""]
    lines.append(f"  task = classification: what is learned; one of {', '.join(DATASETS)}")
    for group, cls in GROUPS.items():
        lines.append("")
        for f in (f for f in fields(cls) if "help" in f.metadata):
            choices = f"; one of {', '.join(f.metadata['choices'])}" if f.metadata["choices"] else ""
            default = (
                "null" if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else f.default
            )
            lines.append(f"  {group}.{f.name} = {default}: {f.metadata['help']}{choices}")
    lines.append("  ewa = null trains the plain, dense model; ema = null, the default, takes no average over time")
    return "\n".join(lines)


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{f.name}.")
        elif "help" in f.metadata:
            yield f"{prefix}{f.name}", value, f.metadata


def _check(config: Config) -> None:
    for key, value, rules in _walk(config):
        if value is None:
            continue
        choices, least = rules["choices"], rules["least"]
        if choices and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"
            raise Ewa3dError(f"{key}={shorten(str(value))}: no such choice: {hint}")
        if least is not None and not value >= least:  # NaN fails too
            raise Ewa3dError(f"{key}={value}: must be {least} or more")
    if config.model.group_size > config.data.num_points:
        raise Ewa3dError(
            f"model.group_size={config.model.group_size}: a group has no more points than the cloud, "
            f"data.num_points={config.data.num_points}"
        )
    ewa = config.ewa
    if ewa is not None and ewa.share_rate > (limit := (ewa.num_experts - 1) / ewa.num_experts):
        raise Ewa3dError(f"ewa.share_rate={ewa.share_rate}: with {ewa.num_experts} experts it is at most {limit:.4g}")
    if ewa is not None and not 0 < ewa.average_until <= 1:
        raise Ewa3dError(f"ewa.average_until={ewa.average_until}: must be above 0 and at most 1")
    if ewa is not None and ewa.expert_lr == 0:
        raise Ewa3dError("ewa.expert_lr=0: must be above 0, or the experts learn nothing")
    if ewa is not None and ewa.routing != "topk" and ewa.router != RouterConfig():
        raise Ewa3dError(f"ewa.router is for ewa.routing=topk, and it is {ewa.routing}: leave it out")
    if config.ema is not None and config.ema.decay >= 1:
        raise Ewa3dError(f"ema.decay={config.ema.decay}: must be below 1, where the average never moves")
    if config.optim.layer_decay is not None and not 0 < config.optim.layer_decay <= 1:
        raise Ewa3dError(f"optim.layer_decay={config.optim.layer_decay}: must be above 0 and at most 1")
    if config.eval.untrained and not config.eval.probe:
        raise Ewa3dError("eval.untrained=true: an untrained model is probed and nothing else: add eval.probe=true")
    apart = "test" if config.data.train_split == "trainval" else "val test"
    if config.eval.probe and config.eval.split not in apart.split():
        raise Ewa3dError(
            f"eval.probe=true: eval.split={config.eval.split} is trained on (data.train_split="
            f"{config.data.train_split}): take {' or '.join(apart.split())}"
        )
    if config.train.select == "test" and "official" not in config.recipe:
        raise Ewa3dError(
            "train.select=test: the test split chooses nothing unless the recipe is called official: take val or last"
        )
    if config.train.select == "val" and config.data.train_split == "trainval":
        raise Ewa3dError("train.select=val with data.train_split=trainval would choose on training data: take last")
    if config.data.name not in (right := DATASETS[config.task]):
        raise Ewa3dError(f"data.name={config.data.name}: not for task={config.task}: take {' or '.join(right)}")
    if config.task != "classification" and config.eval.vote:
        raise Ewa3dError(f"eval.vote={config.eval.vote}: votes are for classification: leave it at 0")
    if not 0 < config.data.fraction <= 1:
        raise Ewa3dError(f"data.fraction={config.data.fraction}: must be above 0 and at most 1")
    if config.task != "classification" and config.data.augmentation != "scale_shift":
        raise Ewa3dError(f"data.augmentation={config.data.augmentation}: is for classification: leave it out")
    if config.train.select == "val" and config.data.name in FEW_SHOT:
        raise Ewa3dError("train.select=val: a few-shot episode has no validation split: take last")
    cut = config.data.name in ("modelnet40", "shapenet55", *SCANOBJECTNN)  # val is cut off train
    if config.train.select == "val" and cut and config.data.val_fraction == 0:
        raise Ewa3dError("train.select=val needs a validation split: set data.val_fraction above 0, or take last")


def _explain(where: str, error: Exception) -> str:
    key = shorten(getattr(error, "full_key", None) or "")
    kind = type(error).__name__
    if kind in ("ConfigKeyError", "ConfigAttributeError"):
        near = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.4)
        return f"{where}: unknown key {key}" + (f": did you mean {near[0]}?" if near else ": see --help for all keys")
    return f"{where}: {key + ': ' if key else ''}{first_line(error)}"


def _all_keys() -> list[str]:
    return ["recipe", "task", *GROUPS, *(f"{group}.{f.name}" for group, cls in GROUPS.items() for f in fields(cls))]
