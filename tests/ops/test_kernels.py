"""Who uses the Triton kernels, and who does not."""

from types import SimpleNamespace

import pytest
import torch

from ewa3d.ops import farthest_point_sample, knn, neighbors, sampling
from ewa3d.ops.kernels import kernels_for


def test_only_a_gpu_runs_them():
    assert kernels_for(torch.device("cpu")) is None
    assert kernels_for(torch.device("meta")) is None


def test_a_gpu_that_cannot_run_them_is_a_warning_and_no_error(monkeypatch):
    triton_kernels = pytest.importorskip("ewa3d.ops.triton_kernels", reason="Triton is not installed here")

    def fail(*_):
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(triton_kernels, "farthest_point_sample", fail)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    with pytest.warns(UserWarning, match="PyTorch samples and groups instead: Failed to find C compiler$"):
        assert kernels_for.__wrapped__(torch.device("cuda", 0)) is None


def test_an_amd_gpu_takes_pytorch(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert kernels_for.__wrapped__(torch.device("cuda", 0)) is None


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Which kernels were called, where they hold 8 points and 4 neighbours."""
    names: list[str] = []

    def kernel(name):
        return lambda *arguments: names.append(name)

    fake = SimpleNamespace(
        MAX_POINTS=8, MAX_NEIGHBORS=4, farthest_point_sample=kernel("farthest"), knn=kernel("nearest")
    )
    for module in (sampling, neighbors):
        monkeypatch.setattr(module, "kernels_for", lambda device: fake)
    return names


def test_larger_clouds_and_more_neighbours_than_they_hold_are_left_to_pytorch(asked):
    farthest_point_sample(torch.randn(1, 9, 3), 2)
    knn(torch.randn(1, 2, 3), torch.randn(1, 9, 3), 2)
    knn(torch.randn(1, 2, 3), torch.randn(1, 8, 3), 5)
    assert asked == []
    farthest_point_sample(torch.randn(1, 8, 3), 2)
    knn(torch.randn(1, 2, 3), torch.randn(1, 8, 3), 4)
    assert asked == ["farthest", "nearest"]


def test_arguments_are_checked_before_a_kernel_sees_them(asked):
    for call in (
        lambda: farthest_point_sample(torch.zeros(1, 5, 3), 2, start=5),
        lambda: farthest_point_sample(torch.zeros(1, 5, 2), 2),
        lambda: knn(torch.zeros(1, 2, 3), torch.zeros(1, 5, 3), 6),
        lambda: knn(torch.zeros(2, 2, 3), torch.zeros(1, 5, 3), 2),
    ):
        with pytest.raises(ValueError):
            call()
    assert asked == []


@pytest.mark.parametrize(
    ("name", "pointers", "tile", "fused", "single"),
    [
        ("_farthest_points", "points picks", {}, 2, 4),
        ("_nearest_points", "queries points neighbors", {"QUERIES": 1}, 3, 0),
    ],
)
def test_they_compile_for_a_gpu_and_fuse_what_pytorch_fuses_and_nothing_else(
    name, pointers, tile, fused, single, tmp_path, monkeypatch
):
    """One thread a point, so the instructions of its program are those of a point."""
    triton = pytest.importorskip("triton", "3.3", reason="compiling where there is no GPU takes Triton 3.3")
    from triton.backends.compiler import GPUTarget

    from ewa3d.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"BLOCK": 32, **tile}
    kernel = getattr(triton_kernels, name)
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(pointers.split(), "*fp32") | {pointers.split()[-1]: "*i64"}
    types |= {"min_norm_squared": "fp32"} if "min_norm_squared" in types else {}
    source = triton.compiler.ASTSource(kernel, types, constants)
    compiled = triton.compile(source, GPUTarget("cuda", 80, 32), {"num_warps": 1, **triton_kernels.OPTIONS})
    assert compiled.asm["ptx"].count("fma.rn.f32") == fused
    assert compiled.asm["ptx"].count("mul.rn.f32") == single


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 1000, 2400, 8192, 16384, 16385])
@pytest.mark.parametrize("min_norm", [None, 1e-3**0.5])
def test_a_gpu_picks_what_the_cpu_picks(count, min_norm):
    points = torch.randn(3, count, 3)
    start = count // 2
    picks = farthest_point_sample(points.cuda(), 128, start=start, min_norm=min_norm)
    assert torch.equal(picks.cpu(), farthest_point_sample(points, 128, start=start, min_norm=min_norm))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("count", "k"), [(1, 1), (64, 3), (1000, 32), (2400, 64), (2400, 65), (16384, 16), (16385, 16)]
)
def test_a_gpu_finds_the_neighbours_that_the_cpu_finds(count, k):
    points, queries = torch.randn(3, count, 3), torch.randn(3, 100, 3)
    found = knn(queries.cuda(), points.cuda(), k).cpu()
    assert torch.equal(found.sort(-1).values, knn(queries, points, k).sort(-1).values)
