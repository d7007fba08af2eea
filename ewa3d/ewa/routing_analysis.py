"""What learned routers do: whether load is even, whether experts have classes of their own, and which layers that
speaks for. The class-by-expert maps, and their use, are those of ViMoE (arXiv 2410.15732).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, log2
from typing import Any

import torch
from torch import Tensor, nn

from .conversion import expert_layers
from .experts import FusedExperts
from .routed import RoutedExperts
from .routing import Routing

PERMUTATIONS = 199  # of the labels
UNTRAINED = 39  # routers
PERCENTILE = 0.95  # of what these give, which a layer has to exceed
SMALL = 0.02  # specialisation that is none, whatever it exceeds
COLLAPSED = 0.9  # of all choices on one expert
CRITERION = (
    f"a heuristic after ViMoE (arXiv 2410.15732): a layer is kept where specialisation exceeds both chance and what "
    f"untrained routers make of the same tokens (95th percentiles of {PERMUTATIONS} permutations of the labels and of "
    f"{UNTRAINED} routers), and {SMALL:g}"
)


def routed_layers(model: nn.Module) -> dict[str, RoutedExperts]:
    """The `RoutedExperts` layers of a model by name, in module order.

    Raises:
        ValueError: there are none, or other expert layers too: those have no router that could be looked at.
    """
    layers = expert_layers(model)
    if not layers:
        raise ValueError("the model has no experts (dense, or merged): nothing is routed")
    routed = {name: layer for name, layer in layers.items() if isinstance(layer, RoutedExperts)}
    if other := next((name for name in layers if name not in routed), None):
        done = "fused into one" if isinstance(layers[other], FusedExperts) else "dealt tokens at random"
        raise ValueError(f"the experts of {other} are {done}: nothing is routed there")
    return routed


def count_choices(model: nn.Module, run: Callable[[], Any], num_samples: int, seed: int = 0) -> dict[str, Tensor]:
    """How many choices of each sample's tokens fall on each expert of each layer, while ``run`` is called; and how many
    would, were the layer's router an untrained one.

    A token's k choices count alike, whatever their gates.

    Args:
        model: with `RoutedExperts` layers, in eval mode (in training, jitter and capacity change who goes where).
        run: runs the model on a batch, whose samples are its tokens' first dimension.
        num_samples: of the batch.
        seed: of the untrained routers, which are the same in every call.

    Returns:
        ``(num_samples, 1 + UNTRAINED, N)`` int64 by layer name, on the model's device: of the layer's own router, then
        of the untrained ones. A layer that does not run is left out.

    Raises:
        ValueError: no router to look at, a layer in training mode, or tokens that are not of ``num_samples`` samples.
    """
    layers = routed_layers(model)
    counts: dict[str, Tensor] = {}

    def watch(name: str, layer: RoutedExperts) -> Any:
        if layer.training:
            raise ValueError(f"{name} is in training mode, where choices are disturbed: call model.eval() first")

        def count(router: nn.Module, inputs: tuple[Tensor], routing: Routing) -> None:
            if (tokens := len(routing.experts)) % num_samples:
                raise ValueError(f"{name} was given {tokens} tokens: {num_samples} samples cannot have the same number")
            experts = torch.cat([routing.experts[:, None], _untrained_choices(layer, inputs[0], seed)], dim=1)
            experts = experts.view(num_samples, -1, *experts.shape[1:])  # (samples, tokens, routers, k)
            chosen = torch.stack([(experts == i).sum(dim=(1, 3)) for i in range(layer.num_experts)], dim=-1)
            counts[name] = counts.get(name, 0) + chosen  # a layer may be used twice

        return layer.router.register_forward_hook(count)

    handles: list[Any] = []
    try:
        handles += [watch(name, layer) for name, layer in layers.items()]
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: counts[name] for name in layers if name in counts}


def _untrained_choices(layer: RoutedExperts, tokens: Tensor, seed: int) -> Tensor:
    """What random linear maps choose for tokens ``(T, C)``: ``(T, UNTRAINED, k)``. Their scale changes no choice."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(UNTRAINED, *layer.router.weight.shape, generator=generator).to(tokens.device)
    logits = torch.einsum("tc,rnc->trn", tokens.float(), weight)
    return logits.topk(layer.router.top_k, dim=-1).indices


def class_counts(counts: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Choices by class: ``(samples, N)`` and labels ``(samples,)`` to ``(num_classes, N)`` float64."""
    total = torch.zeros(num_classes, counts.shape[1], dtype=torch.float64)
    return total.index_add_(0, labels, counts.double())


def load(counts: Tensor) -> Tensor:
    """The part of all choices that falls on each expert, ``(N,)``: of ``(classes, N)`` or ``(samples, N)`` counts."""
    total = counts.double().sum(dim=0)
    return total / total.sum().clamp_min(1)


def load_entropy(counts: Tensor) -> float:
    """The entropy of `load` over log N: 1 where load is even, 0 where one expert takes everything."""
    return _entropy(load(counts)) / log2(counts.shape[1])


def routing_entropy(counts: Tensor) -> float:
    """The entropy of a class's choices over log N, as the mean of the classes that have any: 1 where a class's tokens
    go everywhere, 0 where each class has an expert, its own or not.

    Args:
        counts: of `class_counts`.
    """
    rows = [row for row in counts if row.sum() > 0]
    return sum(load_entropy(row[None]) for row in rows) / max(len(rows), 1)


def mutual_information(counts: Tensor) -> float:
    """What the expert of a choice tells of its class, in bits: 0 to log2 of the smaller of N and the classes.

    Args:
        counts: of `class_counts`. Classes weigh as many choices as they have.
    """
    joint = counts.double() / counts.sum().clamp_min(1)
    return max(_entropy(joint.sum(dim=0)) + _entropy(joint.sum(dim=1)) - _entropy(joint), 0.0)


def specialisation(counts: Tensor) -> float:
    """`mutual_information` over log2 N: 1 where load is even and each class has one expert, 0 where expert and class
    have nothing to do with each other. With classes of equally many choices it is `load_entropy` − `routing_entropy`.
    """
    return mutual_information(counts) / log2(counts.shape[1])


def chance_specialisation(counts: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> float:
    """The specialisation that chance reaches: a percentile (`PERCENTILE`) of what permuted labels give.

    Whole samples change their labels: the tokens of a sample are alike, and a layer that only tells samples apart does
    not tell classes apart.

    Args:
        counts: ``(samples, N)``.
        labels: ``(samples,)``.
        num_classes: how many there are.
        seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(labels), generator=generator) for _ in range(PERMUTATIONS))
    return _percentile([specialisation(class_counts(counts, labels[order], num_classes)) for order in orders])


@dataclass(frozen=True)
class LayerRouting:
    """What a layer's router does, and what that speaks for: see `analyse_routing`."""

    counts: Tensor  # (classes, N) float64
    load: Tensor  # (N,) float64
    load_entropy: float
    routing_entropy: float
    specialisation: float
    chance: float
    untrained: float
    keep: bool
    reason: str


def analyse_routing(counts: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> LayerRouting:
    """All that is to be said of one layer.

    Args:
        counts: ``(samples, 1 + UNTRAINED, N)``: of `count_choices`, of all batches.
        labels: ``(samples,)`` int64.
        num_classes: how many there are.
        seed: of the permutations behind `chance_specialisation`.
    """
    own, labels = counts[:, 0].cpu(), labels.cpu()
    by_class = class_counts(own, labels, num_classes)
    told, chance = specialisation(by_class), chance_specialisation(own, labels, num_classes, seed)
    others = counts[:, 1:].cpu().unbind(dim=1)
    untrained = _percentile([specialisation(class_counts(other, labels, num_classes)) for other in others])
    keep, reason = advise(told, chance, untrained, load(own))
    entropies = load_entropy(by_class), routing_entropy(by_class)
    return LayerRouting(by_class, load(own), *entropies, told, chance, untrained, keep, reason)


def advise(told: float, chance: float, untrained: float, load: Tensor) -> tuple[bool, str]:
    """Whether a layer is to stay a mixture of experts (else: merge it into a plain FFN), and why.

    ViMoE (arXiv 2410.15732) looks at class-by-expert maps and keeps the layers, deep ones mostly, whose experts have
    classes of their own; where routing tells nothing of the class, a plain FFN does as well. The rule here is a
    heuristic after that, `CRITERION`, and not the paper's own. That a map is no accident of the sample (``chance``) is
    little: tokens of different classes differ, so that any fixed cut through them, an untrained router's for one, tells
    something of the class. Only what exceeds that (``untrained``) has been learned. The rule does not say that accuracy
    depends on a layer: that, a training with the layer dense says.

    Args:
        told: `specialisation`.
        chance: `chance_specialisation`.
        untrained: what untrained routers reach on the same tokens.
        load: of the layer, ``(N,)``.
    """
    if told <= max(chance, SMALL):
        keep, reason = False, "its routing tells next to nothing of the class"
    elif told <= untrained:
        keep, reason = False, "its routing tells no more of the class than an untrained router's"
    else:
        keep, reason = True, "its experts have classes of their own"
    most = float(load.max())
    if most > COLLAPSED:
        reason += f"; its load has collapsed: one expert takes {100 * most:.0f} %"
    return keep, reason


def _percentile(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(PERCENTILE))


def _entropy(parts: Tensor) -> float:
    """Of a distribution of any shape, in bits."""
    return float(torch.special.entr(parts).sum()) / log(2)
