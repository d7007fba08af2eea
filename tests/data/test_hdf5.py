"""HDF5 files in a child process: what it crashes on, hangs over or is led away by is one line."""

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from cloud_files import POINTS, put, read_or_refuse, refused

from ewa3d.data import hdf5
from ewa3d.data.io import read_cloud
from ewa3d.data.reading import read_h5
from ewa3d.errors import Ewa3dError

CLOUDS = np.stack([POINTS, POINTS + 1])


def write(path: Path, **options) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=CLOUDS, **options)
        file.create_dataset("label", data=np.zeros((2, 1), np.uint8))
    return path


def why_not(path: Path) -> str:
    """Why both readers refuse a file."""
    with pytest.raises(Ewa3dError) as one:
        read_h5([path], "get it")
    with pytest.raises(Ewa3dError) as other:
        read_cloud(path)
    for error in (one, other):
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "not a whole HDF5 file" in str(one.value)
    return str(one.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "shuffle": True},
        {"compression": "lzf", "chunks": (1, 7, 3)},
        {"fletcher32": True, "maxshape": (None, None, 3)},
        {"dtype": "f8"},
        {"dtype": ">f4"},
        {"dtype": "f2"},
    ],
)
def test_what_is_stored_is_what_is_read(options, tmp_path):
    path = write(tmp_path / "a.h5", **options)
    with h5py.File(path) as file:
        stored = file["data"][()].astype(np.float32)
    both = read_h5([path, path], "get it")
    np.testing.assert_array_equal(both.clouds.points, np.tile(stored.reshape(-1, 3), (2, 1)))
    assert both.clouds.counts.tolist() == [60] * 4 and both.labels.tolist() == [0] * 4
    np.testing.assert_array_equal(read_cloud(f"{path}:1").points.astype(np.float32), stored[1])


def test_a_file_that_names_other_files_opens_none_of_them(tmp_path):
    """None of them is there: who looked for one would say so."""
    layout = h5py.VirtualLayout(CLOUDS.shape, np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "data", CLOUDS.shape)
    makers = {
        "linked": lambda file: file.__setitem__("data", h5py.ExternalLink("secret.h5", "data")),
        "soft": lambda file: file.update(here=h5py.ExternalLink("secret.h5", "/"), data=h5py.SoftLink("/here/data")),
        "virtual": lambda file: file.create_virtual_dataset("data", layout),
        "external": lambda file: file.create_dataset("data", CLOUDS.shape, np.float32, external="raw"),
    }
    for name, make in makers.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            make(file)
            file["label"] = np.zeros((2, 1), np.uint8)
        said = why_not(tmp_path / f"{name}.h5")
        assert ("is a link to elsewhere" if name in ("linked", "soft") else "lies in other files") in said


def test_a_claim_is_held_against_the_file(tmp_path):
    many = 10**9
    for name, options in {
        "contiguous": {},
        "chunked": {"chunks": (1000, 10, 3)},
        "gzip": {"compression": "gzip", "chunks": (1000, 10, 3)},
    }.items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            item = file.create_dataset("data", (many, 10, 3), "f4", **options)
            if options:
                item[:10] = 1
            file["label"] = np.zeros((2, 1), np.uint8)
        assert path.stat().st_size < 1_000_000
        assert "claims float32 (1000000000, 10, 3)" in why_not(path)
    # a chunk far larger than what is in it: the library would allocate all of it
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("data", (1, 10, 3), "f4", maxshape=(None, 10, 3), chunks=(10**7, 10, 3))
        file["label"] = np.zeros(1, np.uint8)
    assert "claims" in why_not(tmp_path / "chunk.h5")


def test_types_that_are_no_numbers(tmp_path):
    for name, values, kind in (
        ("text", np.full((2, 60, 3), "word", object), h5py.string_dtype()),
        ("fixed", np.full((2, 60, 3), b"word"), None),
        ("fields", np.zeros((2, 60, 3), [("x", "f4"), ("y", "f4")]), None),
        ("complex", np.zeros((2, 60, 3), complex), None),
    ):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=values, dtype=kind)
        with pytest.raises(Ewa3dError, match=r"dataset 'data' is .* and should be numbers"):
            read_h5([tmp_path / f"{name}.h5"], "get it")
        refused(tmp_path / f"{name}.h5", "not numbers")


def instead(monkeypatch, path: Path, act: str) -> None:
    """A child that does ``act`` where it should open a file called ``bad.h5``."""
    code = hdf5._CHILD.read_text().replace('file = h5py.File(request["open"]', f"""
                if request["open"].endswith("bad.h5"):
                    {act}
                file = h5py.File(request["open"]""")  # fmt: skip
    path.write_text(code)
    monkeypatch.setattr(hdf5, "_CHILD", path)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crash_of_the_library_is_one_line(tmp_path, monkeypatch):
    instead(monkeypatch, tmp_path / "child.py", f"os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    good, bad = write(tmp_path / "good.h5"), write(tmp_path / "bad.h5")
    assert "(the HDF5 library crashed on it)" in why_not(bad)
    with pytest.raises(Ewa3dError, match=r"bad\.h5: not a whole HDF5 file"):
        read_h5([good, bad], "get it")
    with hdf5.Reader() as reader:  # and the next file has a new child
        with pytest.raises(ValueError, match="crashed"):
            reader.open(bad, ["data"])
        assert reader.open(good, ["data"])["data"].shape == CLOUDS.shape


def test_a_bit_that_the_library_crashes_on(tmp_path):
    """HDF5 2.0.0 reads memory that is not its own where a scale-offset filter's parameters are wrong."""
    for bit in (2, 4):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("points", data=POINTS[:9], scaleoffset=2)
        content = bytearray((tmp_path / "a.h5").read_bytes())
        content[963] ^= bit  # found by tests/fuzz; elsewhere in files of other versions
        read_or_refuse(tmp_path / "a.h5", bytes(content))


def test_a_hang_of_the_library_is_one_line(tmp_path, monkeypatch):
    instead(monkeypatch, tmp_path / "child.py", "import time; time.sleep(60)")
    monkeypatch.setattr(hdf5, "_PATIENCE", 0.5)
    assert "(the HDF5 library took longer than 0.5 s over it)" in why_not(write(tmp_path / "bad.h5"))


def test_no_child_is_left_behind(tmp_path, monkeypatch):
    started = []
    start = hdf5._start
    monkeypatch.setattr(hdf5, "_start", lambda: started.append(start()) or started[-1])
    path = write(tmp_path / "a.h5")
    read_h5([path] * 3, "get it")
    why_not(put(tmp_path / "no.h5", path.read_bytes()[:900]))
    assert len(started) == 3 and all(child.returncode is not None for child in started)


def test_the_child_takes_no_module_of_the_working_directory(tmp_path):
    path = write(tmp_path / "a.h5")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    code = f"from ewa3d.data.io import read_cloud; print(len(read_cloud({str(path)!r}).points))"
    done = subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", code], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() == "60", done.stderr
