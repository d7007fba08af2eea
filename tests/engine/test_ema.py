"""The moving average of the weights, with experts and without."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

import ewa3d
from ewa3d.data.shapes import PARTS
from ewa3d.engine.build import build_model, restore_model
from ewa3d.engine.checkpoint import find_checkpoint
from ewa3d.engine.evaluate import evaluate_folder
from ewa3d.engine.export import export_run
from ewa3d.engine.optim import make_ema
from ewa3d.engine.schema import EmaConfig
from ewa3d.engine.train import train

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}


@torch.no_grad()
def wander(model):
    """What an optimizer step does to the weights, as far as their average is concerned."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_merge_of_the_average_is_the_average_of_the_merges(warmup):
    model = ewa3d.create_model("point_mae_tiny", **TINY).double()
    ewa3d.upcycle(model, 3, every=1, init="independent")
    config = EmaConfig(decay=0.8, warmup=warmup)
    averager = ewa3d.ExpertAverager(model, share_rate=0.3, schedule="linear", total_steps=12)
    of_experts, of_merged = make_ema(config, model), make_ema(config, ewa3d.merge(model))
    for step in range(1, 13):
        wander(model)
        averager.step()
        of_experts.update(model, step)
        of_merged.update(ewa3d.merge(model), step)
    merged = ewa3d.merge(of_experts.module).state_dict()
    assert merged.keys() == of_merged.module.state_dict().keys()
    for name, value in of_merged.module.state_dict().items():
        torch.testing.assert_close(merged[name], value, rtol=1e-12, atol=1e-12, msg=name)
    assert not torch.allclose(merged["blocks.0.mlp.fc1.weight"], ewa3d.merge(model).blocks[0].mlp.fc1.weight)


def test_ewa_s_own_step_does_not_move_the_merged_average():
    """It leaves the experts' mean, so the same path with averaging and without gives one merged average."""
    torch.manual_seed(3)
    model = ewa3d.upcycle(ewa3d.create_model("point_mae_tiny", **TINY).double(), 3, every=1, init="independent")
    merged = []
    for share_rate in (0.0, 0.6):
        twin = deepcopy(model)
        ema = make_ema(EmaConfig(decay=0.9, warmup=False), twin)
        averager = ewa3d.ExpertAverager(twin, share_rate, schedule="constant")
        torch.manual_seed(4)
        for step in range(1, 9):
            wander(twin)
            averager.step()
            ema.update(twin, step)
        merged.append(ewa3d.merge(ema.module).state_dict())
    for name, value in merged[0].items():
        torch.testing.assert_close(merged[1][name], value, rtol=1e-11, atol=1e-12, msg=name)


def test_the_average_is_the_geometric_one_of_weights_and_statistics():
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    ema = make_ema(EmaConfig(decay=0.75, warmup=False), model)
    norm = model.patch_embed.mlp1[1]
    expected = None
    for step in range(1, 6):
        model.train()(torch.rand(4, 64, 3))
        wander(model)
        ema.update(model, step)
        now = torch.stack([norm.weight.detach().clone(), norm.running_mean.clone()])
        expected = now if expected is None else 0.75 * expected + 0.25 * now  # the first step sets it
    averaged = ema.module.patch_embed.mlp1[1]
    torch.testing.assert_close(torch.stack([averaged.weight, averaged.running_mean]), expected)
    assert averaged.num_batches_tracked == norm.num_batches_tracked == 5


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(folder / "checkpoints") / f"{name}.safetensors")


@pytest.mark.parametrize("options", [[], ["ewa=null"], ["task=part_segmentation"]])
def test_the_average_is_what_is_validated_and_exported(tiny_config, options):
    config = tiny_config("ema.decay=0.9", "ema.warmup=false", "optim.lr=5e-3", "train.select=last", *options)
    result = train(config)
    folder = Path(config.run.dir)
    average, raw = weights(folder, "ema"), weights(folder, "model")
    assert average.keys() == raw.keys() and not torch.equal(
        average["blocks.0.norm1.weight"], raw["blocks.0.norm1.weight"]
    )
    plain = average if config.ewa is None else ewa3d.ewa.conversion.merge_state_dict(average)
    exported = load_file(folder / "export" / "model.safetensors")
    assert exported.keys() == plain.keys()
    assert all(torch.equal(exported[key], plain[key]) for key in plain)
    protocol, score = ("whole", "instance_miou") if "part" in config.task else ("single", "oa")
    assert evaluate_folder(folder)[0][protocol][score] == result[f"{protocol}_{score}"]
    assert "moving average of the weights, decay 0.9: it is validated and exported" in (folder / "log.txt").read_text()


def test_the_score_that_chooses_the_epoch_is_that_of_the_merged_average(tiny_config):
    config = tiny_config("ema.decay=0.9", "optim.lr=5e-3", "ewa.init=independent")
    train(config)
    folder = Path(config.run.dir)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    _, report = export_run(folder, "last")
    assert report["split"] == "val" and report["after"]["oa"] == rows[2]["val_oa"]
    restored = restore_model(folder, config, "last").state_dict()
    average = weights(folder, "ema")
    assert all(torch.equal(restored[key], average[key]) for key in average)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_average_follows_real_steps_after_the_experts_were_averaged(tiny_config, monkeypatch, accumulation):
    seen = []
    original = ewa3d.ExpertAverager.step
    monkeypatch.setattr(ewa3d.ExpertAverager, "step", lambda self: (original(self), seen.append("experts"))[0])
    update = ModelEmaV3.update
    monkeypatch.setattr(
        ModelEmaV3, "update", lambda self, model, step: (update(self, model, step), seen.append(step))[0]
    )
    train(tiny_config("ema.decay=0.9", f"train.accumulation={accumulation}", "train.epochs=2"))
    steps = 2 * -(-(4 * 13 // 16) // accumulation)
    assert seen == [event for step in range(1, steps + 1) for event in ("experts", step)]


def test_training_is_the_same_with_the_average_and_without(tiny_config):
    """It looks on: weights, optimizer and random numbers know nothing of it."""
    for name, ema in (("with", "ema.decay=0.9"), ("without", "ema=null")):
        train(tiny_config(ema, "train.select=last", "train.epochs=2", dir=name))
    folders = [Path(tiny_config(dir=name).run.dir) for name in ("with", "without")]
    ours, theirs = (weights(folder, "model") for folder in folders)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not (find_checkpoint(folders[1] / "checkpoints") / "ema.safetensors").exists()


def test_a_decay_of_one_is_refused_and_a_run_is_not_resumed_without_its_average(tiny_config):
    with pytest.raises(ewa3d.Ewa3dError, match=r"ema\.decay=1\.0: must be below 1"):
        tiny_config("ema.decay=1")
    train(tiny_config("ema.decay=0.9", "train.epochs=1"))
    with pytest.raises(ewa3d.Ewa3dError, match=r"was run with ema\.decay=0\.9|was run with ema\.\w+="):
        train(tiny_config("train.epochs=1", "run.resume=true"))


def test_the_average_of_a_model_that_was_only_built_is_that_model(tiny_config):
    model, _ = build_model(tiny_config(), {"class_names": list(PARTS)})
    ema = make_ema(EmaConfig(), model)
    points = torch.rand(2, 64, 3)
    assert torch.equal(ema.module(points), model.eval()(points))
