"""The data doctor: every layout whole, and broken in each way that it should see."""

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from ewa3d.data.check import check, main, unlike_published
from ewa3d.data.part_map import SHAPENETPART, SYNSETS
from ewa3d.errors import Ewa3dError

CLASSES = ["airplane", "night_stand", "vase"]
POINTS = 40
TABLE, MUG = "04379243", "03797390"


def cloud(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randn(POINTS, 3).astype(np.float32).round(5)


def write_h5(path: Path, seed: int, count: int = 6, **more: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = np.stack([cloud(seed + row) for row in range(count)])
        file["label"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
        for name, values in more.items():
            file[name] = values


def modelnet_hdf5(root: Path) -> Path:
    folder = root / "modelnet40_ply_hdf5_2048"
    for split, names in (("train", ["ply_data_train0.h5", "ply_data_train1.h5"]), ("test", ["ply_data_test0.h5"])):
        for i, name in enumerate(names):
            write_h5(folder / name, 100 * i + 1000 * (split == "test"))
        (folder / f"{split}_files.txt").write_text("".join(f"data/{name}\n" for name in names))
    (folder / "shape_names.txt").write_text("\n".join(CLASSES))
    return folder


def modelnet_lists(folder: Path) -> dict[str, list[str]]:
    folder.mkdir(parents=True)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES))
    ids = {
        "train": [f"{name}_000{i}" for name in CLASSES for i in range(2)],
        "test": [f"{name}_0009" for name in CLASSES],
    }
    for split, names in ids.items():
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(names))
    return ids


def modelnet_text(root: Path) -> Path:
    folder = root / "modelnet40_normal_resampled"
    ids = modelnet_lists(folder)
    for seed, name in enumerate(ids["train"] + ids["test"]):
        path = folder / name.rpartition("_")[0] / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, cloud(seed), fmt="%.5f", delimiter=",")
    return folder


def modelnet_dat(root: Path) -> Path:
    folder = root / "modelnet40_normal_resampled"
    for seed, (split, names) in enumerate(modelnet_lists(folder).items()):
        content = [cloud(10 * seed + i) for i in range(len(names))], [np.array([i % 3]) for i in range(len(names))]
        (folder / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(list(content)))
    return folder


def scanobjectnn(root: Path) -> Path:
    folder = root / "ScanObjectNN"
    for i, name in enumerate(("training_objectdataset.h5", "test_objectdataset.h5")):
        write_h5(folder / "main_split" / name, 100 * i)
    return folder


def shapenet55(root: Path) -> Path:
    folder = root / "ShapeNet55-34"
    (folder / "shapenet_pc").mkdir(parents=True)
    (folder / "ShapeNet-55").mkdir()
    for seed, split in enumerate(("train", "test")):
        names = [f"{synset}-{split}{i}.npy" for synset in (TABLE, MUG) for i in range(2)]
        (folder / "ShapeNet-55" / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            np.save(folder / "shapenet_pc" / name, cloud(10 * seed + i))
    return folder


def parts_text(folder: Path, synsets: dict[str, tuple[str, int]]) -> Path:
    """A shape a synset and split; ``synsets`` are names and one part."""
    (folder / "train_test_split").mkdir(parents=True)
    lines = [f"{name}\t{synset}" for synset, (name, _) in synsets.items()]
    (folder / "synsetoffset2category.txt").write_text("\n".join(lines))
    for seed, split in enumerate(("train", "val", "test")):
        listed = [f"shape_data/{synset}/{split}" for synset in synsets]
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(listed))
        for i, (synset, (_, part)) in enumerate(synsets.items()):
            (folder / synset).mkdir(exist_ok=True)
            table = np.concatenate([cloud(10 * seed + i), np.full((POINTS, 1), part)], axis=1)
            np.savetxt(folder / synset / f"{split}.txt", table, fmt="%.5f")
    return folder


def first_part(synset: str) -> int:
    return SHAPENETPART.range_of(list(SYNSETS).index(synset)).start


def shapenetpart_text(root: Path) -> Path:
    synsets = {synset: (SYNSETS[synset], first_part(synset)) for synset in (TABLE, MUG)}
    return parts_text(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal", synsets)


def own_parts(root: Path) -> Path:
    folder = parts_text(root / "my_cups", {"90": ("Cup", 1), "91": ("Lamp", 2)})
    parts = {
        "Cup": {"synset": "90", "first_part": 0, "parts": ["body", "handle"]},
        "Lamp": {"synset": "91", "first_part": 2, "parts": ["foot"]},
    }
    (folder / "parts.json").write_text(json.dumps(parts))
    return folder


def shapenetpart_hdf5(root: Path) -> Path:
    folder = root / "hdf5_data"
    for seed, split in enumerate(("train", "val", "test")):
        path = folder / f"ply_data_{split}0.h5"
        write_h5(path, 100 * seed, pid=np.repeat([[0], [4], [6]] * 2, POINTS, axis=1))
    return folder


def episodes(root: Path) -> Path:
    folder = root / "ModelNetFewshot"
    (folder / "5way_10shot").mkdir(parents=True)
    for fold in range(10):
        rows = {
            split: [(cloud(99 * fold + i), np.array([i % 5]), np.array([30 + i % 5])) for i in range(count)]
            for split, count in (("train", 50), ("test", 5))
        }
        (folder / "5way_10shot" / f"{fold}.pkl").write_bytes(pickle.dumps(rows))
    return folder


WRITERS = {
    modelnet_hdf5: ("modelnet40", "hdf5", {"train": 12, "test": 6}),
    modelnet_text: ("modelnet40", "text", {"train": 6, "test": 3}),
    modelnet_dat: ("modelnet40", "dat", {"train": 6, "test": 3}),
    scanobjectnn: ("scanobjectnn_obj_bg", "hdf5", {"train": 6, "test": 6}),
    shapenet55: ("shapenet55", "npy", {"train": 4, "test": 4}),
    shapenetpart_text: ("shapenetpart", "text", {"train": 2, "val": 2, "test": 2}),
    shapenetpart_hdf5: ("shapenetpart", "hdf5", {"train": 6, "val": 6, "test": 6}),
    own_parts: ("shapenetpart", "text", {"train": 2, "val": 2, "test": 2}),
    episodes: ("modelnet40_fewshot_published", "pkl", {"5way_10shot": 10}),
}


def faults(root: Path, full: bool = False) -> list[str]:
    report = check(root, full=full)
    out = report.faults + [fault for found in report.sets for fault in found.faults]
    assert bool(out) != report.ok
    assert all(fault in str(report) for fault in out) and all(fault.isprintable() for fault in out)
    return out


# What is whole


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_every_layout_is_found_and_counted_wherever_one_points(tmp_path, write, full):
    folder = write(tmp_path / "root")
    for root in (tmp_path / "root", folder):
        report = check(root, full=full)
        (found,) = report.sets
        name, layout, counts = WRITERS[write]
        assert (found.name, found.layout) == (name, layout)
        assert found.folder in (folder, folder / "main_split")
        assert found.counts == (counts if full or layout != "dat" else {"train": None, "test": None})
        assert report.ok and not report.unknown, str(report)


def test_all_sets_of_a_folder_are_told_in_a_table_with_what_was_published(tmp_path, capsys):
    for write in (modelnet_hdf5, modelnet_text, scanobjectnn, own_parts):
        write(tmp_path)
    (tmp_path / "holidays").mkdir()
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    table = [line.split() for line in said if not line.startswith(" ")]
    assert [row[:3] for row in table[:4]] == [
        ["scanobjectnn_obj_bg", "hdf5", "ScanObjectNN/main_split"],
        ["modelnet40", "text", "modelnet40_normal_resampled"],
        ["modelnet40", "hdf5", "modelnet40_ply_hdf5_2048"],
        ["shapenetpart", "text", "my_cups"],
    ]
    text = "\n".join(said)
    assert "train 12 (published 9,843), test 6 (published 2,468)" in text
    assert "train 2, val 2, test 2\n" in text, "of one's own set nothing is published"
    assert text.count("note: not the published set") == 3
    assert "no data set in: holidays" in text


def test_the_published_counts_are_told_as_such(tmp_path):
    folder = modelnet_hdf5(tmp_path)
    for split, count in (("train1", 9834), ("test0", 2468)):  # 6 and 9,834 are the 9,840 of the official release
        with h5py.File(folder / f"ply_data_{split}.h5", "w") as file:
            file.create_dataset("data", (count, 2048, 3), "f4")  # heads only: no byte of it is written
            file.create_dataset("label", (count, 1), "u1")
    report = check(tmp_path)
    assert str(report).splitlines()[0].endswith("train 9,840, test 2,468: as published")
    assert not report.sets[0].notes and unlike_published("modelnet40", tmp_path) is None


def test_hdf5_files_with_parts_are_a_part_set_whatever_their_folder_is_called(tmp_path):
    shapenetpart_hdf5(tmp_path).rename(tmp_path / "anything")
    write_h5(tmp_path / "else" / "my_train.h5", 0)
    report = check(tmp_path)
    assert [found.name for found in report.sets] == ["shapenetpart"] and report.sets[0].folder.name == "anything"
    assert [path.name for path in report.unknown] == ["else"]


# What is missing


@pytest.mark.parametrize(
    ("write", "lost"),
    [
        (modelnet_hdf5, "ply_data_train1.h5"),
        (modelnet_hdf5, "test_files.txt"),
        (modelnet_hdf5, "shape_names.txt"),
        (modelnet_text, "vase/vase_0001.txt"),
        (modelnet_text, "modelnet40_test.txt"),
        (modelnet_dat, "modelnet40_test_8192pts_fps.dat"),
        (scanobjectnn, "main_split/test_objectdataset.h5"),
        (shapenet55, f"shapenet_pc/{MUG}-train1.npy"),
        (shapenet55, "ShapeNet-55/test.txt"),
        (shapenetpart_text, f"{MUG}/val.txt"),
        (shapenetpart_text, "train_test_split/shuffled_val_file_list.json"),
        (shapenetpart_text, "synsetoffset2category.txt"),
    ],
)
def test_what_is_missing_is_named(tmp_path, write, lost):
    folder = write(tmp_path)
    (folder / lost).unlink()
    (fault,) = faults(tmp_path)
    assert fault.startswith(f"{folder / lost}: missing")


def test_many_missing_files_of_a_folder_are_one_line_and_no_other_is_lost(tmp_path):
    folder = modelnet_text(tmp_path)
    shutil.rmtree(folder / "airplane")
    (folder / "vase" / "vase_0009.txt").unlink()
    first, second = faults(tmp_path)
    assert "airplane_0000.txt (and 2 more of the 3 there): missing, but listed" in first
    assert "vase_0009.txt: missing" in second


@pytest.mark.parametrize("name", ["modelnet40_ply_hdf5_2048", "ShapeNet55-34", "hdf5_data", "ScanObjectNN"])
def test_an_empty_folder_that_is_called_as_a_set_lacks_it(tmp_path, name):
    (tmp_path / name).mkdir()
    (fault,) = faults(tmp_path)
    assert str(tmp_path / name) in fault and "looked for" in fault


def test_where_there_is_nothing_it_says_how_to_get_data(tmp_path):
    (fault,) = faults(tmp_path)
    assert "no data set" in fault and "datasets/README.md" in fault


# What is broken


def test_quick_sees_files_that_are_cut_or_empty(tmp_path):
    hdf5, text = modelnet_hdf5(tmp_path), modelnet_text(tmp_path)
    path = hdf5 / "ply_data_train0.h5"
    path.write_bytes(path.read_bytes()[:-500])
    write_h5(hdf5 / "ply_data_test0.h5", 0)
    with h5py.File(hdf5 / "ply_data_test0.h5", "a") as file:
        del file["label"]
    (text / "vase" / "vase_0000.txt").write_text("")
    said = sorted(faults(tmp_path))
    assert len(said) == 3
    assert "vase_0000.txt: an empty file" in said[0]
    assert "ply_data_test0.h5: data is (6, 40, 3) and label None" in said[1]
    assert "ply_data_train0.h5: not a whole HDF5 file" in said[2]


def test_full_names_every_broken_cloud_of_hdf5_files(tmp_path):
    folder = modelnet_hdf5(tmp_path)
    with h5py.File(folder / "ply_data_train0.h5", "a") as file:
        file["data"][1, 7] = np.nan
        file["data"][2] = 0.5
        file["label"][4] = 40
    with h5py.File(folder / "ply_data_test0.h5", "a") as file:
        file["data"][:] = np.inf
    assert not faults(tmp_path)
    said = faults(tmp_path, full=True)
    assert len(said) == 3 + 4
    assert "ply_data_train0.h5:1: point 7 is NaN or infinite" in said[0]
    assert "ply_data_train0.h5:2: has 1 distinct points of 40" in said[1]
    assert "ply_data_train0.h5:4: label 40 is out of range, shape_names.txt names 3 classes" in said[2]
    assert "ply_data_test0.h5: 3 more of its clouds are broken" in said[-1]


def test_full_names_every_broken_text_file(tmp_path):
    folder = modelnet_text(tmp_path)
    broken = {"airplane/airplane_0000": "1,2\n", "vase/vase_0001": "1,2,x\n", "vase/vase_0009": "1,2,nan\n"}
    for name, content in broken.items():
        (folder / f"{name}.txt").write_text(content)
    said = faults(tmp_path, full=True)
    assert len(said) == 3 and all(f"{name}.txt, line 1" in line for name, line in zip(broken, said, strict=True))


def test_full_names_parts_of_another_category(tmp_path):
    folder = shapenetpart_hdf5(tmp_path)
    with h5py.File(folder / "ply_data_val0.h5", "a") as file:
        file["pid"][3, 5] = 49
    (fault,) = faults(tmp_path, full=True)
    assert "ply_data_val0.h5:3: point 5 has part 49" in fault


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (modelnet_dat, "modelnet40_train_8192pts_fps.dat"),
        (shapenet55, f"shapenet_pc/{TABLE}-test0.npy"),
        (episodes, "5way_10shot/3.pkl"),
    ],
)
def test_full_reads_arrays_and_pickles_too(tmp_path, write, name):
    folder = write(tmp_path)
    (folder / name).write_bytes(b"not at all an array")
    assert not faults(tmp_path)
    (fault,) = faults(tmp_path, full=True)
    assert fault.startswith(f"{folder / name}: ")


def test_broken_lists_are_named_and_the_rest_is_checked(tmp_path):
    folder = modelnet_text(tmp_path)
    with (folder / "modelnet40_train.txt").open("a") as file:
        file.write("\nzeppelin_0001\nboat_0002\n../vase_0003")
    (folder / "vase" / "vase_0009.txt").unlink()
    said = faults(tmp_path)
    assert [name in fault for name, fault in zip(("zeppelin", "boat", "../vase", "vase_0009"), said, strict=True)]


def test_a_shape_in_two_lists_is_a_fault_of_ones_own_set_only(tmp_path):
    for folder in (own_parts(tmp_path), shapenetpart_text(tmp_path)):
        listed = [folder / "train_test_split" / f"shuffled_{split}_file_list.json" for split in ("train", "test")]
        shutil.copy(listed[0], listed[1])
    (fault,) = faults(tmp_path, full=True)
    assert "my_cups/90/train.txt (and 1 more): is in two of the lists" in fault


# What is worth knowing


def test_the_same_cloud_in_two_splits_is_a_note(tmp_path):
    folder = modelnet_hdf5(tmp_path)
    with h5py.File(folder / "ply_data_test0.h5", "a") as file:
        for row in (1, 4):
            file["data"][row] = cloud(row)[::-1]  # of train0, in another order
        file["label"][4] = 0  # there 1
    report = check(tmp_path, full=True)
    assert report.ok
    copies = [note for note in report.sets[0].notes if "point for point" in note]
    assert copies == [
        "2 of test's clouds are also in train, point for point (such as ply_data_test0.h5:1: ply_data_train0.h5:1); "
        "1 with another label"
    ]


def test_training_is_told_in_a_line_where_the_counts_are_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path))
    assert unlike_published("modelnet40") is None, "it is for the loader to say that there is none"
    folder = modelnet_text(tmp_path)
    scanobjectnn(tmp_path)
    for name in ("modelnet40", "modelnet40_fewshot"):
        line = unlike_published(name)
        assert line is not None and line.startswith(f"{folder}: train 6 (published 9,843), test 3 (published 2,468)")
        assert line.endswith(f"(python -m ewa3d.data.check {folder})")
    assert "published 2,309" in (unlike_published("scanobjectnn_obj_bg") or "")
    assert unlike_published("shapes") is None
    assert unlike_published("shapenetpart", own_parts(tmp_path)) is None


# The command line


def test_exit_codes(tmp_path, capsys):
    folder = modelnet_hdf5(tmp_path)
    assert main([str(tmp_path)]) == 0
    (folder / "ply_data_test0.h5").unlink()
    assert main([str(tmp_path), "--full"]) == 1
    assert "fault: " in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ") and len(said.err.splitlines()) == 1
    with pytest.raises(Ewa3dError, match="no such folder"):
        check(tmp_path / "nowhere")


def test_a_thousand_faults_are_not_printed_one_by_one(tmp_path):
    folder = modelnet_text(tmp_path)
    ids = [f"vase_{i:04d}" for i in range(1000, 1100)]
    for name in ids:
        (folder / "vase" / f"{name}.txt").write_text("")
    (folder / "modelnet40_train.txt").write_text("\n".join(ids))
    report = check(tmp_path)
    assert len(report.sets[0].faults) == 100 and "and 80 more faults" in str(report)
    assert len(str(report).splitlines()) < 30


def test_the_real_data_is_whole(real_data):
    report = check(real_data)
    assert report.ok, str(report)
    assert {"modelnet40", "shapenetpart"} <= {found.name for found in report.sets}
