"""What is said of learned routers, on routers that are known to do it."""

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ewa3d
from ewa3d.ewa import RoutedExperts
from ewa3d.ewa.routing_analysis import (
    SMALL,
    UNTRAINED,
    advise,
    analyse_routing,
    class_counts,
    count_choices,
    load,
    load_entropy,
    mutual_information,
    routed_layers,
    routing_entropy,
    specialisation,
)

N = 4


def layer(top_k: int = 1) -> RoutedExperts:
    """N experts of 4 channels; expert i takes the tokens whose i-th channel is the largest."""
    built = RoutedExperts([nn.Linear(N, N) for _ in range(N)], top_k=top_k)
    built.router.weight.data = torch.eye(N)
    return built.eval()


def choices(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of a single layer, for tokens ``(samples, T, C)``: ``(samples, 1 + UNTRAINED, N)``."""
    (counts,) = count_choices(model, lambda: model(tokens), len(tokens)).values()
    return counts


def clouds_of_classes(per_class: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Clouds of 6 tokens near the axis of their class, of N classes, and the labels."""
    labels = torch.arange(N).repeat(per_class)
    return torch.eye(N)[labels][:, None] + noise * torch.randn(len(labels), 6, N), labels


def test_classes_with_an_expert_each():
    tokens, labels = clouds_of_classes(10)
    found = analyse_routing(choices(layer(), tokens), labels, N)
    assert torch.equal(found.counts, 60 * torch.eye(N, dtype=torch.float64))
    assert torch.equal(found.load, torch.full((N,), 1 / N, dtype=torch.float64))
    assert found.load_entropy == pytest.approx(1) and found.routing_entropy == pytest.approx(0)
    assert found.specialisation == pytest.approx(1) and mutual_information(found.counts) == pytest.approx(math.log2(N))
    assert found.chance < 0.2 and found.untrained < 1
    assert found.keep and found.reason == "its experts have classes of their own"


def test_routing_that_knows_no_class():
    labels = torch.arange(N).repeat(50)
    found = analyse_routing(choices(layer(), torch.randn(len(labels), 6, N)), labels, N)
    assert found.load_entropy > 0.99 and found.routing_entropy > 0.98 and found.specialisation < SMALL
    assert not found.keep and found.reason == "its routing tells next to nothing of the class"
    even = torch.full((7, N), 5.0)
    assert specialisation(even) == pytest.approx(0) and routing_entropy(even) == pytest.approx(1)


def test_an_untrained_router_is_no_reason_to_keep_a_layer():
    tokens, labels = clouds_of_classes(25, noise=0.6)
    model = layer()
    verdicts = []
    for seed in range(20):
        model.router.weight.data = torch.randn(N, N, generator=torch.Generator().manual_seed(1000 + seed))
        found = analyse_routing(choices(model, tokens), labels, N)
        verdicts.append((found.keep, found.specialisation > max(found.chance, SMALL)))
    kept, beyond_chance = (sum(column) for column in zip(*verdicts, strict=True))
    assert beyond_chance >= 15, "any cut through these tokens tells something of the class"
    assert kept <= 4, "of 20 untrained routers, one is expected among the best twentieth"
    model.router.weight.data = torch.eye(N)
    assert analyse_routing(choices(model, tokens), labels, N).keep


def test_samples_that_differ_are_not_classes_that_differ():
    # 12 clouds, each to an expert of its own, in classes that have nothing to do with it
    counts = torch.zeros(12, 1 + UNTRAINED, N, dtype=torch.long)
    counts[torch.arange(12), :, torch.arange(12) % N] = 100
    labels = torch.arange(12) // 4
    found = analyse_routing(counts, labels, 3)
    assert found.specialisation == pytest.approx(0) and found.chance > 0.2


def test_a_load_that_collapsed_is_named():
    collapsed = advise(0.0, 0.0, 0.0, torch.tensor([0.01, 0.95, 0.04]))
    assert collapsed == (
        False,
        "its routing tells next to nothing of the class; its load has collapsed: one expert takes 95 %",
    )
    assert "collapsed" not in advise(0.0, 0.0, 0.0, torch.tensor([0.1, 0.9]))[1]
    assert load_entropy(torch.tensor([[0.0, 8.0, 0.0]])) == 0


@pytest.mark.parametrize("top_k", [1, 2, N])
def test_every_choice_is_counted_alike(top_k):
    tokens = torch.randn(5, 6, N)
    model = layer(top_k)
    counts = choices(model, tokens)
    assert counts.shape == (5, 1 + UNTRAINED, N)
    assert (counts.sum(dim=-1) == 6 * top_k).all()
    chosen = tokens.topk(top_k, dim=-1).indices
    expected = [[int((sample == expert).sum()) for expert in range(N)] for sample in chosen]
    assert counts[:, 0].tolist() == expected
    assert torch.equal(choices(model, tokens[2:])[:, 1:], counts[2:, 1:]), "untrained routers are always the same"


def test_a_timm_model_s_layers_by_name():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=4, num_heads=2, num_classes=3)
    ewa3d.upcycle(model, num_experts=3, routing="topk").eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    counts = count_choices(model, lambda: model(images), 2)
    assert list(counts) == ["blocks.1.mlp", "blocks.3.mlp"]
    assert all((own.sum(dim=-1) == 5).all() for own in counts.values()), "4 patches and the class token"
    assert torch.equal(model(images), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_analysed_is_refused():
    tokens = torch.randn(4, 6, N)
    model = layer()
    with pytest.raises(ValueError, match="24 tokens: 5 samples"):
        count_choices(model, lambda: model(tokens), 5)
    assert not model.router._forward_hooks
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        count_choices(model.train(), lambda: model(tokens), 4)
    block = nn.Sequential(nn.Linear(N, N))
    with pytest.raises(ValueError, match="no experts"):
        routed_layers(block)
    for routing, done in (("random", "dealt tokens at random"), ("fused", "fused into one")):
        other = ewa3d.upcycle(nn.Sequential(nn.Linear(N, N)), 2, where=["0"], routing=routing)
        with pytest.raises(ValueError, match=f"experts of 0 are {done}"):
            routed_layers(other)


def tables(least: int = 0) -> st.SearchStrategy[torch.Tensor]:
    sizes = st.tuples(st.integers(1, 6), st.integers(2, 5))
    rows = sizes.flatmap(
        lambda size: st.lists(st.lists(st.integers(least, 50), min_size=size[1], max_size=size[1]), min_size=size[0])
    )
    return rows.map(lambda values: torch.tensor(values, dtype=torch.float64))


@given(tables())
def test_bounds(counts):
    experts = counts.shape[1]
    tolerance = 1e-9
    for value in (load_entropy(counts), routing_entropy(counts), specialisation(counts)):
        assert -tolerance <= value <= 1 + tolerance
    assert mutual_information(counts) <= math.log2(min(counts.shape)) + tolerance
    assert specialisation(counts) <= load_entropy(counts) + tolerance
    assert load(counts).shape == (experts,)
    assert float(load(counts).sum()) == pytest.approx(1 if counts.sum() else 0)


@given(tables(least=1))
def test_with_classes_of_one_size_load_entropy_is_class_entropy_and_specialisation(counts):
    counts = counts / counts.sum(dim=1, keepdim=True) * 1000
    assert load_entropy(counts) == pytest.approx(routing_entropy(counts) + specialisation(counts), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=3, max_size=3)), min_size=1))
def test_class_counts_are_sums_over_the_class_s_samples(samples):
    labels, rows = (list(column) for column in zip(*samples, strict=True))
    table = class_counts(torch.tensor(rows), torch.tensor(labels), 4)
    for label in range(4):
        own = [row for row, of in zip(rows, labels, strict=True) if of == label]
        assert table[label].tolist() == [sum(column) for column in zip(*own, strict=True)] if own else [0.0] * 3
