"""Files that are made to do harm: names that lead out of a folder, small files of large content, code."""

import io
import json
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from cloud_files import POINTS, obj, put, refused, rich_obj

from ewa3d.data import ModelNet40, PublishedFewShot, ShapeNet55, ShapeNetPart
from ewa3d.data.download import Release, extract, find_layout
from ewa3d.data.io import read_cloud
from ewa3d.data.pickles import load_arrays
from ewa3d.errors import Ewa3dError

OUTSIDE = [
    "../secret",
    "../../../../etc/passwd",
    "/etc/passwd",
    "..\\secret",
    "C:\\secret",
    "C:secret",
    "..",
    "a\0b",
    "é" * 150,
]
OPENED: list[str] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


@pytest.fixture(autouse=True)
def nothing_outside_is_opened(tmp_path):
    secret = put(tmp_path / "secret", b"1,2,3\n")
    for suffix in (".txt", ".h5", ".npy"):
        put(tmp_path / f"secret{suffix}", secret.read_bytes())
    OPENED.clear()
    yield
    assert not [path for path in OPENED if "secret" in path or path.startswith("/etc/passwd")]


def put_all(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def says(*parts: str):
    """One line with all of these."""
    return pytest.raises(Ewa3dError, match="^" + "".join(f"(?=.*(?:{part}))" for part in parts) + r"[^\n]*$")


# Lists


@pytest.mark.parametrize("name", OUTSIDE)
def test_modelnet40_s_lists_stay_in_the_folder(name, tmp_path):
    rows = "1,2,3,0,0,1\n" * 3
    text = {"modelnet40_shape_names.txt": "a\n", "a/a_1.txt": rows, "modelnet40_train.txt": f"a_1\na_{name}\n"}
    with says(r"modelnet40_train\.txt: 'a_|/text/a/a_\.\.\.txt: missing"):
        ModelNet40(put_all(tmp_path / "text", text), "trainval", cache=False)
    text["modelnet40_shape_names.txt"] = f"a\n{name}\n"  # a class of that name
    text["modelnet40_train.txt"] = f"a_1\n{name}_1\n"
    with says(r"modelnet40_train\.txt: '"):
        ModelNet40(put_all(tmp_path / "text", text), "trainval", cache=False)
    # of the official hdf5 lists, which have paths of another machine, only the last part counts
    hdf5 = {"shape_names.txt": "a\n", "train_files.txt": f"{name}.h5\n"}
    with says(r"train_files\.txt", "is no name of a file inside the folder|missing, but"):
        ModelNet40(put_all(tmp_path / "hdf5", hdf5), "trainval")


@pytest.mark.parametrize("name", OUTSIDE)
def test_shapenetpart_s_lists_stay_in_the_folder(name, tmp_path):
    folder = {
        "synsetoffset2category.txt": "Chair 03001627\n",
        "03001627/a.txt": "1 2 3 0 0 1 12\n",
        "parts.json": json.dumps({"Chair": {"synset": "03001627", "first_part": 0, "parts": ["seat"]}}),
    }
    for entry in (f"shape_data/03001627/{name}", f"shape_data/{name}/a", f"{name}/03001627/{name}"):
        folder["train_test_split/shuffled_train_file_list.json"] = json.dumps([entry])
        with says(r"shuffled_train_file_list\.json: '", "inside the folder|not known"):
            ShapeNetPart(put_all(tmp_path / "set", folder), cache=False)
    # a synset that leads out, which both files of categories know
    folder["parts.json"] = folder["parts.json"].replace('"03001627"', json.dumps(name))
    folder["synsetoffset2category.txt"] = f"Chair {name}\n"
    with says("set/"):
        ShapeNetPart(put_all(tmp_path / "set", folder), cache=False)


@pytest.mark.parametrize("name", OUTSIDE)
def test_shapenet55_s_lists_stay_in_the_folder(name, tmp_path):
    for entry in (f"{name}-a.npy", f"02691156-{name}.npy", f"{name}.npy"):
        folder = {"shapenet_pc/02691156-a.npy": b"", "ShapeNet-55/train.txt": f"{entry}\n"}
        with says(r"train\.txt: '|/shapenet_pc/02691156-\.\.\.npy: missing|/shapenet_pc/\.\.-a\.npy: missing"):
            ShapeNet55(put_all(tmp_path / "set", folder), "trainval")


def test_a_list_names_nothing_twice(tmp_path):
    """A line of a list may be 14 letters and its cloud a quarter of a megabyte."""
    text = {"modelnet40_shape_names.txt": "a\n", "a/a_1.txt": "1,2,3\n", "modelnet40_train.txt": "a_1\n" * 3}
    with says(r"modelnet40_train\.txt: names 'a_1' twice"):
        ModelNet40(put_all(tmp_path / "text", text), "trainval", cache=False)
    hdf5 = {"shape_names.txt": "a\n", "train_files.txt": "x/a.h5\ny/a.h5\n", "a.h5": b""}
    with says(r"train_files\.txt: names 'a\.h5' twice"):
        ModelNet40(put_all(tmp_path / "hdf5", hdf5), "trainval")
    folder = {"shapenet_pc/1-a.npy": b"", "ShapeNet-55/train.txt": "1-a.npy\n" * 2}
    with says(r"train\.txt: names '1-a\.npy' twice"):
        ShapeNet55(put_all(tmp_path / "set", folder), "trainval")


def test_an_obj_opens_no_other_file(tmp_path):
    for content in (obj(), rich_obj()):
        content = content.replace(b"mtllib absent.mtl", b"")
        path = put(tmp_path / "a.obj", b"mtllib secret\nmtllib ../../../../etc/passwd\nmap_Kd secret\n" + content)
        assert read_cloud(path, mesh_points=10).is_mesh


# Zips


RELEASE = Release("Anything", "", {"list.txt": "anything"}, {}, lambda *_: (0, ""))


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("set/list.txt", b"a"), *members):
            archive.writestr(name, content)
    return path


def refuse_zip(path: Path, *because: str) -> None:
    (out := path.parent / "out").mkdir(exist_ok=True)
    with says(path.name, *because):
        find_layout(path, RELEASE)
        extract(path, out)
    assert [file.name for file in out.rglob("*") if file.is_file()] in ([], ["list.txt"])


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..\\secret", "C:\\secret", "set/../../secret"])
def test_a_zip_writes_in_its_folder_only(name, tmp_path):
    refuse_zip(zipped(tmp_path / "a.zip", (name, b"")), "outside its folder")


def test_a_zip_of_links_devices_and_bombs(tmp_path):
    for kind in (0o120777, 0o020666, 0o010666):
        info = zipfile.ZipInfo("set/data")
        info.external_attr = kind << 16
        refuse_zip(zipped(tmp_path / "a.zip", (info, b"/etc/passwd")), "is a link or a device")
    whole = zipped(tmp_path / "a.zip", ("set/b", bytes(1000))).read_bytes()
    claim = struct.pack("<L", 1000), struct.pack("<L", 3 * 10**9)
    refuse_zip(put(tmp_path / "b.zip", whole.replace(*claim)), "claims 3,000 MB, which it cannot hold")
    refuse_zip(put(tmp_path / "c.zip", whole.replace(b"set/b", b"\0et/b")), "outside its folder")  # a name of no letter
    refuse_zip(zipped(tmp_path / "long.zip", ("set/" + "é" * 200, b"")), "cannot be extracted")
    refuse_zip(zipped(tmp_path / "twice.zip", ("set/list.txt/b", b"")), "cannot be extracted")


def test_small_npz_files_of_large_content(tmp_path):
    header = np.lib.format.magic(2, 0) + struct.pack("<I", 2**32 - 10)  # a header that is all of the memory
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", header + b" " * 10_000_000)
    refused(tmp_path / "a.npz", "not read as .npz")
    content = io.BytesIO()
    np.save(content, POINTS)
    packed = zlib.compress(content.getvalue())
    assert len(packed) < len(content.getvalue())
    put(tmp_path / "b.npz", b"PK\3\4" + packed)
    refused(tmp_path / "b.npz", "not read as .npz")


# Pickles


class Calling:
    def __reduce__(self):
        return (print, ("run",))


def refuse_pickle(path: Path, content: bytes, because: str = "") -> None:
    with says(path.name, because):
        load_arrays(put(path, content))


def test_a_pickle_takes_no_more_than_it_holds(tmp_path):
    path = tmp_path / "a.pkl"
    for content in (
        b"\x80\x04Kr" + b"r\xff\xff\xff\xff.",  # a value to be remembered as number 2³² - 1
        b"K\x01p999999999999\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 10**18),
        b"\x80\x05\x96" + struct.pack("<Q", 10**9),
        b"\x80\x04\x95" + struct.pack("<Q", 10**18),
        b"\x80\x04\x8d" + struct.pack("<Q", 10**9),
        b"T\xff\xff\xff\x7f",
    ):
        put(path, content)
        try:
            load_arrays(path)
        except Ewa3dError as error:
            assert "a.pkl: " in str(error)
    many: list = [np.arange(1000.0)]
    for _ in range(30):
        many = [many, many]
    refuse_pickle(path, pickle.dumps(many), "the same things over and over")
    refuse_pickle(path, pickle.dumps([np.zeros(100_000)] * 1 + [b"x"] * 5)[:-1], "")
    again: list = []
    again.append(again)
    refuse_pickle(path, pickle.dumps(again))
    refuse_pickle(path, pickle.dumps(Calling()), "nothing was run")
    refuse_pickle(path, b"c" + b"a" * 10_000 + b"\nb\n.", "only plain NumPy arrays")


def test_arrays_that_a_pickle_names_a_few_times_are_read(tmp_path):
    cloud = np.arange(30.0).reshape(10, 3)
    for protocol in (2, 3, 4, 5):
        put(tmp_path / "a.pkl", pickle.dumps([cloud, cloud, cloud.astype(np.float32)], protocol))
        for read, written in zip(load_arrays(tmp_path / "a.pkl"), [cloud] * 3, strict=True):
            np.testing.assert_array_equal(read, written)


@pytest.mark.parametrize("row", [1, None, "abc", {"a": 1, "b": 2, "c": 3}, (1, 2), np.zeros(3)])
def test_rows_of_an_episode_that_are_none(row, tmp_path):
    good = (np.zeros((4, 6)), 0, 3)
    for rows in ([row], [good, row], row):
        put_all(tmp_path, {"2way_1shot/0.pkl": pickle.dumps({"train": rows, "test": [good]})})
        with says(r"0\.pkl"):
            PublishedFewShot(tmp_path, way=2, shot=1, fold=0)
    for label in ([[1], [1, 2]], {"a": 1}, "1", None, 0.5):
        put_all(tmp_path, {"2way_1shot/0.pkl": pickle.dumps({"train": [(good[0], label, 0)], "test": [good]})})
        with says(r"0\.pkl", "a label is no single integer"):
            PublishedFewShot(tmp_path, way=2, shot=1, fold=0)


# What else the fuzzer found


def test_headers_of_arrays_that_python_cannot_parse(tmp_path):
    for header in (b"(((\n", b"{'descr': '" + b"[" * 3000, b"\xff\xfe"):
        content = np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header + POINTS.tobytes()
        refused(put(tmp_path / "a.npy", content), "not read as .npy")
        folder = {"shapenet_pc/02691156-a.npy": content, "ShapeNet-55/train.txt": "02691156-a.npy\n"}
        with says(r"02691156-a\.npy: no readable array of points"):
            ShapeNet55(put_all(tmp_path / "set", folder), "trainval")


def test_an_error_quotes_no_more_than_a_line_holds(tmp_path):
    long = "x" * 100_000
    folder = {"modelnet40_shape_names.txt": "a\n", "modelnet40_train.txt": "a_1\n", "a/a_1.txt": f"1,2,{long}\n"}
    with says("line 1: 'xxx") as error:
        ModelNet40(put_all(tmp_path, folder), "trainval", cache=False)
    assert len(str(error.value)) < 1000
    refused(put(tmp_path / "a.pcd", f"FIELDS {long} y z\nSIZE 4 4 4\nTYPE F F\n".encode()), "not read")
    with pytest.raises(Ewa3dError) as error:
        read_cloud(put(tmp_path / "a.ply", f"ply\nformat ascii 1.0\nelement {long} 1 1\nend_header\n".encode()))
    assert len(str(error.value)) < 1000


def test_parts_of_a_set_of_one_s_own_have_a_limit(tmp_path):
    parts = {"Chair": {"synset": "1", "first_part": 0, "parts": [f"p{i}" for i in range(10_001)]}}
    with says("has 10001 parts, and there may be 10000"):
        ShapeNetPart(put_all(tmp_path, {"parts.json": json.dumps(parts), "train0.h5": b""}))
