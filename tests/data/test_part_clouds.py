"""Clouds with parts: what a batch of them holds, and which parts a category has."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ewa3d.data.dataset import PartClouds, PointClouds, to_unit_sphere
from ewa3d.data.part_map import SHAPENETPART, SYNSETS, PartMap

MAP = PartMap({"chair": ("back", "seat", "leg"), "pen": ("tip",), "table": ("top", "leg")})


def clouds(counts: list[int], normals: bool = False) -> tuple[PartClouds, list[torch.Tensor], list[torch.Tensor]]:
    """A dataset of clouds of these sizes, and the points and parts of each cloud; no point of all is there twice."""
    total = sum(counts)
    points = torch.arange(3.0 * total).reshape(total, 3)
    labels = torch.arange(len(counts)) % 3
    own = [torch.arange(count) % len(MAP.range_of(i % 3)) + MAP.range_of(i % 3).start for i, count in enumerate(counts)]
    data = PartClouds(points, torch.tensor(counts), torch.cat(own), labels, MAP, normals=-points if normals else None)
    return data, list(points.split(counts)), own


@st.composite
def counts_and_index(draw) -> tuple[list[int], list[int]]:
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    index = draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    return counts, index


@given(counts_and_index(), st.booleans())
def test_a_batch_holds_every_cloud_whole_and_fills_with_its_last_point(case, normals):
    counts, index = case
    data, points, parts = clouds(counts, normals)
    batch = data.batch(index)
    largest = max(counts[i] for i in index)
    assert batch["points"].shape == (len(index), largest, 3) and batch["part"].shape == (len(index), largest)
    assert batch["index"].tolist() == index
    assert batch["count"].tolist() == [counts[i] for i in index]
    assert batch["category"].tolist() == batch["label"].tolist() == [i % 3 for i in index]
    for row, i in enumerate(index):
        fill = largest - counts[i]
        assert torch.equal(batch["points"][row], torch.cat([points[i], points[i][-1:].expand(fill, 3)]))
        assert torch.equal(batch["part"][row], torch.cat([parts[i], parts[i][-1:].expand(fill)]))
    assert ("normals" in batch) == normals
    if normals:
        assert torch.equal(batch["normals"], -batch["points"])


@given(counts_and_index())
def test_a_sample_is_the_cloud_and_nothing_else(case):
    counts, index = case
    data, points, parts = clouds(counts)
    sample = data[index[0]]
    assert torch.equal(sample["points"], points[index[0]]) and torch.equal(sample["part"], parts[index[0]])
    assert sample["count"] == counts[index[0]] and sample["index"] == index[0]


def test_a_loader_serves_every_cloud_once():
    data, points, _ = clouds([5, 2, 7, 1, 4])
    seen = []
    for batch in DataLoader(data, batch_size=2, shuffle=True, collate_fn=lambda batch: batch):
        for cloud, count, i in zip(batch["points"], batch["count"], batch["index"], strict=True):
            assert torch.equal(cloud[:count], points[i])
            seen.append(int(i))
    assert sorted(seen) == [0, 1, 2, 3, 4]


# Elsewhere than on the host


def test_a_moved_dataset_serves_the_same_batches_and_leaves_the_original_alone():
    data, _, _ = clouds([5, 2, 7], normals=True)
    moved = data.to("cpu")
    assert type(moved) is PartClouds and moved is not data
    assert repr(moved) == repr(data) and moved.metadata == data.metadata and moved.source(2) == data.source(2)
    first, second = data.batch([2, 0]), moved.batch([2, 0])
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    data.to("meta")
    assert data.device.type == "cpu" and data.batch([1])["points"].device.type == "cpu"


@given(counts_and_index())
def test_a_batch_is_cut_where_the_data_are_and_without_reading_from_there(case):
    """The meta device has shapes and no values: whatever reads one, as a wait for a GPU would, is an error."""
    counts, index = case
    here, there = (data.batch(index) for data in (clouds(counts, True)[0], clouds(counts, True)[0].to("meta")))
    assert {key: value.shape for key, value in there.items()} == {key: value.shape for key, value in here.items()}
    assert {value.device.type for value in there.values()} == {"meta"}


def test_clouds_of_equal_size_move_too():
    data = PointClouds(torch.randn(6, 10, 3), torch.arange(6) % 2, ["a", "b"], normals=torch.randn(6, 10, 3))
    there = data.to("meta")
    batch = there.batch([4, 1, 1])
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "points": (3, 10, 3),
        "normals": (3, 10, 3),
        "label": (3,),
        "index": (3,),
    }
    assert {value.device.type for value in batch.values()} == {"meta"} and there.device.type == "meta"
    assert repr(there) == repr(data) and data.device.type == "cpu"
    assert data.nbytes == 6 * 10 * 3 * 4 * 2 + 6 * 8 == there.nbytes


@pytest.mark.gpu
def test_on_a_gpu_a_batch_holds_the_same_and_the_host_does_not_wait():
    data, _, _ = clouds([5, 2, 7, 3], normals=True)
    on_gpu = data.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = on_gpu.batch([2, 0, 3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for key, value in data.batch([2, 0, 3]).items():
        assert batch[key].device.type == "cuda" and torch.equal(batch[key].cpu(), value)


def test_what_a_dataset_says_of_itself():
    data, _, _ = clouds([5, 2, 7])
    assert len(data) == 3 and data.class_names == ["chair", "pen", "table"]
    assert repr(data) == "PartClouds(3 clouds of 2 to 7 points, 3 categories, 6 parts)"
    assert "of 4 points" in repr(clouds([4, 4])[0])
    assert data.source(1) == "cloud 1"
    kept = json.loads(json.dumps(data.metadata))
    assert kept == {
        "class_names": ["chair", "pen", "table"],
        "parts": {"chair": ["back", "seat", "leg"], "pen": ["tip"], "table": ["top", "leg"]},
    }
    assert PartMap(kept["parts"]).part_names == MAP.part_names  # what a checkpoint holds makes the map again


# Parts


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_the_parts_of_the_categories_are_all_the_parts_in_order(sizes):
    part_map = PartMap({f"c{i}": [f"p{j}" for j in range(size)] for i, size in enumerate(sizes)})
    ids = [i for category in range(len(sizes)) for i in part_map.range_of(category)]
    assert ids == list(range(sum(sizes))) == list(range(len(part_map.part_names)))
    mask, colors = part_map.mask(), part_map.colors()
    assert mask.shape == (len(sizes), sum(sizes)) and mask.sum(0).tolist() == [1] * sum(sizes)
    assert colors.shape == (sum(sizes), 3) and colors.dtype == torch.uint8
    for category, size in enumerate(sizes):
        own = part_map.range_of(category)
        assert mask[category].nonzero().flatten().tolist() == list(own)
        assert all(part_map.part_names[i].startswith(f"c{category}/") for i in own)
        assert len(colors[own.start : own.stop].unique(dim=0)) == size  # seen together, so none twice


def test_shapenetpart_numbers_its_parts_as_the_official_release():
    assert list(SYNSETS) == sorted(SYNSETS) and list(SYNSETS.values()) == SHAPENETPART.categories
    ranges = [SHAPENETPART.range_of(category) for category in range(16)]
    assert [own.start for own in ranges] == [0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47]
    assert len(SHAPENETPART.part_names) == 50 and ranges[-1].stop == 50
    assert SHAPENETPART.categories[4] == "Chair" and SYNSETS["04379243"] == "Table"


# The unit sphere


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(-1e4, 1e4), st.floats(1e-2, 1e4))
def test_a_cloud_of_any_place_and_size_ends_in_the_unit_sphere(seed, count, offset, scale):
    shape = np.random.RandomState(seed).randn(count, 3)
    points = to_unit_sphere(scale * shape + offset)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1).max(), 1, atol=1e-9)
    np.testing.assert_allclose(points, to_unit_sphere(shape), atol=1e-7)  # neither place nor size is left


def test_every_cloud_of_a_batch_is_normalised_alone_and_a_single_point_is_the_origin():
    batch = np.random.RandomState(0).randn(3, 6, 3)
    for cloud, alone in zip(to_unit_sphere(batch), batch, strict=True):
        np.testing.assert_array_equal(cloud, to_unit_sphere(alone))
    assert to_unit_sphere([[[5, 5, 5], [5, 5, 5]]]).tolist() == [[[0, 0, 0], [0, 0, 0]]]
