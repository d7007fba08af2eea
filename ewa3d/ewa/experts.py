"""The expert layer: N FFNs that share one FFN's work while training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .routing import random_permutation


def mean_tensor(tensors: Sequence[Tensor], weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """The mean W̄ of equally shaped tensors, as W₀ + mean(Wᵢ − W₀), or their mean by ``weights`` that sum to 1.

    A plain mean of N equal tensors is off by rounding for most N; this form returns W₀ itself, bit for bit, so that
    upcycling and merging an untouched model is the identity. Tensors that are not floating point are not averaged:
    the first is returned. Differentiable in the tensors and in ``weights``.
    """
    first, *others = tensors
    if not others or not first.is_floating_point():
        return first
    if weights is not None:
        return first + sum(weight * (other - first) for weight, other in zip(weights[1:], others, strict=True))
    total = others[0] - first
    for other in others[1:]:
        total += other - first
    return total.div_(len(tensors)).add_(first)


class _TakeRows(torch.autograd.Function):
    """``x[order]`` for a permutation. Its gradient is a gather too (by the inverse), much cheaper than index_add."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class Experts(nn.Module):
    """N FFNs of one shape that stand where a single FFN stood.

    **Training**: the tokens (all leading dimensions, flattened) are dealt to the experts uniformly at random in parts
    whose sizes differ by at most one; each expert computes its part and outputs return to their places. The arithmetic
    is that of one FFN. An expert whose part is empty is still called, so that its gradient is zero and not ``None``.

    **Evaluation**: the output is that of one FFN with the experts' mean weights, which is the FFN that `merge` exports.
    The mean is computed in every call and never cached: a cached one would go stale.

    Args:
        experts: at least two modules with the same parameters, each mapping ``(tokens, C)`` to ``(tokens, C')``.

    Attributes:
        generator: source of the partitions; ``None`` (the default) is PyTorch's global one.

    Shape:
        ``(..., C)`` to ``(..., C')``.

    Source: Experts Weights Averaging, arXiv 2308.06093, section 3.
    """

    routing = "random"
    generator: torch.Generator | None = None

    def __init__(self, experts: Iterable[nn.Module]):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        if len(self.experts) < 2:
            raise ValueError(f"an expert layer needs at least 2 experts, got {len(self.experts)}")
        shapes = [{name: p.shape for name, p in expert.named_parameters()} for expert in self.experts]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("the experts of a layer must have the same parameters with the same shapes")

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    def parameter_sets(self) -> dict[str, list[nn.Parameter]]:
        """For every parameter name of an expert, that parameter in each expert, in order."""
        named = [dict(expert.named_parameters()) for expert in self.experts]
        return {name: [params[name] for params in named] for name in named[0]}

    def mean_parameters(self, weights: Tensor | Sequence[float] | None = None) -> dict[str, Tensor]:
        """The mean W̄ of every parameter over the experts, by name within an expert. Differentiable.

        Args:
            weights: of the experts, ``(N,)``, summing to 1; all alike where ``None``.
        """
        return {name: mean_tensor(params, weights) for name, params in self.parameter_sets().items()}

    def merge_weights(self) -> Tensor | None:
        """The experts' weights ``(N,)`` in the FFN that they are merged into; ``None``: all alike."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.forward_merged(x)
        tokens = x.reshape(-1, x.shape[-1])
        order = random_permutation(len(tokens), generator=self.generator, device=tokens.device)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        sizes = [len(part) for part in order.tensor_split(self.num_experts)]
        parts = _TakeRows.apply(tokens, order, inverse).split(sizes)  # its gradient is one cat; tensor_split's fills
        outputs = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return _TakeRows.apply(outputs, inverse, order).reshape(*x.shape[:-1], outputs.shape[-1])

    def forward_merged(self, x: Tensor) -> Tensor:
        """What the FFN that the experts are merged into makes of ``x``. Differentiable in every expert."""
        return functional_call(self.experts[0], self.mean_parameters(self.merge_weights()), (x,))

    @torch.no_grad()
    def merged(self, weights: Tensor | Sequence[float] | None = None) -> nn.Module:
        """A new FFN with the experts' mean weights. Buffers, which experts share from the start, are the first's.

        Args:
            weights: of the experts, ``(N,)``, summing to 1; those of `merge_weights` where ``None``.
        """
        ffn = deepcopy(self.experts[0])
        means = self.mean_parameters(self.merge_weights() if weights is None else weights)
        for name, parameter in ffn.named_parameters():
            parameter.copy_(means[name])
        return ffn

    def options(self) -> dict[str, Any]:
        """What `upcycle` has to be told, besides the number of experts, to make this layer again."""
        return {}

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"


class FusedExperts(Experts):
    """N FFNs that are fused into one, by learned weights, in every forward pass (ExFusion, arXiv 2603.27965).

    All tokens go through the FFN with the parameters Σ wᵢ Wᵢ, where w is the softmax of the parameter ``fusion``
    ``(N,)``, in training and in evaluation; that FFN is also what `merge` exports. Experts that start as copies get the
    same gradient and stay alike: start them independently. Averaging them keeps their plain mean, which is the fused
    FFN only while the weights are alike: ExFusion does not average.
    """

    routing = "fused"

    def __init__(self, experts: Iterable[nn.Module]):
        super().__init__(experts)
        self.fusion = nn.Parameter(next(self.experts[0].parameters()).new_zeros(self.num_experts))

    def merge_weights(self) -> Tensor:
        return self.fusion.softmax(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_merged(x)
