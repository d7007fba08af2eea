"""A part of the training labels: which clouds are taken, and that they are whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.data import PartClouds, PartMap, ShapeParts, Shapes
from ewa3d.data.splits import stratified_split, stratified_subset
from ewa3d.engine.build import open_split
from ewa3d.errors import Ewa3dError


@given(st.lists(st.integers(0, 6), max_size=120), st.floats(0.001, 1), st.integers(-(2**40), 2**40))
def test_a_subset_has_its_share_of_every_class_and_at_least_one(labels, fraction, seed):
    chosen = stratified_subset(labels, fraction, seed)
    assert (np.diff(chosen) > 0).all()
    for label in set(labels):
        taken = sum(labels[i] == label for i in chosen)
        assert taken == max(1, round(fraction * labels.count(label)))
    assert np.array_equal(stratified_subset(torch.tensor(labels, dtype=torch.long), fraction, seed), chosen)
    assert set(stratified_subset(labels, fraction / 2, seed)) <= set(chosen), "a smaller part is part of a larger one"


def test_all_of_it_is_all_of_it_and_the_seed_alone_changes_a_part():
    labels = np.arange(400) % 4
    assert np.array_equal(stratified_subset(labels, 1.0, 0), np.arange(400))
    one = stratified_subset(labels, 0.1, 0)
    np.random.seed(2)
    torch.manual_seed(2)
    assert np.array_equal(stratified_subset(labels, 0.1, 0), one)
    assert not np.array_equal(stratified_subset(labels, 0.1, 1), one)
    assert not np.array_equal(stratified_split(labels, 0.1, 0)[1], one), "not the draw of the validation split"
    # Pinned: a part must be the same on every machine and with every NumPy.
    assert stratified_subset([0] * 10, 0.3, 0).tolist() == [4, 6, 7]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(Ewa3dError, match=r"is not in \(0, 1\]"):
        stratified_subset([0, 1], fraction, 0)


@pytest.mark.parametrize("kind", [Shapes, ShapeParts])
def test_the_clouds_of_a_subset_are_those_of_the_whole(kind):
    whole = kind("train", num_points=32, per_class=2)
    index = [25, 3, 4, 3]
    part = whole.subset(index)
    assert type(part) is kind and len(part) == 4 and part.metadata == whole.metadata
    assert [part.source(i) for i in range(4)] == [whole.source(i) for i in index]
    one, other = part.batch(range(4)), whole.batch(index)
    assert one["index"].tolist() == [0, 1, 2, 3]
    for key in one.keys() - {"index"}:
        assert torch.equal(one[key], other[key]), key
    assert len(whole) == 26, "the whole is left as it was"


def test_parts_of_clouds_of_different_sizes_stay_together():
    counts = torch.tensor([2, 1, 3])
    points = torch.arange(18.0).reshape(6, 3)
    part_map, parts = PartMap({"a": ["x", "y"], "b": ["z"]}), torch.tensor([0, 1, 2, 0, 1, 0])
    whole = PartClouds(points, counts, parts, torch.tensor([0, 1, 0]), part_map)
    part = whole.subset([2, 0])
    assert torch.equal(part.points, points[[3, 4, 5, 0, 1]]) and part.parts.tolist() == [0, 1, 0, 0, 1]
    batch = part.batch([1])
    assert torch.equal(batch["points"][0], points[:2]) and batch["count"].tolist() == [2]


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_the_configured_part_is_of_the_training_splits_only(tiny_config, task):
    def sources(split: str, *overrides: str) -> list[str]:
        return open_split(tiny_config(f"task={task}", "data.per_class=20", *overrides), split).sources

    tenth = sources("train", "data.fraction=0.1")
    assert len(tenth) == 2 * 13 and set(tenth) < set(sources("train"))
    other = ["train.seed=3", "model.depth=3", "ewa=null", "train.batch_size=8", "data.num_points=32"]
    assert [s.split(",")[0] for s in sources("train", "data.fraction=0.1", *other)] == [s.split(",")[0] for s in tenth]
    assert sources("train", "data.fraction=0.1", "data.subset_seed=1") != tenth
    assert len(sources("trainval", "data.fraction=0.1")) < len(sources("trainval"))
    for split in ("val", "test"):
        assert sources(split, "data.fraction=0.1") == sources(split)
