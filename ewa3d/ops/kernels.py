"""Which devices the Triton kernels run on."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch


@cache
def kernels_for(device: torch.device) -> ModuleType | None:
    """`ewa3d.ops.triton_kernels` where ``device`` runs it, else ``None``: then PyTorch does the same work.

    It takes an NVIDIA GPU and Triton, which compiles on first use with a C compiler and Python's headers. Whether all
    of that is there is tried once, on one point; a GPU without it is a warning and no error.
    """
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return None
    try:
        from . import triton_kernels

        point = torch.zeros(1, 1, 3, device=device)
        triton_kernels.farthest_point_sample(point, 1, 0, None)
    except Exception as error:  # of many kinds: no compiler, no headers, a GPU too old, a Triton too old
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"Triton does not run here, PyTorch samples and groups instead: {reason}", stacklevel=2)
        return None
    return triton_kernels
