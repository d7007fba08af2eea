"""Part segmentation through the same loop: trained, evaluated by both protocols, merged, on one process and on two."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import ewa3d
from ewa3d.data import PartClouds, PartMap
from ewa3d.engine import predict
from ewa3d.engine.batches import run_batches
from ewa3d.engine.build import eval_loader, make_accelerator, open_split
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import describe_evaluation, evaluate_folder, load_model, tally_model
from ewa3d.engine.run import load_run_config
from ewa3d.engine.tasks import make_task
from ewa3d.engine.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """A finished run and what it said of itself."""
    folder = tmp_path_factory.mktemp("partseg") / "run"
    longer = ["train.epochs=8", "data.per_class=12", "optim.lr=4e-3", "ewa.init=independent", "ewa.share_rate=0.01"]
    overrides = [*tiny_run, f"run.dir={folder}", "task=part_segmentation", *longer]
    return folder, train(load_config(overrides=overrides))


@pytest.fixture
def uneven(monkeypatch):
    """A dataset of 11 clouds of 5 to 90 points, in place of every split."""
    draw = np.random.default_rng(0)
    part_map = PartMap({"cup": ["body", "handle"], "ball": ["all"], "chair": ["seat", "back", "leg"]})
    labels = torch.arange(11) % 3
    counts = torch.from_numpy(draw.integers(5, 90, 11))
    points = torch.from_numpy(draw.standard_normal((int(counts.sum()), 3)).astype(np.float32))
    ids = [part_map.range_of(label) for label in labels.tolist()]
    parts = torch.from_numpy(
        np.concatenate([draw.integers(i.start, i.stop, n) for i, n in zip(ids, counts.tolist(), strict=True)])
    )
    dataset = PartClouds(points, counts, parts, labels, part_map)
    model = ewa3d.create_model(
        "point_mae_tiny", "part_segmentation", num_classes=6, num_categories=3,
        embed_dim=24, depth=2, num_heads=2, num_groups=8, group_size=4,
    ).eval()  # fmt: skip
    return dataset, model


def config_for(*overrides: str):
    return load_config(overrides=["task=part_segmentation", "data.num_points=40", "train.device=cpu", *overrides])


def test_a_run_learns_and_its_export_says_what_its_parts_are(finished):
    folder, result = finished
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if "epoch" in row]
    assert epochs[-1]["train_loss"] < 0.7 * epochs[0]["train_loss"]
    best = max(epochs, key=lambda row: row["val_instance_miou"])
    assert result["best_epoch"] == best["epoch"], "instance mIoU chooses"
    assert result["whole_oa"] > 50, "a guess among the parts of a category is right for a third of the points"
    assert set(result["whole_per_category"]) == set(load_model(folder).metadata["parts"])
    model = ewa3d.from_pretrained(folder / "export")
    assert model.metadata["parts"]["airplane"] == ["body", "wing", "tail", "engine"]
    assert model.config["num_classes"] == 40 and model.config["num_categories"] == 13


def test_experts_merge_into_a_model_of_the_same_scores(finished):
    folder, result = finished
    report = json.loads((folder / "export" / "merge_report.json").read_text())
    assert list(report["layers"]) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert all(min(layer["distances"]) > 1e-3 for layer in report["layers"].values()), "experts are apart"
    assert report["max_logit_difference"] <= 1e-5 and report["before"] == report["after"]
    for source, extra in ((folder, []), (folder / "export", ["data.per_class=12"])):
        scores, what = evaluate_folder(source, extra)
        for name in ("instance_miou", "class_miou", "oa", "macc"):
            assert scores["whole"][name] == result[f"whole_{name}"]
        lines = describe_evaluation(scores, what).splitlines()
        assert lines[-1].startswith(f"test split, whole: instance mIoU {result['whole_instance_miou']:.2f} %, class")
        assert any(line.split()[0] == "airplane" for line in lines)


def test_the_official_protocol_is_a_seeded_draw_of_its_own(finished):
    folder, _ = finished
    first, second, other = (
        evaluate_folder(folder, ["eval.protocol=official", f"eval.seed={seed}"])[0] for seed in (0, 0, 1)
    )
    assert set(first) == {"source", "split", "official"}
    assert first == second and first != other


def test_whole_decodes_every_point_once(uneven):
    dataset, model = uneven
    config = config_for("eval.batch_size=4")
    accelerator, task = make_accelerator(config.train), make_task(config, dataset.metadata)
    loader = eval_loader(dataset, config, accelerator)

    def step(batch):
        logits, truth = task.predict(model, batch)
        assert logits.shape == (*batch["points"].shape[:2], 6)
        return task.tally(logits, truth, batch)

    counts, category = run_batches(step, loader, accelerator)
    assert torch.equal(category, dataset.labels)
    assert counts[..., 1].sum(dim=1).tolist() == dataset.counts.tolist()
    assert counts[..., 2].sum(dim=1).tolist() == dataset.counts.tolist()
    truth = [torch.bincount(dataset[i]["part"], minlength=6) for i in range(11)]
    assert torch.equal(counts[..., 1], torch.stack(truth))


@pytest.mark.parametrize("protocol", ["whole", "official"])
def test_scores_do_not_depend_on_batches_or_chunks(uneven, monkeypatch, protocol):
    dataset, model = uneven
    scores = []
    for size, at_once in ((1, 7), (4, 10**6), (11, 33)):
        monkeypatch.setattr(predict, "_POINTS_AT_ONCE", at_once)
        config = config_for(f"eval.batch_size={size}", f"eval.protocol={protocol}")
        accelerator, task = make_accelerator(config.train), make_task(config, dataset.metadata)
        tallies = tally_model(model, task, eval_loader(dataset, config, accelerator), accelerator)
        scores.append(task.scores(*tallies))
    assert scores[0] == scores[1] == scores[2]


def test_a_whole_cloud_of_the_model_s_own_points_is_a_plain_forward_pass():
    model = ewa3d.create_model(
        "point_mae_tiny", "part_segmentation", embed_dim=24, depth=2, num_heads=2, num_groups=8, group_size=4
    ).eval()
    points, category = torch.rand(2, 60, 3), torch.tensor([3, 9])
    result = predict.segment_points(model, points, points, category)
    torch.testing.assert_close(result, model(points, category), rtol=1e-4, atol=1e-5)


def test_logits_come_in_the_dataset_s_order(uneven):
    dataset, model = uneven
    config = config_for("eval.batch_size=3", "eval.protocol=official")
    accelerator, task = make_accelerator(config.train), make_task(config, dataset.metadata)
    together = run_batches(partial(task.predict, model), eval_loader(dataset, config, accelerator), accelerator)
    for i in range(len(dataset)):
        logits, truth = task.predict(model, dataset.batch([i]))
        torch.testing.assert_close(together[0][i], logits[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together[1][i], truth[0])


def test_two_processes_score_what_one_does(finished, tmp_path):
    """39 clouds in batches of 8 for two: the last one is uneven, and its filling must not count twice."""
    folder, _ = finished
    keys = ["data.per_class=3", "eval.batch_size=8"]
    expected, _ = evaluate_folder(folder, keys)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tools" / "evaluate.py"), str(folder), *keys, "--out", str(tmp_path / "two.json")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("test split, whole") == 1, "one of them speaks"
    assert json.loads((tmp_path / "two.json").read_text()) == expected


def test_other_parts_are_refused(finished, monkeypatch):
    folder, _ = finished
    wrong = open_split(load_run_config(folder), "val")
    names = dict(wrong.part_map.parts)
    wrong.part_map = PartMap(names | {"airplane": ("hull", "wing", "tail", "engine")})
    monkeypatch.setattr("ewa3d.engine.evaluate.open_split", lambda *_: wrong)
    with pytest.raises(ewa3d.Ewa3dError, match="trained on other classes or parts than those of shapes here"):
        evaluate_folder(folder)
    with pytest.raises(ewa3d.Ewa3dError, match=r"was made for task=part_segmentation, not classification"):
        evaluate_folder(folder, ["task=classification"])


@pytest.mark.parametrize(("root", "sizes"), [(None, (50, 16)), ("psb_parts", (83, 17))])
def test_real_part_data_trains_and_evaluates(real_data, tmp_path, tiny_run, monkeypatch, root, sizes):
    monkeypatch.setenv("EWA3D_CACHE", str(tmp_path / "cache"))
    keys = ["task=part_segmentation", "data.name=shapenetpart", f"data.root={real_data / root if root else real_data}"]
    keys += ["train.epochs=1", "train.batch_size=2", f"run.dir={tmp_path / 'run'}", "data.per_class=null"]
    result = train(load_config(overrides=[*tiny_run, *keys]))
    assert 0 <= result["whole_instance_miou"] <= 100
    model = ewa3d.from_pretrained(tmp_path / "run" / "export")
    assert (model.config["num_classes"], model.config["num_categories"]) == sizes
    scores, _ = evaluate_folder(tmp_path / "run", ["eval.protocol=official", "eval.split=trainval"])
    assert 0 <= scores["official"]["instance_miou"] <= 100
    if root is None:
        assert set(scores["official"]["per_category"]) == {"Skateboard", "Table"}
