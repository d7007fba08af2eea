"""Interpolation against its definition, one point at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.ops import three_nn_interpolate


def brute_force(queries, points, features):
    """In float64, with sorted distances."""
    out = torch.empty(*queries.shape[:2], features.shape[-1], dtype=torch.float64)
    for b in range(len(queries)):
        for q, query in enumerate(queries[b].double()):
            squared = (points[b].double() - query).square().sum(dim=-1)
            nearest = squared.argsort()[:3]
            weight = 1 / (squared[nearest] + 1e-8)
            out[b, q] = (weight[:, None] * features[b, nearest].double()).sum(dim=0) / weight.sum()
    return out


@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 12),
    points=st.integers(1, 9),
    channels=st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_against_brute_force(batch, queries, points, channels, seed):
    draw = torch.Generator().manual_seed(seed)
    arguments = [
        torch.randn(batch, count, size, generator=draw)
        for count, size in ((queries, 3), (points, 3), (points, channels))
    ]
    result = three_nn_interpolate(*arguments)
    torch.testing.assert_close(result, brute_force(*arguments).float(), rtol=1e-4, atol=1e-5)


def test_a_query_on_a_point_gets_its_features():
    points, features = torch.rand(2, 20, 3), torch.randn(2, 20, 4)
    torch.testing.assert_close(three_nn_interpolate(points, points, features), features, rtol=1e-3, atol=1e-3)


def test_a_constant_stays_and_other_values_stay_between():
    queries, points = torch.rand(2, 50, 3), torch.rand(2, 10, 3)
    torch.testing.assert_close(three_nn_interpolate(queries, points, torch.ones(2, 10, 1)), torch.ones(2, 50, 1))
    features = torch.randn(2, 10, 4)
    result = three_nn_interpolate(queries, points, features)
    assert (result <= features.amax(dim=1, keepdim=True) + 1e-5).all()
    assert (result >= features.amin(dim=1, keepdim=True) - 1e-5).all()


def test_the_gradient_is_the_transposed_interpolation():
    queries, points = torch.rand(1, 30, 3), torch.rand(1, 8, 3)
    features = torch.randn(1, 8, 2, dtype=torch.float64, requires_grad=True)
    weights = three_nn_interpolate(queries, points, torch.eye(8)[None])
    out = three_nn_interpolate(queries, points, features)
    target = torch.randn_like(out)
    out.backward(target)
    torch.testing.assert_close(features.grad, weights.double().mT @ target)


def test_weights_are_computed_in_float32_under_autocast():
    """Two points 1e-3 apart are one to bf16: the query would get their mean, and not the nearer one's feature."""
    points = torch.tensor([[[0.5, 0.5, 0.5], [0.501, 0.5, 0.5], [9, 9, 9]]])
    features = torch.tensor([[[0.0], [1.0], [0.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert three_nn_interpolate(points[:, :1], points, features).item() == pytest.approx(0.0098, abs=1e-3)


def test_huge_and_coinciding_points_stay_finite():
    points = torch.zeros(1, 5, 3)
    for queries in (torch.zeros(1, 4, 3), torch.full((1, 4, 3), 1e6)):
        assert three_nn_interpolate(queries, points, torch.randn(1, 5, 2)).isfinite().all()
