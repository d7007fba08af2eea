"""Do the experts lie in one basin of the loss? The plain models that they are, and those on the lines between them."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from .conversion import expert_layers
from .experts import Experts

Model = TypeVar("Model", bound=nn.Module)


def random_layers(model: nn.Module) -> dict[str, Experts]:
    """The expert layers of a model by name, all of which deal their tokens at random.

    Raises:
        ValueError: there are none, or one routes its tokens or fuses its experts: no expert of it is a model by itself.
    """
    layers = expert_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no expert layers: it is a plain model")
    for name, layer in layers.items():
        if layer.routing != Experts.routing:
            raise ValueError(
                f"the experts of {name} work together ({layer.routing}): only where tokens are dealt at random is each "
                "a model by itself"
            )
    return layers


def expert_alone(model: Model, i: int) -> Model:
    """A new, plain model in which every layer's FFN is its expert ``i``, bit for bit; ``model`` is left as it is.

    BatchNorm keeps the statistics of training, where each token went through one expert of many.

    Raises:
        ValueError: no expert ``i``, and see `random_layers`.
    """
    return interpolated(model, i, i, 0)


@torch.no_grad()
def interpolated(model: Model, i: int, j: int, t: float) -> Model:
    """A new, plain model at (1 − t)·Wᵢ + t·Wⱼ: expert ``i`` of every layer where t = 0, expert ``j`` where t = 1.

    The loss along such lines says whether the two are in one basin (linear mode connectivity, arXiv 1912.05671).

    Args:
        model: with experts among which tokens are dealt at random; left as it is.
        i: where the line begins.
        j: where it ends.
        t: how far along it.

    Raises:
        ValueError: no such expert, and see `random_layers`.
    """
    layers = random_layers(model)
    for name, layer in layers.items():
        for index in (i, j):
            if not 0 <= index < layer.num_experts:
                raise ValueError(f"{name} has no expert {index}: it has 0 to {layer.num_experts - 1}")
    # deepcopy with the FFNs put in the layers' places by its memo: the N experts are never copied
    return deepcopy(model, {id(layer): _between(layer.experts[i], layer.experts[j], t) for layer in layers.values()})


def _between(start: nn.Module, end: nn.Module, t: float) -> nn.Module:
    ffn = deepcopy(start)
    for parameter, other in zip(ffn.parameters(), end.parameters(), strict=True):
        parameter.lerp_(other, t)  # exact at both ends
    return ffn
