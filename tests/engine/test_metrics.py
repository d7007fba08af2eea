"""Scores against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.engine.metrics import classification_scores


def one_hot(predicted: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def test_by_hand():
    scores = classification_scores(one_hot([0, 0, 0, 1], 3), torch.tensor([0, 0, 1, 1]))
    assert scores == pytest.approx({"oa": 75.0, "macc": 75.0})
    scores = classification_scores(one_hot([0, 0, 0, 2], 3), torch.tensor([0, 0, 0, 1]))
    assert scores == pytest.approx({"oa": 75.0, "macc": 50.0})


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_against_brute_force(pairs):
    predicted, truth = map(list, zip(*pairs, strict=True))
    scores = classification_scores(one_hot(predicted, 5), torch.tensor(truth))
    right = [p == t for p, t in pairs]
    recalls = [sum(r for r, t in zip(right, truth, strict=True) if t == c) / truth.count(c) for c in set(truth)]
    assert scores["oa"] == pytest.approx(100 * sum(right) / len(right))
    assert scores["macc"] == pytest.approx(100 * sum(recalls) / len(recalls))
