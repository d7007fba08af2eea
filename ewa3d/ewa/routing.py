"""How the tokens of a batch are dealt to experts."""

from __future__ import annotations

import torch
from torch import Tensor


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
