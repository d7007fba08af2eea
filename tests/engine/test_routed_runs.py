"""Runs with a learned router or fused experts: what they learn, export and go on from."""

import json
from pathlib import Path

import pytest
import torch

import ewa3d
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import evaluate_folder, load_model
from ewa3d.engine.export import export_run
from ewa3d.engine.train import train
from ewa3d.ewa import expert_layers, is_routed

ROUTED = ["ewa.routing=topk", "ewa.router.top_k=2", "ewa.router.shared=true", "ewa.average_until=0.4"]


def test_a_routed_run_exports_and_scores_both_models(tiny_config):
    config = tiny_config(*ROUTED)
    result = train(config)
    folder = Path(config.run.dir)
    plain = ewa3d.from_pretrained(folder / "export")
    routed = ewa3d.from_pretrained(folder / "export_routed")
    assert not expert_layers(plain) and is_routed(routed)
    assert routed.metadata["class_names"] == plain.metadata["class_names"]
    for model, protocol in ((plain, "single"), (routed, "single_routed")):
        found, _ = evaluate_folder(folder / ("export_routed" if model is routed else "export"))
        assert found["single"]["oa"] == result[f"{protocol}_oa"]
    assert is_routed(load_model(folder)), "what was trained and validated"
    report = json.loads((folder / "export" / "merge_report.json").read_text())
    assert report["max_logit_difference"] > 0, "merging a routed model changes it, and the report says by how much"
    points = torch.rand(2, 64, 3)
    assert not torch.equal(plain(points), routed(points))
    assert ewa3d.predict(routed, points[0]).top(1)
    rates = [json.loads(line).get("share_rate") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rates[:3] == [pytest.approx(0.3 * 3 / 4), 0.0, 0.0], "4 of 9 steps are averaged, and the experts are free"


def test_the_routers_losses_are_trained_on_and_not_reported(tiny_config):
    """One step a run, of the same batch with the same weights: the reported losses are one, and the routers differ."""
    losses, routers = [], []
    for balance in (0, 5):
        options = ("ewa.routing=topk", f"ewa.router.balance={balance}", "train.epochs=1", "train.batch_size=52")
        config = tiny_config(*options, "optim.warmup_epochs=0", dir=f"balance_{balance}")
        train(config)
        folder = Path(config.run.dir)
        losses.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["train_loss"])
        routers.append(ewa3d.from_pretrained(folder / "export_routed").blocks[0].mlp.router.weight)
    assert losses[0] == losses[1]
    assert not torch.equal(*routers)


def test_a_routed_model_is_saved_as_ours_only(tiny_config, tmp_path):
    model = ewa3d.upcycle(
        ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2), 3, every=1, routing="topk", top_k=2
    )
    ewa3d.save_pretrained(model, tmp_path / "routed")
    again = ewa3d.from_pretrained(tmp_path / "routed")
    points = torch.rand(2, 64, 3)
    assert torch.equal(again(points), model.eval()(points))
    assert again.blocks[0].mlp.router.top_k == 2
    with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
        ewa3d.save_pretrained(model, tmp_path / "model.pth", format="official")
    for routing in ("random", "fused"):
        other = ewa3d.upcycle(ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2), routing=routing)
        with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
            ewa3d.save_pretrained(other, tmp_path / "other")


def test_an_export_that_describes_no_experts_is_named(tmp_path):
    model = ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2)
    folder = ewa3d.save_pretrained(ewa3d.upcycle(model, 3, routing="topk"), tmp_path / "routed")
    config = json.loads((folder / "config.json").read_text())
    config["experts"]["where"] = ["blocks.9.mlp"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ewa3d.Ewa3dError, match=r"does not describe a model \(the model has no module 'blocks\.9\.mlp'"):
        ewa3d.from_pretrained(folder)


def test_fused_experts_are_exported_as_what_was_trained(tiny_config):
    config = tiny_config("ewa.routing=fused", "ewa.init=independent", "ewa.share_rate=0", "train.epochs=1")
    train(config)
    plain, report = export_run(Path(config.run.dir))
    assert not expert_layers(plain)
    assert report["max_logit_difference"] <= 1e-4
    assert report["before"] == report["after"]
    assert not (Path(config.run.dir) / "export_routed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ewa.routing=topp"], "ewa.routing=topp: no such choice: did you mean topk?"),
        (["ewa.router.top_k=2"], "ewa.router is for ewa.routing=topk, and it is random: leave it out"),
        (["ewa.routing=topk", "ewa.router.top_k=5"], "top_k=5: a token goes to 1 to 3 of the 3 experts"),
        (["ewa.routing=topk", "ewa.router.topk=1"], "unknown key ewa.router.topk: did you mean ewa.router.top_k?"),
        (["ewa.average_until=0"], "ewa.average_until=0.0: must be above 0 and at most 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tiny_run, tmp_path, options, message):
    with pytest.raises(ewa3d.Ewa3dError) as error:
        train(load_config(overrides=[*tiny_run, f"run.dir={tmp_path / 'run'}", *options]))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
