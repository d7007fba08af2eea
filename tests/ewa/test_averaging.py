"""The laws of the averaging step, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn

from ewa3d.ewa import (
    ExpertAverager,
    Experts,
    contraction,
    expert_distances,
    layer_distances,
    merge_report,
    share_rate_at,
    upcycle,
)


def make_experts(count: int) -> Experts:
    return Experts([Mlp(4, 8) for _ in range(count)]).double()


@settings(max_examples=50)
@given(count=st.integers(2, 9), fraction=st.floats(0, 1))
def test_a_step_keeps_the_mean_and_shrinks_every_distance_by_one_minus_r(count, fraction):
    layer = make_experts(count)
    rate = fraction * (count - 1) / count
    means, distances = layer.mean_parameters(), layer_distances(layer)
    ExpertAverager(layer, rate, "constant").step()
    for name, mean in layer.mean_parameters().items():
        torch.testing.assert_close(mean, means[name], rtol=0, atol=1e-14)
    shrunk = distances * (1 - contraction(rate, count))
    torch.testing.assert_close(layer_distances(layer), shrunk, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_step_is_the_paper_s_update(count):
    layer, rate = make_experts(count), 0.2
    before = {name: [p.clone() for p in params] for name, params in layer.parameter_sets().items()}
    ExpertAverager(layer, rate, "constant").step()
    for name, params in layer.parameter_sets().items():
        for i, param in enumerate(params):
            others = sum(w for j, w in enumerate(before[name]) if j != i)
            expected = (1 - rate) * before[name][i] + rate / (count - 1) * others
            torch.testing.assert_close(param.data, expected, rtol=1e-12, atol=1e-14)


def test_the_largest_rate_makes_experts_equal_and_zero_leaves_them():
    layer = make_experts(4)
    before = [p.clone() for p in layer.parameters()]
    ExpertAverager(layer, 0.0, "constant").step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    ExpertAverager(layer, 0.75, "constant").step()
    assert layer_distances(layer).max() == 0


def test_equal_experts_stay_bit_for_bit():
    layer = upcycle(nn.ModuleDict({"mlp": Mlp(4, 8)}), 3, where=["mlp"])
    before = [p.clone() for p in layer.parameters()]
    averager = ExpertAverager(layer, 0.3, "constant")
    for _ in range(5):
        averager.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_schedules():
    rates = {s: [share_rate_at(t, 0.6, s, 10) for t in range(13)] for s in ("constant", "linear", "cosine")}
    assert rates["constant"] == [0.6] * 13
    assert rates["linear"] == pytest.approx([0.06 * t for t in range(11)] + [0.6, 0.6])
    assert rates["cosine"] == pytest.approx([0.3 * (1 - math.cos(math.pi * t / 10)) for t in range(11)] + [0.6, 0.6])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_distances_after_many_steps_are_the_product_that_the_schedule_predicts(schedule):
    layer, total = make_experts(3), 8
    start = layer_distances(layer)
    averager = ExpertAverager(layer, 0.4, schedule, total)
    expected = 1.0
    for step in range(1, total + 1):
        averager.step()
        expected *= 1 - contraction(share_rate_at(step, 0.4, schedule, total), 3)
        assert averager.current_share_rate == share_rate_at(step, 0.4, schedule, total)
    torch.testing.assert_close(layer_distances(layer), start * expected, rtol=1e-9, atol=1e-12)


def test_state_dict_continues_the_schedule():
    averager = ExpertAverager(make_experts(2), 0.5, "linear", 10)
    for _ in range(4):
        averager.step()
    other = ExpertAverager(make_experts(2), 0.5, "linear", 10)
    other.load_state_dict(averager.state_dict())
    averager.step()
    other.step()
    assert other.current_share_rate == averager.current_share_rate == pytest.approx(0.25)


@pytest.mark.parametrize("rate", [-0.1, 0.7501, 1.0, float("nan")])
def test_share_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"share rate .* out of range: for 4 experts it is 0 to 0\.75"):
        ExpertAverager(make_experts(4), rate, "constant")


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="no expert layers"):
        ExpertAverager(nn.Linear(2, 2), 0.1, "constant")
    with pytest.raises(ValueError, match="unknown share-rate schedule 'sine'"):
        ExpertAverager(make_experts(2), 0.1, "sine", 10)
    with pytest.raises(ValueError, match="needs total_steps"):
        ExpertAverager(make_experts(2), 0.1)


def test_report_says_how_far_experts_are_from_their_mean():
    layer = Experts([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    nn.init.constant_(layer.experts[0].weight, 1.0)
    nn.init.constant_(layer.experts[1].weight, 3.0)
    model = nn.ModuleDict({"ffn": layer})
    assert expert_distances(model) == {"ffn": [1.0, 1.0]}
    assert merge_report(model) == {"ffn": {"num_experts": 2, "distances": [1.0, 1.0], "relative": 0.5}}
