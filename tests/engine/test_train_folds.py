"""Few-shot runs: ten folds, their mean and deviation, and going on where they stopped."""

import json
import statistics
from pathlib import Path

import h5py
import numpy as np
import pytest

import ewa3d
from ewa3d import Ewa3dError
from ewa3d.engine import fewshot
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import evaluate_folder
from ewa3d.engine.fewshot import describe_folds, train_folds
from ewa3d.engine.run import load_run_config


@pytest.fixture
def config(tmp_path, tiny_run):
    """``config("key=value", …)``: ten folds of a second altogether, on six classes of blobs of different shapes."""
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    (folder / "shape_names.txt").write_text("\n".join(f"blob_{i}" for i in range(6)))
    for seed, split in enumerate(("train", "test")):
        (folder / f"{split}_files.txt").write_text(f"ply_data_{split}0.h5\n")
        labels = np.arange(6 * 20) % 6
        stretch = np.array([(1, 1, 1), (9, 1, 1), (1, 9, 1), (1, 1, 9), (9, 9, 1), (1, 9, 9)])[labels, None]
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = np.random.RandomState(seed).randn(120, 64, 3).astype(np.float32) * stretch
            file["label"] = labels
    settings = ["data.name=modelnet40_fewshot", f"data.root={folder}", "data.way=2", "data.shot=8", "train.select=last"]
    settings += ["train.epochs=1", "train.batch_size=8", f"run.dir={tmp_path / 'folds'}"]
    return lambda *overrides: load_config(overrides=[*tiny_run, *settings, *overrides])


@pytest.fixture
def few(monkeypatch):
    """Three folds instead of ten."""
    monkeypatch.setattr(fewshot, "NUM_FOLDS", 3)


def result(run) -> dict:
    """What training leaves and returns, made up."""
    Path(run.run.dir).mkdir(parents=True, exist_ok=True)
    scores = {"single_oa": 50.0 + run.data.fold**2, "single_macc": 40.0}
    return {"split": "test", "best_epoch": 1, "step": 3, "time": 1.5, **scores}


def test_all_ten_folds_are_summed_up(config, tmp_path, monkeypatch):
    monkeypatch.setattr(fewshot, "train", result)
    summary = train_folds(config())
    assert summary["folds"][3] == {"fold": 3, "best_epoch": 1, "single_oa": 59.0, "single_macc": 40.0}
    assert [row["fold"] for row in summary["folds"]] == list(range(10))
    scores = [50.0 + fold**2 for fold in range(10)]
    assert summary["mean"] == {"single_oa": pytest.approx(sum(scores) / 10), "single_macc": 40}
    assert summary["std"] == {"single_oa": pytest.approx(statistics.stdev(scores)), "single_macc": 0}
    assert json.loads((tmp_path / "folds" / "fewshot.json").read_text()) == summary
    table = describe_folds(summary).splitlines()
    assert len(table) == 13 and "78.50 ± 28.30" in table[-2]
    assert table[-1].startswith("modelnet40_fewshot, 2-way 8-shot, test split: mean ± standard deviation over 10 folds")


def test_every_fold_is_a_run_of_its_own_that_learns_its_own_classes(config, tmp_path, few):
    summary = train_folds(config("train.epochs=12", "train.batch_size=4", "optim.lr=3e-3"))
    classes = set()
    for row in summary["folds"]:
        folder = tmp_path / "folds" / f"fold-{row['fold']}"
        assert load_run_config(folder).data.fold == row["fold"] and (folder / "log.txt").is_file()
        classes.add(tuple(ewa3d.from_pretrained(folder / "export").metadata["class_names"]))
    assert len(classes) > 1
    assert summary["mean"]["single_oa"] > 60, "chance is 50"


def test_a_fold_s_export_is_scored_on_its_own_episode(config, tmp_path, few):
    summary = train_folds(config())
    for fold in (0, 2):
        for folder in (tmp_path / "folds" / f"fold-{fold}", tmp_path / "folds" / f"fold-{fold}" / "export"):
            root = f"data.root={tmp_path / 'modelnet40_ply_hdf5_2048'}"
            scores, what = evaluate_folder(folder, [root])
            assert scores["single"]["oa"] == summary["folds"][fold]["single_oa"]
            assert f"modelnet40_fewshot (way=2, shot=8, fold={fold})" in what


def test_finished_folds_are_not_run_again(config, tmp_path, monkeypatch, few):
    original, trained = fewshot.train, []

    class PowerCut(Exception):
        pass

    def train(run):
        trained.append(run.data.fold)
        if len(trained) == 2:
            raise PowerCut
        return original(run)

    monkeypatch.setattr(fewshot, "train", train)
    with pytest.raises(PowerCut):
        train_folds(config())
    assert not (tmp_path / "folds" / "fewshot.json").exists()
    with pytest.raises(Ewa3dError, match=r"fold-0 holds a run already: run\.resume=true continues it"):
        train_folds(config())
    trained[:] = [-1, -1]
    summary = train_folds(config("run.resume=true"))
    assert trained[2:] == [1, 2]
    monkeypatch.setattr(fewshot, "train", lambda run: pytest.fail("ran again"))
    assert train_folds(config("run.resume=true")) == summary
    with pytest.raises(Ewa3dError, match=r"fold-0 was run with optim\.lr="):
        train_folds(config("run.resume=true", "optim.lr=0.1"))
    monkeypatch.setattr(fewshot, "train", original)
    assert train_folds(config("run.overwrite=true")) == summary, "the same again, from the beginning"


def test_overwriting_deletes_all_folds_at_once_and_nothing_else(config, tmp_path, monkeypatch):
    for name in ("fold-0", "fold-9", "mine"):
        (tmp_path / "folds" / name).mkdir(parents=True)
        (tmp_path / "folds" / name / "config.yaml").write_text("")
    (tmp_path / "folds" / "fold-3").mkdir()  # no run
    left = []

    def train(run):
        left.append({path.name for path in (tmp_path / "folds").iterdir()})
        return result(run)

    monkeypatch.setattr(fewshot, "train", train)
    train_folds(config("run.overwrite=true"))
    assert left[0] == {"mine", "fold-3"}, "an interruption now leaves no old fold for a resumed run"


def test_a_dataset_without_folds_is_refused(tiny_config):
    with pytest.raises(Ewa3dError, match=r"data\.name=shapes has no folds: take modelnet40_fewshot or"):
        train_folds(tiny_config())


def test_the_default_folder_says_way_and_shot(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fewshot, "train", result)
    assert train_folds(config("run.dir=null", "recipe=mine"))["dir"] == str(Path("runs/mine/2way_8shot"))
