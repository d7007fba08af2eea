"""The masked autoencoder: what is hidden, who sees it, and how it starts."""

import pytest
import torch
from torch import nn

import ewa3d
from ewa3d.ewa import expert_layers
from ewa3d.ops import chamfer_distance, gather_points

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4, "decoder_depth": 1}


def tiny(**options):
    return ewa3d.create_model("point_mae_tiny", task="pretraining", **TINY | options)


def test_what_it_returns_and_what_the_loss_is_of():
    model, points = tiny().eval(), torch.rand(3, 50, 3)
    out = model(points)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    of_hidden, of_all = (3, 4, 4, 3), (3, 8, 4, 3)
    assert shapes == {
        "loss": (),
        "reconstruction": of_hidden,
        "target": of_hidden,
        "mask": (3, 8),
        "centers": (3, 8, 3),
        "groups": of_all,
    }
    assert torch.equal(out["groups"][out["mask"]], out["target"].flatten(0, 1))
    one_by_one = [chamfer_distance(a[None], b[None]) for a, b in zip(*(
        out[name].flatten(0, 1) for name in ("reconstruction", "target")
    ), strict=True)]  # fmt: skip
    torch.testing.assert_close(out["loss"], torch.cat(one_by_one).mean())
    again = model(points, out["mask"])
    assert all(torch.equal(again[name], value) for name, value in out.items())
    assert tiny(chamfer="l1").load_state_dict(model.state_dict()) and not torch.equal(
        tiny(chamfer="l1")(points)["loss"], out["loss"]
    )


def test_the_encoder_sees_the_visible_groups_alone():
    """Points that lie in hidden groups only may be anything: no token moves."""
    model, points = tiny().eval(), torch.rand(1, 200, 3)
    groups, centers = model.patch_embed.group(points)
    mask = torch.tensor([[False, True, True, False, True, False, False, True]])
    changed = groups.clone()
    changed[mask] += 0.1
    before, after = (model.reconstruct(g, centers, mask, 4) for g in (groups, changed))
    assert torch.equal(before["reconstruction"], after["reconstruction"]) and before["loss"] != after["loss"]
    tokens = model.forward_features(points, mask)
    alone = model.encode(model.patch_embed.embed(groups[~mask][None]), model.pos_embed(centers[~mask][None]))
    assert tokens.shape == (1, 4, 24)
    torch.testing.assert_close(tokens, alone)
    assert model.forward_features(points).shape == (1, 8, 24)


def test_the_decoder_knows_where_the_hidden_groups_are_and_nothing_else_of_them():
    model = tiny().eval()
    groups, centers = torch.randn(1, 8, 4, 3), torch.randn(1, 8, 3)
    mask = torch.tensor([[True, False] * 4])
    moved = centers.clone()
    moved[:, 2] += 1  # the second of the hidden
    before, after = (model.reconstruct(groups, c, mask, 4)["reconstruction"] for c in (centers, moved))
    assert (before - after)[0, 1].abs().max() > 1e-4
    twins = torch.zeros_like(centers)
    alike = model.reconstruct(groups, twins, mask, 4)["reconstruction"]
    torch.testing.assert_close(alike, alike[:, :1].expand_as(alike), msg="at one place, one answer")


@pytest.mark.parametrize("mask_type", ["random", "block"])
@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 38), (0.25, 16), (0.99, 63)])
def test_masks_hide_the_ratio_of_every_cloud(mask_type, ratio, hidden):
    model = tiny(num_groups=64, mask_type=mask_type, mask_ratio=ratio)
    centers = torch.randn(5, 64, 3)
    mask = model.draw_mask(centers)
    assert mask.dtype == torch.bool and mask.sum(dim=1).tolist() == [hidden] * 5
    assert not torch.equal(mask, model.draw_mask(centers)), "drawn anew"
    order = torch.stack([torch.randperm(64) for _ in range(5)])
    assert torch.equal(model.draw_mask(centers, order), model.draw_mask(centers, order))


def test_random_masks_hide_every_group_equally_often():
    model, centers = tiny(), torch.zeros(1, 8, 3).expand(4000, -1, -1)
    share = model.draw_mask(centers).float().mean(dim=0)
    assert (share - 0.5).abs().max() < 0.04  # 5 standard deviations


def test_a_block_is_the_groups_nearest_to_one_of_them():
    model = tiny(mask_type="block")
    centers = torch.randn(6, 8, 3)
    order = torch.stack([torch.randperm(8) for _ in range(6)])
    mask = model.draw_mask(centers, order)
    distance = (centers - gather_points(centers, order[:, :1])).norm(dim=-1)
    for own, far in zip(mask, distance, strict=True):
        assert far[own].max() < far[~own].min()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 8), r"mask must be bool \(2, 8\), True where a group is hidden, got torch.float32 \(2, 8\)"),
        (torch.ones(2, 7, dtype=torch.bool), r"got torch.bool \(2, 7\)"),
        (torch.ones(2, 8, dtype=torch.bool), r"neither none nor all, got \[8\] of 8"),
        (torch.zeros(2, 8, dtype=torch.bool), r"got \[0\] of 8"),
        (torch.arange(16).view(2, 8) < 5, r"equally many groups of every cloud, .* got \[0, 5\] of 8"),
    ],
)
def test_masks_that_cannot_be_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.rand(2, 40, 3), mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.1}, "mask_ratio=0.1 hides 0 of 8 groups"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 hides 8 of 8 groups"),
        ({"mask_type": "grid"}, "unknown mask_type 'grid': choose random or block"),
        ({"chamfer": "l3"}, "unknown chamfer 'l3': choose l1 or l2"),
        ({"num_classes": 40}, "num_classes means nothing to pretraining"),
        ({"num_categories": 16}, "num_categories is for part segmentation"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_options_of_pretraining_are_for_pretraining():
    with pytest.raises(ValueError, match="mask_ratio is for pretraining: leave it out, or take task='pretraining'"):
        ewa3d.create_model("point_mae_tiny", mask_ratio=0.6)
    with pytest.raises(ValueError, match=r"point_bert_small is none: take point_mae_small"):
        ewa3d.create_model("point_bert_small", task="pretraining")


def test_a_model_s_config_makes_it_again():
    model = tiny(mask_type="block", chamfer="l1")
    twin = ewa3d.create_model(**model.config)
    twin.load_state_dict(model.state_dict(), strict=True)
    points, mask = torch.rand(2, 40, 3), torch.arange(8).expand(2, 8) < 4
    assert torch.equal(twin.eval()(points, mask)["loss"], model.eval()(points, mask)["loss"])


def test_it_starts_as_the_official_model_does():
    model = tiny(embed_dim=192)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight, module.bias
        if name.startswith(("increase_dim", "decoder.pos_embed")):  # PyTorch's own: U(±1/√fan_in)
            expected, zero = (3 * module.in_features) ** -0.5, False
        elif name.startswith("decoder."):  # Xavier: U(±√(6/(fan_in + fan_out)))
            expected, zero = (2 / (module.in_features + module.out_features)) ** 0.5, True
        else:
            expected, zero = 0.02, True
        assert weight.std().item() == pytest.approx(expected, rel=0.15), name
        assert bias is None or (bias == 0).all().item() == zero, name
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_experts_are_in_the_encoder_and_start_as_it_did():
    model = ewa3d.upcycle(tiny(depth=4), 3, every=1, init="independent")
    assert list(expert_layers(model)) == [f"blocks.{i}.mlp" for i in range(4)]
    for layer in expert_layers(model).values():
        assert layer.experts[1].fc1.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert (layer.experts[2].fc2.bias == 0).all()
    points, mask = torch.rand(2, 40, 3), torch.arange(8).expand(2, 8) < 4
    model.train()(points)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before, after = (m.eval()(points, mask)["reconstruction"] for m in (model, ewa3d.merge(model)))
    torch.testing.assert_close(after, before)


def test_it_learns():
    model = tiny(drop_path_rate=0.0).train()
    points, optimizer = torch.randn(8, 64, 3), torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(points)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_classifier_starts_from_its_export(tmp_path):
    model = tiny()
    ewa3d.save_pretrained(model, tmp_path / "export")
    classifier = ewa3d.create_model("point_mae_tiny", **{k: v for k, v in TINY.items() if k != "decoder_depth"})
    report = ewa3d.load_pretrained(classifier, tmp_path / "export")
    assert {key.split(".")[0] for key in report.missing} == {"head", "cls_token", "cls_pos"}
    assert {key.split(".")[0] for key in report.unexpected} == {"decoder", "mask_token", "increase_dim"}
    own = classifier.state_dict()
    assert set(report.matched) == {key for key in own if not key.startswith(("head.", "cls_"))}
    assert report.mismatched == [] and all(torch.equal(own[k], model.state_dict()[k]) for k in report.matched)
