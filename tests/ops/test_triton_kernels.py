"""The Triton kernels against the PyTorch code on the CPU: the same picks and neighbours.

On a GPU where there is one; `test_triton_interpreted` runs this file on the CPU, under Triton's interpreter.
"""

import os

import pytest
import torch
from degenerate import degenerate_clouds
from hypothesis import given, settings
from hypothesis import strategies as st

from ewa3d.ops import farthest_point_sample, gather_points, knn

triton_kernels = pytest.importorskip("ewa3d.ops.triton_kernels", reason="Triton is not installed here")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

NORM = 1e-3**0.5  # the official rule's
FEW = settings(max_examples=30)  # the interpreter takes its time


@st.composite
def clouds(draw, max_points: int = 40) -> torch.Tensor:
    """Multiples of 1/8 up to ±1, few enough for many ties: all distances are exact in float32, so ties are real."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, max_points)), 3
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return torch.randint(-8, 9, shape, generator=generator) / 8


def picks_of(points, samples, start=0, min_norm=None):
    return triton_kernels.farthest_point_sample(points.to(DEVICE), samples, start, min_norm).cpu()


def neighbors_of(queries, points, k):
    return triton_kernels.knn(queries.to(DEVICE), points.to(DEVICE), k).cpu()


def squared_distances(queries, points, index):
    return (gather_points(points, index) - queries.unsqueeze(2)).square().sum(-1).sort(-1).values


@FEW
@given(
    points=clouds(), samples=st.integers(1, 12), min_norm=st.sampled_from([None, 0.0, 0.5, 1.0, 9.0]), data=st.data()
)
def test_picks_are_the_same_ties_and_rules_included(points, samples, min_norm, data):
    start = data.draw(st.integers(0, points.shape[1] - 1))
    expected = farthest_point_sample(points, samples, start=start, min_norm=min_norm)
    assert torch.equal(picks_of(points, samples, start, min_norm), expected)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 257, 1000, 1200])
@pytest.mark.parametrize("min_norm", [None, NORM, 1.0])
def test_picks_are_the_same_on_random_clouds_of_any_size(count, min_norm):
    points = torch.randn(2, count, 3)
    expected = farthest_point_sample(points, 40, start=count // 2, min_norm=min_norm)
    assert torch.equal(picks_of(points, 40, count // 2, min_norm), expected)


@FEW
@given(points=degenerate_clouds(largest=1e30), samples=st.integers(1, 12), min_norm=st.sampled_from([None, NORM]))
def test_picks_are_the_same_where_clouds_are_hardly_clouds(points, samples, min_norm):
    expected = farthest_point_sample(points, samples, min_norm=min_norm)
    assert torch.equal(picks_of(points, samples, 0, min_norm), expected)


def test_points_near_the_origin_are_passed_over_and_0_is_taken_where_nothing_else_is_left():
    points = torch.tensor([[[0.0, 0.0, 0.03], [0.0, 0.0, 0.5], [0.0, 0.01, 0.0], [0.5, 0.0, 0.0]]])
    assert picks_of(points, 4, 0, NORM).tolist() == farthest_point_sample(points, 4, min_norm=NORM).tolist()
    assert set(picks_of(points, 6, 1, NORM)[0].tolist()) == {1, 3}, "and never an empty lane, nor 0 or 2"
    assert picks_of(points, 3, 2, 9.0).tolist() == [[2, 0, 0]]


def test_a_norm_exactly_at_the_limit_is_out():
    points = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0], [0.25, 0, 0]]])
    assert (
        picks_of(points, 3, 0, 0.5).tolist() == farthest_point_sample(points, 3, min_norm=0.5).tolist() == [[0, 0, 0]]
    )


def test_more_picks_than_points_repeat_as_they_do_in_pytorch():
    points = torch.randn(3, 5, 3)
    assert torch.equal(picks_of(points, 12), farthest_point_sample(points, 12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_and_stride(dtype):
    points = (
        torch.randn(3, 4, 90, dtype=torch.float64).to(dtype).transpose(0, 2)[::3, :, :]
    )  # (30, 4, 3): nothing lies in a row
    assert not points.is_contiguous()
    assert torch.equal(picks_of(points, 3), farthest_point_sample(points, 3))
    assert torch.equal(
        neighbors_of(points[:, :2], points, 3).sort(-1).values, knn(points[:, :2], points, 3).sort(-1).values
    )


@FEW
@given(points=clouds(), queries=st.integers(1, 40), data=st.data())
def test_neighbours_are_as_near_and_none_comes_twice(points, queries, data):
    k = data.draw(st.integers(1, min(points.shape[1], 12)))
    asked = torch.randint(-8, 9, (len(points), queries, 3)) / 8
    index = neighbors_of(asked, points, k)
    assert index.shape == (len(points), queries, k) and index.dtype == torch.int64
    assert all(len(set(row)) == k for row in index.flatten(0, 1).tolist())
    expected = squared_distances(asked, points, knn(asked, points, k))
    assert torch.equal(squared_distances(asked, points, index), expected)


@FEW
@given(points=degenerate_clouds(largest=1e18), data=st.data())
def test_neighbours_are_as_near_where_clouds_are_hardly_clouds(points, data):
    k = data.draw(st.integers(1, min(points.shape[1], 12)))
    index = neighbors_of(points, points, k)
    assert all(len(set(row)) == k for row in index.flatten(0, 1).tolist())
    expected = squared_distances(points, points, knn(points, points, k))
    torch.testing.assert_close(squared_distances(points, points, index), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("queries", "count", "k"), [(1, 1, 1), (70, 3, 3), (5, 64, 64), (33, 100, 3), (8, 1000, 32), (3, 1025, 64)]
)
def test_neighbours_are_the_same_set_on_random_clouds(queries, count, k):
    points, asked = torch.randn(2, count, 3), torch.randn(2, queries, 3)
    expected = knn(asked, points, k).sort(-1).values
    assert torch.equal(neighbors_of(asked, points, k).sort(-1).values, expected)


def test_close_neighbours_far_from_the_origin_are_told_apart():
    points = 1000 + torch.tensor([[[0.0, 0, 0], [0.01, 0, 0], [0.02, 0, 0], [0.04, 0, 0]]])
    assert sorted(neighbors_of(points[:, :1], points, 2)[0, 0].tolist()) == [0, 1]


def test_distances_beyond_float32_still_give_points_that_exist():
    points = torch.randn(1, 5, 3) * 1e30
    assert sorted(neighbors_of(torch.zeros(1, 1, 3), points, 5)[0, 0].tolist()) == [0, 1, 2, 3, 4]
