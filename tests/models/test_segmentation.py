"""The part segmentation model: shapes, what its head computes, and experts in it."""

import pytest
import torch

import ewa3d
from ewa3d.ewa import expert_layers
from ewa3d.models.segmentation import GroupFeatures, PartHead
from ewa3d.ops import three_nn_interpolate

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}


def tiny(family: str = "point_mae", **options):
    return ewa3d.create_model(
        f"{family}_tiny", task="part_segmentation", num_classes=7, num_categories=3, **TINY | options
    )


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
def test_every_point_gets_logits(family):
    model = tiny(family)
    points, category = torch.rand(3, 50, 3), torch.tensor([0, 2, 1])
    assert model(points, category).shape == (3, 50, 7)
    groups = model.forward_features(points)
    assert groups.features.shape == (3, 8, 72) and groups.centers.shape == (3, 8, 3)
    model.reset_classifier(5, num_categories=4)
    assert model(points, category).shape == (3, 50, 5)


def test_a_model_s_config_makes_it_again():
    model = tiny(family="point_bert")
    twin = ewa3d.create_model(**model.config)
    twin.load_state_dict(model.state_dict(), strict=True)
    points, category = torch.rand(2, 40, 3), torch.tensor([0, 1])
    assert torch.equal(twin.eval()(points, category), model.eval()(points, category))


def test_points_are_decoded_alike_one_by_one_and_all_at_once():
    """What makes whole clouds of any size possible: a point's logits depend on the groups, not on other points."""
    model = tiny().eval()
    points, category = torch.rand(2, 40, 3), torch.tensor([2, 0])
    groups = model.forward_features(points)
    parts = [model.forward_head(groups, chunk, category) for chunk in points.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(points, category), rtol=1e-4, atol=1e-5)


def test_the_category_is_heard():
    model = tiny().eval()
    points = torch.rand(1, 40, 3)
    first, second = (model(points, torch.tensor([c])) for c in (0, 1))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(("depth", "levels"), [(12, [4, 8, 12]), (6, [2, 4, 6]), (4, [2, 3, 4]), (1, [1, 1, 1])])
def test_features_come_from_thirds_of_the_depth(depth, levels):
    model = tiny(depth=depth).eval()
    points = torch.rand(2, 40, 3)
    tokens, centers = model.patch_embed(points)
    expected = []
    for level in levels:
        x = tokens
        for block in model.blocks[:level]:
            x = block(x + model.pos_embed(centers))
        expected.append(model.norm(x))
    assert torch.equal(model.forward_features(points).features, torch.cat(expected, dim=-1))


@pytest.mark.parametrize("training", [False, True])
def test_the_head_equals_the_concatenating_one(training):
    """The head's split products are those of the concatenations in the paper's code, batch statistics included."""
    head = PartHead(24, 7, 3).train(training)
    for dropout in (m for m in head.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0
    features, centers, points = torch.randn(2, 8, 72), torch.rand(2, 8, 3), torch.rand(2, 30, 3)
    category = torch.tensor([2, 0])
    one_hot = torch.nn.functional.one_hot(category, 3).float()
    shared = torch.cat([features.amax(1), features.mean(1), head.category_embed(one_hot)], dim=-1)
    own = head.propagate(torch.cat([points, three_nn_interpolate(points, centers, features)], dim=-1).flatten(0, 1))
    both = torch.cat([own, shared.repeat_interleave(30, dim=0)], dim=-1)
    expected = head.classify(both).view(2, 30, 7)
    torch.testing.assert_close(head(GroupFeatures(features, centers), points, category), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    model = tiny(drop_path_rate=0.0)
    logits = model(torch.rand(4, 50, 3), torch.tensor([0, 1, 2, 0]))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(200) % 7).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_experts_are_the_blocks_ffns_and_merge_into_the_same_model():
    model = tiny()
    names = set(model.state_dict())
    ewa3d.upcycle(model, 3, every=1, init="independent")
    assert list(expert_layers(model)) == ["blocks.0.mlp", "blocks.1.mlp"]
    points, category = torch.rand(2, 40, 3), torch.tensor([0, 1])
    before = model.eval()(points, category)
    plain = ewa3d.merge(model)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain(points, category), before, rtol=1e-4, atol=1e-5)


def test_weights_go_out_and_in_again(tmp_path):
    model = tiny().eval()
    points, category = torch.rand(2, 40, 3), torch.tensor([0, 1])
    same = ewa3d.from_pretrained(ewa3d.save_pretrained(model, tmp_path / "export"))
    assert torch.equal(same(points, category), model(points, category))
    other = tiny().eval()
    ewa3d.load_pretrained(other, ewa3d.save_pretrained(model, tmp_path / "model.pth", format="official"), strict=True)
    assert torch.equal(other(points, category), model(points, category))


def test_bf16_autocast_stays_close():
    model = tiny().eval()
    points, category = torch.rand(2, 60, 3), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(points, category)
    torch.testing.assert_close(out.float(), model(points, category), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("shape", [(10, 3), (2, 10, 6)])
def test_inputs_that_are_no_clouds_are_refused(shape):
    with pytest.raises(ValueError, match=r"points must be a \(B, N, 3\) tensor, got"):
        tiny()(torch.zeros(shape), torch.zeros(2, dtype=torch.long))
