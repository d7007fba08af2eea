"""ShapeNet55, on files in its layout."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ewa3d import Ewa3dError
from ewa3d.data import ShapeNet55, create_dataset
from ewa3d.engine.build import open_split
from ewa3d.engine.train import train

SYNSETS = ("02691156", "03001627", "04379243")


def write(folder: Path, train: int = 6, test: int = 2, points: int = 40) -> Path:
    """``train`` and ``test`` shapes of each synset, as PoinTr's release has them."""
    draw = np.random.default_rng(0)
    (folder / "shapenet_pc").mkdir(parents=True)
    (folder / "ShapeNet-55").mkdir()
    for split, count in (("train", train), ("test", test)):
        names = [f"{synset}-{split}{i:04x}a-b{i}.npy" for i in range(count) for synset in SYNSETS]
        (folder / "ShapeNet-55" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            cloud = 5 + 3 * draw.standard_normal((points, 3))
            np.save(folder / "shapenet_pc" / name, cloud.astype(np.float32))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "ShapeNet55-34")


def test_splits_labels_and_sources(folder):
    splits = {split: ShapeNet55(folder, split, val_fraction=1 / 3) for split in ("train", "val", "trainval", "test")}
    assert {split: len(data) for split, data in splits.items()} == {"train": 12, "val": 6, "trainval": 18, "test": 6}
    for data in splits.values():
        assert data.class_names == list(SYNSETS) and data.points.shape[1:] == (40, 3)
        for i, label in enumerate(data.labels.tolist()):
            assert data.source(i).startswith(f"shapenet_pc/{SYNSETS[label]}-")
    sources = {split: set(data.sources) for split, data in splits.items()}
    assert sources["train"] | sources["val"] == sources["trainval"] and not sources["train"] & sources["val"]
    assert splits["val"].labels.bincount().tolist() == [2, 2, 2]


def test_clouds_are_the_files_normalised_in_a_random_order(folder):
    data = ShapeNet55(folder, "test")
    for points, source in zip(data.points, data.sources, strict=True):
        raw = np.load(folder / source).astype(np.float64)
        expected = raw - raw.mean(axis=0)
        expected /= np.linalg.norm(expected, axis=1).max()
        assert np.abs(points.numpy() - expected).max() > 0.1, "another order than the file's"
        np.testing.assert_allclose(np.sort(points, axis=0), np.sort(expected, axis=0), atol=1e-6)
    assert torch.equal(ShapeNet55(folder, "test").points, data.points)
    whole, part = ShapeNet55(folder, "trainval"), ShapeNet55(folder, "train")
    same = [whole.sources.index(source) for source in part.sources]
    assert torch.equal(whole.points[same], part.points), "a cloud's order does not depend on its split"


@pytest.mark.parametrize("name", ["ShapeNet55-34", "ShapeNet55", "."])
def test_it_is_found_in_the_folder_of_data_sets(tmp_path, monkeypatch, name):
    write(tmp_path / "data" / name)
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path / "data"))
    assert len(create_dataset("shapenet55", "test", task="pretraining")) == 6


def test_training_draws_from_all_points(folder, tiny_config):
    config = tiny_config("task=pretraining", "data.name=shapenet55", f"data.root={folder}", "data.num_points=16")
    assert open_split(config, "train").points.shape[1] == 40


def test_it_is_pretrained_on(tmp_path, tiny_config):
    write(tmp_path / "set", points=100)
    options = ["task=pretraining", "data.name=shapenet55", f"data.root={tmp_path / 'set'}", "train.batch_size=4"]
    result = train(tiny_config(*options, "train.epochs=1", "data.val_fraction=0.2"))
    assert result["split"] == "test" and result["masked_chamfer_l2"] > 0


def spoil(folder: Path, kind: str) -> None:
    victim = next((folder / "shapenet_pc").glob(f"{SYNSETS[1]}-test*"))
    lists = folder / "ShapeNet-55"
    cloud = np.load(victim)
    if kind == "missing":
        victim.unlink()
    elif kind == "text":
        victim.write_text("hello")
    elif kind == "cut":
        victim.write_bytes(victim.read_bytes()[:200])
    elif kind == "pickle":
        np.save(victim, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "plain pickle":
        victim.write_bytes(pickle.dumps(cloud))
    elif kind == "nan":
        cloud[7, 1] = np.nan
        np.save(victim, cloud)
    elif kind == "shape":
        np.save(victim, cloud[:, :2])
    elif kind == "size":
        np.save(victim, cloud[:30])
    elif kind == "empty":
        np.save(victim, cloud[:0])
    elif kind == "list":
        (lists / "test.txt").write_text("../02691156-a.npy\n")
    elif kind == "no list":
        (lists / "test.txt").unlink()
    elif kind == "folder":
        lists.rename(folder / "lists")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"03001627-test.*\.npy: missing, but listed"),
        ("text", r"03001627-test.*\.npy: no readable array of points"),
        ("cut", r"03001627-test.*\.npy: no readable array of points"),
        ("pickle", r"03001627-test.*\.npy: no readable array of points"),
        ("plain pickle", r"03001627-test.*\.npy: no readable array of points"),
        ("nan", "point 7 is NaN or infinite"),
        ("shape", r"float32 \(40, 2\), not numbers"),
        ("size", "has 30 points, and shapenet_pc/02691156-.* has 40"),
        ("empty", "an empty cloud"),
        ("list", r"test\.txt: '\.\./02691156-a\.npy' is no file name"),
        ("no list", r"test\.txt: missing"),
        ("folder", "no ShapeNet55 in it; looked for the folders shapenet_pc and ShapeNet-55"),
    ],
)
def test_faults_are_named_in_one_line(folder, kind, message):
    spoil(folder, kind)
    with pytest.raises(Ewa3dError, match=message) as caught:
        ShapeNet55(folder, "test")
    assert "\n" not in str(caught.value)


def test_an_unknown_split_and_a_fraction_that_leaves_nothing_are_named(folder):
    with pytest.raises(Ewa3dError, match="ShapeNet55 has no split 'valid'"):
        ShapeNet55(folder, "valid")
    with pytest.raises(Ewa3dError, match="leaves no shape for 'val'"):
        ShapeNet55(folder, "val", val_fraction=0)
