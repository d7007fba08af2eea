"""Farthest point sampling against a brute-force loop, and its properties."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ewa3d.ops import farthest_point_sample

# multiples of 1/8 up to 4: squares and sums are exact in float32, so ties are real ties
GRID = st.integers(-32, 32).map(lambda i: i / 8)


def clouds(min_points: int = 1, max_points: int = 24):
    shapes = st.tuples(st.integers(1, 3), st.integers(min_points, max_points), st.just(3))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=GRID)).map(torch.from_numpy)


def brute_force(cloud: np.ndarray, num_samples: int, start: int, min_norm_squared: float | None) -> list[int]:
    """The definition, one point at a time: of the candidates the first of those farthest from all picks."""
    candidates = [i for i, p in enumerate(cloud) if min_norm_squared is None or float((p * p).sum()) > min_norm_squared]
    picks = [start]
    while len(picks) < num_samples:
        distance = {i: min(float(((cloud[i] - cloud[j]) ** 2).sum()) for j in picks) for i in candidates}
        picks.append(max(distance, key=lambda i: (distance[i], -i)) if distance else 0)
    return picks


@given(points=clouds(), samples=st.integers(1, 12), data=st.data())
def test_matches_brute_force(points, samples, data):
    start = data.draw(st.integers(0, points.shape[1] - 1))
    picks = farthest_point_sample(points, samples, start=start)
    assert picks.tolist() == [brute_force(cloud, samples, start, None) for cloud in points.numpy()]


@given(points=clouds(), samples=st.integers(1, 12), norm_squared=st.sampled_from([0.0, 0.25, 1.0, 1000.0]))
def test_official_rule_matches_brute_force(points, samples, norm_squared):
    picks = farthest_point_sample(points, samples, min_norm=norm_squared**0.5)
    assert picks.tolist() == [brute_force(cloud, samples, 0, norm_squared) for cloud in points.numpy()]


@given(points=clouds(min_points=4), samples=st.integers(2, 10))
def test_spacing_never_grows(points, samples):
    """Each pick is at most as far from those before it as the pick before was: sampling refines."""
    picks = farthest_point_sample(points, samples)
    for cloud, order in zip(points, picks.tolist(), strict=True):
        gaps = [(cloud[order[:i]] - cloud[order[i]]).square().sum(-1).min().item() for i in range(1, samples)]
        assert all(a >= b for a, b in pairwise(gaps))


def test_distinct_points_are_all_picked_before_any_repeats():
    points = torch.rand(4, 50, 3)
    picks = farthest_point_sample(points, 50)
    assert all(sorted(row) == list(range(50)) for row in picks.tolist())


def test_a_longer_sample_begins_with_the_shorter_one():
    points = torch.rand(2, 200, 3)
    assert torch.equal(farthest_point_sample(points, 64)[:, :16], farthest_point_sample(points, 16))


def test_clouds_of_a_batch_do_not_touch_each_other():
    points = torch.randn(5, 80, 3)
    alone = torch.cat([farthest_point_sample(cloud[None], 16) for cloud in points])
    assert torch.equal(farthest_point_sample(points, 16), alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_computes_in_float32_whatever_the_dtype_or_autocast(dtype):
    points = torch.randn(2, 100, 3).to(dtype)
    expected = farthest_point_sample(points.float(), 20)
    assert torch.equal(farthest_point_sample(points, 20), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(farthest_point_sample(points.float(), 20), expected)


def test_the_input_is_left_alone_and_takes_no_gradient():
    points = torch.randn(2, 30, 3, requires_grad=True)
    before = points.detach().clone()
    assert not farthest_point_sample(points, 5, min_norm=0.5).requires_grad
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("shape", "samples", "start", "message"),
    [
        ((2, 3), 1, 0, r"points must be \(B, N, 3\)"),
        ((1, 5, 6), 1, 0, r"points must be \(B, N, 3\)"),
        ((1, 0, 3), 1, 0, "N > 0"),
        ((1, 5, 3), 0, 0, "num_samples must be 1 or more"),
        ((1, 5, 3), 2, 5, "start must be an index below 5"),
    ],
)
def test_bad_arguments_are_refused(shape, samples, start, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_sample(torch.zeros(shape), samples, start=start)
