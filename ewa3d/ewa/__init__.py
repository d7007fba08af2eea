"""Experts Weights Averaging (arXiv 2308.06093) for any transformer. Knows `torch.nn.Module` and nothing of points."""

from .averaging import ExpertAverager, contraction, share_rate_at
from .conversion import expert_layers, find_ffns, merge, merge_state_dict, upcycle, upcycle_state_dict
from .diagnostics import expert_distances, layer_distances, merge_report
from .experts import Experts
from .routing import random_permutation

__all__ = [
    "ExpertAverager",
    "Experts",
    "contraction",
    "expert_distances",
    "expert_layers",
    "find_ffns",
    "layer_distances",
    "merge",
    "merge_report",
    "merge_state_dict",
    "random_permutation",
    "share_rate_at",
    "upcycle",
    "upcycle_state_dict",
]
