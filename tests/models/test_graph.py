"""Models as graphs: ONNX in onnxruntime, and torch.export's programs, against PyTorch."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ewa3d
from ewa3d.data import create_dataset
from ewa3d.models import graph
from ewa3d.ops import farthest_point_sample, knn, textbook

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8}
MODELS = {
    "classifier": ("point_mae_tiny", "classification", {}),
    "official_rule": ("point_bert_tiny", "classification", {"fps_min_norm": 1e-3**0.5}),
    "segmenter": ("point_mae_tiny", "part_segmentation", {"num_categories": 4}),
}


def make(kind):
    name, task, options = MODELS[kind]
    model = ewa3d.create_model(name, task, num_classes=5, **TINY, **options)
    for module in model.modules():  # statistics as of a trained model
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def inputs_of(kind, batch, points):
    clouds = torch.randn(batch, points, 3)
    return (clouds, torch.arange(batch) % 4) if kind == "segmenter" else (clouds,)


@pytest.mark.parametrize("kind", MODELS)
def test_a_graph_computes_what_the_model_does_for_any_batch_and_number_of_points(kind, tmp_path):
    model = make(kind)
    onnx = ewa3d.save_pretrained(model, tmp_path / "model", format="onnx")
    pt2 = ewa3d.save_pretrained(model, tmp_path / "model", format="pt2")
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.pt2"}
    session = onnxruntime.InferenceSession(onnx)
    program = torch.export.load(pt2).module()
    assert list(session.get_inputs()[0].shape) == ["batch", "points", 3]
    for batch, points in ((2, 32), (1, 8), (5, 301)):
        inputs = inputs_of(kind, batch, points)
        with torch.no_grad():
            expected = model(*inputs)
            torch.testing.assert_close(program(*inputs), expected, rtol=1e-5, atol=1e-5)
        feed = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
        (found,) = session.run(["logits"], feed)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_an_onnx_file_says_what_its_outputs_mean(tmp_path):
    model = make("classifier")
    model.metadata = {"class_names": ["bed", "sofa", "mug", "car", "vase"]}
    file = ewa3d.save_pretrained(model, tmp_path / "model.onnx", format="onnx")
    known = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(known["class_names"]) == model.metadata["class_names"]


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_hundred_real_clouds_give_the_same_logits(kind, real_data, tmp_path):
    model = make(kind)
    data = create_dataset("modelnet40", "test", root=real_data / "modelnet40_ply_hdf5_1024", num_points=256)
    clouds = torch.as_tensor(data.points[:100, :256]).float()
    inputs = (clouds, torch.arange(100) % 4)[: 2 if kind == "segmenter" else 1]
    session = onnxruntime.InferenceSession(ewa3d.save_pretrained(model, tmp_path / "model", format="onnx"))
    feed = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
    (found,) = session.run(None, feed)
    with torch.no_grad():
        expected = model(*inputs).numpy()
    assert np.abs(found - expected).max() <= 1e-4
    assert (found.argmax(-1) == expected.argmax(-1)).all()


@settings(max_examples=40)
@given(batch=st.integers(1, 3), points=st.integers(9, 70), rule=st.booleans(), seed=st.integers(0, 2**31))
def test_the_textbook_picks_what_the_fast_forms_do(batch, points, rule, seed):
    cloud = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))
    min_norm = 0.5 if rule else None
    picks = textbook.farthest_point_sample(cloud, 9, 0, min_norm)
    assert torch.equal(picks, farthest_point_sample(cloud, 9, min_norm=min_norm))
    queries = cloud[:, :4]
    near, fast = (found.sort(dim=-1).values for found in (textbook.knn(queries, cloud, 5), knn(queries, cloud, 5)))
    assert torch.equal(near, fast)


def test_what_has_no_graph_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="computes a loss, which is no graph to deploy"):
        ewa3d.save_pretrained(
            ewa3d.create_model("point_mae_tiny", "pretraining", **TINY), tmp_path / "model", format="onnx"
        )
    with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
        ewa3d.save_pretrained(ewa3d.upcycle(make("classifier"), 2), tmp_path / "model", format="pt2")
    monkeypatch.setattr(graph, "find_spec", lambda name: None)
    with pytest.raises(ewa3d.Ewa3dError, match=r"pip install 'ewa3d\[onnx\]'"):
        ewa3d.save_pretrained(make("classifier"), tmp_path / "model", format="onnx")
    assert not list(tmp_path.iterdir())
