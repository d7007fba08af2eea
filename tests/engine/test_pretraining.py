"""Pretraining through the same loop: which epoch is chosen, what is said, what a classifier makes of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ewa3d
from ewa3d.engine import train as engine
from ewa3d.engine.build import eval_loader, make_accelerator, open_split
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import evaluate_folder, load_model, tally_model
from ewa3d.engine.features import draw_features
from ewa3d.engine.run import load_run_config
from ewa3d.engine.tasks import make_task
from ewa3d.engine.train import train

TASK = "task=pretraining"


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """A finished run with experts."""
    folder = tmp_path_factory.mktemp("pretraining") / "run"
    longer = ["train.epochs=6", "data.per_class=12", "optim.lr=3e-3", "ewa.init=independent", "ewa.share_rate=0.01"]
    result = train(load_config(overrides=[*tiny_run, f"run.dir={folder}", TASK, *longer]))
    return folder, result


def test_a_run_learns_and_the_epoch_of_least_loss_is_chosen(finished):
    folder, result = finished
    epochs = [row for row in rows_of(folder) if "epoch" in row]
    assert epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    assert result["best_epoch"] == min(epochs, key=lambda row: row["val_chamfer_l2"])["epoch"]
    assert result["masked_chamfer_l2"] < epochs[0]["val_chamfer_l2"]
    assert not any("_oa" in key for row in rows_of(folder) for key in row), "nothing is right or wrong here"
    for name in ("chamfer.png", "curves.png", "export/model.safetensors", "export/merge_report.json"):
        assert (folder / name).is_file(), name


def test_what_is_said_has_units_and_no_percent(finished):
    folder, result = finished
    log = (folder / "log.txt").read_text()
    assert f"test split, masked: Chamfer-L2 {1000 * result['masked_chamfer_l2']:.3f}e-3" in log
    assert "reconstructions differ by at most" in log and "%" not in log and "accuracy" not in log


@pytest.mark.parametrize(("scores", "chosen"), [([3.0, 1.0, 2.0], 2), ([1.0, 1.0, 2.0], 1)])
def test_less_is_better(tiny_config, monkeypatch, scores, chosen):
    told = iter(scores)
    monkeypatch.setattr(engine, "validate", lambda *_: {"val_chamfer_l2": next(told), "eval_seconds": 0.0})
    config = tiny_config(TASK, "ewa=null")
    assert train(config)["best_epoch"] == chosen
    lines = [line for line in (Path(config.run.dir) / "log.txt").read_text().splitlines() if "epoch " in line]
    assert "000e-3 *" in lines[0] and ("000e-3 *" in lines[1]) == (chosen == 2) and "000e-3  " in lines[2]


def test_without_a_split_that_chooses_the_last_epoch_is_taken(tiny_config):
    assert train(tiny_config(TASK, "train.select=last", "data.train_split=trainval"))["best_epoch"] == 3


def test_a_cloud_is_scored_alike_whatever_is_beside_it(finished):
    folder, _ = finished
    config, model = load_run_config(folder), load_model(folder)
    dataset = open_split(config, "test")
    task, accelerator = make_task(config, dataset.metadata), make_accelerator(config.train)
    found = []
    for batch_size in (64, 7):
        config.eval.batch_size = batch_size
        found.append(tally_model(model, task, eval_loader(dataset, config, accelerator), accelerator)[0])
    torch.testing.assert_close(found[0], found[1])
    one = task.reconstruct(model, dataset.batch([17]))
    torch.testing.assert_close(found[0][17], one["loss"].detach())
    masks = task.reconstruct(model, dataset.batch(range(20)))["mask"]
    assert len(masks.unique(dim=0)) > 10, "clouds have masks of their own"
    other = make_task(load_config(folder / "config.yaml", ["eval.seed=1"]), dataset.metadata)
    assert not torch.equal(other.reconstruct(model, dataset.batch(range(20)))["mask"], masks)


def test_an_export_scores_as_its_run_did(finished):
    folder, result = finished
    scores, what = evaluate_folder(folder / "export", ["data.per_class=12"])
    assert scores["masked"]["chamfer_l2"] == pytest.approx(result["masked_chamfer_l2"], rel=1e-5)
    assert "shapes, 64 points" in what


def test_the_other_norm_is_trained_and_scored(tiny_config):
    result = train(tiny_config(TASK, "model.chamfer=l1", "model.mask_type=block", "train.epochs=1"))
    assert 0 < result["masked_chamfer_l1"] < 10 and "masked_chamfer_l2" not in result


def test_a_classifier_is_trained_from_the_export(finished, tiny_config):
    folder, _ = finished
    frozen = ["train.epochs=1", "optim.lr=0", "optim.min_lr=0", "optim.warmup_lr=0", "ewa=null"]
    config = tiny_config(*frozen, f"model.pretrained={folder / 'export'}", dir="tuned")
    train(config)
    tuned, start = (load_file(Path(run) / "export" / "model.safetensors") for run in (config.run.dir, folder))
    shared = [key for key in tuned if key.startswith(("blocks.", "norm.", "pos_embed.", "patch_embed."))]
    assert len(shared) > 30
    assert all(torch.equal(tuned[k], start[k]) for k in shared if "running" not in k and "num_batches" not in k)
    assert "missing" in (Path(config.run.dir) / "log.txt").read_text()


def test_features_are_of_whole_clouds(finished, tmp_path):
    folder, _ = finished
    config, model = load_run_config(folder), load_model(folder)
    dataset = open_split(config, "val")
    features = make_task(config, dataset.metadata).features(model, dataset.batch(range(5)))
    assert features.shape == (5, 48)
    draw_features(folder, tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_it_predicts_nothing(finished):
    with pytest.raises(ewa3d.Ewa3dError, match=r"a pretraining model predicts nothing: .*model\.pretrained="):
        ewa3d.predict(load_model(finished[0]), torch.rand(100, 3))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([TASK, "model.mask_ratio=0.01"], "mask_ratio=0.01 hides 0 of 8 groups"),
        ([TASK, "model.name=point_bert_tiny"], "take point_mae_tiny"),
        ([TASK, "eval.vote=10"], "votes are for classification"),
        ([TASK, "data.name=shapenetpart"], "take shapes or modelnet40 or shapenet55"),
        ([TASK, "model.mask_type=blocks"], "did you mean block"),
        ([TASK, "data.name=shapenet55", "data.val_fraction=0"], "needs a validation split"),
        (["model.mask_ratio=0.6"], "mask_ratio is for pretraining"),
    ],
)
def test_mistakes_are_named_in_one_line(tiny_config, overrides, message):
    with pytest.raises(ewa3d.Ewa3dError, match=message) as caught:
        train(tiny_config(*overrides))
    assert "\n" not in str(caught.value)
