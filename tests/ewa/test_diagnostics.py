"""Distances between experts, agreement of their gradients, and the models on the lines between them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn

from ewa3d.ewa import (
    Experts,
    expert_alone,
    gradient_agreement,
    interpolated,
    layer_distances,
    mean_norm,
    merge,
    pairwise_distances,
    upcycle,
)


def make_model(count: int = 3) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), Mlp(4, 8), nn.BatchNorm1d(4), Mlp(4, 8)).double()
    return upcycle(model, count, where=["1", "3"], init="independent")


def vectors(*rows: list[float]) -> Experts:
    """A layer whose experts have these parameters."""
    layer = Experts([nn.Linear(len(row), 1, bias=False) for row in rows]).double()
    for expert, row in zip(layer.experts, rows, strict=True):
        expert.weight.data = torch.tensor([row], dtype=torch.float64)
    return layer


def test_distances_by_hand():
    layer = vectors([0, 0], [3, 4], [0, 1])
    found = pairwise_distances(nn.ModuleDict({"ffn": layer}))
    expected = torch.tensor([[0, 5, 1], [5, 0, 18**0.5], [1, 18**0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(found["ffn"], expected)
    assert mean_norm(layer) == pytest.approx((1 + 25 / 9) ** 0.5)


def test_distances_of_whole_experts_count_every_parameter():
    model = make_model()
    flat = [torch.cat([p.detach().flatten() for p in expert.parameters()]) for expert in model[3].experts]
    assert pairwise_distances(model)["3"][0, 2] == pytest.approx(float((flat[0] - flat[2]).norm()))


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9])
def test_distances_of_almost_equal_experts_keep_their_digits(apart):
    found = pairwise_distances(vectors([1, 1], [1, 1 + apart]))[""]
    assert found[0, 1] == pytest.approx((1 + apart) - 1, rel=1e-12) and found[0, 0] == 0


@given(seed=st.integers(0, 999))
def test_two_experts_are_twice_as_far_apart_as_from_their_mean(seed):
    torch.manual_seed(seed)
    layer = vectors(torch.randn(3).tolist(), torch.randn(3).tolist())
    assert float(pairwise_distances(layer)[""][0, 1]) == pytest.approx(2 * float(layer_distances(layer)[0]))


def with_gradients(*rows: list[float]) -> Experts:
    layer = vectors(*rows)
    for expert in layer.experts:
        expert.weight.grad = expert.weight.detach().clone()
    return layer


def test_agreement_by_hand():
    assert gradient_agreement(with_gradients([1, 2], [1, 2], [2, 4])) == {"": pytest.approx(1)}
    assert gradient_agreement(with_gradients([1, 0], [0, 1], [-1, 0])) == {"": pytest.approx((0 + 0 - 1) / 3)}
    assert gradient_agreement(with_gradients([1, 0], [0, 0])) == {"": 0}


@given(rows=st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=2, max_size=6))
def test_agreement_has_its_bounds(rows):
    agreement = gradient_agreement(with_gradients(*rows))[""]
    assert -1 / (len(rows) - 1) - 1e-9 <= agreement <= 1 + 1e-9


def test_agreement_of_a_backward_pass():
    """In training mode experts see other tokens; in eval mode they get one gradient."""
    model, x = make_model(), torch.randn(50, 4, dtype=torch.float64)
    agreement = {}
    for training in (True, False):
        model.zero_grad()
        model.train(training)(x).square().sum().backward()
        agreement[training] = gradient_agreement(model)
    assert list(agreement[True]) == ["1", "3"]
    assert all(value < 0.99 for value in agreement[True].values())
    assert agreement[False] == {"1": pytest.approx(1), "3": pytest.approx(1)}


def test_batchnorm_after_the_experts_makes_their_gradients_cancel():
    """What `gradient_agreement` says of heads: with respect to their outputs' bias, gradients sum to zero."""
    model = nn.Sequential(Experts([nn.Linear(4, 4) for _ in range(4)]), nn.BatchNorm1d(4)).double()
    model(torch.randn(400, 4, dtype=torch.float64)).pow(3).sum().backward()
    total = sum(expert.bias.grad for expert in model[0].experts)
    assert total.abs().max() < 1e-10 < model[0].experts[0].bias.grad.abs().min()


def test_agreement_needs_gradients():
    with pytest.raises(ValueError, match="1 has no gradients: call backward on a loss"):
        gradient_agreement(make_model())


def test_an_expert_alone_is_the_plain_model_with_that_expert():
    model, x = make_model().eval(), torch.randn(7, 4, dtype=torch.float64)
    for i in range(3):
        alone = expert_alone(model, i)
        assert torch.equal(alone(x), model[3].experts[i](model[2](model[1].experts[i](model[0](x)))))
        assert alone.state_dict().keys() == merge(model).state_dict().keys()
        assert all(p.data_ptr() not in {q.data_ptr() for q in model.parameters()} for p in alone.parameters())


def test_lines_lead_from_expert_to_expert():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    for t, end in ((0.0, 0), (1.0, 2)):
        for key, value in interpolated(model, 0, 2, t).state_dict().items():
            assert torch.equal(value, expert_alone(model, end).state_dict()[key])
    quarter = merge(model, weights=[0.75, 0, 0.25]).state_dict()
    for key, value in interpolated(model, 0, 2, 0.25).state_dict().items():
        torch.testing.assert_close(value, quarter[key])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_models_that_have_no_experts_by_themselves_are_refused():
    with pytest.raises(ValueError, match="1 has no expert 3: it has 0 to 2"):
        expert_alone(make_model(), 3)
    with pytest.raises(ValueError, match="no expert layers: it is a plain model"):
        expert_alone(nn.Linear(2, 2), 0)
    routed = upcycle(nn.Sequential(Mlp(3, 5)), 2, where=["0"], routing="topk")
    with pytest.raises(ValueError, match=r"the experts of 0 work together \(topk\)"):
        interpolated(routed, 0, 1, 0.5)
