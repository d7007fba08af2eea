"""Clouds that are hardly clouds go through every model, forwards and backwards: finite numbers of the right shape."""

import numpy as np
import pytest
import torch
from degenerate import degenerate_clouds
from hypothesis import given, settings
from hypothesis import strategies as st

import ewa3d

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}
FEW = settings(max_examples=25)
CLOUDS = degenerate_clouds(batch=2, num_points=12, largest=1e12)
EVERY_WAY = [
    pytest.mark.parametrize("training", [False, True], ids=["eval", "train"]),
    pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"]),
]


def in_every_way(test):
    for mark in EVERY_WAY:
        test = mark(test)
    return FEW(test)


def run(model, points, training, bf16, *more):
    """The outputs, once the gradients of all of them are known to be finite."""
    model.train(training)
    points = points.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model(points, *more)
    (out["loss"] if isinstance(out, dict) else out.float().square().mean()).backward()
    assert points.grad.isfinite().all()
    strange = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not strange
    assert all(buffer.isfinite().all() for buffer in model.buffers()), "running statistics"
    return out


@in_every_way
@given(points=CLOUDS, family=st.sampled_from(["mae", "bert"]), rule=st.sampled_from([None, 1e-3**0.5]))
def test_a_classifier(training, bf16, points, family, rule):
    model = ewa3d.create_model(f"point_{family}_tiny", num_classes=3, fps_min_norm=rule, **TINY)
    logits = run(model, points, training, bf16)
    assert logits.shape == (2, 3) and logits.isfinite().all()


@in_every_way
@given(points=CLOUDS)
def test_a_classifier_with_experts(training, bf16, points):
    model = ewa3d.create_model("point_mae_tiny", num_classes=3, **TINY)
    ewa3d.upcycle(model, num_experts=3)
    logits = run(model, points, training, bf16)
    assert logits.shape == (2, 3) and logits.isfinite().all()


@in_every_way
@given(points=CLOUDS)
def test_a_segmenter(training, bf16, points):
    model = ewa3d.create_model("point_mae_tiny", "part_segmentation", num_classes=5, num_categories=2, **TINY)
    logits = run(model, points, training, bf16, torch.tensor([0, 1]))
    assert logits.shape == (2, 12, 5) and logits.isfinite().all()


@in_every_way
@given(points=CLOUDS, mask_type=st.sampled_from(["random", "block"]), chamfer=st.sampled_from(["l1", "l2"]))
def test_a_masked_autoencoder(training, bf16, points, mask_type, chamfer):
    options = {"mask_type": mask_type, "chamfer": chamfer, "decoder_depth": 1}
    model = ewa3d.create_model("point_mae_tiny", "pretraining", **options, **TINY)
    out = run(model, points, training, bf16)
    assert out["loss"].isfinite() and out["reconstruction"].shape == out["target"].shape == (2, 4, 4, 3)
    assert out["reconstruction"].isfinite().all()


# Whatever its size, through `predict`, which normalises


@FEW
@given(
    points=degenerate_clouds(batch=1, largest=1e18),
    exponent=st.sampled_from([-280, -30, 0, 12, 280]),
    dtype=st.sampled_from([np.float64, np.float32, np.float16, np.longdouble]),
)
def test_predictions(points, exponent, dtype):
    with np.errstate(over="ignore", under="ignore"):
        cloud = (points[0].double().numpy() * 10.0**exponent).astype(dtype)
    cloud = np.nan_to_num(cloud)  # infinities are the type's largest numbers: as large as can be
    classifier = ewa3d.create_model("point_mae_tiny", num_classes=3, **TINY)
    found = ewa3d.predict(classifier, cloud, num_points=16)
    assert found.probabilities.isfinite().all() and found.probabilities.sum() == pytest.approx(1, abs=1e-5)

    segmenter = ewa3d.create_model("point_mae_tiny", "part_segmentation", num_classes=3, num_categories=1, **TINY)
    segmenter.metadata = {"parts": {"thing": ["a", "b", "c"]}}
    labelled = ewa3d.predict(segmenter, cloud, num_points=16)
    assert labelled.labels.shape == (len(cloud),) and set(labelled.labels.tolist()) <= {0, 1, 2}
    assert labelled.probabilities.isfinite().all()


# Types


@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_float64_points_are_taken_and_integers_are_refused_with_the_mend(task):
    torch.manual_seed(0)
    sizes = {"pretraining": {"decoder_depth": 1}, "part_segmentation": {"num_categories": 1}}.get(task, {})
    model = ewa3d.create_model("point_mae_tiny", task, **sizes, **TINY).eval()
    more = {"part_segmentation": [torch.zeros(2, dtype=torch.long)], "pretraining": [torch.arange(8).expand(2, 8) < 3]}
    points = torch.rand(2, 12, 3)
    for dtype in (torch.float64, torch.float16):
        exact = points.to(dtype).float()
        got, wanted = model(points.to(dtype), *more.get(task, [])), model(exact, *more.get(task, []))
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    for dtype in (torch.int64, torch.uint8, torch.bool):
        with pytest.raises(
            ValueError, match=rf"must be floating point, got {dtype}; convert them with points.float\(\)"
        ):
            model(points.to(dtype), *more.get(task, []))


@pytest.mark.parametrize("points", [np.full((5, 3), "x"), np.full((5, 3), 1j), np.full((5, 3), None)])
def test_predict_refuses_what_are_no_numbers(points):
    model = ewa3d.create_model("point_mae_tiny", num_classes=3, **TINY)
    with pytest.raises(ValueError, match=r"points must be numbers \(N, 3\), got"):
        ewa3d.predict(model, points)
