"""What a model makes of whole clouds: pooled features, and their map."""

from pathlib import Path

import pytest
import torch

from ewa3d import Ewa3dError
from ewa3d.engine import features
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import load_model, open_evaluation
from ewa3d.engine.features import draw_features
from ewa3d.engine.metrics import classification_scores
from ewa3d.engine.probe import pooled_features
from ewa3d.engine.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """A finished run of each task, and what it said of itself."""
    folder = tmp_path_factory.mktemp("features")
    tasks = ("classification", "part_segmentation")
    return {
        task: (folder / task, train(load_config(overrides=[*tiny_run, f"run.dir={folder / task}", f"task={task}"])))
        for task in tasks
    }


def pooled(folder: Path, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    model, task, _, loader, accelerator, _ = open_evaluation(folder, overrides)
    return pooled_features(model, task, loader, accelerator)


def test_a_classifier_s_features_are_what_its_head_is_given(finished):
    folder, result = finished["classification"]
    rows, labels = pooled(folder)
    assert rows.shape == (4 * 13, 2 * 24) and rows.dtype == torch.float32
    with torch.no_grad():
        logits = load_model(folder).head(rows)
    assert classification_scores(logits, labels)["oa"] == result["single_oa"]


def test_a_part_segmenter_s_features_are_the_maxima_over_its_groups(finished):
    folder, _ = finished["part_segmentation"]
    rows, labels = pooled(folder)
    assert rows.shape == (4 * 13, 3 * 24)
    model, task, dataset, *_ = open_evaluation(folder)
    assert torch.equal(labels, dataset.labels)
    given = []
    model.head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].features))
    with torch.no_grad():
        task.predict(model, dataset.batch([5, 30]))
    torch.testing.assert_close(rows[[5, 30]], given[0].max(dim=1).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_features_do_not_depend_on_the_batch(finished, task):
    folder, _ = finished[task]
    for small, large in zip(pooled(folder, "eval.batch_size=5"), pooled(folder), strict=True):
        torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_the_map_shows_the_features_of_the_split(finished, tmp_path, monkeypatch):
    folder, _ = finished["classification"]
    given = []
    original = features.feature_map
    monkeypatch.setattr(features, "feature_map", lambda *args: (given.append(args), original(*args)))
    said = draw_features(folder, tmp_path / "new" / "map.png", "tsne", ["eval.split=val", "eval.seed=3"])
    assert said == "shapes, val split: pooled features of 52 clouds, t-SNE"
    rows, labels = pooled(folder, "eval.split=val")
    drawn, of, names, _, method, title, seed = given[0]
    assert torch.equal(torch.from_numpy(drawn), rows) and torch.equal(torch.from_numpy(of), labels)
    assert (names[0], method, title, seed) == ("airplane", "tsne", said, 3)
    assert (tmp_path / "new" / "map.png").stat().st_size > 5000


def test_a_map_that_has_no_place_is_named_before_the_work(finished, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Ewa3dError, match="file: this folder cannot be made"):
        draw_features(finished["classification"][0], tmp_path / "file" / "map.png")
