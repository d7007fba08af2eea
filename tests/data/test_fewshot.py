"""Few-shot episodes: cut from ModelNet40, and read from pickles as the field publishes them."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ewa3d.data import create_dataset
from ewa3d.data.fewshot import FewShotModelNet40, PublishedFewShot
from ewa3d.data.modelnet40 import ModelNet40
from ewa3d.errors import Ewa3dError

CLASSES = [f"thing_{i}" for i in range(12)]


@pytest.fixture
def modelnet(tmp_path) -> Path:
    """12 classes with 22 training and 21 test shapes, in the official hdf5 layout."""
    folder = tmp_path / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    (folder / "shape_names.txt").write_text("\n".join(CLASSES))
    for seed, (split, count) in enumerate((("train", 22), ("test", 21))):
        (folder / f"{split}_files.txt").write_text(f"ply_data_{split}0.h5\n")
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = np.random.RandomState(seed).randn(12 * count, 8, 3).astype(np.float32)
            file["label"] = (np.arange(12 * count) % 12)[:, None].astype(np.uint8)
    return folder


def facts(root: Path, **options: int) -> tuple:
    train, test = (FewShotModelNet40(root, split, **options) for split in ("train", "test"))
    assert train.class_names == test.class_names
    return train.class_names, train.sources, test.sources


@pytest.mark.parametrize(("way", "shot"), [(5, 10), (5, 20), (10, 10), (10, 20)])
def test_an_episode_has_way_classes_of_shot_training_and_20_test_shapes(modelnet, way, shot):
    train, test = (FewShotModelNet40(modelnet, split, way=way, shot=shot, fold=3) for split in ("train", "test"))
    assert torch.bincount(train.labels).tolist() == [shot] * way
    assert torch.bincount(test.labels).tolist() == [20] * way
    assert len(set(train.sources)) == way * shot and len(set(test.sources)) == way * 20
    whole = ModelNet40(modelnet, "trainval")
    for cloud in (0, way * shot - 1):
        place = whole.sources.index(train.source(cloud))
        assert torch.equal(train.points[cloud], whole.points[place])
        assert train.class_names[train.labels[cloud]] == whole.class_names[whole.labels[place]]


def test_test_shapes_are_of_the_official_test_split(modelnet):
    _, train, test = facts(modelnet, way=5, shot=20, fold=0)
    assert all(source.startswith("ply_data_train0") for source in train)
    assert all(source.startswith("ply_data_test0") for source in test)


def test_an_episode_follows_from_way_shot_and_fold_alone(modelnet):
    first = facts(modelnet, way=5, shot=10, fold=0)
    torch.manual_seed(7)
    np.random.seed(7)
    assert facts(modelnet, way=5, shot=10, fold=0) == first
    others = [facts(modelnet, way=5, shot=10, fold=fold) for fold in range(1, 10)]
    others += [facts(modelnet, way=5, shot=20, fold=0), facts(modelnet, way=10, shot=10, fold=0)]
    assert all(other != first for other in others)
    assert len({tuple(classes) for classes, _, _ in others[:9]}) > 5
    # Pinned: an episode must be the same on every machine and with every NumPy.
    assert first[0] == [f"thing_{i}" for i in (0, 3, 4, 9, 10)]
    assert first[1][:3] == [f"ply_data_train0.h5:{row}" for row in (204, 156, 0)]


def test_what_an_episode_cannot_be_cut_from_is_named(modelnet):
    def refused(match: str, split: str = "train", **options: int) -> None:
        with pytest.raises(Ewa3dError, match=match) as error:
            FewShotModelNet40(modelnet, split, **{"way": 5, "shot": 10, "fold": 0, **options})
        assert "\n" not in str(error.value)

    refused(r"data\.way=13: ModelNet40 here has 12 classes", way=13)
    refused(r"thing_\d+ has 22 shapes in the official trainval split where this episode takes 23", shot=23)
    refused("no split 'val': take train or test", "val")


# Published


def episode(way: int = 5, shot: int = 10, label=int) -> dict[str, list]:
    draw = np.random.RandomState(way)
    rows = {
        split: [
            ((draw.randn(16, 6) * 2 + 3).astype(np.float32), label(new), label(7 * new + 2))
            for new in range(way)
            for _ in range(count)
        ]
        for split, count in (("train", shot), ("test", 20))
    }
    return {split: [of[i] for i in draw.permutation(len(of))] for split, of in rows.items()}


def write(folder: Path, content: object, name: str = "5way_10shot/0.pkl", protocol: int = 4) -> Path:
    path = folder / "ModelNetFewshot" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("label", [int, np.int64, lambda i: np.array([i], dtype=np.int32)])
def test_a_published_episode_is_read_in_its_order_and_normalised(tmp_path, protocol, label):
    content = episode(label=label)
    write(tmp_path, content, protocol=protocol)
    for split, count in (("train", 50), ("test", 100)):
        data = create_dataset("modelnet40_fewshot_published", split, root=tmp_path, way=5, shot=10, fold=0)
        assert len(data) == count and data.class_names == ["class 2", "class 9", "class 16", "class 23", "class 30"]
        assert data.labels.tolist() == [int(np.asarray(new).item()) for _, new, _ in content[split]]
        points = content[split][9][0][:, :3].astype(np.float64)
        points -= points.mean(0)
        points /= np.linalg.norm(points, axis=1).max()
        torch.testing.assert_close(data.points[9], torch.tensor(points, dtype=torch.float32), rtol=0, atol=1e-6)
        assert data.source(9) == f"0.pkl:{split} 9"


def test_way_shot_and_fold_name_the_file(tmp_path):
    write(tmp_path, episode(10, 20), "10way_20shot/7.pkl")
    assert len(PublishedFewShot(tmp_path, way=10, shot=20, fold=7)) == 200
    assert len(PublishedFewShot(tmp_path / "ModelNetFewshot", way=10, shot=20, fold=7)) == 200
    write(tmp_path, episode(5, 20), "5way20shot/1.pkl")  # as the data set's description spells it
    assert len(PublishedFewShot(tmp_path, way=5, shot=20, fold=1)) == 100


def without(content: dict, split: str) -> dict:
    return {name: rows for name, rows in content.items() if name != split}


def changed(content: dict, row: tuple) -> dict:
    return content | {"train": [row, *content["train"][1:]]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], r"has no 'train', a list of"),
        (without(episode(), "test"), r"has no 'test', a list of"),
        (changed(episode(), (1, 2)), r"has no 'train', a list of"),
        (changed(episode(), ("text", 0, 2)), r"0\.pkl:train 0: a cloud is no array"),
        (changed(episode(), (np.ones((16, 6)), 0.5, 2)), r"0\.pkl:train 0: a label is no single integer"),
        (changed(episode(), (np.ones((16, 6)), 5, 2)), "its labels are not 0 to 4"),
        (changed(episode(), (np.ones((16, 6)), 0, 9)), "its labels are not 0 to 4"),
        (episode(5, 20), r"has \[20, 20, 20, 20, 20\] training shapes .* 5-way 10-shot has 10 of each"),
        (episode(6, 10), "its labels are not 0 to 4"),
        (changed(episode(), (np.full((16, 6), np.nan), *episode()["train"][0][1:])), "point 0 is NaN or infinite"),
    ],
)
def test_a_pickle_that_is_no_such_episode_is_named(tmp_path, content, match):
    write(tmp_path, content)
    with pytest.raises(Ewa3dError, match=match) as error:
        PublishedFewShot(tmp_path, way=5, shot=10, fold=0)
    assert "\n" not in str(error.value) and "0.pkl" in str(error.value)


def test_an_episode_that_is_missing_is_named(tmp_path):
    with pytest.raises(Ewa3dError, match=r"has no 3\.pkl in ModelNetFewshot/5way_10shot.*datasets/README\.md"):
        PublishedFewShot(tmp_path, way=5, shot=10, fold=3)
    write(tmp_path, episode())
    with pytest.raises(Ewa3dError, match="no split 'trainval': take train or test"):
        PublishedFewShot(tmp_path, "trainval", way=5, shot=10, fold=0)


class Evil:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_anything_else_in_it_is_refused_and_not_run(tmp_path, protocol):
    victim = tmp_path / "made"
    write(tmp_path, episode() | {"more": Evil(victim)}, protocol=protocol)
    with pytest.raises(Ewa3dError, match="only plain NumPy arrays are read"):
        PublishedFewShot(tmp_path, way=5, shot=10, fold=0)
    assert not victim.exists()


# The real data


def test_episodes_of_the_real_modelnet40(real_data):
    if not any(real_data.glob("modelnet40_ply_hdf5_*")):
        pytest.skip("EWA3D_DATASETS has no modelnet40_ply_hdf5_*")
    train, test = (FewShotModelNet40(real_data, split, way=10, shot=20, fold=9) for split in ("train", "test"))
    assert (len(train), len(test)) == (200, 200) and train.class_names == test.class_names
    torch.testing.assert_close(train.points.norm(dim=-1).amax(1), torch.ones(200))
