"""The laws of the expert layer: partition, outputs, gradients, evaluation."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp, SwiGLU
from torch import nn

from ewa3d.ewa import Experts, expert_layers, merge, random_permutation, upcycle


def make_experts(count: int = 4, equal: bool = False, dtype=torch.float64) -> Experts:
    ffns = [Mlp(6, 12) for _ in range(count)]
    if equal:
        ffns = [copy.deepcopy(ffns[0]) for _ in ffns]
    return Experts(ffns).to(dtype)


@given(tokens=st.integers(0, 200), parts=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_every_token_is_in_exactly_one_part_and_sizes_differ_by_at_most_one(tokens, parts, seed):
    order = random_permutation(tokens, generator=torch.Generator().manual_seed(seed))
    assert order.sort().values.tolist() == list(range(tokens))
    sizes = [len(part) for part in order.tensor_split(parts)]
    assert sum(sizes) == tokens
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 3), (2, 5), (3, 7)])
def test_each_output_is_that_of_one_expert_on_that_token(batch, length):
    layer = make_experts(4).train()
    x = torch.randn(batch, length, 6, dtype=torch.float64)
    out = layer(x)
    candidates = torch.stack([expert(x) for expert in layer.experts])  # (N, B, T, C)
    matches = torch.isclose(candidates, out).all(dim=-1)
    assert matches.sum(dim=0).eq(1).all(), "every token has the output of exactly one expert"
    loads = matches.sum(dim=(1, 2))
    assert loads.max() - loads.min() <= 1


def test_partition_is_uniform():
    layer = make_experts(2)
    for i, expert in enumerate(layer.experts):  # outputs say which expert computed them
        for parameter in expert.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(expert.fc2.bias, float(i))
    x = torch.zeros(8, 6, dtype=torch.float64)
    share = torch.stack([layer(x)[:, 0] for _ in range(2000)]).mean(dim=0)
    assert (share - 0.5).abs().max() < 0.06  # five standard deviations of 2000 fair draws


def test_partitions_differ_from_call_to_call_and_repeat_from_a_generator():
    layer = make_experts(4)
    x = torch.randn(5, 9, 6, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.generator = torch.Generator().manual_seed(7)
    first = [layer(x), layer(x)]
    layer.generator.manual_seed(7)
    again = [layer(x), layer(x)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 17])
def test_equal_experts_compute_the_dense_ffn_and_their_gradients_sum_to_its(tokens):
    layer = make_experts(4, equal=True).train()
    dense = copy.deepcopy(layer.experts[0])
    x = torch.randn(tokens, 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    out, expected = layer(inputs[0]), dense(inputs[1])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-14)
    for name, params in layer.parameter_sets().items():
        total = sum(p.grad for p in params)  # a gradient of None, of an idle expert, would fail here
        torch.testing.assert_close(total, dense.get_parameter(name).grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ffn", [Mlp(6, 12), SwiGLU(6, 12, norm_layer=nn.LayerNorm)])
def test_an_idle_expert_has_a_zero_gradient(ffn):
    layer = Experts([copy.deepcopy(ffn) for _ in range(4)]).train()
    layer(torch.randn(2, 6)).square().sum().backward()  # 2 tokens, 4 experts
    idle = sum(all(p.grad.eq(0).all() for p in expert.parameters()) for expert in layer.experts)
    assert idle == 2


def test_evaluation_is_the_merged_ffn_and_follows_the_weights():
    layer = make_experts(3).eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.merged()(x), rtol=0, atol=1e-6)
    before = layer(x)
    with torch.no_grad():
        layer.experts[1].fc1.weight.add_(1.0)
    assert not torch.allclose(layer(x), before)
    torch.testing.assert_close(layer(x), layer.merged()(x), rtol=0, atol=1e-6)


@settings(max_examples=20)
@given(shape=st.lists(st.integers(1, 4), min_size=0, max_size=4))
def test_leading_dimensions_are_kept(shape):
    layer = make_experts(3)
    x = torch.randn(*shape, 6, dtype=torch.float64)
    assert layer.train()(x).shape == x.shape
    assert layer.eval()(x).shape == x.shape


def test_gradients_agree_with_finite_differences():
    layer = make_experts(2).train()

    def fixed_partition(x):
        layer.generator = torch.Generator().manual_seed(3)
        return layer(x)

    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fixed_partition, (x,))


@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast(training):
    layer = make_experts(4, dtype=torch.float32).train(training)
    x = torch.randn(4, 9, 6)
    layer.generator = torch.Generator().manual_seed(0)
    reference = layer(x)
    layer.generator.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), reference, rtol=0.05, atol=0.02)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_compiles_into_one_graph(training):
    layer = make_experts(4, equal=True, dtype=torch.float32).train(training)  # equal: any partition, one output
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 7, 6)
    out = compiled(x)
    torch.testing.assert_close(out, layer(x))
    out.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    torch.compiler.reset()


def test_deepcopy_and_state_dict_round_trip():
    model = upcycle(nn.ModuleDict({"mlp": Mlp(6, 12)}), 3, where=["mlp"], init="independent")
    layer = model["mlp"]
    twin = copy.deepcopy(model)
    x = torch.randn(4, 6)
    assert torch.equal(twin.eval()["mlp"](x), model.eval()["mlp"](x))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin["mlp"](x), layer(x)), "a copy shares nothing"
    other = upcycle(nn.ModuleDict({"mlp": Mlp(6, 12)}), 3, where=["mlp"])
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.eval()["mlp"](x), layer(x))
    assert {key.split(".")[1] for key in model.state_dict()} == {"experts"}


def test_deepcopy_with_a_generator_set():
    layer = make_experts(2)
    layer.generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 6, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_experts_that_differ_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Experts([Mlp(6, 12)])
    with pytest.raises(ValueError, match="same shapes"):
        Experts([Mlp(6, 12), Mlp(6, 24)])


def test_merge_leaves_the_trained_model_alone():
    model = upcycle(nn.ModuleDict({"mlp": Mlp(6, 12)}), 3, where=["mlp"], init="independent")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dense = merge(model)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert expert_layers(model) and not expert_layers(dense)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
