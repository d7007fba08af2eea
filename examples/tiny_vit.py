"""A tiny timm ViT on the digits whose training is watched: what the experiments in theory.py are made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from digits_vit import load_splits, make_vit
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import ewa3d
from ewa3d.ewa import ExpertAverager, Experts

BATCH = 64


def flat(module: nn.Module) -> Tensor:
    """All parameters as one vector ``(P,)``."""
    return parameters_to_vector(module.parameters()).detach()


def weights(layer: Experts) -> Tensor:
    """The experts' parameters as vectors, ``(N, P)``."""
    return torch.stack([flat(expert) for expert in layer.experts])


def deviations(layer: Experts) -> Tensor:
    """D_i = W_i − W̄, ``(N, P)``."""
    return weights(layer) - weights(layer).mean(dim=0)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def ffns(model: VisionTransformer) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".mlp")]


def ffn_vector(model: VisionTransformer) -> Tensor:
    """All FFNs of a dense model, or those that a model with experts merges to, as one vector ``(P,)``."""
    layers = [weights(f).mean(dim=0) if isinstance(f, Experts) else flat(f) for f in ffns(model)]
    return torch.cat(layers)


def gradients(model: VisionTransformer) -> Tensor:
    """Gradients of all FFNs, ``(N, P)``; N is 1 for a dense model."""
    experts = [list(ffn.experts) if isinstance(ffn, Experts) else [ffn] for ffn in ffns(model)]
    vectors = [[[p.grad.flatten() for p in e.parameters() if p.grad is not None] for e in layer] for layer in experts]
    return torch.cat([torch.stack([torch.cat(grads) for grads in layer]) for layer in vectors], dim=1)


def ffns_apart(model: VisionTransformer, lr: float, decay: float, scale: float) -> list[dict[str, Any]]:
    """Parameter groups: the FFNs, experts or not, at lr·scale and decay/scale (lr·decay stays), all else at lr."""
    inside = [p for ffn in ffns(model) for p in ffn.parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in inside)]
    return [
        {"params": others, "lr": lr, "weight_decay": decay},
        {"params": inside, "lr": lr * scale, "weight_decay": decay / scale},
    ]


@dataclass
class Run:
    """A training: the plain model that it ended with, and lists of what was seen at every step."""

    model: VisionTransformer
    loss: float = math.nan  # of the plain model on the training split
    lrs: list[float] = field(default_factory=list)  # of the FFNs
    share_rates: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)  # rms of D over all expert layers
    moved: list[float] = field(default_factory=list)  # length of the step of the (merged) FFNs
    dense_moved: list[float] = field(default_factory=list)  # length of the step that Adam makes of the summed gradients
    cosines: list[float] = field(default_factory=list)  # between these two steps
    noisiness: list[float] = field(default_factory=list)  # s² = N·Σ‖g_i‖² / ‖Σ g_i‖², from 1 (all agree) upwards


def train(
    seed: int,
    *,
    num_experts: int = 4,
    schedule: str = "linear",
    lr: float = 2e-3,
    scale: float = 1,
    steps: int = 400,
) -> Run:
    """AdamW, cosine to 0, β up to 0.3. ``num_experts=0`` trains the dense model; ``scale`` multiplies the FFNs' lr."""
    torch.manual_seed(seed)
    images, labels = load_splits()["train"]
    model = make_vit(embed_dim=32, depth=2)
    if num_experts:
        ewa3d.upcycle(model, num_experts, every=1)
    run = Run(model)
    optimizer = torch.optim.AdamW(ffns_apart(model, lr, 0.05, scale))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    averager = ExpertAverager(model, 0.3, schedule, steps) if num_experts else None
    order = torch.Generator().manual_seed(seed)  # of its own: dense and experts see the same batches
    here = ffn_vector(model)
    dense = nn.Parameter(torch.zeros_like(here))  # what Adam would do with the experts' gradients added up
    beside = torch.optim.Adam([dense], lr=1.0)
    for _ in range(steps):
        rows = torch.randperm(len(labels), generator=order)[:BATCH]
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        grads = gradients(model)
        dense.grad, origin = grads.sum(dim=0), dense.detach().clone()
        beside.step()
        optimizer.step()
        optimizer.zero_grad()
        run.lrs.append(optimizer.param_groups[1]["lr"])
        scheduler.step()
        if averager is not None:
            averager.step()
            run.share_rates.append(averager.current_share_rate)
            run.spreads.append(rms(torch.cat([deviations(layer) for layer in averager.layers], dim=1)))
        before, here = here, ffn_vector(model)
        run.moved.append((here - before).norm().item())
        run.dense_moved.append(run.lrs[-1] * (dense.detach() - origin).norm().item())
        run.cosines.append(F.cosine_similarity(here - before, dense.detach() - origin, dim=0).item())
        run.noisiness.append((len(grads) * grads.square().sum() / grads.sum(dim=0).square().sum()).item())
    run.model = ewa3d.merge(model) if num_experts else model
    with torch.no_grad():
        run.loss = F.cross_entropy(run.model.eval()(images), labels).item()
    return run


def sgd_beside_dense(share_rate: float, scale: float, *, steps: int, momentum: float = 0.0) -> tuple[float, float]:
    """Train dense and experts on the same batches with SGD in float64, the experts at lr·scale and decay/scale.

    Returns the distance that the merged FFNs moved over the dense ones', and their difference over the latter.
    """
    torch.manual_seed(0)
    images, labels = load_splits()["train"]
    dense = make_vit(embed_dim=32, depth=2).double()
    model = ewa3d.upcycle(deepcopy(dense), 4, every=1)
    start = ffn_vector(dense)
    averager = ExpertAverager(model, share_rate, "constant")
    decay = 5e-3 if momentum else 0.0
    pairs: Sequence[tuple[VisionTransformer, float]] = ((dense, 1), (model, scale))
    optimizers = [torch.optim.SGD(ffns_apart(net, 0.05, decay, factor), momentum=momentum) for net, factor in pairs]
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,))
        for (net, _), optimizer in zip(pairs, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows].double()), labels[rows]).backward()
            optimizer.step()
        averager.step()
    path, merged = (ffn_vector(dense) - start).norm(), ffn_vector(model)
    return ((merged - start).norm() / path).item(), ((merged - ffn_vector(dense)).norm() / path).item()
