"""Measuring: things done in turn in one process, their medians and spread, and ratios within a round."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch

from ewa3d.engine.cpu import keep_freed_memory
from ewa3d.progress import track


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, their quartiles and their number."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: list[float]) -> Spread:
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        return Spread(statistics.median(values), low, high, len(values))


class Times:
    """Seconds of every round of every candidate."""

    def __init__(self, seconds: Mapping[str, list[float]]):
        self.seconds = seconds

    def __getitem__(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """``slow`` over ``fast`` round by round: what both had to share cancels."""
        return Spread.of([a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)])


def in_turn(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    plain: Collection[str] = (),
    warmup: int = 2,
    label: str = "measuring",
) -> Times:
    """Call every candidate once a round, in turn, after ``warmup`` rounds that do not count.

    Args:
        candidates: what to call, by name.
        rounds: how often it is measured.
        plain: names of candidates that run in `plain_process`. They, and whoever comes after one, are called once more
            before the measurement: the first call under other settings takes its memory from the system anew.
        warmup: rounds before.
        label: what the progress bar says.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    was_plain = False
    for i in track(range(warmup + rounds), label, warmup + rounds):
        # there and back: who comes after whom is not always to the same one's advantage
        for name, candidate in list(candidates.items())[:: -1 if i % 2 else 1]:
            is_plain = name in plain
            with plain_process() if is_plain else nullcontext():
                if is_plain or was_plain:
                    candidate()
                synchronize()
                started = time.perf_counter()
                candidate()
                synchronize()
                elapsed = time.perf_counter() - started
            was_plain = is_plain
            if i >= warmup:
                seconds[name].append(elapsed)
    return Times(seconds)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def plain_process() -> Iterator[None]:
    """PyTorch and the allocator as they are without ``ewa3d.engine.cpu``: the reference runs so.

    glibc's own limits move with what a program frees; set here are those that they reach after large blocks.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    mmap_threshold, trim_threshold, top_pad, mmap_max = -3, -1, -2, -4  # parameters of mallopt(3)
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.mallopt(top_pad, 128 << 10)
        libc.malloc_trim(0)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        keep_freed_memory()


def peak_memory(function: Callable[[], Any]) -> float | None:
    """MiB that a call takes at its peak beyond what was held before: of the GPU, else of the process.

    ``None`` where the system does not say (it is Linux that does).
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        function()
        return (_status("VmHWM") - before) / 2**20
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@cache
def product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product (4096 cubed; 8192 on a GPU), the median of several."""
    size = 8192 if device == "cuda" else 4096
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / in_turn({"product": lambda: a @ b}, 7, label="matrix product")["product"].median


def machine(device: str, seed: int) -> dict[str, Any]:
    """What a figure depends on."""
    return {
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "seed": seed,
    }


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
