"""Fine-tuning: pretrained weights, experts that start as copies, learning rates that fall towards the input."""

from pathlib import Path

import pytest
import torch
from torch import nn

import ewa3d
from ewa3d.engine.build import build_model
from ewa3d.engine.config import load_config
from ewa3d.engine.optim import decay_groups, make_scheduler
from ewa3d.engine.train import train
from ewa3d.ewa import expert_distances

LABELS = {"class_names": ["bed", "mug", "sofa"]}
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def official_file(tmp_path):
    """A classifier of five classes in the official layout, its BatchNorm moved as by training."""
    model = ewa3d.create_model(
        "point_mae_tiny", num_classes=5, embed_dim=24, depth=2, num_heads=2, num_groups=8, group_size=4
    )
    for _ in range(3):
        model.train()(torch.rand(4, 64, 3))
    return ewa3d.save_pretrained(model, tmp_path / "pretrained.pth", format="official")


def built(config, seed=1):
    torch.manual_seed(seed)
    return build_model(config, LABELS)


def test_an_upcycled_model_starts_by_computing_what_the_pretrained_one_does(tiny_config, official_file):
    pretrained = f"model.pretrained={official_file}"
    plain, _ = built(tiny_config(pretrained, "ewa=null"))
    upcycled, notes = built(tiny_config(pretrained, "ewa.init=copy", "ewa.num_experts=3"))
    points = torch.rand(4, 64, 3)
    assert torch.equal(upcycled.eval()(points), plain.eval()(points))
    assert all(distances == [0, 0, 0] for distances in expert_distances(upcycled).values())
    fresh, _ = built(tiny_config("ewa=null"))
    assert not torch.allclose(fresh.eval()(points), plain(points), atol=1e-3), "a test that could not fail otherwise"
    assert "shape of head.8.weight: (5, 256) in the file, (3, 256) in the model" in notes[0]


def test_what_is_copied_is_the_pretrained_ffn_and_the_head_starts_anew(tiny_config, official_file):
    source = ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2, pretrained=official_file)
    model, _ = built(tiny_config(f"model.pretrained={official_file}"))
    state = model.state_dict()
    for expert in range(3):
        for name, value in source.blocks[1].mlp.state_dict().items():
            assert torch.equal(state[f"blocks.1.mlp.experts.{expert}.{name}"], value)
    assert torch.equal(state["patch_embed.mlp1.1.running_mean"], source.patch_embed.mlp1[1].running_mean)
    assert model.head[8].out_features == 3


def rates(model: nn.Module, groups) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}


def test_every_layer_learns_at_a_part_of_the_next_one_s_rate_and_experts_with_their_block():
    model = ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=3, num_heads=2)
    ewa3d.upcycle(model, 2, every=1)
    groups = decay_groups(model, 0.05, layer_decay=0.5)
    found = rates(model, groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, scale in found.items():
        first, *rest = name.split(".")
        layer = {"blocks": int(rest[0]) + 1 if first == "blocks" else 0, "norm": 4, "head": 4}.get(first, 0)
        assert scale == 0.5 ** (4 - layer), name
    assert found["blocks.1.mlp.experts.1.fc1.weight"] == found["blocks.1.attn.qkv.weight"] == 0.25
    assert found["cls_pos"] == found["patch_embed.mlp1.0.weight"] == found["pos_embed.0.weight"] == 0.0625


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_layer_decay_leaves_the_rule_of_weight_decay_as_it_is(task):
    model = ewa3d.create_model("point_mae_tiny", task, embed_dim=24, depth=2, num_heads=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def free(groups):
        return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}

    assert free(decay_groups(model, 0.05, 0.7)) == free(decay_groups(model, 0.05))
    assert all(group["weight_decay"] in (0, 0.05) for group in decay_groups(model, 0.05, 0.7))


def test_the_schedule_keeps_the_layers_proportions(tiny_config):
    config = tiny_config("optim.lr=1e-2", "optim.layer_decay=0.5", "train.epochs=10")
    model, _ = built(config)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05, config.optim.layer_decay), lr=config.optim.lr)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=10)
    for step in (0, 5, 10, 60, 99):
        scheduler.step_update(step)
        by_scale = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
        assert sorted(by_scale) == [0.125, 0.25, 0.5, 1.0]
        assert [rate / by_scale[1.0] for _, rate in sorted(by_scale.items())] == pytest.approx([0.125, 0.25, 0.5, 1.0])


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_experts_have_a_rate_of_their_own_and_decay_as_much_as_the_others(tiny_config, layer_decay):
    config = tiny_config("optim.lr=1e-2", "ewa.expert_lr=2", "train.epochs=10")
    model, _ = built(config)
    groups = decay_groups(model, 0.05, layer_decay, config.ewa.expert_lr)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=config.optim.lr)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch=10)
    of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    block = model.blocks[1]
    expert, attention = of[id(block.mlp.experts[2].fc1.weight)], of[id(block.attn.qkv.weight)]
    for step in (0, 5, 10, 60, 99):
        scheduler.step_update(step)
        assert expert["lr"] == pytest.approx(2 * attention["lr"])
        assert expert["lr"] * expert["weight_decay"] == pytest.approx(attention["lr"] * attention["weight_decay"])
        assert of[id(block.mlp.experts[0].fc1.bias)]["weight_decay"] == 0


def test_at_a_tiny_layer_decay_only_norm_and_head_are_trained(tiny_config, official_file):
    config = tiny_config(
        f"model.pretrained={official_file}", "optim.layer_decay=1e-12", "optim.weight_decay=0", "train.epochs=1"
    )
    train(config)
    trained = ewa3d.from_pretrained(Path(config.run.dir) / "export").state_dict()
    source = ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2, pretrained=official_file)
    for name, value in source.named_parameters():
        if not name.startswith(("norm.", "head.")):
            torch.testing.assert_close(trained[name], value.data, rtol=0, atol=1e-9, msg=name)
    assert not torch.equal(trained["norm.weight"], source.norm.weight), "a test that could not fail otherwise"


def test_a_fine_tuning_run_says_what_was_loaded_and_its_head_s_rate(tiny_config, official_file, capsys):
    constant = ["optim.lr=5e-4", "optim.min_lr=5e-4", "optim.warmup_lr=5e-4", "train.epochs=1"]
    config = tiny_config(f"model.pretrained={official_file}", "optim.layer_decay=0.5", *constant)
    train(config)
    out = capsys.readouterr().out
    assert f"{official_file}: matched " in out and "shape of head.8.bias: (5,) in the file, (13,) in the model" in out
    row = (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()[0]
    assert '"lr": 0.0005' in row


def test_the_cpu_recipe_differs_from_training_from_scratch_in_weights_and_layer_decay_alone():
    tuned, scratch = (load_config(CONFIGS / f"{name}.yaml") for name in ("finetune_modelnet40_cpu", "modelnet40_cpu"))
    assert tuned.model.pretrained == "runs/pretrain_modelnet40_cpu/export"
    assert tuned.optim.layer_decay == 0.7
    tuned.model.pretrained, tuned.optim.layer_decay, tuned.recipe = None, None, scratch.recipe
    assert tuned == scratch
