"""The mixture of experts with a learned router: what is called a naive MoE beside EWA."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from .experts import Experts
from .routing import Routing, TopKRouter, balance_loss, z_loss


class RoutedExperts(Experts):
    """N FFNs behind a learned top-k router, in training and in evaluation, with or without a shared one.

    A token's output is Σ gᵢ·FFNᵢ(token) over the k experts that it is routed to; the gates sum to 1. With a shared
    expert (ViMoE, arXiv 2410.15732), which sees every token, it is the mean of that sum and the shared expert's output:
    so copies of an FFN still compute what it does. An expert that no token goes to is called on none, so that its
    gradient is zero and not ``None``.

    `merge` makes a plain FFN of it, the mean of the experts (with a shared one, the mean of that and it). Unlike with
    random partition this changes what the model computes.

    Args:
        experts: see `Experts`; with a `torch.nn.Linear` inside, which says how many channels a token has.
        top_k: experts a token goes to.
        capacity_factor: in training, an expert takes at most this many times its even share of the choices, those with
            the largest gates (batch prioritised routing: V-MoE, arXiv 2106.05974, section 4.1); the others are dropped,
            and the block's residual connection is all they get. ``None`` drops none, as evaluation does.
        balance: weight of `balance_loss` in ``aux_loss``.
        z: weight of `z_loss` in ``aux_loss``.
        jitter: see `TopKRouter`.
        shared: with a shared expert.

    Attributes:
        aux_loss: ``()``, of the last forward pass in training mode; to be added to the loss: see `aux_loss`.
    """

    routing = "topk"

    def __init__(
        self,
        experts: Iterable[nn.Module],
        top_k: int = 1,
        capacity_factor: float | None = None,
        balance: float = 0.01,
        z: float = 0.001,
        jitter: float = 0.0,
        shared: bool = False,
    ):
        super().__init__(experts)
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor={capacity_factor}: must be above 0, or None to drop no token")
        linear = next((module for module in self.experts[0].modules() if isinstance(module, nn.Linear)), None)
        if linear is None:
            raise ValueError(f"{type(self.experts[0]).__name__} has no Linear layer: how wide a token is is not known")
        self.router = TopKRouter(linear.in_features, self.num_experts, top_k, jitter).to(linear.weight.device)
        self.shared = deepcopy(self.experts[0]) if shared else None
        self.capacity_factor = capacity_factor
        self.balance = balance
        self.z = z
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        routing: Routing = self.router(tokens)
        if self.training:
            self.aux_loss = self.balance * balance_loss(routing) + self.z * z_loss(routing)
        choices, sizes = self._dispatch(routing)
        rows = choices // self.router.top_k  # of the token that made the choice
        parts = tokens[rows].split(sizes)
        outputs = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        outputs = outputs * routing.gates.flatten()[choices, None].to(outputs.dtype)
        output = outputs.new_zeros(len(tokens), outputs.shape[1]).index_add(0, rows, outputs)
        if self.shared is not None:
            output = (output + self.shared(tokens)) / 2
        return output.reshape(*x.shape[:-1], output.shape[1])

    @torch.no_grad()
    def _dispatch(self, routing: Routing) -> tuple[Tensor, list[int]]:
        """The choices in the order of their experts, as indices into the flattened ``(T, k)``, and each expert's number
        of them: all of them or, in training with a capacity, those that it takes.
        """
        expert = routing.experts.flatten()
        if not self.training or self.capacity_factor is None:
            order = expert.argsort(stable=True)
            return order, torch.bincount(expert, minlength=self.num_experts).tolist()
        by_gate = routing.probabilities.gather(1, routing.experts).flatten().argsort(descending=True, stable=True)
        order = by_gate[expert[by_gate].argsort(stable=True)]
        capacity = ceil(self.capacity_factor * len(expert) / self.num_experts)
        sizes = torch.bincount(expert, minlength=self.num_experts).tolist()
        taken = [part[:capacity] for part in order.split(sizes)]
        return torch.cat(taken), [len(part) for part in taken]

    @torch.no_grad()
    def merged(self, weights: Any = None) -> nn.Module:
        ffn = super().merged(weights)
        if self.shared is not None:
            shared = dict(self.shared.named_parameters())
            for name, parameter in ffn.named_parameters():
                parameter.lerp_(shared[name], 0.5)
        return ffn

    def options(self) -> dict[str, Any]:
        return {
            "top_k": self.router.top_k,
            "capacity_factor": self.capacity_factor,
            "balance": self.balance,
            "z": self.z,
            "jitter": self.router.jitter,
            "shared": self.shared is not None,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "aux_loss": None}  # a tensor within a graph: it can be neither copied nor pickled

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, top_k={self.router.top_k}"


def aux_loss(model: nn.Module) -> Tensor | None:
    """The sum of the routers' losses of the last forward pass in training mode, ``()``: add it to the training loss.

    ``None`` where the model has no routed experts, or has not been run.
    """
    losses = [layer.aux_loss for layer in model.modules() if isinstance(layer, RoutedExperts)]
    known = [loss for loss in losses if loss is not None]
    return torch.stack(known).sum() if known else None
