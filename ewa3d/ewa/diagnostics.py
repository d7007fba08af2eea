"""What experts do: how far they are from their mean, and what a merge changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conversion import expert_layers
from .experts import Experts


@torch.no_grad()
def layer_distances(layer: Experts) -> Tensor:
    """Euclidean distance of each expert's whole parameter vector from the experts' mean, ``(N,)`` float64."""
    means = layer.mean_parameters()
    squared = torch.zeros(layer.num_experts, dtype=torch.float64)
    for name, params in layer.parameter_sets().items():
        for i, param in enumerate(params):
            squared[i] += (param - means[name]).double().square().sum().cpu()
    return squared.sqrt()


def expert_distances(model: nn.Module) -> dict[str, list[float]]:
    """`layer_distances` of every expert layer, by layer name. Empty for a plain model."""
    return {name: layer_distances(layer).tolist() for name, layer in expert_layers(model).items()}


@torch.no_grad()
def merge_report(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Per expert layer: ``num_experts``, ``distances`` from the mean, and ``relative`` (mean distance / ‖W̄‖)."""
    report: dict[str, dict[str, Any]] = {}
    for name, layer in expert_layers(model).items():
        distances = layer_distances(layer)
        norm = torch.stack([mean.double().square().sum() for mean in layer.mean_parameters().values()]).sum().sqrt()
        report[name] = {
            "num_experts": layer.num_experts,
            "distances": distances.tolist(),
            "relative": float(distances.mean() / norm.clamp_min(1e-30)),
        }
    return report
