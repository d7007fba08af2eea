"""Chamfer distances against their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ewa3d.ops import chamfer_distance

COORDINATES = st.floats(-100, 100, width=32)


@st.composite
def pairs(draw):
    batch, sizes = draw(st.integers(1, 3)), [draw(st.integers(1, 12)) for _ in range(2)]
    return [
        torch.from_numpy(draw(hnp.arrays(np.float32, (batch, size, 3), elements=COORDINATES)))
        for size in sizes
    ]  # fmt: skip


def brute_force(a: torch.Tensor, b: torch.Tensor, norm: str) -> torch.Tensor:
    squared = (a.double()[:, :, None] - b.double()[:, None]).square().sum(dim=-1)
    if norm == "l2":
        return squared.amin(dim=2).mean(dim=1) + squared.amin(dim=1).mean(dim=1)
    distance = squared.sqrt()
    return (distance.amin(dim=2).mean(dim=1) + distance.amin(dim=1).mean(dim=1)) / 2


@given(pair=pairs(), norm=st.sampled_from(["l1", "l2"]))
def test_it_is_what_the_definition_says(pair, norm):
    a, b = pair
    distance = chamfer_distance(a, b, norm)
    assert distance.shape == (len(a),) and distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), brute_force(a, b, norm), rtol=1e-5, atol=1e-6)


@given(pair=pairs(), norm=st.sampled_from(["l1", "l2"]), seed=st.integers(0, 99))
def test_it_is_symmetric_and_orders_do_not_matter(pair, norm, seed):
    a, b = pair
    generator = torch.Generator().manual_seed(seed)
    mixed = b[:, torch.randperm(b.shape[1], generator=generator)]
    expected = chamfer_distance(a, b, norm)
    torch.testing.assert_close(chamfer_distance(mixed, a, norm), expected, rtol=1e-5, atol=1e-6)
    assert (chamfer_distance(b, mixed, norm) == 0).all(), "equal sets"


def test_the_two_norms_of_an_example():
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    b = torch.tensor([[[0.0, 0, 0], [1, 2, 0], [5, 0, 0]]])
    assert chamfer_distance(a, b, "l2").tolist() == pytest.approx([(0 + 1) / 2 + (0 + 4 + 16) / 3])
    assert chamfer_distance(a, b, "l1").tolist() == pytest.approx([((0 + 1) / 2 + (0 + 2 + 4) / 3) / 2])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradients_of_both_sets(norm):
    a, b = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    assert torch.autograd.gradcheck(lambda a, b: chamfer_distance(a, b, norm), (a, b))


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_equal_sets_have_gradient_zero(norm):
    a = torch.randn(2, 6, 3, requires_grad=True)
    chamfer_distance(a, a.detach(), norm).sum().backward()
    assert (a.grad == 0).all()


def test_neither_autocast_nor_half_precision_costs_digits():
    a, b = torch.randn(2, 1, 40, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        under = chamfer_distance(a, b)
    assert under.dtype == torch.float32
    torch.testing.assert_close(under.double(), brute_force(a, b, "l2"), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shapes", "norm", "message"),
    [
        (((2, 4, 3), (2, 4, 3)), "l3", "unknown norm 'l3': choose l1 or l2"),
        (((2, 0, 3), (2, 4, 3)), "l2", r"must have a point or more, got \(2, 0, 3\)"),
        (((2, 4, 3), (1, 4, 3)), "l2", r"must be \(B, M, 3\) and \(B, N, 3\)"),
        (((4, 3), (4, 3)), "l2", r"must be \(B, M, 3\) and \(B, N, 3\)"),
    ],
)
def test_other_inputs_are_refused(shapes, norm, message):
    with pytest.raises(ValueError, match=message):
        chamfer_distance(*map(torch.zeros, shapes), norm)
