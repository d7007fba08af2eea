"""Clouds that are hardly clouds go through geometry and normalisation: real indices, finite numbers and gradients."""

import numpy as np
import pytest
import torch
from degenerate import degenerate_clouds
from hypothesis import given, settings
from hypothesis import strategies as st

from ewa3d.data.dataset import to_unit_sphere
from ewa3d.data.transforms import rotate_about_y, sample_first, sample_random, scale_and_shift
from ewa3d.ops import chamfer_distance, farthest_point_sample, gather_points, group, knn, three_nn_interpolate
from ewa3d.ops.interpolation import three_nn_weights

MANY = settings(max_examples=60)
PRECISIONS = pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])


@MANY
@given(points=degenerate_clouds(largest=1e18), samples=st.integers(1, 50), rule=st.booleans())
def test_sampling_picks_points_that_exist_and_not_the_first_again_where_there_is_another(points, samples, rule):
    picks = farthest_point_sample(points, samples, min_norm=1e-3**0.5 if rule else None)
    assert picks.shape == (len(points), samples) and picks.dtype == torch.int64
    assert (picks >= 0).all() and (picks < points.shape[1]).all()
    if rule:
        return
    for cloud, own in zip(points, picks, strict=True):
        span = (cloud.amax(dim=0) - cloud.amin(dim=0)).max()
        if span > 1e-15:  # the squares of smaller distances are 0 in float32
            distinct = torch.unique(cloud[own][:2], dim=0)
            assert len(distinct) == min(samples, 2), "the second is not the first again"


@MANY
@given(points=degenerate_clouds(largest=1e18), data=st.data())
def test_neighbours_exist_and_none_comes_twice(points, data):
    count = points.shape[1]
    k = data.draw(st.integers(1, count))
    index = knn(points[:, : data.draw(st.integers(1, count))], points, k)
    assert (index >= 0).all() and (index < count).all()
    assert all(len(set(row.tolist())) == k for row in index.flatten(0, 1))


@MANY
@given(points=degenerate_clouds(largest=1e18), data=st.data())
def test_groups_are_finite_and_so_are_their_gradients(points, data):
    points.requires_grad_()
    centers = gather_points(points, farthest_point_sample(points, 4))
    size = data.draw(st.integers(1, points.shape[1]))
    groups = group(points, centers, size)
    assert groups.shape == (len(points), 4, size, 3) and groups.isfinite().all()
    groups.abs().sum().backward()
    assert points.grad.isfinite().all()


@MANY
@PRECISIONS
@given(points=degenerate_clouds(largest=1e18), queries=st.integers(1, 40), places=st.integers(1, 40))
def test_interpolation_is_a_mean_wherever_the_points_are(bf16, points, queries, places):
    queries, places = points[:, :queries], points[:, -places:]
    features = torch.rand(*places.shape[:2], 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        carried = three_nn_interpolate(queries, places, features)
        carried.float().sum().backward()
    assert carried.shape == (*queries.shape[:2], 5)
    assert (carried >= 0).all() and (carried <= 1.02).all()
    assert features.grad.isfinite().all()
    weights = three_nn_weights(queries, places)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(queries.shape[:2]))


def test_interpolation_between_points_beyond_float32_s_squares():
    places = 1e18 * torch.eye(3)[None]
    for distance in (1e12, 1e18, 1e20, 3e38):
        weights = three_nn_weights(torch.full((1, 1, 3), distance), places)
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@MANY
@PRECISIONS
@given(a=degenerate_clouds(batch=2), b=degenerate_clouds(batch=2), norm=st.sampled_from(["l1", "l2"]))
def test_chamfer_distance_is_finite_not_negative_and_zero_to_itself(bf16, a, b, norm):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert not chamfer_distance(a, a.flip(1), norm).any()
        a.requires_grad_(), b.requires_grad_()
        distance = chamfer_distance(a, b, norm)
        distance.sum().backward()
    assert distance.shape == (2,) and distance.isfinite().all() and (distance >= 0).all()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


# Normalisation and transforms


@MANY
@given(points=degenerate_clouds(largest=1e18), exponent=st.integers(-280, 280))
def test_normalised_clouds_fill_the_unit_sphere_or_are_its_centre(points, exponent):
    cloud = points.double().numpy() * 10.0**exponent
    out = to_unit_sphere(cloud)
    assert np.isfinite(out).all()
    for before, after in zip(cloud, out, strict=True):
        if (before == before[0]).all():
            assert not after.any()
        else:
            assert np.linalg.norm(after, axis=1).max() == pytest.approx(1)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e300, 5e-324, 1.7e308])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_points_that_are_all_one_become_the_origin(value, count):
    """The mean of equal numbers is rounded: 0.1 three times has another."""
    assert not to_unit_sphere(np.full((count, 3), value)).any()
    two = np.stack([np.full((count, 3), value), np.arange(3.0 * count).reshape(count, 3)])
    assert not to_unit_sphere(two)[0].any()
    if count > 1:
        assert np.linalg.norm(to_unit_sphere(two)[1], axis=-1).max() == pytest.approx(1)


def test_the_ends_of_float64_are_normalised_like_anything_else():
    shape = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0.5, 0], [0, -0.5, 0]])
    for scale in (1.7e308, 1e200, 1e-200, 1e-300):
        np.testing.assert_allclose(to_unit_sphere(scale * shape), shape, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:clouds of")
@MANY
@given(points=degenerate_clouds(), count=st.integers(1, 60))
def test_samples_and_augmentations_of_any_cloud_are_finite(points, count):
    for sample in (sample_first, sample_random):
        out = sample(points, count)
        assert out.shape == (len(points), count, 3)
        assert all((row == cloud).all(dim=-1).any() for cloud, rows in zip(points, out, strict=True) for row in rows)
    for augment in (scale_and_shift, rotate_about_y):
        assert augment(points).shape == points.shape and augment(points).isfinite().all()
