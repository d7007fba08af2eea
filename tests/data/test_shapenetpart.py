"""ShapeNetPart in both layouts: what is loaded, and what bad data is answered."""

import json
import os
import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.data import text_clouds
from ewa3d.data.categories import read_parts
from ewa3d.data.modelnet40 import ModelNet40
from ewa3d.data.part_map import SHAPENETPART, SYNSETS
from ewa3d.data.shapenetpart import ShapeNetPart, find_layout, read_split_list
from ewa3d.errors import Ewa3dError

LAPTOP, TABLE = "03642806", "04379243"
LABELS = {LAPTOP: 9, TABLE: 15}
PARTS = {LAPTOP: [28, 29], TABLE: [47, 48, 49]}
SHAPES = {
    "train": [(TABLE, "a1"), (LAPTOP, "b1"), (TABLE, "a2"), (LAPTOP, "b2")],
    "val": [(LAPTOP, "b3"), (TABLE, "a3")],
    "test": [(TABLE, "a4"), (LAPTOP, "b4"), (TABLE, "a5")],
}
OWN = {
    # Not in the order of the parts, which is the labels'.
    "Desk lamp": {"synset": "90000002", "first_part": 2, "parts": ["foot", "arm", "shade"]},
    "Pen": {"synset": "90000001", "first_part": 0, "parts": ["tip", "shaft"]},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EWA3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cloud(synset: str, shape: str, points: int | None = None, parts: dict[str, list[int]] = PARTS) -> np.ndarray:
    """``(points, 7)``: off the origin and of any size, unit normals, parts; six digits, so that text holds it whole."""
    seed = zlib.crc32(shape.encode())
    draw = np.random.RandomState(seed)
    points = points or 5 + seed % 4
    normal = draw.randn(points, 3)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    part = draw.choice(parts[synset], points)
    return np.concatenate([3 * draw.randn(points, 3) + 5, normal, part[:, None]], axis=1).round(6).astype(np.float32)


def write_cloud(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in values))


def list_of(folder: Path, split: str) -> Path:
    return folder / "train_test_split" / f"shuffled_{split}_file_list.json"


def write_lists(folder: Path, shapes: dict[str, list[tuple[str, str]]]) -> None:
    (folder / "train_test_split").mkdir(parents=True, exist_ok=True)
    for split, listed in shapes.items():
        list_of(folder, split).write_text(json.dumps([f"shape_data/{synset}/{shape}" for synset, shape in listed]))


def write_text(folder: Path, columns: int = 7, points: int | None = None) -> Path:
    write_lists(folder, SHAPES)
    (folder / "synsetoffset2category.txt").write_text(f"Table\t{TABLE}\nLaptop\t{LAPTOP}\n")
    for synset, shape in [shape for shapes in SHAPES.values() for shape in shapes]:
        values = cloud(synset, shape, points)
        write_cloud(folder / synset / f"{shape}.txt", values if columns == 7 else values[:, [0, 1, 2, 6]])
    return folder


def write_own(folder: Path) -> Path:
    """A set of other categories, with ``parts.json``."""
    shapes = {"train": [("90000002", "x"), ("90000001", "y")], "val": [("90000001", "z")], "test": [("90000002", "w")]}
    write_lists(folder, shapes)
    (folder / "synsetoffset2category.txt").write_text("Desk lamp 90000002\nPen 90000001\n")
    (folder / "parts.json").write_text(json.dumps(OWN))
    for synset, shape in [shape for listed in shapes.values() for shape in listed]:
        write_cloud(folder / synset / f"{shape}.txt", cloud(synset, shape, parts={"90000001": [0, 1], "90000002": [4]}))
    return folder


def write_h5(path: Path, shapes: list[tuple[str, str]], normals: bool = False, flat_labels: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.stack([cloud(synset, shape, 8) for synset, shape in shapes])
    labels = np.array([LABELS[synset] for synset, _ in shapes], dtype=np.uint8)
    with h5py.File(path, "w") as file:
        file["data"] = values[..., :3]
        file["label"] = labels if flat_labels else labels[:, None]
        file["pid"] = values[..., 6].astype(np.uint8)
        if normals:
            file["normal"] = values[..., 3:6]


def write_hdf5(folder: Path, normals: bool = False) -> Path:
    for split, shapes in SHAPES.items():
        write_h5(folder / f"ply_data_{split}0.h5", shapes[:1], normals)
        write_h5(folder / f"ply_data_{split}1.h5", shapes[1:], normals, flat_labels=True)
    return folder


def by_hand(values: np.ndarray) -> torch.Tensor:
    points = values[:, :3].astype(np.float64)
    points = points - points.mean(0)
    return torch.tensor(points / np.linalg.norm(points, axis=1).max(), dtype=torch.float32)


# What is loaded


def test_text_gives_whole_normalised_clouds_of_their_own_sizes(tmp_path):
    data = ShapeNetPart(write_text(tmp_path / "set"))
    assert (data.layout, data.split, data.folder) == ("text", "train", tmp_path / "set")
    assert data.class_names == list(SYNSETS.values()) and data.part_map == SHAPENETPART
    assert data.sources == [f"{synset}/{shape}.txt" for synset, shape in SHAPES["train"]]
    assert data.points.dtype == torch.float32
    assert data.labels.dtype == data.counts.dtype == data.parts.dtype == torch.int64
    assert len({len(cloud(*shape)) for shape in SHAPES["train"]}) > 1  # or the sizes below would prove little
    for i, (synset, shape) in enumerate(SHAPES["train"]):
        values, sample = cloud(synset, shape), data[i]
        torch.testing.assert_close(sample["points"], by_hand(values), atol=1e-6, rtol=0)
        assert sample["part"].tolist() == values[:, 6].tolist()
        assert sample["label"] == LABELS[synset]
        assert "normals" not in sample


@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_both_layouts_agree_on_the_same_shapes(tmp_path, split):
    text = ShapeNetPart(write_text(tmp_path / "text", points=8), split, normals=True)
    hdf5 = ShapeNetPart(write_hdf5(tmp_path / "hdf5", normals=True), split, normals=True)
    assert (text.layout, hdf5.layout) == ("text", "hdf5")
    wanted = SHAPES["train"] + SHAPES["val"] if split == "trainval" else SHAPES[split]
    assert len(text) == len(hdf5) == len(wanted)
    for name in ("points", "counts", "parts", "labels", "normals"):
        assert torch.equal(getattr(text, name), getattr(hdf5, name))
    assert text.part_map == hdf5.part_map and text.class_names == hdf5.class_names
    for i, shape in enumerate(wanted):
        torch.testing.assert_close(text[i]["normals"], torch.from_numpy(cloud(*shape, points=8)[:, 3:6]))


def test_trainval_is_train_and_then_val_and_makes_no_cache_of_its_own(tmp_path, own_cache, monkeypatch):
    folder = write_text(tmp_path / "set")
    train, val = (ShapeNetPart(folder, split, normals=True) for split in ("train", "val"))
    monkeypatch.setattr(text_clouds, "parse_text_cloud", lambda path, rows: pytest.fail(f"parsed {path} again"))
    both = ShapeNetPart(folder, "trainval", normals=True)
    assert both.sources == train.sources + val.sources
    for name in ("points", "counts", "parts", "labels", "normals"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(train, name), getattr(val, name)]))
    assert len([path for path in own_cache.rglob("*") if path.is_file()]) == 2


def test_hdf5_files_are_taken_in_the_order_of_their_numbers(tmp_path):
    shapes = SHAPES["train"]
    for number, shape in zip((10, 2, 1, 0), shapes, strict=True):
        write_h5(tmp_path / "set" / f"ply_data_train{number}.h5", [shape])
    (tmp_path / "set" / "._ply_data_train0.h5").write_bytes(b"what macOS leaves")
    data = ShapeNetPart(tmp_path / "set")
    assert data.sources == [f"ply_data_train{number}.h5:0" for number in (0, 1, 2, 10)]
    torch.testing.assert_close(data[3]["points"], by_hand(cloud(*shapes[0], points=8)), atol=1e-6, rtol=0)


def test_a_folder_s_own_parts_make_the_categories(tmp_path):
    data = ShapeNetPart(write_own(tmp_path / "set"), "train")
    assert data.class_names == ["Pen", "Desk lamp"] and data.labels.tolist() == [1, 0]
    assert data.part_map.part_names == ["Pen/tip", "Pen/shaft", "Desk lamp/foot", "Desk lamp/arm", "Desk lamp/shade"]
    assert data[0]["part"].unique().tolist() == [4]
    write_h5(tmp_path / "hdf5" / "train.h5", SHAPES["train"])
    with h5py.File(tmp_path / "hdf5" / "train.h5", "r+") as file:
        file["label"][()] = 1
        file["pid"][()] = 3
    shutil.copy(tmp_path / "set" / "parts.json", tmp_path / "hdf5")
    data = ShapeNetPart(tmp_path / "hdf5", "train")
    assert data.part_map.part_names[3] == "Desk lamp/arm" and data.class_names == ["Pen", "Desk lamp"]


def test_normals_come_where_the_layout_has_them(tmp_path):
    text, bare = write_text(tmp_path / "text"), write_text(tmp_path / "bare", columns=4)
    data = ShapeNetPart(text, "test", normals=True)
    torch.testing.assert_close(data[1]["normals"], torch.from_numpy(cloud(*SHAPES["test"][1])[:, 3:6]))
    without = ShapeNetPart(bare, "test")
    assert without.normals is None
    assert torch.equal(without.points, data.points) and torch.equal(without.parts, data.parts)
    refused("not all of its files hold normals.*load without them", bare, "test", normals=True)
    hdf5 = write_hdf5(tmp_path / "hdf5")
    refused("not all of its files hold normals", hdf5, "test", normals=True)
    write_h5(hdf5 / "ply_data_test0.h5", SHAPES["test"][:1], normals=True)  # and the other file without
    refused("not all of its files hold normals", hdf5, "test", normals=True)
    assert len(ShapeNetPart(hdf5, "test")) == 3


# Where it is looked for


def test_the_root_itself_comes_first_then_text_then_hdf5(tmp_path, monkeypatch):
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path))
    write_hdf5(tmp_path / "shapenet_part_seg_hdf5_data")
    assert ShapeNetPart().folder.name == "shapenet_part_seg_hdf5_data"
    write_hdf5(tmp_path / "hdf5_data")
    assert find_layout(None) == (tmp_path / "hdf5_data", "hdf5")
    text = write_text(tmp_path / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    assert find_layout(tmp_path) == (text, "text")
    assert find_layout(tmp_path / "hdf5_data") == (tmp_path / "hdf5_data", "hdf5")
    write_hdf5(text / "hdf5_data")
    assert find_layout(text) == (text, "text")


@pytest.mark.parametrize("dataset", [ShapeNetPart, ModelNet40])
def test_a_relative_root_is_of_the_working_directory_or_else_of_the_data_sets(tmp_path, monkeypatch, dataset):
    def write(folder: Path) -> Path:
        if dataset is ShapeNetPart:
            return write_text(folder)
        (folder / "airplane").mkdir(parents=True)
        (folder / "airplane" / "airplane_0001.txt").write_text("0,0,0\n1,0,0\n")
        (folder / "modelnet40_shape_names.txt").write_text("airplane\n")
        (folder / "modelnet40_test.txt").write_text("airplane_0001\n")
        return folder

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path / "sets"))
    write(tmp_path / "sets" / "mine")
    assert dataset("mine", "test").folder == tmp_path / "sets" / "mine"
    write(tmp_path / "here" / "mine")
    assert dataset("mine", "test").folder.resolve() == tmp_path / "here" / "mine"
    with pytest.raises(Ewa3dError, match=r"yours: no such folder of data sets, here or in .*sets: set EWA3D_DATASETS"):
        dataset("yours", "test")


# Bad input


def refused(match: str, *args, **kwargs) -> None:
    with pytest.raises(Ewa3dError, match=match) as error:
        ShapeNetPart(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_a_root_or_split_that_is_not_there_is_named(tmp_path):
    refused(r"nowhere: no such folder.*prepare_shapenetpart\.py", tmp_path / "nowhere")
    refused(r"no ShapeNetPart in it; looked for shapenetcore_.*hdf5_data.*prepare_shapenetpart\.py", tmp_path)
    refused("no split 'validation': take one of train, val, trainval, test", tmp_path, "validation")
    (write_hdf5(tmp_path / "set") / "ply_data_val0.h5").rename(tmp_path / "set" / "ply_data_trainval0.h5")
    refused(r"ply_data_trainval0\.h5: its name says two splits", tmp_path / "set", "train")
    (tmp_path / "set" / "ply_data_trainval0.h5").unlink()
    (tmp_path / "set" / "ply_data_val1.h5").unlink()
    assert len(ShapeNetPart(tmp_path / "set", "train")) == 4
    for split in ("val", "trainval"):
        refused(r"set: has no \*val\*\.h5", tmp_path / "set", split)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"shuffled_train_file_list\.json: missing.*prepare_shapenetpart"),
        ("", r"shuffled_train_file_list\.json: not valid JSON"),
        ('["shape_data/04379243/a1", ', r"shuffled_train_file_list\.json: not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"shape_data/04379243/a1": 1}', r"shuffled_train_file_list\.json: is no list of texts"),
        ("[1, 2]", "is no list of texts"),
        ("[]", r"shuffled_train_file_list\.json: names no shape"),
        ('["shape_data/04379243/a1", "shape_data/04379243/a1"]', "names 04379243/a1 twice"),
        ('["shape_data/04379243/a1", "04379243/a1"]', "names 04379243/a1 twice"),
        ('["shape_data/12345678/a1"]', "'shape_data/12345678/a1' is of a synset that is not known.*add parts.json"),
        ('["a1"]', "'a1' is no shape_data"),
        ('["shape_data/04379243/.."]', "is no shape_data/<synset>/<id> inside the folder"),
        ('["../04379243/a1"]', "inside the folder"),
        ('["/04379243/a1"]', "inside the folder"),
        ('["shape_data/04379243/"]', "inside the folder"),
        (r'["shape_data/04379243/..\\..\\a1"]', "inside the folder"),
        (r'["shape_data/04379243/a\u0000"]', "inside the folder"),
        (r'["shape_data/04379243/a\n1"]', "inside the folder"),
    ],
)
def test_a_bad_list_is_named(tmp_path, content, match):
    folder = write_text(tmp_path / "set")
    if content is None:
        list_of(folder, "train").unlink()
    else:
        list_of(folder, "train").write_text(content)
    refused(match, folder, "train")
    refused(match, folder, "trainval")


def test_a_list_that_is_not_asked_for_may_be_absent_or_empty(tmp_path):
    folder = write_text(tmp_path / "set")
    list_of(folder, "val").write_text("[]")
    list_of(folder, "test").unlink()
    assert len(ShapeNetPart(folder, "train")) == 4
    refused(r"shuffled_val_file_list\.json: names no shape", folder, "val")


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "val"), ("trainval", "test")])
def test_a_shape_in_two_splits_of_a_set_of_one_s_own_is_refused(tmp_path, split, other):
    folder = write_own(tmp_path / "set")
    first = {"train": ("90000002", "x"), "test": ("90000002", "w"), "trainval": ("90000001", "z")}[split]
    write_lists(folder, {other: [first]})
    refused(rf"names {'/'.join(first)}, as shuffled_{other}_file_list\.json does", folder, split)


def test_shapes_that_the_official_lists_share_stay_and_are_once_in_trainval(tmp_path):
    folder = write_text(tmp_path / "set", columns=7)
    shared = SHAPES["train"][1]
    write_lists(folder, {"val": [shared, *SHAPES["val"]], "test": [shared, *SHAPES["test"]]})
    train, val, test, both = (
        ShapeNetPart(folder, split, normals=True) for split in ("train", "val", "test", "trainval")
    )
    assert test.sources[0] == val.sources[0] == train.sources[1]
    assert both.sources == train.sources + val.sources[1:]
    cut = int(val.counts[0])
    for name in ("points", "parts", "normals"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(train, name), getattr(val, name)[cut:]]))
    for name in ("counts", "labels"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(train, name), getattr(val, name)[1:]]))


def test_listed_shapes_that_are_absent_are_counted(tmp_path):
    folder = write_text(tmp_path / "set")
    (folder / TABLE / "a1.txt").unlink()
    (folder / TABLE / "a2.txt").unlink()
    refused(r"04379243/a1\.txt \(and 1 more\): missing, but listed", folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"synsetoffset2category\.txt: missing"),
        ("\n", r"synsetoffset2category\.txt: empty"),
        ("Table\t04379243\nLaptop\n", "'Laptop' is no category and synset"),
        ("Table\t04379243\nDesk\t04379243\n", r"'Desk\\t04379243' is no category and synset, or a synset named before"),
        ("Table\t04379243\nBoat\t12345678\n", "Boat 12345678 is none of ShapeNetPart's 16 categories: add parts.json"),
    ],
)
def test_a_bad_list_of_categories_is_named(tmp_path, content, match):
    folder = write_text(tmp_path / "set")
    path = folder / "synsetoffset2category.txt"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    refused(match, folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("Pen 90000001\n", r"synsetoffset2category\.txt: lacks Desk lamp 90000002, which parts\.json has"),
        ("Pen 90000001\nDesk lamp 90000002\nBoat 90000003\n", "Boat 90000003 is no category and synset of parts.json"),
        ("Pen 90000002\nDesk lamp 90000001\n", "Pen 90000002 is no category and synset of parts.json"),
    ],
)
def test_parts_and_categories_that_disagree_are_named(tmp_path, content, match):
    folder = write_own(tmp_path / "set")
    (folder / "synsetoffset2category.txt").write_text(content)
    refused(match, folder)


def entry(**changes) -> dict:
    return {key: value for key, value in {**OWN["Pen"], **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not valid JSON"),
        ('{"Pen": 1, "Pen": 2}', "not valid JSON .'Pen' is there twice"),
        ([], "is no object of categories"),
        ({}, "is no object of categories"),
        ({"Pen": ["tip"]}, "category 'Pen' has no name or no synset"),
        ({"": entry()}, "category '' has no name"),
        ({"Pen\n": entry()}, r"category 'Pen\\n' has no name"),
        ({"Pen": entry(synset=...)}, "category 'Pen' has no name or no synset"),
        ({"Pen": entry(synset=90000001)}, "category 'Pen' has no name or no synset"),
        ({"Pen": entry(first_part=...)}, "category 'Pen' has no first_part, an integer"),
        ({"Pen": entry(first_part=0.0)}, "category 'Pen' has no first_part, an integer"),
        ({"Pen": entry(first_part=False)}, "category 'Pen' has no first_part, an integer"),
        ({"Pen": entry(parts=...)}, "category 'Pen' has no parts"),
        ({"Pen": entry(parts=[])}, "category 'Pen' has no parts"),
        ({"Pen": entry(parts="tip")}, "category 'Pen' has no parts"),
        ({"Pen": entry(parts=["tip", 1])}, "category 'Pen' has no parts"),
        ({"Pen": entry(parts=["tip", "tip"])}, "category 'Pen' has no parts.*none twice"),
        ({"Pen": entry(first_part=1)}, "category 'Pen' has first_part 1 where 0 should be"),
        ({"Pen": entry(first_part=-1)}, "category 'Pen' has first_part -1 where 0 should be"),
        ({"Pen": entry(), "Cup": entry(synset="9", first_part=3)}, "category 'Cup' has first_part 3 where 2 should be"),
        ({"Pen": entry(), "Cup": entry(synset="9", first_part=1)}, "category 'Cup' has first_part 1 where 2 should be"),
        ({"Pen": entry(), "Cup": entry(first_part=2)}, "category 'Cup' has the synset 90000001 of another"),
    ],
)
def test_bad_parts_are_named(tmp_path, content, match):
    folder = write_own(tmp_path / "set")
    (folder / "parts.json").write_text(content if isinstance(content, str) else json.dumps(content))
    refused(rf"parts\.json: .*{match}", folder)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_parts_without_gap_or_overlap_are_read_in_any_order(tmp_path_factory, sizes, draw):
    ends = np.cumsum(sizes)
    entries = [
        (f"c{i}", {"synset": f"s{i}", "first_part": int(end - size), "parts": [f"p{j}" for j in range(size)]})
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    draw.shuffle(entries)
    path = tmp_path_factory.getbasetemp() / "parts.json"
    path.write_text(json.dumps(dict(entries)))
    synsets, part_map = read_parts(path, "")
    assert synsets == [f"s{i}" for i in range(len(sizes))]
    assert part_map.categories == [f"c{i}" for i in range(len(sizes))]
    assert [len(parts) for parts in part_map.parts.values()] == sizes


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("1 2 3 0 0 1 47\n1 2 3 0 47\n", r"a1\.txt, line 2: 5 numbers where 7 should be"),
        ("1 2 3 47\n1 2 3 0 0 1 47\n", r"a1\.txt, line 2: 7 numbers where 4 should be"),
        ("1 2 3 0 0 1\n", r"a1\.txt, line 1: 6 numbers where 7"),
        ("1,2,3,0,0,1,47\n", r"a1\.txt, line 1: 1 numbers where 7"),
        ("1 2 3 0 0 1 47\n\n1 2 x3 0 0 1 47\n", r"a1\.txt, line 3: 'x3' is not a number"),
        ("1 2 3 0 0 1 47\n1 nan 3 0 0 1 47\n", r"a1\.txt, line 2: a coordinate is NaN or infinite"),
        ("1 2 3 0 0 1 47\n1 2 -inf 0 0 1 47\n", r"a1\.txt, line 2: a coordinate is NaN or infinite"),
        ("1 2 3 0 0 1 47\n1 2 3 0 0 1 47.5\n", r"a1\.txt, line 2: '47\.5' is not the id of a part"),
        ("1 2 3 47\n1 2 3 nan\n", r"a1\.txt, line 2: 'nan' is not the id of a part"),
        ("1 2 3 47\n1 2 3 1e30\n", r"a1\.txt, line 2: '1e30' is not the id of a part"),
        ("1 2 3 47\n1 2 3 48\n1 2 3 28\n", r"a1\.txt: point 2 has part 28, and the parts of Table are 47, 48, 49"),
        ("1 2 3 47\n1 2 3 -1\n", r"a1\.txt: point 1 has part -1, and the parts of Table are 47, 48, 49"),
        ("1 2 3 0 0 1 50\n", r"a1\.txt: point 0 has part 50, and the parts of Table"),
        ("", r"a1\.txt: an empty cloud"),
        (" \n\n", r"a1\.txt"),
    ],
)
def test_a_bad_text_file_is_named_with_its_line_or_point(tmp_path, lines, match):
    folder = write_text(tmp_path / "set")
    (folder / TABLE / "a1.txt").write_text(lines)
    for _ in range(2):  # what was parsed and refused is refused from the cache too
        refused(match, folder, "trainval")


def test_a_normal_that_is_not_finite_matters_where_normals_are_asked_for(tmp_path):
    folder = write_text(tmp_path / "set")
    (folder / LAPTOP / "b1.txt").write_text("1 2 3 0 0 1 28\n1 2 4 nan 0 1 28\n")
    refused(r"b1\.txt: normal 1 is NaN or infinite", folder, normals=True)
    assert ShapeNetPart(folder)[1]["count"] == 2


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("data", None, "has no dataset 'data'"),
        ("label", None, "has no dataset 'label'"),
        ("pid", None, "has no dataset 'pid'.*prepare_shapenetpart"),
        ("pid", np.zeros((3, 7), int), r"'pid' is int64 \(3, 7\), and should be integers \(3, 8\)"),
        ("pid", np.zeros((3, 8)), "'pid' is float64"),
        ("data", np.zeros((3, 8, 4)), r"\(3, 8, 4\)"),
        ("label", np.array([9, 16, 9]), r"train1\.h5:1: label 16 is out of range, ShapeNetPart has 16 categories"),
        ("label", np.array([9, 15, -1]), r"train1\.h5:2: label -1 is out of range"),
        (
            "label",
            np.array([9, 14, 9]),
            r"train1\.h5:1: point 0 has part 4\d, and the parts of Skateboard are 44, 45, 46",
        ),
        ("data", np.full((3, 8, 3), np.inf), r"train1\.h5:0: point 0 is NaN or infinite"),
    ],
)
def test_an_h5_with_wrong_content_is_named(tmp_path, key, value, match):
    folder = write_hdf5(tmp_path / "set")
    with h5py.File(folder / "ply_data_train1.h5", "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value
    refused(match, folder)
    refused(match, folder, "trainval")


def test_an_h5_of_no_clouds_or_no_points_or_cut_short_is_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for count, match in ((0, "set: its files hold no clouds"), (2, r"train\.h5:0: an empty cloud")):
        with h5py.File(folder / "train.h5", "w") as file:
            file["data"], file["label"], file["pid"] = (
                np.zeros((count, 0, 3)),
                np.zeros((count, 1), int),
                np.zeros((count, 0), int),
            )
        refused(match, folder)
    write_h5(folder / "train.h5", SHAPES["train"])
    whole = (folder / "train.h5").read_bytes()
    (folder / "train.h5").write_bytes(whole[: len(whole) // 2])
    refused(r"train\.h5: not a whole HDF5 file", folder)


# The cache


def test_text_is_parsed_once_and_the_data_folder_is_left_alone(tmp_path, own_cache, monkeypatch):
    folder = write_text(tmp_path / "set")
    before = sorted(folder.rglob("*"))
    first = ShapeNetPart(folder, normals=True)
    assert sorted(folder.rglob("*")) == before
    assert len([path for path in own_cache.rglob("*") if path.is_file()]) == 1
    monkeypatch.setattr(text_clouds, "parse_text_cloud", lambda path, rows: pytest.fail(f"parsed {path} again"))
    second = ShapeNetPart(folder, normals=True)
    for name in ("points", "counts", "parts", "normals"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert second.parts.dtype == torch.int64
    assert ShapeNetPart(folder).normals is None


def test_cache_false_leaves_none(tmp_path, own_cache):
    ShapeNetPart(write_text(tmp_path / "set"), "trainval", cache=False)
    assert not own_cache.exists()


def test_a_changed_file_is_parsed_again_even_at_the_same_size(tmp_path, own_cache):
    folder = write_text(tmp_path / "set")
    ShapeNetPart(folder)
    path = folder / TABLE / "a1.txt"
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    turned = cloud(TABLE, "a1")[::-1].copy()
    turned[:, 6] = 143 - 2 * 47 + 47 - turned[:, 6]  # 47 to 49 and back: as long as before
    write_cloud(path, turned)
    os.utime(path, ns=(time, time + 10**9))
    assert path.stat().st_size == size
    sample = ShapeNetPart(folder)[0]
    assert sample["part"].tolist() == turned[:, 6].tolist() != cloud(TABLE, "a1")[:, 6].tolist()
    torch.testing.assert_close(sample["points"], by_hand(turned), atol=1e-6, rtol=0)
    assert len(list(own_cache.rglob("*.h5"))) == 1


def test_a_changed_list_is_not_answered_from_the_cache_of_another(tmp_path):
    folder = write_text(tmp_path / "set")
    ShapeNetPart(folder)
    write_lists(folder, {"train": SHAPES["train"][::-1]})
    data = ShapeNetPart(folder)
    assert data.labels.tolist() == [9, 15, 9, 15]
    torch.testing.assert_close(data[0]["points"], by_hand(cloud(*SHAPES["train"][-1])), atol=1e-6, rtol=0)


@pytest.mark.parametrize("key", ["data", "part", "normal", "counts"])
def test_a_damaged_cache_is_made_anew(tmp_path, own_cache, key):
    folder = write_text(tmp_path / "set")
    whole = ShapeNetPart(folder, normals=True)
    (path,) = own_cache.rglob("*.h5")
    good = path.read_bytes()
    with h5py.File(path) as file:
        values = file[key][()].tobytes()
    at = good.index(values)
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    for damage in (good[: len(good) // 2], b"", b"not hdf5", flipped):
        path.write_bytes(damage)
        again = ShapeNetPart(folder, normals=True)
        for name in ("points", "counts", "parts", "normals"):
            assert torch.equal(getattr(again, name), getattr(whole, name))
        with h5py.File(path) as file:
            assert file[key][()].tobytes() == values


def test_a_cache_of_clouds_without_parts_is_made_anew(tmp_path, own_cache):
    folder = write_text(tmp_path / "set")
    whole = ShapeNetPart(folder)
    (path,) = own_cache.rglob("*.h5")
    with h5py.File(path, "r+") as file:
        del file["part"]
    assert torch.equal(ShapeNetPart(folder).parts, whole.parts)


def test_a_write_that_was_broken_off_leaves_no_cache_behind(tmp_path, own_cache, monkeypatch):
    folder = write_text(tmp_path / "set")

    def full(*_) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match="could not be kept.*no space left.*EWA3D_CACHE"):
            first = ShapeNetPart(folder)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]
    # What a killed process leaves: half a file, under its temporary name.
    (own_cache / "clouds" / ".shapenetpart-train-0123.h5-abc").write_bytes(b"\x89HDF")
    assert torch.equal(ShapeNetPart(folder).points, first.points)


def test_many_files_are_parsed_at_once_as_they_are_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    folder = write_text(tmp_path / "set")
    shapes = [(TABLE, f"many{i}") for i in range(40)]
    for shape in shapes:
        write_cloud(folder / TABLE / f"{shape[1]}.txt", cloud(*shape))
    write_lists(folder, {"train": shapes})
    data = ShapeNetPart(folder, cache=False)
    for i, shape in enumerate(shapes):
        values, sample = cloud(*shape), data[i]
        torch.testing.assert_close(sample["points"], by_hand(values), atol=1e-6, rtol=0)
        assert sample["part"].tolist() == values[:, 6].tolist()
    (folder / TABLE / "many33.txt").write_text("1 2 3 47\n1 2\n")
    refused(r"many33\.txt, line 2", folder)


# The real data


def real(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"EWA3D_DATASETS has no {folder.name}")
    return folder


def test_the_official_lists_are_whole_and_name_no_shape_twice(real_data):
    folder = real(real_data / "shapenetpart_official_lists")
    lists = [
        read_split_list(folder / f"shuffled_{split}_file_list.json", SYNSETS) for split in ("train", "val", "test")
    ]
    assert [len(shapes) for shapes in lists] == [12137, 1870, 2874]
    assert [len(set(shapes)) for shapes in lists] == [12137, 1870, 2874]
    assert all({synset for synset, _ in shapes} == set(SYNSETS) for shapes in lists)
    assert lists[1][0] == ("02691156", "be02fd401a12d23822362be7f5226e91")
    train, val, test = map(set, lists)
    assert [len(train & val), len(train & test), len(val & test)] == [9, 23, 3], "as they were published"
    assert len(train | val) == 13998


def test_the_real_shapenetpart_files_load(real_data):
    folder = real(real_data / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    assert find_layout(real_data) == (folder, "text")
    both, test = (ShapeNetPart(real_data, split, normals=True) for split in ("trainval", "test"))
    assert [both.class_names[label] for label in both.labels] == ["Skateboard", "Table", "Skateboard"]
    assert [test.class_names[label] for label in test.labels] == ["Table"]
    for data in (both, test):
        agrees_with_its_files(data)
        for sample in data:
            own = data.part_map.range_of(int(sample["category"]))
            assert own.start <= sample["part"].min() and sample["part"].max() < own.stop
    assert both[0]["part"].unique().tolist() == [45]


def test_the_real_part_set_loads_by_its_name(real_data, monkeypatch, tmp_path):
    real(real_data / "psb_parts")
    monkeypatch.setenv("EWA3D_DATASETS", str(real_data))
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for split in ("train", "val", "test"):
        data = ShapeNetPart("psb_parts", split, normals=True)
        sizes[split] = len(data)
        assert torch.bincount(data.labels).tolist() == [len(data) // 17] * 17
        agrees_with_its_files(data)
    assert sizes == {"train": 204, "val": 34, "test": 102}
    assert len(data.class_names) == 17 and len(data.part_map.part_names) == 83
    assert data.part_map.part_names[:6] == [
        *(f"Airplane/{part}" for part in ("body", "engine", "rudder", "stabilizer", "wing")),
        "Ant/antenna",
    ]


def agrees_with_its_files(data: ShapeNetPart) -> None:
    for i in {0, len(data) // 2, len(data) - 1}:
        values, sample = np.loadtxt(data.folder / data.source(i)), data[i]
        torch.testing.assert_close(sample["points"], by_hand(values), atol=1e-6, rtol=0)
        torch.testing.assert_close(sample["normals"], torch.tensor(values[:, 3:6], dtype=torch.float32))
        assert sample["part"].tolist() == values[:, 6].tolist()
        assert data.source(i).split("/")[0] in (data.folder / "synsetoffset2category.txt").read_text()
