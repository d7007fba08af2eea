"""Diagnostics of a run's experts, and merging them by weights that its validation split chooses."""

import json
import os
import subprocess
import sys
import warnings
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread

from ewa3d import Ewa3dError, from_pretrained
from ewa3d.engine.build import open_split
from ewa3d.engine.config import load_config
from ewa3d.engine.diagnose import describe_diagnosis, diagnose, draw_diagnostics, has_validation, open_experts
from ewa3d.engine.evaluate import evaluate_folder
from ewa3d.engine.run import load_run_config, read_rows
from ewa3d.engine.soup import describe_soup, export_soup
from ewa3d.engine.tasks import make_task
from ewa3d.engine.train import train
from ewa3d.ewa import expert_alone, merge
from ewa3d.viz.diagnostics import diagnostics_figure

ROOT = Path(__file__).parents[2]


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120", "DISPLAY": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run):
    """Finished runs by task, of three experts a layer that were never averaged."""
    folder, tasks = tmp_path_factory.mktemp("runs"), ("classification", "part_segmentation", "pretraining")
    for task in tasks:
        apart = ["ewa.share_rate=0", "ewa.init=independent", f"task={task}"]
        train(load_config(overrides=[*tiny_run, f"run.dir={folder / task}", *apart]))
    return {task: folder / task for task in tasks}


@pytest.fixture(scope="module")
def found(runs):
    """What `diagnose` finds in each."""
    return {task: diagnose(open_experts(folder), clouds=20) for task, folder in runs.items()}


@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_the_merged_model_scores_what_validation_said(runs, found, task):
    rows = [row for row in read_rows(runs[task]) if "epoch" in row]
    best = (min if task == "pretraining" else max)(row[f"val_{found[task]['score']}"] for row in rows)
    assert found[task]["split"] == "val"
    assert found[task]["merged"][found[task]["score"]] == pytest.approx(best)


def test_each_expert_s_scores_and_losses_are_its_own(runs, found):
    opened, found = open_experts(runs["classification"]), found["classification"]
    batch = opened.dataset.batch(range(len(opened.dataset)))
    for i, scores in enumerate(found["alone"]):
        with torch.no_grad():
            logits, labels = opened.task.predict(expert_alone(opened.model, i), batch)
        assert scores["oa"] == pytest.approx(100 * float((logits.argmax(dim=1) == labels).double().mean()))
    whole = diagnose(opened, clouds=1000)["lines"]
    assert whole["clouds"] == len(labels) and found["lines"]["clouds"] == 20
    assert whole["pairs"][-1]["loss"][-1] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_lines_meet_at_the_experts(found, task):
    lines = found[task]["lines"]
    (first, second, third) = lines["pairs"]
    assert [(pair["i"], pair["j"]) for pair in lines["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    assert first["loss"][0] == second["loss"][0] != first["loss"][-1] == third["loss"][0]
    assert second["loss"][-1] == third["loss"][-1]
    for pair in lines["pairs"]:
        start, *_, end = pair["loss"]
        above = [loss - (1 - t) * start - t * end for t, loss in zip(lines["t"], pair["loss"], strict=True)]
        assert pair["barrier"] == pytest.approx(max(above), abs=1e-12)
    assert lines["t"][0] == 0 and lines["t"][-1] == 1 and len(first["loss"]) == len(lines["t"]) == 9


@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_gradients_of_training_batches_leave_the_model_alone(runs, found, task):
    gradients = found[task]["gradients"]
    assert list(gradients["layers"]) == list(found[task]["layers"]) and len(found[task]["layers"]) == 2
    assert all(-0.5 <= cosine <= 1 for cosines in gradients["layers"].values() for cosine in cosines)
    opened = open_experts(runs[task])
    again = diagnose(opened, clouds=20)
    assert again == found[task], "the same run, the same numbers"
    fresh = open_experts(runs[task]).model.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in opened.model.state_dict().items())


def test_the_tool_draws_a_picture_and_writes_the_numbers(runs, found, tmp_path):
    result = run("visualize", "diagnostics", runs["classification"], "--out", tmp_path / "a" / "b.png", "--shapes", 20)
    assert result.returncode == 0 and not result.stderr, result.stderr
    title, *lines, where = result.stdout.splitlines()
    assert "on the val split of shapes (52 clouds)" in title
    assert lines == describe_diagnosis(found["classification"])
    assert where == f"picture: {tmp_path / 'a' / 'b.png'}   numbers: {tmp_path / 'a' / 'b.json'}"
    numbers = json.loads((tmp_path / "a" / "b.json").read_text())
    assert numbers["lines"]["pairs"] == found["classification"]["lines"]["pairs"]
    assert [row["epoch"] for row in numbers["training"]] == [1, 2, 3]
    assert imread(tmp_path / "a" / "b.png").std() > 0.05


@pytest.mark.parametrize("task", ["part_segmentation", "pretraining"])
def test_other_tasks_are_drawn_too(runs, tmp_path, task):
    title, *_ = draw_diagnostics(runs[task], tmp_path / "b.png", ["eval.split=train"], clouds=8)
    assert "on the train split of shapes" in title and (tmp_path / "b.png").stat().st_size > 20_000


@pytest.mark.parametrize("count", [2, 8])
def test_experts_that_are_equal_are_drawn(count, tmp_path):
    pairs = [{"i": i, "j": j, "loss": [0.5] * 9, "barrier": 0.0} for i, j in combinations(range(count), 2)]
    same = {
        "split": "val",
        "protocol": "single",
        "score": "oa",
        "alone": [{"oa": 0.0}] * count,
        "merged": {"oa": 0.0},
        "lines": {"clouds": 4, "t": [i / 8 for i in range(9)], "merged": 0.5, "pairs": pairs},
        "gradients": {"batch_size": 2, "layers": {"blocks.0.mlp": [1.0, 1.0]}},
        "layers": {"blocks.0.mlp": {"distances": [[0.0] * count] * count, "norm": 1.0}},
        "training": [{"epoch": 1, "expert_distance": 0.0, "expert_distances": {"blocks.0.mlp": 0.0}}],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a logarithm of 0, of limits that are equal
        diagnostics_figure(same, tmp_path / "same.png")
    assert (tmp_path / "same.png").stat().st_size > 20_000


def test_learned_weights_are_exported_beside_the_mean(runs):
    folder = runs["classification"]
    before = (folder / "export" / "model.safetensors").read_bytes()
    result = run("merge", folder, "--weights", "learned", "--official", folder / "model.pth")
    assert result.returncode == 0, result.stderr
    assert f"plain model: {folder / 'export_learned'}\n" in result.stdout
    assert (folder / "export" / "model.safetensors").read_bytes() == before and (folder / "model.pth").is_file()

    report = json.loads((folder / "export_learned" / "merge_report.json").read_text())
    assert list(report["weights"]) == ["blocks.0.mlp", "blocks.1.mlp"] and report["split"] == "val"
    assert report["chosen"]["loss"] < report["mean"]["loss"]
    assert describe_soup(report)[-1] in result.stdout
    scores, _ = evaluate_folder(folder / "export_learned", ["eval.split=val", "data.per_class=4"])
    assert scores["single"]["oa"] == report["chosen"]["oa"]
    exported, merged = from_pretrained(folder / "export_learned"), merge(open_experts(folder).model, report["weights"])
    for key, value in exported.state_dict().items():
        torch.testing.assert_close(value, merged.state_dict()[key], rtol=0, atol=1e-7)


@pytest.mark.parametrize("task", ["classification", "part_segmentation", "pretraining"])
def test_the_greedy_soup_scores_no_less_than_any_expert_alone(runs, found, task):
    _, report = export_soup(runs[task], "greedy")
    score = found[task]["score"]
    alone = [scores[score] for scores in found[task]["alone"]]
    sign = -1 if task == "pretraining" else 1
    assert sign * report["chosen"][score] >= max(sign * own for own in alone) - 1e-6
    assert report["mean"][score] == found[task]["merged"][score]


@pytest.mark.parametrize("task", ["part_segmentation", "pretraining"])
def test_weights_of_other_tasks_are_learned_from_their_losses(runs, task):
    plain, report = export_soup(runs[task], "learned", "last")
    assert report["chosen"]["loss"] < report["mean"]["loss"] and not plain.training
    assert all(sum(own) == pytest.approx(1) for own in report["weights"].values())


def test_a_dense_run_and_one_without_validation_are_refused(tiny_config, tmp_path):
    train(tiny_config("ewa=null", "train.epochs=1", dir="dense"))
    whole = ["data.train_split=trainval", "train.select=last", "train.epochs=1"]
    train(tiny_config(*whole, dir="whole"))
    with pytest.raises(Ewa3dError, match="dense: PointClassifier has no expert layers: it is a plain model"):
        open_experts(tmp_path / "dense")
    with pytest.raises(Ewa3dError, match="weights need a validation split, and this run was trained on its own"):
        export_soup(tmp_path / "whole", "greedy")
    assert open_experts(tmp_path / "whole").config.eval.split == "trainval"
    result = run("merge", tmp_path / "dense", "--weights", "learned")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "dense" / "export_learned").exists()


@pytest.mark.parametrize(
    ("overrides", "there"),
    [
        ([], True),
        (["data.train_split=trainval", "train.select=last"], False),
        (["data.name=modelnet40"], True),
        (["data.name=modelnet40", "data.val_fraction=0", "train.select=last"], False),
        (["data.name=modelnet40_fewshot", "train.select=last"], False),
        (["data.name=shapenetpart", "task=part_segmentation", "data.val_fraction=0"], True),
    ],
)
def test_which_runs_have_a_validation_split(overrides, there):
    assert has_validation(load_config(overrides=overrides)) is there


@pytest.mark.parametrize(
    ("name", "clouds", "message"),
    [
        ("a.jpg", None, r"a\.jpg: its name must end in \.png"),
        ("a.png", 0, "--shapes 0: the loss is measured on 1 cloud or more"),
        ("a.png", None, r"nowhere is no run: it has no config\.yaml"),
    ],
)
def test_bad_input_is_named(name, clouds, message, tmp_path):
    with pytest.raises(Ewa3dError, match=message):
        draw_diagnostics(tmp_path / "nowhere", tmp_path / name, clouds=clouds)


def test_diagnostics_want_a_file():
    result = run("visualize", "diagnostics", "nowhere")
    assert result.returncode == 2
    assert result.stderr == "error: diagnostics are drawn into a file: name it with --out\n"


def test_the_loss_of_a_cloud_counts_its_real_points_alike(runs):
    config = load_run_config(runs["part_segmentation"])
    task = make_task(config, open_split(config, "val").metadata)
    logits, truth = torch.randn(2, 5, 7), torch.tensor([[0, 1, 2, 3, 4], [6, 5, -1, -1, -1]])
    expected = torch.stack([F.cross_entropy(logits[0], truth[0]), F.cross_entropy(logits[1, :2], truth[1, :2])])
    torch.testing.assert_close(task.losses(logits, truth, {}), expected)
