"""Learned routing, shared experts and fused experts: the laws they share with random partition, and their own."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn

import ewa3d
from ewa3d.ewa import (
    ExpertAverager,
    FusedExperts,
    RoutedExperts,
    TopKRouter,
    aux_loss,
    contraction,
    is_routed,
    layer_distances,
    merge,
    merge_state_dict,
    upcycle,
)
from ewa3d.ewa.routing import Routing, balance_loss, z_loss

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}
LAYERS = {
    "top-1": {"routing": "topk"},
    "top-2": {"routing": "topk", "top_k": 2},
    "shared": {"routing": "topk", "top_k": 2, "shared": True},
    "fused": {"routing": "fused"},
}


def make_layer(options, count=4, init="independent", dtype=torch.float64):
    return upcycle(nn.ModuleDict({"mlp": Mlp(6, 12)}), count, where=["mlp"], init=init, **options)["mlp"].to(dtype)


def routing_of(probabilities, top_k=1):
    gates, experts = probabilities.topk(top_k, dim=1)
    return Routing(experts, gates, probabilities, probabilities.log())


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_copies_of_an_ffn_compute_what_it_does(options, training):
    layer = make_layer(options, init="copy").train(training)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.experts[0](x), rtol=1e-6, atol=1e-7)  # gates are float32


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_upcycle_then_merge_is_the_identity_bit_for_bit(options):
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    upcycle(model, 3, every=1, **options)
    for merged in (merge(model).state_dict(), merge_state_dict(model.state_dict())):
        assert list(merged) == list(original)
        assert all(torch.equal(value, original[key]) for key, value in merged.items())


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_merging_a_model_and_its_state_dict_agree(options):
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3, every=1, init="independent", **options)
    for name, parameter in model.named_parameters():
        if name.endswith("fusion"):
            nn.init.normal_(parameter)
    expected = merge(model).state_dict()
    merged = merge_state_dict(model.state_dict())
    assert list(merged) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(merged[key], value, msg=key)
    ewa3d.create_model("point_mae_tiny", **TINY).load_state_dict(merged, strict=True)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_averaging_keeps_the_mean_and_shrinks_every_distance_by_one_minus_r(options):
    layer = make_layer(options)
    means, distances = layer.mean_parameters(), layer_distances(layer)
    others = {name: p.clone() for name, p in layer.named_parameters() if not name.startswith("experts.")}
    ExpertAverager(layer, 0.3, "constant").step()
    for name, mean in layer.mean_parameters().items():
        torch.testing.assert_close(mean, means[name], rtol=0, atol=1e-14)
    torch.testing.assert_close(layer_distances(layer), distances * (1 - contraction(0.3, 4)), rtol=1e-9, atol=1e-12)
    for name, before in others.items():
        assert torch.equal(layer.get_parameter(name), before), f"{name} is no expert's"


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_leading_dimensions_and_empty_batches(options):
    layer = make_layer(options, dtype=torch.float32)
    for shape in [(2, 3, 4), (5,), (), (0,)]:
        assert layer(torch.randn(*shape, 6)).shape == (*shape, 6)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_bf16_autocast(options):
    layer = make_layer(options, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(4, 9, 6))
    assert out.dtype == torch.bfloat16
    (out.float().sum() + (aux_loss(layer) or 0)).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_token_s_output_is_the_sum_of_its_experts_by_gate(top_k, shared):
    layer = make_layer({"routing": "topk", "top_k": top_k, "shared": shared})
    x = torch.randn(11, 6, dtype=torch.float64)
    probabilities = (x.float() @ layer.router.weight.float().T).softmax(dim=1)
    expected = torch.zeros_like(x)
    for token in range(len(x)):
        chosen = probabilities[token].argsort(descending=True)[:top_k]
        for expert in chosen.tolist():
            gate = probabilities[token, expert] / probabilities[token, chosen].sum()
            expected[token] += gate * layer.experts[expert](x[token])
    if shared:
        expected = (expected + layer.shared(x)) / 2
    for training in (True, False):  # without capacity and jitter the two are one
        torch.testing.assert_close(layer.train(training)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_task_alone(top_k):
    """Two kinds of tokens, each with a target that one expert computes: the router finds out which."""
    layer = make_layer({"routing": "topk", "top_k": top_k, "balance": 0.0, "z": 0.0}, count=2, dtype=torch.float32)
    kinds = torch.arange(64) % 2
    x = torch.randn(64, 6) * 0.3
    x[:, 0] += 4.0 * kinds - 2
    with torch.no_grad():
        for expert in layer.experts:
            expert.fc2.weight.zero_()
        layer.experts[0].fc2.bias.fill_(1.0)
        layer.experts[1].fc2.bias.fill_(-1.0)
        layer.router.weight[:, 0] = torch.tensor([0.3, -0.3])  # the wrong way round
    target = torch.where(kinds == 0, 1.0, -1.0)[:, None].expand(-1, 6)
    router = torch.optim.SGD([layer.router.weight], lr=0.5)
    for _ in range(60):
        torch.nn.functional.mse_loss(layer(x), target).backward()
        router.step(), router.zero_grad()
    assert torch.equal(layer.router(x).experts[:, 0], kinds)


def test_a_single_gate_is_one_and_has_the_gradient_of_the_log_probability():
    router = TopKRouter(6, 4)
    x = torch.randn(5, 6)
    routing = router(x)
    assert torch.equal(routing.gates, torch.ones(5, 1))
    (gradient,) = torch.autograd.grad(routing.gates.sum(), router.weight)
    chosen = router(x).probabilities.gather(1, routing.experts)
    (expected,) = torch.autograd.grad(chosen.log().sum(), router.weight)
    torch.testing.assert_close(gradient, expected)


def test_an_idle_expert_has_a_zero_gradient():
    layer = make_layer({"routing": "topk"})
    layer(torch.randn(2, 6, dtype=torch.float64)).square().sum().backward()
    idle = sum(all(p.grad.eq(0).all() for p in expert.parameters()) for expert in layer.experts)
    assert idle >= 2


@given(tokens=st.integers(1, 40), factor=st.floats(0.1, 3), top_k=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_an_expert_takes_no_more_than_its_capacity_and_those_with_the_largest_gates(tokens, factor, top_k, seed):
    layer = make_layer({"routing": "topk", "top_k": top_k, "capacity_factor": factor}, dtype=torch.float32)
    routing = routing_of(torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed)).softmax(dim=1), top_k)
    choices, sizes = layer.train()._dispatch(routing)
    capacity = math.ceil(factor * tokens * top_k / 4)
    for expert, taken in enumerate(choices.split(sizes)):
        wanted = (routing.experts.flatten() == expert).nonzero().flatten()
        assert set(taken.tolist()) <= set(wanted.tolist())
        assert len(taken) == min(len(wanted), capacity)
        gates, dropped = routing.gates.flatten(), sorted(set(wanted.tolist()) - set(taken.tolist()))
        assert not dropped or gates[dropped].max() <= gates[taken].min()
    assert sum(layer.eval()._dispatch(routing)[1]) == tokens * top_k, "evaluation drops none"


def test_dropped_tokens_get_nothing():
    layer = make_layer({"routing": "topk", "capacity_factor": 0.5}, count=2).train()
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(2, 6))
    x = torch.zeros(8, 6, dtype=torch.float64)
    x[:, 0] = torch.arange(1, 9)  # all to the first expert, which takes ceil(0.5 * 8 / 2) = 2, the surest ones
    out = layer(x)
    assert out[:6].eq(0).all() and out[6:].ne(0).any(dim=1).all()


def test_the_balance_loss_is_one_where_load_is_even_and_n_where_one_expert_has_all():
    even = torch.full((8, 4), 0.25) + 1e-4 * torch.eye(4).repeat(2, 1)
    assert float(balance_loss(routing_of(even / even.sum(1, keepdim=True)))) == pytest.approx(1.0)
    alone = torch.tensor([[1.0, 0, 0, 0]]).expand(8, 4)
    assert float(balance_loss(routing_of(alone))) == pytest.approx(4.0)


def test_the_z_loss_is_the_mean_square_of_the_log_normaliser():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = (math.log(2) ** 2 + math.log(math.e + math.e**3) ** 2) / 2
    assert float(z_loss(Routing(None, None, None, logits))) == pytest.approx(expected)


def test_the_balance_loss_evens_the_load_out():
    layer = make_layer({"routing": "topk", "balance": 1.0, "z": 0.0}, dtype=torch.float32)
    x = torch.randn(256, 6) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    with torch.no_grad():
        layer.router.weight[0, 0] = 1.0  # everything goes to the first
    router = torch.optim.SGD([layer.router.weight], lr=0.1)

    def largest_share():
        return float(layer.router(x).experts.flatten().bincount(minlength=4).max() / len(x))

    assert largest_share() > 0.9
    for _ in range(300):
        layer(x)
        aux_loss(layer).backward()
        router.step(), router.zero_grad()
    assert largest_share() < 0.5


def test_jitter_is_for_training_only():
    router = TopKRouter(6, 4, jitter=0.5)
    x = torch.randn(5, 6)
    assert not torch.equal(router(x).logits, router(x).logits)
    router.eval()
    torch.testing.assert_close(router(x).logits, x @ router.weight.T)


def test_fused_experts_are_one_ffn_by_their_weights_in_training_too():
    layer = make_layer({"routing": "fused"}, count=3)
    nn.init.normal_(layer.fusion)
    weights = layer.fusion.softmax(dim=0)
    ffn = copy.deepcopy(layer.experts[0])
    with torch.no_grad():
        for name, parameter in ffn.named_parameters():
            parameter.copy_(sum(w * p for w, p in zip(weights, layer.parameter_sets()[name], strict=True)))
    x = torch.randn(4, 6, dtype=torch.float64)
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), ffn(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.merged()(x), ffn(x), rtol=1e-12, atol=1e-13)


def test_gradients_of_fused_experts_agree_with_finite_differences():
    layer = make_layer({"routing": "fused"}, count=2)
    x = torch.randn(3, 6, dtype=torch.float64)
    start = layer.fusion.detach().clone().requires_grad_()

    def output(fusion):
        return torch.func.functional_call(layer, {"fusion": fusion}, (x,))

    assert torch.autograd.gradcheck(output, (start,))


def test_fused_copies_stay_alike():
    """Why ExFusion needs experts that start apart: its gradient is the same for all, up to their weights."""
    layer = make_layer({"routing": "fused"}, init="copy")
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(torch.randn(9, 6, dtype=torch.float64)).square().sum().backward()
        optimizer.step(), optimizer.zero_grad()
    assert layer_distances(layer).max() < 1e-9


def test_a_model_can_be_copied_after_a_training_step():
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3, every=1, routing="topk")
    assert aux_loss(model) is None, "it has not been run"
    model(torch.rand(2, 64, 3)).sum().backward()
    assert aux_loss(model).item() > 0
    twin = copy.deepcopy(model)
    points = torch.rand(2, 64, 3)
    assert torch.equal(twin.eval()(points), model.eval()(points))
    assert aux_loss(ewa3d.create_model("point_mae_tiny", **TINY)) is None


@pytest.mark.parametrize("options", [{}, *LAYERS.values()], ids=["random", *LAYERS])
def test_weights_of_a_merge(options):
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3, every=1, init="independent", **options)
    alone = merge(model, [0, 0, 1]).blocks[0].mlp
    if not options.get("shared"):
        torch.testing.assert_close(alone.fc1.weight, model.blocks[0].mlp.experts[2].fc1.weight)
    mixed = merge(model, {"blocks.0.mlp": [0.5, 0.25, 0.25], "blocks.1.mlp": [0, 1, 0]})
    weights = [expert.fc2.bias for expert in model.blocks[0].mlp.experts]
    if not options.get("shared"):
        expected = 0.5 * weights[0] + 0.25 * weights[1] + 0.25 * weights[2]
        torch.testing.assert_close(mixed.blocks[0].mlp.fc2.bias, expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "has 3 experts, and 2 weights are given"),
        ([0.5, 0.6, -0.1], "no convex combination"),
        ([0.5, 0.6, 0.1], "no convex combination"),
        ({"blocks.0.mlp": [1, 0, 0]}, r"weights are needed for blocks\.0\.mlp, blocks\.1\.mlp"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights, message):
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3, every=1)
    with pytest.raises(ValueError, match=message):
        merge(model, weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routing": "topp"}, "unknown routing 'topp': did you mean 'topk'?"),
        ({"routing": "topk", "k": 2}, "routing 'topk' has no option 'k': choose from top_k"),
        ({"shared": True}, "routing 'random' has no option 'shared': it takes none"),
        ({"routing": "topk", "top_k": 5}, "top_k=5: a token goes to 1 to 4 of the 4 experts"),
        ({"routing": "topk", "jitter": 1.0}, "jitter=1.0: must be 0 or more and below 1"),
        ({"routing": "topk", "capacity_factor": 0.0}, "capacity_factor=0.0: must be above 0"),
    ],
)
def test_wrong_options_are_refused_and_the_model_stays_as_it_was(options, message):
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    with pytest.raises(ValueError) as error:
        upcycle(model, 4, every=1, **options)
    assert message in str(error.value)
    assert list(model.state_dict()) == list(ewa3d.create_model("point_mae_tiny", **TINY).state_dict())


def test_only_a_learned_router_makes_a_model_routed():
    made = {
        name: upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 2, **options) for name, options in LAYERS.items()
    }
    assert {name for name, model in made.items() if is_routed(model)} == {"top-1", "top-2", "shared"}
    kinds = {name: type(model.blocks[1].mlp) for name, model in made.items()}
    assert kinds["fused"] is FusedExperts and kinds["shared"] is RoutedExperts


def test_early_averaging_rises_to_its_goal_and_stops():
    layer = make_layer({"routing": "topk"})
    averager = ExpertAverager(layer, 0.4, "linear", total_steps=10, until=0.4)
    rates = []
    for _ in range(10):
        averager.step()
        rates.append(averager.current_share_rate)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0, 0, 0, 0, 0, 0])
    before = [p.clone() for p in layer.parameters()]
    averager.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True)), "experts are free"
    assert ExpertAverager(layer, 0.4, "constant", 10, until=0.5).total_steps == 5
    with pytest.raises(ValueError, match="above 0 to 1"):
        ExpertAverager(layer, 0.4, total_steps=10, until=0.0)
    with pytest.raises(ValueError, match="name it"):
        ExpertAverager(layer, 0.4, "constant", until=0.5)
