"""Sampling and augmentation on whole batches."""

import pytest
import torch

from ewa3d.data.transforms import sample_farthest, sample_random, sample_training, scale_and_shift
from ewa3d.ops import farthest_point_sample, gather_points


def rows(cloud: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, cloud.tolist()))


def test_evaluation_takes_the_farthest_points():
    points = torch.randn(2, 100, 3)
    expected = gather_points(points, farthest_point_sample(points, 30))
    assert torch.equal(sample_farthest(points, 30), expected)
    assert sample_farthest(points, 100) is points


def test_training_draws_from_the_official_oversample():
    points = torch.randn(2, 4000, 3)
    oversample = gather_points(points, farthest_point_sample(points, 1200))
    first, second = sample_training(points, 1024), sample_training(points, 1024)
    for cloud, drawn, pool in zip(first, second, oversample, strict=True):
        assert len(rows(cloud)) == 1024 and rows(cloud) < rows(pool)
        assert rows(cloud) != rows(drawn)


def test_drawing_all_points_is_a_permutation():
    points = torch.randn(3, 64, 3)
    out = sample_training(points, 64)
    assert [rows(a) == rows(b) for a, b in zip(points, out, strict=True)] == [True] * 3
    assert not torch.equal(points, out)


def test_a_random_draw_is_fair():
    points = torch.arange(20.0).view(1, 20, 1).expand(3000, 20, 3)
    counts = sample_random(points, 5)[..., 0].flatten().long().bincount(minlength=20)
    assert (counts - 750).abs().max() < 6 * (3000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("draw", [sample_farthest, sample_training])
def test_too_few_points_repeat_with_a_warning(draw):
    points = torch.randn(2, 10, 3)
    with pytest.warns(UserWarning, match=r"clouds of 10 points, 16 asked for: points repeat"):
        out = draw(points, 16)
    assert out.shape == (2, 16, 3)
    assert [rows(a) == rows(b) for a, b in zip(points, out, strict=True)] == [True, True]


def test_scale_and_shift_is_one_affine_map_a_cloud_and_axis():
    points = torch.randn(500, 8, 3)
    out = scale_and_shift(points)
    scale = (out[:, 0] - out[:, 1]) / (points[:, 0] - points[:, 1])
    shift = out[:, 0] - scale * points[:, 0]
    torch.testing.assert_close(out, points * scale[:, None] + shift[:, None], rtol=1e-3, atol=1e-3)
    assert 2 / 3 - 1e-3 < scale.min() < 0.7 and 1.46 < scale.max() < 1.5 + 1e-3
    assert 0.19 < shift.max() < 0.201 and -0.201 < shift.min() < -0.19
    assert (scale[:, 0] - scale[:, 1]).abs().max() > 0.1


def test_isotropic_scaling_keeps_proportions():
    points = torch.randn(50, 8, 3)
    out = scale_and_shift(points, (0.8, 1.25), 0.1, isotropic=True)
    scale = (out[:, 0] - out[:, 1]) / (points[:, 0] - points[:, 1])
    torch.testing.assert_close(scale[:, 0], scale[:, 1], rtol=1e-3, atol=1e-3)
