"""The training loop, run for real on tiny models: averaging, resuming, records, exports."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from run_files import rows_of, state_of
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler

import ewa3d
from ewa3d.data.shapes import PARTS
from ewa3d.engine import evaluate as evaluation
from ewa3d.engine import session as sessions
from ewa3d.engine.build import build_model, restore_model
from ewa3d.engine.checkpoint import find_checkpoint
from ewa3d.engine.optim import decay_groups, make_scheduler
from ewa3d.engine.run import load_run_config
from ewa3d.engine.train import train
from ewa3d.ewa import ExpertAverager, contraction, expert_distances, merge_report, share_rate_at


def test_a_run_learns_and_leaves_everything_that_the_readme_promises(tiny_config, capsys):
    config = tiny_config("train.epochs=8", "data.per_class=12", "optim.lr=2e-3")
    result = train(config)
    folder = Path(config.run.dir)
    for name in (
        "config.yaml",
        "log.txt",
        "metrics.jsonl",
        "curves.png",
        "confusion.png",
        "tensorboard",
        "checkpoints/last",
    ):
        assert (folder / name).exists(), name
    for name in ("model.safetensors", "config.json", "merge_report.json"):
        assert (folder / "export" / name).exists(), name
    epochs = [row for row in rows_of(folder) if "epoch" in row]
    assert [row["epoch"] for row in epochs] == list(range(1, 9))
    assert epochs[-1]["train_loss"] < 0.8 * epochs[0]["train_loss"]
    assert result["single_oa"] > 100 / 13 * 2, "more than twice chance on the test split"
    best = max(epochs, key=lambda row: row["val_oa"])
    assert result["best_epoch"] == best["epoch"]
    out = capsys.readouterr().out
    assert f"test split, single: overall accuracy {result['single_oa']:.2f} %" in out
    assert str(folder / "export") in out
    assert out.strip().splitlines()[-1] in (folder / "log.txt").read_text()


def test_the_test_split_is_gone_over_once_for_scores_and_picture(tiny_config, monkeypatch):
    passes = []
    original = evaluation.run_batches
    monkeypatch.setattr(evaluation, "run_batches", lambda *a, **k: (passes.append(len(a[1].dataset)), original(*a))[1])
    config = tiny_config("task=part_segmentation", "train.epochs=1")
    train(config)
    assert passes == [4 * 13, 4 * 13], "val after the epoch, test at the end"
    assert (Path(config.run.dir) / "iou.png").is_file()
    assert not (Path(config.run.dir) / "confusion.png").exists()


def test_every_epoch_says_how_far_apart_each_layer_s_experts_are(tiny_config):
    config = tiny_config("ewa.init=independent")
    train(config)
    folder = Path(config.run.dir)
    epochs = [row for row in rows_of(folder) if "epoch" in row]
    for row in epochs:
        assert list(row["expert_distances"]) == ["blocks.0.mlp", "blocks.1.mlp"]
        assert row["expert_distance"] == pytest.approx(sum(row["expert_distances"].values()) / 2)
    report = merge_report(restore_model(folder, load_run_config(folder), "last"))
    assert epochs[-1]["expert_distances"] == pytest.approx({name: of["relative"] for name, of in report.items()})
    assert len(set(epochs[-1]["expert_distances"].values())) == 2, "a test that could not fail otherwise"


def test_the_export_is_a_plain_model_with_the_run_s_class_names(tiny_config):
    config = tiny_config("train.epochs=1")
    train(config)
    export = Path(config.run.dir) / "export"
    model = ewa3d.from_pretrained(export)
    assert model.metadata["class_names"][:2] == ["airplane", "bed"]
    assert not any("experts" in key for key in load_file(export / "model.safetensors"))
    plain, _ = build_model(tiny_config("ewa=null"), model.metadata)
    plain.load_state_dict(model.state_dict(), strict=True)


def test_at_learning_rate_zero_experts_end_where_the_schedule_predicts(tiny_config):
    config = tiny_config(
        "optim.lr=0", "optim.min_lr=0", "optim.warmup_lr=0", "ewa.init=independent", "ewa.share_rate=0.05"
    )
    torch.manual_seed(config.train.seed)  # as the loop seeds itself before it builds the model
    start = expert_distances(build_model(config, {"class_names": list(PARTS)})[0])
    train(config)
    folder = Path(config.run.dir)
    end = expert_distances(restore_model(folder, load_run_config(folder), "last"))
    steps = 3 * (4 * 13 // 16)
    factor = 1.0
    for step in range(1, steps + 1):
        factor *= 1 - contraction(share_rate_at(step, 0.05, "linear", steps), 3)
    assert 0.3 < factor < 0.9, "a test that could not fail otherwise"
    for layer in start:
        assert end[layer] == pytest.approx([d * factor for d in start[layer]], rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_one_averaging_step_for_each_optimizer_step_and_none_while_accumulating(tiny_config, monkeypatch, accumulation):
    calls = []

    class Counting(ExpertAverager):
        def step(self):
            calls.append("average")
            super().step()

    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (calls.append("step"), original(self))[1])
    monkeypatch.setattr(sessions, "ExpertAverager", Counting)
    config = tiny_config(f"train.accumulation={accumulation}", "train.epochs=2")
    train(config)
    batches = 4 * 13 // 16
    steps = 2 * -(-batches // accumulation)
    assert calls == ["step", "average"] * steps
    assert rows_of(Path(config.run.dir))[-1]["step"] == steps


def test_the_share_rate_reaches_its_goal_at_the_last_step(tiny_config):
    config = tiny_config("train.accumulation=2")
    train(config)
    rates = [row["share_rate"] for row in rows_of(Path(config.run.dir)) if "epoch" in row]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


def test_dense_training_has_no_experts(tiny_config):
    config = tiny_config("ewa=null", "train.epochs=1")
    train(config)
    folder = Path(config.run.dir)
    assert not any("experts" in key for key in load_file(find_checkpoint(folder / "checkpoints") / "model.safetensors"))
    report = json.loads((folder / "export" / "merge_report.json").read_text())
    assert report["layers"] == {} and report["max_logit_difference"] == 0


def test_the_two_newest_checkpoints_and_the_best_are_kept(tiny_config):
    config = tiny_config("train.epochs=5", "optim.lr=0", "optim.min_lr=0", "optim.warmup_lr=0", "ewa=null")
    train(config)  # weights never move, so the first epoch's BatchNorm alone decides
    folder = Path(config.run.dir) / "checkpoints"
    steps = {path.name for path in folder.glob("step-*")}
    best = (folder / "best").read_text().strip()
    assert steps == {"step-12", "step-15", best}
    assert (folder / "last").read_text().strip() == "step-15"


def test_a_run_in_the_way_is_not_lost(tiny_config):
    config = tiny_config("train.epochs=1")
    train(config)
    with pytest.raises(ewa3d.Ewa3dError, match=r"holds a run already: run\.resume=true continues it"):
        train(tiny_config("train.epochs=1"))
    assert (Path(config.run.dir) / "export").is_dir()
    train(tiny_config("train.epochs=1", "run.overwrite=true", "train.seed=1"))
    again = load_run_config(Path(config.run.dir))
    assert again.train.seed == 1 and not again.run.overwrite, "the next training from this file asks again"


def test_more_clouds_a_batch_than_there_are_is_refused(tiny_config):
    with pytest.raises(ewa3d.Ewa3dError, match=r"train\.batch_size=64 on 1 process\(es\) is more than the 52"):
        train(tiny_config("train.batch_size=64"))


def test_bf16_trains(tiny_config):
    config = tiny_config("train.precision=bf16", "train.epochs=2")
    train(config)
    losses = [row["train_loss"] for row in rows_of(Path(config.run.dir)) if "epoch" in row]
    assert losses[1] < losses[0]
    assert all(v.dtype != torch.bfloat16 for v in state_of(Path(config.run.dir)).values()), "weights stay in fp32"


def test_training_starts_from_pretrained_weights(tiny_config):
    first = tiny_config("train.epochs=1", dir="first")
    train(first)
    export = Path(first.run.dir) / "export"
    frozen = ["train.epochs=1", "optim.lr=0", "optim.min_lr=0", "optim.warmup_lr=0"]
    second = tiny_config(*frozen, f"model.pretrained={export}", dir="second")
    train(second)
    weights, start = (load_file(Path(c.run.dir) / "export" / "model.safetensors") for c in (second, first))
    assert all(torch.equal(weights[k], start[k]) for k in weights if "running" not in k and "num_batches" not in k)


def test_decay_follows_the_official_rule():
    model = ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2)
    decayed, free = decay_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert {"cls_pos", "pos_embed.0.weight", "blocks.0.mlp.fc1.weight", "head.8.weight"} <= decayed_names
    free_names = {names[id(p)] for p in free["params"]}
    assert {"cls_token", "norm.weight", "blocks.0.mlp.fc1.bias", "head.1.weight"} <= free_names
    assert len(decayed_names) + len(free_names) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(tiny_config):
    config = tiny_config("train.epochs=10", "optim.warmup_epochs=2", "optim.lr=1e-3")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=10)
    assert isinstance(scheduler, CosineLRScheduler)
    rates = []
    for step in range(101):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(1e-3, rel=0.15)
    assert 18 <= rates.index(max(rates)) <= 21
    assert rates[-1] == pytest.approx(1e-6)
    assert all(a >= b for a, b in pairwise(rates[21:]))


def test_a_set_of_other_size_than_published_is_told_at_the_start(real_data, tiny_config, capsys):
    root = real_data / "modelnet40_normal_resampled"
    keys = ["data.name=modelnet40", f"data.root={root}", "data.train_split=trainval", "train.select=last"]
    train(tiny_config(*keys, "data.per_class=null", "train.batch_size=4", "train.epochs=1"))
    assert f"{root}: train 23 (published 9,843), test 18 (published 2,468): scores do not" in capsys.readouterr().out
