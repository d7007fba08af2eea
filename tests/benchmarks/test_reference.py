"""The baseline computes what our models compute."""

import pytest
import torch
import torch.nn.functional as F

import ewa3d
from benchmarks.reference import farthest_point_sample, knn, reference_loader, reference_of
from ewa3d import ops
from ewa3d.data import PointClouds

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4, "drop_path_rate": 0.0}


@pytest.mark.parametrize("options", [{}, TINY])
def test_logits_agree(options):
    model = ewa3d.create_model("point_mae_small", **options).eval()
    points = torch.randn(2, 256, 3)
    with torch.inference_mode():
        torch.testing.assert_close(reference_of(model)(points), model(points), rtol=0, atol=1e-4)


def test_a_training_step_has_the_same_gradients():
    model = ewa3d.create_model("point_mae_small", **TINY).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = reference_of(model)
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    points, labels = torch.randn(8, 256, 3), torch.randint(40, (8,))
    for each in (model, reference):
        F.cross_entropy(each(points), labels).backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    theirs, left = ewa3d.models.official.from_official({name: p.grad for name, p in reference.named_parameters()})
    assert not left and theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_textbook_geometry_agrees_with_ours():
    points = torch.randn(3, 200, 3)
    assert torch.equal(farthest_point_sample(points, 50), ops.farthest_point_sample(points, 50))
    centers = points[:, :20]
    theirs, ours = knn(centers, points, 8), ops.knn(centers, points, 8)
    assert torch.equal(theirs.sort().values, ours.sort().values)


def test_the_loader_draws_scales_and_shifts_real_points():
    dataset = PointClouds(torch.rand(6, 50, 3) + 1, torch.arange(6), [str(i) for i in range(6)])
    points, labels = next(iter(reference_loader(dataset, 40, 4)))
    assert points.shape == (4, 40, 3) and points.dtype == torch.float32
    for cloud, label in zip(points, labels, strict=True):
        source = dataset.points[label]
        low, high = cloud.amin(0), cloud.amax(0)
        scale = (high - low) / (source.amax(0) - source.amin(0))
        assert ((scale > 0.5) & (scale < 1.5 + 1e-4)).all()
