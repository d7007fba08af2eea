"""Sampling and augmentation on whole batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.data import PointClouds, Shapes
from ewa3d.data.transforms import (
    oversampled,
    random_index,
    rotate_about_y,
    sample_first,
    sample_random,
    scale_and_shift,
    seeded_index,
)
from ewa3d.engine.tasks import make_task
from ewa3d.ops import farthest_point_sample, gather_points


def rows(cloud: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, cloud.tolist()))


def test_evaluation_takes_the_farthest_points():
    dataset = Shapes("val", num_points=100, per_class=2)
    ordered = dataset.farthest_first(60)
    expected = gather_points(dataset.points, farthest_point_sample(dataset.points, 30))
    assert torch.equal(sample_first(ordered.points, 30), expected)
    assert dataset.points.shape == (26, 100, 3), "the dataset itself stays"


def test_farthest_first_takes_normals_along():
    points = torch.nn.functional.normalize(torch.randn(2, 50, 3), dim=2)
    ordered = PointClouds(points, torch.zeros(2, dtype=torch.long), ["ball"], normals=points.clone()).farthest_first(20)
    assert ordered.points.shape == (2, 20, 3)
    assert torch.equal(ordered.normals, ordered.points)


def test_training_draws_from_the_official_oversample():
    assert [oversampled(n) for n in (1024, 2048, 4096)] == [1200, 2400, 4800]
    pool = torch.randn(2, 1200, 3)
    first, second = sample_random(pool, 1024), sample_random(pool, 1024)
    for cloud, again, stored in zip(first, second, pool, strict=True):
        assert len(rows(cloud)) == 1024 and rows(cloud) < rows(stored)
        assert rows(cloud) != rows(again)


def test_drawing_all_points_is_a_permutation():
    points = torch.randn(3, 64, 3)
    out = sample_random(points, 64)
    assert [rows(a) == rows(b) for a, b in zip(points, out, strict=True)] == [True] * 3
    assert not torch.equal(points, out)


def test_a_random_draw_is_fair():
    points = torch.arange(20.0).view(1, 20, 1).expand(3000, 20, 3)
    counts = sample_random(points, 5)[..., 0].flatten().long().bincount(minlength=20)
    assert (counts - 750).abs().max() < 6 * (3000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("draw", [sample_first, sample_random])
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


counts_and_size = st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 20))


@given(counts_and_size, st.integers(0, 5))
def test_a_random_index_repeats_no_point_before_all_have_come(drawn, margin):
    counts, size = drawn
    index = random_index(torch.tensor(counts), size, max(counts) + margin)
    assert index.shape == (len(counts), size)
    for row, count in zip(index.tolist(), counts, strict=True):
        assert set(row) <= set(range(count))
        assert len(set(row)) == min(count, size)


def test_a_random_index_is_uniform_and_differs_from_call_to_call():
    counts = torch.tensor([10, 40]).repeat(500)
    index = random_index(counts, 5, 40)
    assert not torch.equal(index, random_index(counts, 5, 40))
    for count in (10, 40):
        often = torch.bincount(index[counts == count].flatten(), minlength=count) / 500
        assert (often - 5 / count).abs().max() < 0.12


@given(counts_and_size, st.booleans(), st.integers(0, 3))
def test_a_seeded_index_depends_on_the_cloud_alone(drawn, replacement, seed):
    counts, size = drawn
    options = {"num_points": size, "replacement": replacement, "seed": seed}
    index = torch.arange(len(counts)) + 7
    together = seeded_index(torch.tensor(counts), index, **options)
    torch.rand(3)
    for row, count, cloud in zip(together, counts, index, strict=True):
        assert torch.equal(row, seeded_index(torch.tensor([count]), cloud[None], **options)[0])
        assert row.min() >= 0 and row.max() < count
        if not replacement:
            assert len(row.unique()) == min(count, size)


def test_seeds_clouds_and_replacement_change_a_seeded_index():
    counts = torch.tensor([1000])
    first = seeded_index(counts, torch.tensor([0]), 800)
    for other in (
        seeded_index(counts, torch.tensor([1]), 800),
        seeded_index(counts, torch.tensor([0]), 800, seed=1),
        seeded_index(counts, torch.tensor([0]), 800, replacement=True),
    ):
        assert not torch.equal(first, other)
    assert 520 < len(other.unique()) < 580, "800 of 1000 with replacement: 1000 (1 - exp(-0.8)) = 551 of them"


def test_turning_about_y_keeps_heights_and_distances_and_turns_every_cloud_by_another_angle():
    points = torch.randn(1, 50, 3).repeat(200, 1, 1)
    turned = rotate_about_y(points)
    torch.testing.assert_close(turned[..., 1], points[..., 1])
    turn = torch.linalg.lstsq(points[0], turned[0]).solution
    torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-4, rtol=0)
    assert torch.linalg.det(turn) == pytest.approx(1, abs=1e-4), "no mirror image"
    angle = torch.atan2(turned[:, 0, 0], turned[:, 0, 2])
    quarters = torch.histc(angle, 4, -torch.pi, torch.pi)
    assert quarters.min() > 25, "angles are of all directions"
    assert len(angle.unique()) == 200


def test_training_and_votes_are_augmented_as_configured(tiny_config):
    points = torch.randn(2, 64, 3)
    metadata = {"class_names": ["a", "b"]}
    for name, same_height in (("rotate", True), ("scale_shift", False)):
        task = make_task(tiny_config(f"data.augmentation={name}"), metadata)
        (drawn,), _ = task.training_batch({"points": points, "label": torch.tensor([0, 1])})
        for heights in (drawn[..., 1], task.augmented(points, 64)[..., 1]):
            assert torch.allclose(heights.sort().values, points[..., 1].sort().values) is same_height
