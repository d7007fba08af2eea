"""Weights for merging experts: better ones than those of the mean, where experts differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .basin import random_layers
from .conversion import expert_layers, merge
from .experts import Experts, FusedExperts

Batch = TypeVar("Batch")


def learn_weights(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Iterable[Batch],
    *,
    steps: int = 100,
    lr: float = 0.1,
) -> dict[str, list[float]]:
    """Convex weights of every layer's experts that make the merged model's loss small, for ``merge(model, weights)``.

    They are the softmax of logits, start alike and are learned by Adam; nothing else is. The merged model is in eval
    mode: no dropout, and BatchNorm's statistics stay. ``model`` is left as it is. (The learned soup of Model Soups,
    arXiv 2203.05482, with weights of its own for every layer.)

    Args:
        model: with experts among which tokens are dealt at random.
        loss: of a model and a batch makes ``()``, differentiable.
        batches: held-out ones, in random order; begun again when they end.
        steps: how many to take.
        lr: Adam's learning rate for the logits.

    Returns:
        N weights a layer, by its name; their sum is 1.

    Raises:
        ValueError: no batches, a loss that is not finite, and see `random_layers`.
    """
    merged = _fused_copy(model, random_layers(model))
    fused = {name: layer for name, layer in expert_layers(merged).items() if isinstance(layer, FusedExperts)}
    # Adam takes steps of lr however small the gradient is: eps keeps it from following what is no difference, that of
    # experts which averaging has left almost equal
    optimizer = torch.optim.Adam([layer.fusion for layer in fused.values()], lr=lr, eps=1e-4)
    with torch.enable_grad():
        for step, batch in enumerate(_repeat(batches, steps), start=1):
            value = loss(merged, batch)
            if not math.isfinite(value.item()):
                raise ValueError(f"the loss became {value.item()} in step {step} of learning the weights")
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return {name: layer.fusion.detach().double().softmax(dim=0).tolist() for name, layer in fused.items()}


def greedy_weights(model: nn.Module, score: Callable[[nn.Module], float]) -> list[float]:
    """The greedy soup (Model Soups, arXiv 2203.05482, section 2) of N models: expert ``i`` of all layers is one.

    The best of them is taken; then each other, from the better to the worse, joins the uniform mean of those taken
    unless the score falls. The soup scores what the best one does or more; the mean of all may score more still.

    Args:
        model: with experts among which tokens are dealt at random, as many in every layer; left as it is.
        score: of a plain model; higher is better.

    Returns:
        N weights for ``merge(model, weights)``: alike for those taken, else 0.

    Raises:
        ValueError: layers with different numbers of experts, and see `random_layers`.
    """
    (count, *others) = {layer.num_experts for layer in random_layers(model).values()}
    if others:
        raise ValueError(f"the layers have {sorted([count, *others])} experts: a greedy soup needs as many in each")

    def uniform(members: list[int]) -> list[float]:
        return [1 / len(members) if i in members else 0.0 for i in range(count)]

    alone = [score(merge(model, uniform([i]))) for i in range(count)]
    first, *rest = sorted(range(count), key=lambda i: -alone[i])
    taken, best = [first], alone[first]
    for i in rest:
        reached = score(merge(model, uniform([*taken, i])))
        if reached >= best:
            taken, best = [*taken, i], reached
    return uniform(taken)


def _fused_copy(model: nn.Module, layers: dict[str, Experts]) -> nn.Module:
    """The model with its experts fused, in eval mode; of its parameters, whose memory it shares, only the fusion's ask
    for gradients.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(layer): FusedExperts(deepcopy(expert, memo) for expert in layer.experts) for layer in layers.values()}
    return deepcopy(model, memo).eval()


def _repeat(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """``count`` batches; where there are fewer, they begin again."""
    taken = 0
    while taken < count:
        before = taken
        for batch in batches:
            yield batch
            taken += 1
            if taken == count:
                return
        if taken == before:
            raise ValueError(
                f"no batches to learn from after {taken} of {count} steps: give what can be iterated again"
            )
