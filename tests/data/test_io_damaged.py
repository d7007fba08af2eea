"""What is no cloud: one clear line, and no memory for what a file only claims."""

import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from cloud_files import (
    LABELLED,
    LABELS,
    MIXED,
    POINTS,
    SIDES,
    TRIANGLES,
    array,
    box_ply,
    obj,
    off,
    pcd,
    ply,
    put,
    read_or_refuse,
    refused,
    stl,
    text,
)
from hypothesis import given
from hypothesis import strategies as st

from ewa3d.data.io import SUFFIXES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_cloud_is_one_line(suffix, tmp_path):
    refused(put(tmp_path / f"empty{suffix}", b""), "it is empty")
    for seed in range(5):
        garbage = np.random.default_rng(seed).bytes(500)
        refused(put(tmp_path / f"garbage{suffix}", garbage), f"not read as {suffix} (")
    for other in (b"PK\3\4 and so on", b"<html><body>Not Found</body></html>", stl(binary=True)):
        if suffix != ".stl" or other != stl(binary=True):
            refused(put(tmp_path / f"other{suffix}", other), f"not read as {suffix} (")
    refused(tmp_path / f"absent{suffix}", "no such file")
    (tmp_path / f"folder{suffix}").mkdir()
    refused(tmp_path / f"folder{suffix}", "is a folder: name a file")


def test_files_without_points(tmp_path):
    for name, content in (
        ("a.txt", b"# nothing\n"),
        ("a.ply", ply("ascii", [], [])),
        ("b.ply", ply("binary_little_endian", [], [])),
        ("a.pcd", pcd("binary", POINTS[:0], [])),
        ("b.pcd", pcd("ascii", POINTS[:0], [])),
        ("a.off", b"OFF\n0 0 0\n"),
        ("a.obj", b"# nothing\n"),
        ("a.stl", b"solid a\nendsolid a\n"),
    ):
        refused(put(tmp_path / name, content), "not read as")
    refused(array("npy", tmp_path / "a.npy", points=POINTS[:0]), "not read as .npy")
    refused(array("npz", tmp_path / "a.npz", points=POINTS[:0]), "it holds no points")
    refused(array("npz", tmp_path / "b.npz"), "its arrays are none")


def test_unknown_kinds_are_named(tmp_path):
    refused(put(tmp_path / "scan.las", b"LASF"), "is of no kind that is read: make it one of .ply .pcd")
    refused(put(tmp_path / "scan", b"1 2 3"), "is of no kind that is read")


def test_arrays_that_are_no_points(tmp_path):
    for i, values in enumerate([np.zeros((5, 2)), np.zeros(5), np.zeros((2, 5, 3)), np.zeros((5, 3), complex)]):
        refused(array("npy", tmp_path / f"{i}.npy", points=values), f"is {values.dtype} {values.shape}, not numbers")
    refused(array("npy", tmp_path / "words.npy", points=np.full((5, 3), "word")), "not numbers (N, 3)")
    for kind in ("npy", "npz"):
        path = tmp_path / f"objects.{kind}"
        (np.save if kind == "npy" else np.savez)(path, np.full((5, 3), None), allow_pickle=True)
        refused(path, f"not read as .{kind}")


@pytest.mark.parametrize("name", LABELLED)
def test_files_cut_short_are_noticed(name, tmp_path):
    for keep in (0.99, 0.9, 0.5):
        content = LABELLED[name][: int(keep * len(LABELLED[name]))]
        refused(put(tmp_path / name, content), "not read as")


def test_a_bad_line_of_text_is_named(tmp_path):
    refused(put(tmp_path / "a.txt", text() + b"1 2 x\n"), "'x'")
    refused(put(tmp_path / "b.txt", text() + b"1 2\n"), "2 columns")


def test_faces_that_are_damaged(tmp_path):
    far = [*TRIANGLES[:-1], (0, 1, 8)]
    for name, content in (
        ("a.off", off(faces=far)),
        ("a.obj", obj(faces=far)),
        ("a.ply", box_ply("ascii", far)),
        ("b.ply", box_ply("binary_little_endian", far)),
        ("c.ply", box_ply("binary_little_endian", [(0, 1, -1)])),
    ):
        refused(put(tmp_path / name, content), f"not read as {name[1:]} (")
    flat = [(0, 0, 0)]
    refused(put(tmp_path / "flat.off", off(faces=flat)), "its faces have no area")
    refused(put(tmp_path / "flat.ply", box_ply("ascii", flat)), "its faces have no area")
    for keep in (0.3, 0.8, 0.95):
        for suffix, content in (("off", off()), ("ply", box_ply("ascii", SIDES)), ("stl", stl(binary=False))):
            refused(put(tmp_path / f"cut.{suffix}", content[: int(keep * len(content))]), f"not read as .{suffix}")
    refused(put(tmp_path / "cut.stl", stl(binary=True)[:-20]), "not read as .stl")
    refused(
        put(tmp_path / "word.stl", stl(binary=False).replace(b"vertex 10.0 0.0 1.0", b"vertex 10.0 ? 1.0", 1)), ".stl"
    )


MANY = 10**9


def claims(folder: Path) -> dict[str, Path]:
    """Small files that claim 10⁹ points."""
    short = {"points": POINTS[:5], "labels": LABELS[:5]}
    files = {f"{kind}.ply": ply(kind, **short) for kind in ("ascii", "binary_little_endian", "binary_big_endian")}
    files = {name: content.replace(b"vertex 5", b"vertex %d" % MANY) for name, content in files.items()}
    for faces in (TRIANGLES, MIXED):
        content = box_ply("binary_little_endian", faces).replace(b"face %d" % len(faces), b"face %d" % MANY)
        files[f"faces{len(faces)}.ply"] = content
    long_list = box_ply("binary_little_endian", [(0, 1, 2)]).replace(b"list uchar int", b"list uint int")
    files["list.ply"] = long_list[:-14] + struct.pack("<I", MANY) + bytes(30)
    for kind in ("ascii", "binary", "binary_compressed"):
        files[f"{kind}.pcd"] = pcd(kind, **short, WIDTH=str(MANY), POINTS=str(MANY))
    packed = pcd("binary_compressed", **short, WIDTH=str(MANY), POINTS=str(MANY))
    at = packed.index(b"compressed\n") + 11
    files["both.pcd"] = packed[: at + 4] + struct.pack("<I", 24 * MANY % 2**32) + packed[at + 8 :]
    files["fields.pcd"] = pcd("binary", **short, COUNT=f"{MANY} 1 1 1 2 1")
    files["a.off"] = f"OFF\n{MANY} {MANY} 0\n0 0 0\n".encode()
    files["a.stl"] = bytes(80) + struct.pack("<I", MANY) + bytes(500)
    paths = {name: put(folder / name, content) for name, content in files.items()}
    for kind in ("npy", "npz"):
        paths[f"a.{kind}"] = array(kind, folder / f"a.{kind}", points=POINTS)
    header = np.lib.format.magic(1, 0) + struct.pack("<H", 118)
    header += f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({MANY}, 3), }}".ljust(117).encode() + b"\n"
    put(paths["a.npy"], header + POINTS.tobytes())
    with zipfile.ZipFile(paths["a.npz"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", header + POINTS.tobytes())
    for name, options in {"chunks.h5": {"chunks": (1000, 3)}, "gzip.h5": {"compression": "gzip"}}.items():
        paths[name] = folder / name
        with h5py.File(paths[name], "w") as file:
            file.create_dataset("points", shape=(MANY, 3), dtype="f4", **options)[:100] = 1
    return paths


def test_claims_are_checked_before_anything_is_allocated(tmp_path):
    for path in claims(tmp_path).values():
        assert path.stat().st_size < 100_000
        tracemalloc.start()  # NumPy's arrays are counted too
        refused(path, "not read as")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6, path


# Anything at all


@st.composite
def damaged(draw, whole: list[bytes]) -> bytes:
    """A good file with some bytes or a piece of it changed."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        until = min(len(content), at + draw(st.sampled_from([0, 1, 1, 4, 50])))
        content[at:until] = draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b" ", b"\n", b"-1", b"99999999999"]))
        )
    return bytes(content)


SMALL = {"points": POINTS[35:45], "labels": LABELS[:10]}
FUZZED = {
    "pcd": [pcd(kind, **SMALL) for kind in ("ascii", "binary", "binary_compressed")],
    "ply": [ply(form, **SMALL) for form in ("ascii", "binary_little_endian", "binary_big_endian")]
    + [box_ply(form, MIXED) for form in ("ascii", "binary_little_endian")],
    "off": [off(), off(head="OFF")],
    "obj": [obj(), obj(faces=MIXED)],
    "stl": [stl(True), stl(False)],
    "txt": [text(**{"points": POINTS[:9]}), text(POINTS[:9], ",")],
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("suffix", FUZZED)
def test_damaged_files_are_read_or_refused(suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / f"a.{suffix}"

    @given(damaged(FUZZED[suffix]))
    def check(content):
        read_or_refuse(path, content)

    check()
