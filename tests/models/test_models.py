"""Models by name: shapes, options, what is refused."""

from copy import deepcopy

import pytest
import torch

import ewa3d

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}


def test_names():
    names = ewa3d.list_models()
    assert len(names) == 6
    assert {"point_mae_tiny", "point_mae_small", "point_mae_base", "point_bert_small"} <= set(names)
    assert ewa3d.list_models("point_bert_*") == ["point_bert_tiny", "point_bert_small", "point_bert_base"]


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
def test_forward_takes_clouds_to_logits(family):
    model = ewa3d.create_model(f"{family}_tiny", num_classes=7, **TINY)
    points = torch.rand(3, 50, 3)
    assert model(points).shape == (3, 7)
    features = model.forward_features(points)
    assert features.shape == (3, 9, 24)
    assert model.forward_head(features, pre_logits=True).shape == (3, 48)
    model.reset_classifier(4)
    assert model(points).shape == (3, 4)


@pytest.mark.parametrize(("size", "dim", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
def test_sizes(size, dim, heads):
    with torch.device("meta"):
        model = ewa3d.create_model(f"point_mae_{size}", drop_path_rate=0.0)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (dim, 12, heads)


def test_a_model_s_config_makes_it_again():
    model = ewa3d.create_model("point_bert_tiny", num_classes=5, **TINY)
    twin = ewa3d.create_model(**model.config)
    twin.load_state_dict(model.state_dict(), strict=True)
    points = torch.rand(2, 40, 3)
    assert torch.equal(twin.eval()(points), model.eval()(points))


def test_the_order_of_points_does_not_matter_but_for_the_first():
    model = ewa3d.create_model("point_mae_tiny", **TINY).eval()
    points = torch.rand(2, 60, 3)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(59)])  # sampling starts at the first
    torch.testing.assert_close(model(points[:, order]), model(points), rtol=1e-4, atol=1e-5)


def test_a_cloud_s_logits_do_not_depend_on_its_batch():
    model = ewa3d.create_model("point_mae_tiny", **TINY).eval()
    points = torch.rand(4, 60, 3)
    alone = torch.cat([model(cloud[None]) for cloud in points])
    torch.testing.assert_close(model(points), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_tokens_gradients_and_statistics_equal_the_concatenating_encoder_s(training):
    ours = ewa3d.create_model("point_mae_tiny", **TINY).patch_embed.train(training).double()
    norms = (ours.mlp1[1], ours.mlp2[1])
    for norm in norms:  # as after some training
        torch.nn.init.uniform_(norm.weight, 0.5, 2), torch.nn.init.normal_(norm.bias)
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    plain = deepcopy(ours)
    groups = torch.randn(2, 8, 4, 3, dtype=torch.float64)
    tokens = ours.embed(groups)

    local = plain.mlp1(groups.reshape(-1, 3)).view(16, 4, 256)
    both = torch.cat([local.amax(1, keepdim=True).expand(-1, 4, -1), local], dim=-1)
    expected = plain.mlp2(both.reshape(-1, 512)).view(2, 8, 4, -1).amax(2)
    torch.testing.assert_close(tokens, expected)

    direction = torch.randn_like(tokens)
    (tokens * direction).sum().backward(), (expected * direction).sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    for mine, theirs in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_of_equal_maxima_one_point_gets_the_gradient():
    embed = ewa3d.create_model("point_mae_tiny", **TINY).patch_embed.eval()
    once = torch.randn(1, 1, 3, 3)
    twice = torch.cat([once, once], dim=2).requires_grad_()
    embed.embed(twice).sum().backward()
    single = once.clone().requires_grad_()
    embed.embed(single).sum().backward()
    torch.testing.assert_close(twice.grad.view(2, 3, 3).sum(0), single.grad[0, 0], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns():
    model = ewa3d.create_model("point_mae_tiny", drop_path_rate=0.0, **TINY)
    torch.nn.functional.cross_entropy(model(torch.rand(4, 50, 3)), torch.arange(4)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bf16_autocast_stays_close():
    model = ewa3d.create_model("point_mae_tiny", **TINY).eval()
    points = torch.rand(2, 60, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(points)
    torch.testing.assert_close(out.float(), model(points), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "point_mae_smal"}, r"unknown model 'point_mae_smal': did you mean 'point_mae_small'\?"),
        ({"name": "point_mae_tiny", "task": "detection"}, "unknown task 'detection': choose one of classification"),
        ({"name": "point_mae_tiny", "num_categories": 3}, "num_categories is for part segmentation"),
        ({"name": "point_mae_tiny", "dim": 3}, "unknown model option 'dim'"),
        ({"name": "point_mae_tiny", "embed_dim": 25}, "embed_dim 25 is no multiple of num_heads 3"),
    ],
)
def test_bad_names_and_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ewa3d.create_model(**arguments)


@pytest.mark.parametrize("shape", [(10, 3), (2, 10, 6), (2, 3, 10)])
def test_inputs_that_are_no_clouds_are_refused(shape):
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    with pytest.raises(ValueError, match=r"points must be a \(B, N, 3\) tensor, got"):
        model(torch.zeros(shape))


def test_fewer_points_than_a_group_are_refused():
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    with pytest.raises(ValueError, match="k must be between 1 and the number of points"):
        model(torch.zeros(2, 3, 3))
