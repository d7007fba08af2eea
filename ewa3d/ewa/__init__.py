"""Experts Weights Averaging (arXiv 2308.06093) for any transformer. Knows `torch.nn.Module` and nothing of points."""

from .averaging import ExpertAverager, contraction, share_rate_at
from .basin import expert_alone, interpolated, random_layers
from .conversion import (
    ROUTINGS,
    expert_layers,
    find_ffns,
    is_routed,
    merge,
    merge_state_dict,
    upcycle,
    upcycle_state_dict,
)
from .diagnostics import (
    expert_distances,
    gradient_agreement,
    layer_distances,
    mean_norm,
    merge_report,
    pairwise_distances,
)
from .experts import Experts, FusedExperts
from .routed import RoutedExperts, aux_loss
from .routing import TopKRouter, random_permutation
from .soup import greedy_weights, learn_weights

__all__ = [
    "ROUTINGS",
    "ExpertAverager",
    "Experts",
    "FusedExperts",
    "RoutedExperts",
    "TopKRouter",
    "aux_loss",
    "contraction",
    "expert_alone",
    "expert_distances",
    "expert_layers",
    "find_ffns",
    "gradient_agreement",
    "greedy_weights",
    "interpolated",
    "is_routed",
    "layer_distances",
    "learn_weights",
    "mean_norm",
    "merge",
    "merge_report",
    "merge_state_dict",
    "pairwise_distances",
    "random_layers",
    "random_permutation",
    "share_rate_at",
    "upcycle",
    "upcycle_state_dict",
]
