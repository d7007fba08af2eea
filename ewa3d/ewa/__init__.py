"""Experts Weights Averaging (arXiv 2308.06093) for any transformer. Knows `torch.nn.Module` and nothing of points."""

from .averaging import ExpertAverager, contraction, share_rate_at
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
from .diagnostics import expert_distances, layer_distances, merge_report
from .experts import Experts, FusedExperts
from .routed import RoutedExperts, aux_loss
from .routing import TopKRouter, random_permutation

__all__ = [
    "ROUTINGS",
    "ExpertAverager",
    "Experts",
    "FusedExperts",
    "RoutedExperts",
    "TopKRouter",
    "aux_loss",
    "contraction",
    "expert_distances",
    "expert_layers",
    "find_ffns",
    "is_routed",
    "layer_distances",
    "merge",
    "merge_report",
    "merge_state_dict",
    "random_permutation",
    "share_rate_at",
    "upcycle",
    "upcycle_state_dict",
]
