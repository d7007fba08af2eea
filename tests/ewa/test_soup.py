"""Weights for merging: learned ones and the greedy soup."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn

from ewa3d.ewa import Experts, expert_layers, greedy_weights, learn_weights, merge, upcycle


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def scalars(*values: float) -> Experts:
    """A model that multiplies by its weight; every expert has one of these."""
    return Experts([linear(torch.tensor([[value]], dtype=torch.float64)) for value in values])


def squared_error(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def test_weights_go_to_the_expert_that_is_right_in_each_layer():
    right = [torch.randn(4, 4) for _ in range(2)]
    first = Experts([linear(right[0]), linear(torch.randn(4, 4)), linear(torch.randn(4, 4))])
    second = Experts([linear(torch.randn(4, 4)), linear(torch.randn(4, 4)), linear(right[1])])
    model = nn.Sequential(first, nn.Tanh(), second)
    x = torch.randn(64, 4)
    batches = [(part, torch.tanh(part @ right[0].T) @ right[1].T) for part in x.split(16)]
    weights = learn_weights(model, squared_error, batches, steps=200)
    assert list(weights) == ["0", "2"]
    assert weights["0"][0] > 0.95 and weights["2"][2] > 0.95
    whole = x, torch.cat([truth for _, truth in batches])
    assert squared_error(merge(model, weights), whole) < 0.05 * squared_error(merge(model), whole)


@settings(max_examples=20)
@given(count=st.integers(2, 5), steps=st.integers(0, 7), seed=st.integers(0, 99))
def test_learned_weights_are_convex(count, steps, seed):
    torch.manual_seed(seed)
    model = upcycle(nn.ModuleDict({"a": Mlp(3, 5), "b": Mlp(3, 5)}), count, where=["a", "b"], init="independent")
    data = [(torch.randn(6, 3), torch.randn(6, 3))]
    weights = learn_weights(model, lambda m, batch: F.mse_loss(m["b"](m["a"](batch[0])), batch[1]), data, steps=steps)
    for own in weights.values():
        assert len(own) == count and min(own) >= 0 and sum(own) == pytest.approx(1, abs=1e-12)
    assert not expert_layers(merge(model, weights))


def test_equal_experts_keep_equal_weights():
    model = upcycle(nn.Sequential(Mlp(3, 5)), 4, where=["0"])
    weights = learn_weights(model, squared_error, [(torch.randn(8, 3), torch.randn(8, 3))], steps=20)
    assert weights == {"0": [0.25] * 4}


def test_the_model_is_left_as_it_is():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), Experts([nn.Linear(3, 3) for _ in range(3)]))
    model[2].experts[1].requires_grad_(False)
    before, asked = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    modes = []

    def loss(merged, batch):
        modes.append([module.training for module in merged.modules()])
        return squared_error(merged, batch)

    learned = [learn_weights(model, loss, [(torch.ones(4, 3), torch.zeros(4, 3))], steps=5) for _ in range(2)]
    assert learned[0] == learned[1] and learned[0]["2"] != [1 / 3] * 3
    assert not any(map(any, modes)) and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())


def test_batches_begin_again_and_what_cannot_is_refused():
    model, seen = scalars(1, 2), []

    def loss(merged, batch):
        seen.append(batch)
        return merged(torch.ones(1, 1, dtype=torch.float64)).sum()

    learn_weights(model, loss, [1, 2, 3], steps=7)
    assert seen == [1, 2, 3, 1, 2, 3, 1]
    with pytest.raises(ValueError, match="no batches to learn from after 2 of 7 steps"):
        learn_weights(model, loss, iter([1, 2]), steps=7)
    with pytest.raises(ValueError, match="the loss became nan in step 1"):
        learn_weights(model, lambda merged, _: loss(merged, 0) * math.nan, [1])


@settings(max_examples=50)
@given(values=st.lists(st.floats(-3, 3), min_size=2, max_size=6), wave=st.floats(0, 40))
def test_the_greedy_soup_is_a_uniform_mean_that_scores_no_less_than_the_best_expert(values, wave):
    def score(model):
        weight = model.weight.item()
        return math.sin(wave * weight) - 0.1 * weight**2

    model = scalars(*values)
    weights = greedy_weights(model, score)
    taken = [weight for weight in weights if weight]
    assert len(set(taken)) == 1 and sum(weights) == pytest.approx(1)
    one_hot = torch.eye(len(values)).tolist()
    assert score(merge(model, weights)) >= max(score(merge(model, own)) for own in one_hot)


def test_the_greedy_soup_by_hand():
    """The best is 0; with 2 it makes 1, which is better still; 10 would spoil it."""
    assert greedy_weights(scalars(10, 0, 2), lambda model: -abs(model.weight.item() - 0.9)) == [0, 0.5, 0.5]
    assert greedy_weights(scalars(1, 1, 1, 1), lambda model: model.weight.item()) == [0.25] * 4


def test_layers_that_have_no_weights_are_refused():
    with pytest.raises(ValueError, match="Linear has no expert layers: it is a plain model"):
        greedy_weights(nn.Linear(2, 2), lambda model: 0.0)
    for routing in ("topk", "fused"):
        model = upcycle(nn.Sequential(Mlp(3, 5)), 2, where=["0"], routing=routing)
        with pytest.raises(ValueError, match=f"the experts of 0 work together \\({routing}\\)"):
            learn_weights(model, squared_error, [])
    model = nn.Sequential(scalars(1, 2), scalars(1, 2, 3))
    with pytest.raises(ValueError, match=r"the layers have \[2, 3\] experts"):
        greedy_weights(model, lambda model: 0.0)
