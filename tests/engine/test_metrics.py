"""Scores against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.data import PartMap
from ewa3d.engine.metrics import (
    classification_scores,
    confusion_counts,
    part_counts,
    predict_parts,
    segmentation_scores,
)

PARTS = PartMap({"cup": ["body", "handle"], "ball": ["all"], "chair": ["seat", "back", "leg"]})


def segmentation(predicted: list[list[int]], truth: list[list[int]], category: list[int]):
    """The scores of clouds of any sizes, padded to the largest as batches are."""
    size = max(map(len, truth))
    padded = [row + [0] * (size - len(row)) for row in predicted]
    real = [row + [-1] * (size - len(row)) for row in truth]
    counts = part_counts(torch.tensor(padded), torch.tensor(real), 6)
    return segmentation_scores(counts, torch.tensor(category), PARTS.mask(), PARTS.categories)


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


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_confusions_are_counted_by_truth_and_prediction(pairs):
    predicted, truth = map(list, zip(*pairs, strict=True))
    counts = confusion_counts(one_hot(predicted, 5), torch.tensor(truth))
    assert counts.tolist() == [[pairs.count((said, there)) for said in range(5)] for there in range(5)]


def test_segmentation_by_hand():
    # a cup: body 3 points, handle 1; one body point taken for the handle: body 2/3, handle 1/2
    scores = segmentation([[0, 0, 1, 1]], [[0, 0, 0, 1]], [0])
    assert scores["instance_miou"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert scores["per_category"] == {"cup": scores["instance_miou"]}
    assert scores["oa"] == pytest.approx(75) and scores["macc"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_a_part_that_is_neither_there_nor_predicted_counts_as_right():
    assert segmentation([[3, 3]], [[3, 3]], [2])["instance_miou"] == pytest.approx(100)
    # a back where none is: 0, the seat 1/2, the leg, absent in both, 1
    assert segmentation([[3, 4]], [[3, 3]], [2])["instance_miou"] == pytest.approx(100 * (1 / 2 + 0 + 1) / 3)


def test_a_category_of_one_part_is_always_right():
    """Its part alone competes, whatever the logits say."""
    logits = torch.randn(1, 5, 6)
    predicted = predict_parts(logits, torch.tensor([1]), PARTS.mask())
    assert predicted.tolist() == [[2] * 5]
    assert segmentation(predicted.tolist(), [[2] * 5], [1])["instance_miou"] == pytest.approx(100)


def test_all_wrong_is_zero():
    scores = segmentation([[1, 1, 0]], [[0, 0, 1]], [0])
    assert (scores["instance_miou"], scores["class_miou"], scores["oa"], scores["macc"]) == (0, 0, 0, 0)


def test_instances_and_categories_weigh_differently():
    scores = segmentation([[2], [2], [2], [1]], [[2], [2], [2], [0]], [1, 1, 1, 0])
    assert scores["instance_miou"] == pytest.approx(75)
    assert scores["class_miou"] == pytest.approx(50)


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_only_the_category_s_parts_compete(seed, count):
    draw = torch.Generator().manual_seed(seed)
    logits, category = torch.randn(3, count, 6, generator=draw), torch.randint(3, (3,), generator=draw)
    predicted = predict_parts(logits, category, PARTS.mask())
    for b in range(3):
        own = PARTS.range_of(int(category[b]))
        for point, part in zip(logits[b], predicted[b].tolist(), strict=True):
            assert part in own and point[part] == max(point[i] for i in own)


@st.composite
def clouds(draw):
    out = []
    for _ in range(draw(st.integers(1, 8))):
        category = draw(st.integers(0, 2))
        own = list(PARTS.range_of(category))
        pairs = draw(st.lists(st.tuples(st.sampled_from(own), st.sampled_from(own)), min_size=1, max_size=12))
        out.append((category, *map(list, zip(*pairs, strict=True))))
    return out


@given(clouds())
def test_segmentation_against_brute_force(clouds):
    category, predicted, truth = map(list, zip(*clouds, strict=True))
    scores = segmentation(predicted, truth, category)
    ious: dict[str, list[float]] = {}
    for label, said, there in clouds:
        each = []
        for part in PARTS.range_of(label):
            a = {i for i, p in enumerate(said) if p == part}
            b = {i for i, p in enumerate(there) if p == part}
            each.append(len(a & b) / len(a | b) if a | b else 1.0)
        ious.setdefault(PARTS.categories[label], []).append(100 * sum(each) / len(each))
    every = [iou for of in ious.values() for iou in of]
    means = {name: sum(of) / len(of) for name, of in ious.items()}
    assert scores["per_category"] == pytest.approx(means)
    assert scores["instance_miou"] == pytest.approx(sum(every) / len(every))
    assert scores["class_miou"] == pytest.approx(sum(means.values()) / len(means))
    pairs = [pair for _, said, there in clouds for pair in zip(said, there, strict=True)]
    assert scores["oa"] == pytest.approx(100 * sum(p == t for p, t in pairs) / len(pairs))
    recalls = [
        sum(p == t for p, t in pairs if t == part) / sum(t == part for _, t in pairs) for part in {t for _, t in pairs}
    ]
    assert scores["macc"] == pytest.approx(100 * sum(recalls) / len(recalls))


@given(clouds(), st.integers(1, 4))
def test_counts_of_batches_are_those_of_the_whole(clouds, size):
    """What lets processes share the work: scores of gathered counts are the scores."""
    category, predicted, truth = map(list, zip(*clouds, strict=True))
    parts = []
    for start in range(0, len(clouds), size):
        rows = slice(start, start + size)
        width = max(map(len, truth[rows]))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in predicted[rows]])
        real = torch.tensor([row + [-1] * (width - len(row)) for row in truth[rows]])
        parts.append(part_counts(padded, real, 6))
    whole = segmentation_scores(torch.cat(parts), torch.tensor(category), PARTS.mask(), PARTS.categories)
    assert whole == segmentation(predicted, truth, category)
