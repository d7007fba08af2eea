"""How the tokens of a batch are dealt to experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_permutation(
    num_tokens: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """The random uniform partition of EWA (arXiv 2308.06093, section 3.2), as an order of the tokens ``(num_tokens,)``.

    ``order.tensor_split(N)`` are the N parts: every token is in exactly one, sizes differ by at most one, and with
    fewer tokens than parts the last ones are empty.

    Args:
        num_tokens: how many tokens there are.
        generator: source of randomness; PyTorch's global one where ``None``.
        device: where the indices live.
    """
    return torch.randperm(num_tokens, generator=generator, device=device)


class Routing(NamedTuple):
    """What a `TopKRouter` says of T tokens, N experts and k choices."""

    experts: Tensor  # (T, k) int64, the likeliest first
    gates: Tensor  # (T, k) float32, what their outputs count
    probabilities: Tensor  # (T, N) float32
    logits: Tensor  # (T, N) float32


class TopKRouter(nn.Module):
    """A learned router: the k experts that a softmax over a linear map of the token finds likeliest.

    The gates of a token sum to 1 (as in GShard, arXiv 2006.16668), so that experts that are copies of an FFN compute
    what it does, and experts can be merged. With k = 1 the gate's value is then 1 and its gradient that of the
    logarithm of the probability; without it a router that picks one expert would learn from its losses alone.

    Args:
        dim: channels of a token.
        num_experts: how many there are to choose from.
        top_k: experts a token goes to.
        jitter: in training, every channel of the router's input is multiplied by a random factor from 1 − jitter to
            1 + jitter (Switch Transformer, arXiv 2101.03961, section 2.4).

    Shape:
        tokens ``(T, dim)``; computes in float32 whatever the autocast.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int = 1, jitter: float = 0.0):
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k}: a token goes to 1 to {num_experts} of the {num_experts} experts")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter={jitter}: must be 0 or more and below 1")
        self.top_k = top_k
        self.jitter = jitter
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Routing:
        with torch.autocast(tokens.device.type, enabled=False):
            inputs = tokens.float()
            if self.training and self.jitter:
                inputs = inputs * torch.empty_like(inputs).uniform_(1 - self.jitter, 1 + self.jitter)
            logits = F.linear(inputs, self.weight.float())
            probabilities = logits.softmax(dim=1)
            gates, experts = probabilities.topk(self.top_k, dim=1)
            # of a single choice p / p: 1, with the gradient of log p
            total = gates.detach() if self.top_k == 1 else gates.sum(dim=1, keepdim=True)
            return Routing(experts, gates / total, probabilities, logits)


def balance_loss(routing: Routing) -> Tensor:
    """The load-balancing loss N·Σ fᵢ·Pᵢ (Switch Transformer, arXiv 2101.03961, equation 4): 1 where load is even.

    fᵢ is the part of all choices that fell on expert i, which has no gradient, Pᵢ its mean probability.
    """
    num_experts = routing.probabilities.shape[1]
    load = torch.bincount(routing.experts.flatten(), minlength=num_experts) / routing.experts.numel()
    return num_experts * (load * routing.probabilities.mean(dim=0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """The router z-loss, the mean of logsumexp(logits)² (ST-MoE, arXiv 2202.08906, equation 5): keeps logits small."""
    return routing.logits.logsumexp(dim=1).square().mean()
