"""Settings of the process that make PyTorch fast on a CPU. They change no result by more than rounding."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn


def tune_process() -> None:
    """Make all settings, once a process: the engine does, for whatever it runs on a CPU."""
    keep_freed_memory()
    use_onednn_products()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system (no effect elsewhere).

    Every training step frees and takes the same large blocks; by default glibc unmaps them, and the kernel zeroes each
    page again at its next touch: 90,000 page faults a second were counted while training on two cores, none with this.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # parameters of mallopt(3)
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def use_onednn_products() -> bool:
    """On AMD processors with AVX-512, let oneDNN multiply fp32 matrices instead of MKL (no effect elsewhere).

    MKL leaves half of the width of these processors' vector units unused: on a Zen 5 oneDNN is twice as fast. PyTorch
    turns to it for fp32 where the precision "medium" is set, which permits bf16 inside of a product; oneDNN makes use
    of the permission on processors with AMX only, which AMD's are not. That nothing is rounded is checked here, on a
    product whose factors bf16 cannot hold; otherwise the setting is taken back.

    Returns:
        Whether oneDNN is used.
    """
    before = torch.get_float32_matmul_precision()
    if not (before == "highest" and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()):
        return before == "medium"
    factor = torch.linspace(1, 2, 512 * 512).view(512, 512)
    exact = factor.double() @ factor.double()
    torch.set_float32_matmul_precision("medium")
    if ((factor @ factor) / exact - 1).abs().max() > 1e-5:  # in bf16 3e-3
        torch.set_float32_matmul_precision("highest")
        return False
    return True


def use_plain_attention(model: nn.Module) -> None:
    """Let attention be three plain operations: on a CPU they beat PyTorch's fused one, backwards above all."""
    module: Any
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _is_amd() -> bool:
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return False
