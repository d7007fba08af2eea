"""Evaluation and export: protocols by name, and merges that are proved or refused."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from ewa3d import Ewa3dError
from ewa3d.engine import export
from ewa3d.engine.batches import run_batches
from ewa3d.engine.build import eval_loader, make_accelerator, open_split, restore_model
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import describe_evaluation, evaluate_folder, load_model
from ewa3d.engine.export import MergeError, describe_report, export_run
from ewa3d.engine.run import load_run_config
from ewa3d.engine.tasks import make_task
from ewa3d.engine.train import train
from ewa3d.ewa import expert_layers


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """A finished run whose experts are clearly apart, and what it said of itself."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    overrides = [*tiny_run, f"run.dir={folder}", "ewa.init=independent", "ewa.share_rate=0.001", "optim.lr=2e-3"]
    return folder, train(load_config(overrides=overrides))


def test_run_and_export_score_what_training_said(finished):
    folder, result = finished
    for source in (folder, folder / "export"):
        extra = ["data.per_class=4"] if source.name == "export" else []  # an export does not know the run's subset
        scores, what = evaluate_folder(source, extra)
        assert scores["split"] == "test"
        assert scores["single"]["oa"] == result["single_oa"]
        last = describe_evaluation(scores, what).splitlines()[-1]
        assert f"test split, single: overall accuracy {result['single_oa']:.2f} %" in last


def test_the_picture_is_the_one_that_the_run_drew(finished, tmp_path):
    folder, _ = finished
    for overrides, name in (([], "same"), (["eval.split=val"], "other"), (["eval.vote=2"], "vote")):
        evaluate_folder(folder, overrides, tmp_path / "new" / name)
    assert imread(folder / "confusion.png").shape[0] > 400
    drawn = {name: (tmp_path / "new" / name / "confusion.png").read_bytes() for name in ("same", "other", "vote")}
    assert drawn["same"] == drawn["vote"] == (folder / "confusion.png").read_bytes() != drawn["other"]


def test_part_segmentation_draws_its_categories(tmp_path, tiny_config, monkeypatch):
    config = tiny_config("task=part_segmentation", "train.epochs=1")
    told = []
    monkeypatch.setattr(
        "ewa3d.engine.tasks.category_bars", lambda scores, path, *text: (told.append((scores, *text)), path.touch())
    )
    result = train(config)
    evaluate_folder(Path(config.run.dir), ["eval.protocol=official"], tmp_path)
    (whole, title, _), (official, other, _) = told
    assert whole == result["whole_per_category"] and list(whole)[:2] == ["airplane", "bed"]
    assert official.keys() == whole.keys() and official != whole
    assert title.startswith(f"shapes, test split, whole: instance mIoU {result['whole_instance_miou']:.2f} %")
    assert other.startswith("shapes, test split, official: ")
    assert (tmp_path / "iou.png").exists()


def test_a_folder_for_pictures_that_cannot_be_made_is_named_before_the_work(finished, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("ewa3d.engine.evaluate.evaluate", lambda *_: pytest.fail("scored first"))
    with pytest.raises(Ewa3dError, match="file: this folder cannot be made: File exists: name another one"):
        evaluate_folder(finished[0], [], tmp_path / "file")


def test_the_vote_is_a_score_of_its_own_and_repeats(finished):
    folder, _ = finished
    first, what = evaluate_folder(folder, ["eval.vote=3"])
    torch.manual_seed(99)
    second, _ = evaluate_folder(folder, ["eval.vote=3"])
    assert set(first) == {"source", "split", "single", "vote3"}
    assert first == second, "a vote is drawn from the same seed each time"
    lines = describe_evaluation(first, what).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["test split, single", "test split, vote3"]


def test_logits_come_in_the_dataset_s_order_whatever_the_batch_size(finished):
    folder, _ = finished
    model = load_model(folder)
    logits = []
    for size in (7, 64):
        config = load_run_config(folder)
        config.eval.batch_size = size
        accelerator = make_accelerator(config.train)
        dataset = open_split(config, "val")
        step = partial(make_task(config, dataset.metadata).predict, model)
        out, labels = run_batches(step, eval_loader(dataset, config, accelerator), accelerator)
        assert torch.equal(labels, dataset.labels)
        logits.append(out)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_the_report_proves_the_merge(finished):
    folder, _ = finished
    model, report = export_run(folder, "last")
    assert report == json.loads((folder / "export" / "merge_report.json").read_text())
    assert report["split"] == "val", "the test split is not looked at"
    assert list(report["layers"]) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert all(min(layer["distances"]) > 0.1 for layer in report["layers"].values()), "experts are apart"
    assert report["max_logit_difference"] <= 1e-6
    assert report["before"] == report["after"]
    lines = describe_report(report)
    assert lines[-2].startswith("before the merge (val split, single): overall accuracy ")
    assert lines[-1].startswith("after the merge (val split, single): overall accuracy ")
    saved = (folder / "checkpoints" / "last").read_text().strip()
    assert report["checkpoint"] == saved
    experts = restore_model(folder, load_run_config(folder), "last").eval()
    points = torch.rand(2, 64, 3)
    torch.testing.assert_close(model(points), experts(points), rtol=0, atol=1e-6)


def test_a_merge_that_computes_something_else_is_refused(finished, monkeypatch):
    folder, _ = finished
    before = (folder / "export" / "model.safetensors").read_bytes()

    def wrong(model):
        merged = merge(model)
        with torch.no_grad():
            merged.blocks[0].mlp.fc2.weight.mul_(1.5)
        return merged

    merge = export.merge
    monkeypatch.setattr(export, "merge", wrong)
    with pytest.raises(MergeError, match="the merged model's logits differ by"):
        export_run(folder)
    assert (folder / "export" / "model.safetensors").read_bytes() == before


def test_a_run_without_an_export_is_merged_on_the_fly(finished, tmp_path):
    folder, result = finished
    for name in ("config.yaml", "checkpoints"):
        (tmp_path / name).symlink_to(folder / name)
    scores, _ = evaluate_folder(tmp_path)
    assert scores["single"]["oa"] == result["single_oa"]
    model = load_model(tmp_path)
    assert not expert_layers(model) and "airplane" in model.metadata["class_names"]
    assert model.metadata == load_model(folder).metadata


def test_folders_that_are_no_run_are_named(tmp_path):
    with pytest.raises(Ewa3dError, match=r"is no run: it has no config\.yaml"):
        evaluate_folder(tmp_path)
    with pytest.raises(Ewa3dError, match="is no run"):
        export_run(tmp_path)


def test_a_run_without_a_checkpoint_is_named(finished, tmp_path):
    (tmp_path / "config.yaml").write_text((finished[0] / "config.yaml").read_text())
    with pytest.raises(Ewa3dError, match="has no best checkpoint yet"):
        export_run(tmp_path)


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    folder, _ = finished
    step = (folder / "checkpoints" / "last").read_text().strip()
    (tmp_path / "checkpoints" / step).mkdir(parents=True)
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    (tmp_path / "checkpoints" / "last").write_text(step)
    for name in ("state.json", "model.safetensors"):
        content = (folder / "checkpoints" / step / name).read_bytes()
        (tmp_path / "checkpoints" / step / name).write_bytes(content if name == "state.json" else content[:1000])
    with pytest.raises(Ewa3dError, match=r"model\.safetensors is damaged or missing"):
        export_run(tmp_path, "last")


def test_a_dataset_of_other_classes_is_refused(finished, tmp_path, monkeypatch):
    folder, _ = finished
    wrong = open_split(load_run_config(folder), "val")
    monkeypatch.setattr("ewa3d.engine.evaluate.open_split", lambda *_: wrong)
    wrong.class_names = wrong.class_names[::-1]
    with pytest.raises(Ewa3dError, match="was trained on other classes or parts than those of shapes here"):
        evaluate_folder(folder)
    wrong.class_names = wrong.class_names[:5]
    with pytest.raises(Ewa3dError, match="has num_classes=13, shapes here 5"):
        evaluate_folder(folder)
