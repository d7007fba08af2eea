"""Single clouds: predicted as evaluation would, however many points they have, wherever and however large they are."""

import gc
import json
import weakref
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ewa3d
from ewa3d.data import ModelNet40, PartMap, PointClouds, ShapeNetPart
from ewa3d.data.dataset import to_unit_sphere
from ewa3d.data.io import read_cloud, write_labelled_ply
from ewa3d.data.transforms import oversampled
from ewa3d.engine import predict
from ewa3d.engine.config import load_config
from ewa3d.engine.metrics import predict_parts
from ewa3d.engine.predict import ClassPrediction, PartPrediction
from ewa3d.engine.predict_files import predict_files
from ewa3d.engine.tasks import make_task
from ewa3d.errors import Ewa3dError
from ewa3d.models import PartSegmenter

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 16, "group_size": 8}
PARTS = {"cup": ["body", "handle"], "ball": ["all"], "chair": ["seat", "back", "leg"]}


def tiny(task: str, **sizes: int):
    """A random model whose outputs depend much on its inputs: as initialised, they hardly do."""
    torch.manual_seed(0)
    model = ewa3d.create_model("point_mae_tiny", task, **sizes, **TINY).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    return model


@pytest.fixture
def classifier():
    model = tiny("classification", num_classes=40)
    model.metadata = {"class_names": [f"kind {i}" for i in range(40)], "data": {"num_points": 512}}
    return model


def segmenter(parts=PARTS, num_points: int = 128):
    part_map = PartMap(parts)
    model = tiny("part_segmentation", num_classes=len(part_map.part_names), num_categories=len(parts))
    model.metadata = {"parts": parts, "data": {"num_points": num_points}}
    return model


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3)) * [1, 2, 3]


# As evaluation does


def test_real_shapes_in_every_format_are_predicted_as_evaluation_predicts_them(real_data, tmp_path, classifier):
    root = real_data / "modelnet40_ply_hdf5_1024"
    shapes = ModelNet40(root, "test")
    rows = [0, 3, 700]
    task = make_task(load_config(overrides=["data.num_points=512"]), shapes.metadata)
    some = PointClouds(shapes.points[rows], shapes.labels[rows], shapes.class_names)
    with torch.inference_mode():
        evaluated, _ = task.predict(classifier, some.farthest_first(oversampled(512)).batch(range(3)))
    assert (evaluated[0] - evaluated[1]).abs().max() > 0.1
    for row, logits in zip(rows, evaluated, strict=True):
        with h5py.File(root / "ply_data_test0.h5") as file:
            raw = file["data"][row]
        assert torch.equal(predict._normalise(raw)[0], shapes.points[row]), "to the last bit"
        np.save(tmp_path / "a.npy", raw)
        np.savez(tmp_path / "a.npz", points=raw)
        np.savetxt(tmp_path / "a.xyz", raw, fmt="%.9g")
        np.savetxt(tmp_path / "a.txt", raw, fmt="%.9g", delimiter=",")
        write_labelled_ply(tmp_path / "a.ply", raw, np.zeros(1024), np.zeros((1024, 3)))
        (tmp_path / "a.off").write_text("OFF\n1024 0 0\n" + (tmp_path / "a.xyz").read_text())
        head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 1024\nHEIGHT 1\nDATA binary\n"
        (tmp_path / "a.pcd").write_bytes(head.encode() + raw.tobytes())
        (tmp_path / "a.obj").write_text("".join("v {:.9g} {:.9g} {:.9g}\n".format(*point) for point in raw))
        files = [root / f"ply_data_test0.h5:{row}", *tmp_path.glob("a.*")]
        assert len(files) == 9
        found = [ewa3d.predict(classifier, read_cloud(file).points).probabilities for file in files]
        for probabilities in found:
            # text in nine digits is not the float that was, so the last bit of a coordinate may differ
            torch.testing.assert_close(probabilities, logits.softmax(dim=0), rtol=1e-4, atol=1e-6)
            assert probabilities.argmax() == logits.argmax()


def test_a_real_text_cloud_of_ten_thousand_points(real_data, classifier):
    folder = real_data / "modelnet40_normal_resampled"
    shapes = ModelNet40(folder, "test")
    some = PointClouds(shapes.points[:2], shapes.labels[:2], shapes.class_names).farthest_first(oversampled(1024))
    task = make_task(load_config(overrides=["data.num_points=1024"]), shapes.metadata)
    with torch.inference_mode():
        evaluated, _ = task.predict(classifier, some.batch(range(2)))
    for i in range(2):
        found = ewa3d.predict(classifier, read_cloud(folder / shapes.source(i)).points, num_points=1024)
        torch.testing.assert_close(found.probabilities, evaluated[i].softmax(dim=0), rtol=1e-4, atol=1e-6)


def test_parts_of_a_real_shape_are_those_of_evaluation(real_data):
    root = real_data / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    shapes = ShapeNetPart(root, "test")
    model = segmenter(dict(shapes.part_map.parts))
    config = load_config(overrides=["task=part_segmentation", "data.num_points=128"])
    task = make_task(config, shapes.metadata)
    batch = shapes.batch([0])
    with torch.inference_mode():
        logits, _ = task.predict(model, batch)
    expected = predict_parts(logits, batch["category"], shapes.part_map.mask())[0]
    category = shapes.part_map.categories[int(batch["category"])]
    found = ewa3d.predict(model, read_cloud(root / shapes.source(0)).points, category)
    assert (found.labels == expected).float().mean() > 0.999
    assert sum(found.counts().values()) == int(batch["count"]) and list(found.counts()) == list(
        shapes.part_map.parts[category]
    )


# Any cloud


@given(st.integers(-900, 900))
def test_a_power_of_two_changes_no_bit(exponent):
    model, points = tiny("classification", num_classes=3), cloud(50)
    with np.errstate(under="ignore"):
        scaled = np.ldexp(points, exponent)
    first, second = (ewa3d.predict(model, p, num_points=32).probabilities for p in (points, scaled))
    assert torch.equal(first, second)


@given(st.floats(1e-12, 1e12), st.floats(-1e6, 1e6))
def test_neither_place_nor_size_matters(scale, offset):
    points = cloud(300)
    model = segmenter()
    first, moved = (ewa3d.predict(model, p, "chair") for p in (points, scale * (points + offset)))
    torch.testing.assert_close(first.probabilities, moved.probabilities, rtol=0, atol=1e-3)
    assert (first.labels == moved.labels).float().mean() > 0.98


@pytest.mark.parametrize("count", [1, 2, 3, 127, 128, 129])
def test_few_points(count, classifier):
    for points in (cloud(count), np.full((count, 3), 5.5), np.zeros((count, 3), dtype=np.int64)):
        found = ewa3d.predict(classifier, points)
        assert found.probabilities.isfinite().all() and found.probabilities.sum() == pytest.approx(1, abs=1e-5)
        labelled = ewa3d.predict(segmenter(), points, "chair")
        assert labelled.labels.shape == (count,) and set(labelled.labels.tolist()) <= {3, 4, 5}
        assert labelled.probabilities.isfinite().all() and (labelled.probabilities >= 1 / 3 - 1e-6).all()


def test_fewer_points_than_the_model_sees_repeat(classifier):
    points = cloud(100)
    found = ewa3d.predict(classifier, points).probabilities
    with torch.inference_mode():
        whole = to_unit_sphere(points)  # normalised before they repeat, so that all count alike
        logits = classifier(torch.from_numpy(np.concatenate([whole] * 6)[None, :512]).float())
    torch.testing.assert_close(found, logits[0].softmax(dim=0))


def test_rows_that_are_not_finite_get_no_label(classifier):
    points = cloud(400)
    holes = points.copy()
    holes[::5, 1], holes[3] = np.nan, np.inf
    kept = np.isfinite(holes).all(axis=1)
    model = segmenter()
    found, clean = (ewa3d.predict(model, p, "cup") for p in (holes, points[kept]))
    assert (found.labels[~torch.from_numpy(kept)] == -1).all() and (found.probabilities[::5] == 0).all()
    assert torch.equal(found.labels[torch.from_numpy(kept)], clean.labels)
    assert sum(found.counts().values()) == kept.sum() == len(clean.labels)
    same = (ewa3d.predict(classifier, p).probabilities for p in (holes, points[kept]))
    assert torch.equal(*same)
    for nothing in (np.full((4, 3), np.nan), np.empty((0, 3))):
        with pytest.raises(Ewa3dError, match=rf"a cloud of {len(nothing)} points, none of them finite"):
            ewa3d.predict(classifier, nothing)


def test_arrays_tensors_and_lists_are_alike(classifier):
    points = cloud(600).astype(np.float32)
    kinds = [points, torch.from_numpy(points), points.tolist(), torch.from_numpy(points).requires_grad_()]
    first, *others = (ewa3d.predict(classifier, kind).probabilities for kind in kinds)
    assert all(torch.equal(first, other) for other in others)
    for wrong in (points[None], points[:, :2], points[0]):
        with pytest.raises(ValueError, match=r"points must be one cloud \(N, 3\), got"):
            ewa3d.predict(classifier, wrong)
    with pytest.raises(ValueError, match="num_points=7 is less than a group of the model, 8"):
        ewa3d.predict(classifier, points, num_points=7)


def test_of_large_clouds_a_seeded_draw_is_seen(classifier):
    points = cloud(20_000)
    first, again, other = (ewa3d.predict(classifier, points, seed=seed).probabilities for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    few = cloud(5_000)  # no more than ten times as many as the model sees: nothing is drawn
    assert torch.equal(*(ewa3d.predict(classifier, few, seed=seed).probabilities for seed in (0, 1)))


def test_every_point_of_a_large_cloud_is_labelled_and_logits_are_never_there_all_at_once(monkeypatch):
    model, points = segmenter(), cloud(200_000)
    alive, most, forward = [], [], PartSegmenter.forward_head

    def watched(*args):
        logits = forward(*args)
        gc.collect()
        alive.append(weakref.ref(logits))
        most.append(sum(ref().shape[1] for ref in alive if ref() is not None))
        return logits

    monkeypatch.setattr(PartSegmenter, "forward_head", watched)
    found = ewa3d.predict(model, points, "chair")
    assert found.labels.shape == found.probabilities.shape == (200_000,)
    assert set(found.labels.unique().tolist()) <= {3, 4, 5}
    assert max(most) <= len(points) // 10
    normalised = predict._normalise(points)
    told, sample = torch.tensor([2]), predict._draw(normalised, 128, 0)
    monkeypatch.undo()
    with torch.inference_mode():
        logits = predict.segment_points(model, sample, normalised[:, -1000:], told)
        expected = predict_parts(logits, told, PartMap(PARTS).mask())[0]
    assert (found.labels[-1000:] == expected).float().mean() > 0.99
    own = logits[0, :, 3:6].softmax(dim=-1).max(dim=-1).values
    torch.testing.assert_close(found.probabilities[-1000:], own, rtol=1e-3, atol=1e-4)


# What is given back


def test_the_most_likely_classes_by_name(classifier):
    found = ewa3d.predict(classifier, cloud(600))
    assert isinstance(found, ClassPrediction) and found.probabilities.shape == (40,)
    values, order = found.probabilities.sort(descending=True)
    assert found.top(3) == [(f"kind {i}", v) for i, v in zip(order[:3].tolist(), values[:3].tolist(), strict=True)]
    assert len(found.top()) == 1 and len(found.top(99)) == 40
    found.probabilities.add_(1)  # an ordinary tensor, not one of inference mode
    classifier.metadata = {}
    assert ewa3d.predict(classifier, cloud(600)).top()[0][0] == f"class {order[0]}"


def test_the_model_is_left_as_it_was(classifier):
    for model, category in ((classifier, None), (segmenter(), "cup")):
        model.train()
        model.patch_embed.eval()  # as where a user has frozen it
        modes = [module.training for module in model.modules()]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        first, second = (ewa3d.predict(model, cloud(600), category) for _ in range(2))
        assert torch.equal(first.probabilities, second.probabilities), "no dropout"
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        model.head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ewa3d.predict(model, cloud(600), category)
        assert [module.training for module in model.modules()] == modes


def test_experts_predict_what_their_merged_model_predicts(classifier):
    model = ewa3d.upcycle(classifier, num_experts=3, every=1, init="independent")
    dense = ewa3d.merge(model)
    torch.testing.assert_close(
        ewa3d.predict(model, cloud(600)).probabilities, ewa3d.predict(dense, cloud(600)).probabilities
    )


def test_categories_are_told_and_named():
    model, points = segmenter(), cloud(200)
    for category, own in (("cup", {0, 1}), ("ball", {2}), ("chair", {3, 4, 5})):
        found = ewa3d.predict(model, points, category)
        assert isinstance(found, PartPrediction) and set(found.labels.tolist()) <= own
        assert found.category == category and list(found.counts()) == PARTS[category]
        counts = {name: int((found.labels == i).sum()) for name, i in zip(PARTS[category], sorted(own), strict=True)}
        assert found.counts() == counts
    assert ewa3d.predict(segmenter({"cup": PARTS["cup"]}), points).category == "cup"
    for category, message in (
        (None, "the shape's category is to be named: choose one of cup, ball, chair"),
        ("Chair", "no category 'Chair': did you mean 'chair'?"),
        ("chiar", "no category 'chiar': did you mean 'chair'?"),
        ("rocket", "no category 'rocket': choose one of cup, ball, chair"),
    ):
        with pytest.raises(Ewa3dError) as error:
            ewa3d.predict(model, points, category)
        assert str(error.value) == message


def test_a_category_for_a_classifier_and_parts_without_names_are_errors(classifier):
    with pytest.raises(Ewa3dError, match="category 'cup' is for part segmentation"):
        ewa3d.predict(classifier, cloud(600), "cup")
    model = segmenter()
    model.metadata = {}
    with pytest.raises(Ewa3dError, match=r"6 parts and does not say which: set model.metadata\['parts'\]"):
        ewa3d.predict(model, cloud(200), "cup")


# Files


def test_files_of_segmentation(tmp_path, capsys):
    points = cloud(300) + [5e5, 5.4e6, 100]
    points[7] = np.nan
    np.save(tmp_path / "a.npy", points)
    out = tmp_path / "deep" / "out"
    assert predict_files(segmenter(), [str(tmp_path / "a.npy")], category="chair", out=out) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path}/a.npy: ") and "(300 points, 1 of them not finite)" in line
    assert f"in {out}/a.ply and .npz" in line
    ply = read_cloud(out / "a.ply")
    np.testing.assert_array_equal(ply.points, points)
    with np.load(out / "a.npz") as npz:
        assert npz["label"].dtype == np.int32 and npz["label"][7] == -1 and (np.delete(npz["label"], 7) >= 3).all()
        np.testing.assert_array_equal(npz["label"], ply.labels)
        np.testing.assert_array_equal(npz["points"], points)
        assert npz["part_names"].tolist() == PartMap(PARTS).part_names
        assert npz["probability"].shape == (300,)
    assert b"comment label 4 is chair/back" in (out / "a.ply").read_bytes()
    colors = PartMap(PARTS).colors().numpy()
    body = (out / "a.ply").read_bytes().split(b"end_header\n")[1]
    rows = np.frombuffer(body, [("xyz", "<f8", 3), ("rgb", "u1", 3), ("label", "<i4")])
    np.testing.assert_array_equal(np.delete(rows["rgb"], 7, 0), colors[np.delete(rows["label"], 7)])
    assert rows["rgb"][7].tolist() == [0, 0, 0]


def test_outputs_of_one_name_do_not_meet_and_inputs_are_not_overwritten(tmp_path, capsys):
    names = ["x/a.npy", "y/a.npy", "y/A.npz", "y/a-2.npy", "y/many.h5"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        points = cloud(50 + i)
        if name.endswith("npz"):
            np.savez(tmp_path / name, points)
        elif name.endswith("npy"):
            np.save(tmp_path / name, points)
        else:
            with h5py.File(tmp_path / name, "w") as file:
                file["data"] = np.stack([points, points])
    model = segmenter()
    files = [str(tmp_path / name) for name in names] + [
        f"{tmp_path}/y/many.h5:1",
        str(tmp_path / "x" / ".." / names[0]),
    ]
    assert predict_files(model, files, category="cup", out=tmp_path / "out", as_json=True) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["ply"]).stem for row in found] == ["a", "a-2", "A-3", "a-2-2", "many", "many-1"]
    assert [len(read_cloud(row["ply"]).points) for row in found] == [50, 51, 52, 53, 54, 54]
    assert [len(np.load(row["npz"])["label"]) for row in found] == [50, 51, 52, 53, 54, 54]

    inputs = tmp_path / "out"
    before = {path: path.read_bytes() for path in inputs.iterdir()}
    with pytest.raises(Ewa3dError, match="would overwrite the input"):
        predict_files(model, [str(inputs)], category="cup", out=inputs)
    with pytest.raises(Ewa3dError, match=r"a\.npz would overwrite the input .*a\.npz: take another --out"):
        predict_files(model, [str(inputs / "a.npz")], category="cup", out=tmp_path / "x" / ".." / "out")
    assert before == {path: path.read_bytes() for path in inputs.iterdir()}
    with pytest.raises(Ewa3dError, match="cannot be a folder of outputs"):
        predict_files(model, files, category="cup", out=tmp_path / names[0])


def test_options_of_the_other_task_are_named(classifier, tmp_path):
    for model, options, message in (
        (classifier, {"out": tmp_path}, "--out is for part segmentation"),
        (classifier, {"top": 0}, "--top 0: take 1 or more"),
        (classifier, {"category": "cup"}, "category 'cup' is for part segmentation"),
        (segmenter(), {"top": 2, "category": "cup"}, "--top is for classification"),
        (segmenter(), {}, "the shape's category is to be named"),
    ):
        with pytest.raises(Ewa3dError, match=message):
            predict_files(model, ["absent.ply"], **options)


def test_failures_do_not_stop_the_others(classifier, tmp_path, capsys):
    np.save(tmp_path / "a.npy", cloud(30))
    (tmp_path / "b.ply").write_text("no")
    np.save(tmp_path / "c.npy", cloud(40))
    failed = predict_files(classifier, [str(tmp_path), "absent.ply", str(tmp_path / "*.las")], top=2)
    said = capsys.readouterr()
    assert failed == 3
    assert [line.split(":")[0] for line in said.out.splitlines()] == [f"{tmp_path}/a.npy", f"{tmp_path}/c.npy"]
    assert said.out.count(" %, ") == 2 and "(30 points)" in said.out
    assert len(said.err.splitlines()) == 3 and all(line.startswith("error: ") for line in said.err.splitlines())


def test_an_output_that_cannot_be_written_is_a_failure_of_its_file(tmp_path, capsys):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", cloud(30))
    (tmp_path / "out" / "a.ply").mkdir(parents=True)
    assert predict_files(segmenter(), [str(tmp_path / "*.npy")], category="cup", out=tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "a.*: cannot be written (Is a directory)" in said.err and len(said.out.splitlines()) == 1
