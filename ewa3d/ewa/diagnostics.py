"""What experts do: how far apart they are, what pushes them, and what a merge changed."""

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
def mean_norm(layer: Experts) -> float:
    """‖W̄‖, the Euclidean norm of the experts' mean: what distances are compared with."""
    squares = [mean.double().square().sum() for mean in layer.mean_parameters().values()]
    return max(float(torch.stack(squares).sum().sqrt()), 1e-30)


def merge_report(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Per expert layer: ``num_experts``, ``distances`` from the mean, and ``relative`` (mean distance / ‖W̄‖)."""
    report: dict[str, dict[str, Any]] = {}
    for name, layer in expert_layers(model).items():
        distances = layer_distances(layer)
        report[name] = {
            "num_experts": layer.num_experts,
            "distances": distances.tolist(),
            "relative": float(distances.mean()) / mean_norm(layer),
        }
    return report


@torch.no_grad()
def pairwise_distances(model: nn.Module) -> dict[str, Tensor]:
    """Euclidean distances between the experts' whole parameter vectors, ``(N, N)`` float64, by layer name."""
    found = {}
    for name, layer in expert_layers(model).items():
        squared = torch.zeros(layer.num_experts, layer.num_experts, dtype=torch.float64)
        for params in layer.parameter_sets().values():
            rows = torch.stack([param.detach().cpu().double().flatten() for param in params])
            # not by ‖a‖² + ‖b‖² − 2ab, of which nothing is left where experts are almost equal
            squared += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        found[name] = squared.sqrt()
    return found


def gradient_agreement(model: nn.Module) -> dict[str, float]:
    """Mean cosine between the gradients of two experts of a layer, over all pairs, by layer name.

    1 where all experts are pushed alike, 0 where no expert's gradient says anything of another's. Call it after
    ``loss.backward()`` of a forward pass in training mode, where every expert sees other tokens: in eval mode all
    experts get the same gradient. One whose gradient is zero agrees with none. BatchNorm of a head makes the gradients
    of a batch's clouds sum to about 0, those of N experts too: their mean cosine is then below 0, at least −1/(N−1).

    Raises:
        ValueError: an expert has no gradient.
    """
    found = {}
    for name, layer in expert_layers(model).items():
        products = torch.zeros(layer.num_experts, layer.num_experts, dtype=torch.float64)
        for params in layer.parameter_sets().values():
            gradients = [param.grad for param in params if param.grad is not None]
            if len(gradients) < len(params):
                raise ValueError(
                    f"{name} has no gradients: call backward on a loss of the model in training mode first"
                )
            rows = torch.stack([gradient.detach().cpu().double().flatten() for gradient in gradients])
            products += rows @ rows.T
        norms = products.diagonal().sqrt()
        scale = torch.outer(norms, norms)
        cosines = torch.where(scale > 0, products / scale, 0.0)
        first, second = torch.triu_indices(layer.num_experts, layer.num_experts, offset=1)
        found[name] = float(cosines[first, second].mean())
    return found
