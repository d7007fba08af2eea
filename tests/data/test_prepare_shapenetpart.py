"""`datasets/prepare_shapenetpart.py`: both layouts, and that text is parsed once. The rest is ModelNet40's tests."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ewa3d.data import text_clouds
from ewa3d.data.shapenetpart import ShapeNetPart

TEXT = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
SPLITS = {"train": ("a", "b", "c"), "val": ("d",), "test": ("e", "f")}
CAP, MUG = "02954340", "03797390"
FIRST_PART = {CAP: 6, MUG: 36}  # each has two


@pytest.fixture
def script(script_named, root):
    return script_named("prepare_shapenetpart.py")


def write_text(path: Path, **files: str) -> Path:
    """A zip of the text layout: shapes a to f, caps and mugs in turn. ``files`` replaces some of its files."""
    content = {"synsetoffset2category.txt": f"Cap\t{CAP}\nMug\t{MUG}\n"}
    for split, names in SPLITS.items():
        shapes = [((CAP, MUG)[ord(name) % 2], name) for name in names]
        listed = [f"shape_data/{synset}/{name}" for synset, name in shapes]
        content[f"train_test_split/shuffled_{split}_file_list.json"] = json.dumps(listed)
        for count, (synset, name) in enumerate(shapes, 8):
            rows = np.random.RandomState(ord(name)).randn(count, 7)
            rows[:, 6] = FIRST_PART[synset] + np.arange(count) % 2
            content[f"{synset}/{name}.txt"] = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in rows)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (content | files).items():
            archive.writestr(f"{TEXT}/{name}", text)
    return path


def write_hdf5(path: Path, folder: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"__MACOSX/{folder}/._ply_data_train0.h5", b"a Mac's")
        for split, names in SPLITS.items():
            content = io.BytesIO()
            with h5py.File(content, "w") as file:
                file["data"] = np.random.RandomState(0).randn(len(names), 16, 3).astype(np.float32)
                file["label"] = np.full((len(names), 1), 2, dtype=np.uint8)
                file["pid"] = np.full((len(names), 16), FIRST_PART[CAP], dtype=np.uint8)
            archive.writestr(f"{folder}/ply_data_{split}0.h5", content.getvalue())
    return path


def test_a_download_of_text_is_put_where_it_is_found_and_counted(script, root, served, left):
    folder, url = served
    write_text(folder / "data.zip")
    said = script("--url", f"{url}/data.zip")
    assert "train: 3 shapes of 8 to 10 points, 2 categories, 4 parts (the official release has 12,137)" in said
    assert "val: 1 shapes of 8 points, 1 categories, 2 parts (the official release has 1,870)" in said
    assert "test: 2 shapes" in said and f"ready: {root / TEXT}" in said
    assert left() == [TEXT]
    assert ShapeNetPart(split="test").layout == "text"


def test_text_is_parsed_once_and_that_is_what_training_loads(script, tmp_path, left, monkeypatch):
    script("--zip", write_text(tmp_path / "mine.zip"))
    assert len(left(tmp_path / "cache" / "clouds")) == 3

    def parse(*_):
        pytest.fail("parsed again")

    monkeypatch.setattr(text_clouds, "_parse_all", parse)
    assert [len(ShapeNetPart(split=split, normals=True)) for split in SPLITS] == [3, 1, 2]
    assert "already there" in script()


@pytest.mark.parametrize("folder", ["hdf5_data", "shapenet_part_seg_hdf5_data"])
def test_a_zip_of_hdf5_is_known_by_what_is_in_it(script, tmp_path, left, folder):
    said = script("--zip", write_hdf5(tmp_path / "mine.zip", folder))
    assert "train: 3 shapes of 16 points, 1 categories, 1 parts" in said
    assert left() == ["hdf5_data"]
    assert ShapeNetPart(split="val").layout == "hdf5"


def test_one_layout_does_not_keep_the_other_out(script, tmp_path, left):
    script("--zip", write_text(tmp_path / "text.zip"))
    script("--zip", write_hdf5(tmp_path / "hdf5.zip", "hdf5_data"))
    assert left() == ["hdf5_data", TEXT]


def test_broken_data_is_removed_again_and_named(script, tmp_path, left):
    cases = {
        f"{CAP}/b.txt": ("0 0 1 0 0 1 36\n", "has part 36"),
        f"{MUG}/e.txt": ("0 0 1 0 0 1 x\n", "e.txt, line 1: 'x'"),
        "train_test_split/shuffled_test_file_list.json": (json.dumps([f"shape_data/{CAP}/z"]), "z.txt"),
    }
    for name, (content, part) in cases.items():
        said = script.fails("--zip", write_text(tmp_path / "mine.zip", **{name: content}))
        assert "the data in the zip is broken, and was removed again" in said and part in said
        assert left() == []
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    said = script.fails("--zip", tmp_path / "other.zip")
    assert "no synsetoffset2category.txt or *train*.h5, so it is not ShapeNetPart" in said


def test_the_real_files_go_in(script, real_data, tmp_path, left):
    with zipfile.ZipFile(tmp_path / "real.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (real_data / TEXT).rglob("*"):
            archive.write(file, file.relative_to(real_data))
    said = script("--zip", tmp_path / "real.zip")
    assert "train: 2 shapes of 2,598 to 2,794 points, 2 categories" in said
    assert left() == [TEXT]
