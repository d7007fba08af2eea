"""Nearest neighbours and grouping against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ewa3d.ops import gather_points, group, knn

COORDINATES = st.floats(-100, 100, width=32)


def points_of(batch: int, count: int):
    return hnp.arrays(np.float32, (batch, count, 3), elements=COORDINATES).map(torch.from_numpy)


@given(data=st.data(), batch=st.integers(1, 3), queries=st.integers(1, 5), count=st.integers(1, 20))
def test_neighbours_are_the_nearest(data, batch, queries, count):
    q, p = data.draw(points_of(batch, queries)), data.draw(points_of(batch, count))
    k = data.draw(st.integers(1, count))
    index = knn(q, p, k)
    assert index.shape == (batch, queries, k)
    exact = (q.double()[:, :, None] - p.double()[:, None]).square().sum(-1)
    found = exact.gather(2, index).sort(-1).values
    expected = exact.sort(-1).values[..., :k]
    # which of two equally near points is taken may differ by float32 rounding of their distances, nothing else
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == k for row in index.flatten(0, 1).tolist()), "no neighbour twice"


@pytest.mark.parametrize("spread", [4, 1000], ids=["ties", "distinct"])
@given(count=st.integers(100, 3000), k=st.integers(1, 40), queries=st.integers(1, 600), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_neighbours_in_large_clouds(spread, count, k, queries, seed):
    """Whole coordinates have exact distances: the nearest, ties among them or not, are found to the last digit."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(-spread, spread + 1, (2, count, 3), generator=generator).float()
    q = torch.randint(-spread, spread + 1, (2, queries, 3), generator=generator).float()
    index = knn(q, p, k)
    exact = (q[:, :, None] - p[:, None]).square().sum(-1)
    assert torch.equal(exact.gather(2, index).sort(-1).values, exact.sort(-1).values[..., :k])
    assert (index.sort(-1).values.diff(dim=-1) > 0).all(), "no neighbour twice"


def test_close_neighbours_far_from_the_origin_are_told_apart():
    """The expanded formula |q|² + |p|² − 2qp fails here: all distances round to the same number."""
    base = torch.tensor([1000.0, 1000.0, 1000.0])
    points = base + torch.tensor([[0.0, 0, 0], [0.01, 0, 0], [0.02, 0, 0], [0.04, 0, 0]])
    assert sorted(knn(points[None, :1], points[None], 2)[0, 0].tolist()) == [0, 1]


def test_a_query_among_the_points_is_its_own_neighbour():
    points = torch.randn(2, 40, 3)
    index = knn(points, points, 3)
    assert (index == torch.arange(40)[None, :, None]).any(-1).all()


def test_autocast_does_not_change_neighbours():
    points = torch.randn(2, 200, 3)
    with torch.autocast("cpu", torch.bfloat16):
        under = knn(points[:, :10], points, 8)
    assert torch.equal(under, knn(points[:, :10], points, 8))


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be between 1 and the number of points \(5\)"):
        knn(torch.zeros(1, 2, 3), torch.zeros(1, 5, 3), k)


@pytest.mark.parametrize(
    ("queries", "points"), [((2, 3), (1, 5, 3)), ((1, 2, 3), (1, 5, 4)), ((1, 2, 2), (1, 5, 3)), ((2, 2, 3), (1, 5, 3))]
)
def test_other_shapes_are_refused(queries, points):
    with pytest.raises(ValueError, match=r"queries and points must be \(B, M, 3\) and \(B, N, 3\), got"):
        knn(torch.zeros(queries), torch.zeros(points), 1)


def test_gather_points_indexes_each_cloud_by_its_own_rows():
    points = torch.randn(3, 10, 4)
    index = torch.randint(10, (3, 5, 2))
    expected = torch.stack([cloud[rows] for cloud, rows in zip(points, index, strict=True)])
    assert torch.equal(gather_points(points, index), expected)


def test_groups_are_offsets_from_their_centers():
    points = torch.randn(2, 60, 3)
    centers = points[:, :7]
    groups = group(points, centers, 5)
    assert groups.shape == (2, 7, 5, 3)
    assert (groups == 0).all(-1).any(-1).all(), "the center itself is in its group"
    absolute = groups + centers[:, :, None]
    expected = gather_points(points, knn(centers, points, 5))
    torch.testing.assert_close(absolute, expected)


def test_groups_pass_gradients_to_the_points():
    points = torch.randn(1, 20, 3, requires_grad=True)
    group(points, points[:, :2], 4).square().sum().backward()
    assert points.grad is not None and points.grad.abs().sum() > 0
