"""ScanObjectNN: its three variants, its splits, and what damaged or missing files are answered."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ewa3d.data import DATASETS, create_dataset
from ewa3d.data.scanobjectnn import CLASS_NAMES, VARIANTS, ScanObjectNN
from ewa3d.errors import Ewa3dError

FILES = {
    "obj_bg": "main_split/{}_objectdataset.h5",
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}
SIZES = {"obj_bg": (45, 15), "obj_only": (45, 15), "pb_t50_rs": (90, 30)}
POINTS = 16


def clouds(variant: str, split: str) -> np.ndarray:
    """``(n, POINTS, 3)``: off the origin, of any size, different in every file."""
    count = SIZES[variant][split == "test"]
    draw = np.random.RandomState([list(FILES).index(variant), split == "test"])
    return (draw.randn(count, POINTS, 3) * 3 + 5).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    """All three variants in the official layout, mask and all."""
    for variant, name in FILES.items():
        for split in ("training", "test"):
            path = tmp_path / "ScanObjectNN" / name.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = clouds(variant, split)
            with h5py.File(path, "w") as file:
                file["data"] = data
                file["label"] = np.arange(len(data), dtype=np.int32) % 15
                file["mask"] = np.zeros(data.shape[:2], dtype=np.float32)
    return tmp_path / "ScanObjectNN"


def by_hand(values: np.ndarray) -> torch.Tensor:
    points = values.astype(np.float64)
    points = points - points.mean(0)
    return torch.tensor(points / np.linalg.norm(points, axis=1).max(), dtype=torch.float32)


@pytest.mark.parametrize("variant", FILES)
def test_every_variant_reads_its_own_files_and_normalises(folder, variant):
    train, test = ScanObjectNN(variant, folder, "trainval"), ScanObjectNN(variant, folder, "test")
    assert (len(train), len(test)) == SIZES[variant]
    for data, split in ((train, "training"), (test, "test")):
        assert data.points.dtype == torch.float32 and data.labels.dtype == torch.int64
        torch.testing.assert_close(data.points[3], by_hand(clouds(variant, split)[3]), rtol=0, atol=1e-6)
        assert data.labels[:16].tolist() == [*range(15), 0][: len(data)]
        name = Path(FILES[variant].format(split))
        assert data.source(4) == f"{name.name}:4" and data.folder == folder / name.parent


def test_the_benchmark_s_class_names_are_in_its_order(folder):
    wanted = "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
    assert ScanObjectNN("obj_bg", folder, "test").class_names == list(CLASS_NAMES) == wanted.split(" ")


def test_clouds_can_stay_as_they_are_stored(folder):
    data = ScanObjectNN("pb_t50_rs", folder, "test", unit_sphere=False)
    assert np.array_equal(data.points.numpy(), clouds("pb_t50_rs", "test"))


def test_val_is_cut_from_the_official_train(folder):
    train, val, both = (ScanObjectNN("pb_t50_rs", folder, s, val_fraction=0.2) for s in ("train", "val", "trainval"))
    assert torch.bincount(val.labels).tolist() == [1] * 15 and len(train) == 75
    assert sorted(train.sources + val.sources) == sorted(both.sources)


def test_it_is_found_under_the_root_of_data_sets_and_by_name(folder, monkeypatch):
    monkeypatch.setenv("EWA3D_DATASETS", str(folder.parent))
    names = [name for name in DATASETS["classification"] if name.startswith("scanobjectnn")]
    assert [name.removeprefix("scanobjectnn_") for name in names] == list(VARIANTS) == list(FILES)
    for name in names:
        assert create_dataset(name, "test").variant == name.removeprefix("scanobjectnn_")
    raw = create_dataset(names[0], "test", unit_sphere=False)
    assert raw.points.norm(dim=-1).max() > 2
    folder.rename(folder.with_name("h5_files"))
    assert len(create_dataset(names[0], "test")) == 15


def refused(match: str, *args) -> None:
    with pytest.raises(Ewa3dError, match=match) as error:
        ScanObjectNN(*args)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(folder, tmp_path):
    (folder / "main_split_nobg" / "training_objectdataset.h5").unlink()
    refused(
        r"main_split_nobg/training_objectdataset\.h5: missing, and the variant obj_only needs it "
        r"\(variants that are here: obj_bg, pb_t50_rs\).*datasets/README\.md",
        *("obj_only", folder, "train"),
    )
    assert len(ScanObjectNN("obj_only", folder, "test")) == 15
    refused("no variant 'hardest': take one of obj_bg, obj_only, pb_t50_rs", "hardest", folder)
    refused("no split 'validation'", "obj_bg", folder, "validation")
    refused("nowhere: no such folder", "obj_bg", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("no ScanObjectNN in it; looked for main_split", "obj_bg", tmp_path / "empty")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("data", None, "has no dataset 'data'"),
        ("data", np.zeros((15, 16, 2)), r"'data' is float64 \(15, 16, 2\)"),
        ("label", None, "has no dataset 'label'"),
        ("label", np.arange(15) + 1, r"h5:14: label 15 is out of range, ScanObjectNN has 15 classes"),
        ("label", np.arange(15.0), "'label' is float64"),
        ("data", np.full((15, 16, 3), np.nan), r"h5:0: point 0 is NaN or infinite"),
        ("data", np.zeros((15, 0, 3)), r"h5:0: an empty cloud"),
    ],
)
def test_a_file_with_wrong_content_is_named(folder, key, value, match):
    with h5py.File(folder / "main_split" / "test_objectdataset.h5", "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value
    refused(match, "obj_bg", folder, "test")


def test_a_file_that_is_cut_short_is_named(folder):
    path = folder / "main_split" / "test_objectdataset.h5"
    path.write_bytes(path.read_bytes()[:-100])
    refused(r"test_objectdataset\.h5: not a whole HDF5 file", "obj_bg", folder, "test")
