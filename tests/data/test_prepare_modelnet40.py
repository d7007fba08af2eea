"""`datasets/prepare_modelnet40.py`: what it puts where, and what it answers when something is wrong.

What it shares with the other scripts (`ewa3d.data.download`) is tested here.
"""

import hashlib
import io
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from ewa3d.data import download
from ewa3d.data.modelnet40 import ModelNet40

TARGET = "modelnet40_ply_hdf5_2048"


@pytest.fixture
def script(script_named, root):
    return script_named("prepare_modelnet40.py")


def h5_bytes(rows: int, drop: str = "") -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["data"] = np.random.RandomState(0).randn(rows, 16, 3).astype(np.float32)
        file["label"] = (np.arange(rows) % 2).astype(np.uint8)[:, None]
        if drop:
            del file[drop]
    return content.getvalue()


def write_zip(path: Path, *extra: tuple[str | zipfile.ZipInfo, bytes], drop: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{TARGET}/shape_names.txt", "airplane\nvase\n")
        for split, rows in (("train", 6), ("test", 2)):
            archive.writestr(f"{TARGET}/{split}_files.txt", f"data/{TARGET}/ply_data_{split}0.h5\n")
            archive.writestr(f"{TARGET}/ply_data_{split}0.h5", h5_bytes(rows, drop))
        for name, content in extra:
            archive.writestr(name, content)
    return path


def test_a_download_is_extracted_checked_and_can_be_loaded(script, root, served, left):
    folder, url = served
    checksum = hashlib.sha256(write_zip(folder / "data.zip").read_bytes()).hexdigest()
    said = script("--url", f"{url}/data.zip")
    assert f"sha256 of the zip: {checksum} (not checked" in said
    assert "train: 6 clouds of 16 points, 2 classes (the official release has 9,840)" in said
    assert "test: 2 clouds" in said and f"ready: {root / TARGET}" in said
    assert left() == [TARGET]
    assert len(ModelNet40(split="trainval")) == 6


def test_a_second_run_says_so_and_does_nothing(script, root, tmp_path):
    file = write_zip(tmp_path / "mine.zip")
    script("--zip", file)
    before = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    for again in (("--url", "http://127.0.0.1:9/never-asked.zip"), ("--zip", file)):
        assert "already there, nothing to do" in script(*again)
        assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == before


def test_data_that_is_there_but_broken_is_an_error_and_is_left_alone(script, root, tmp_path):
    file = write_zip(tmp_path / "mine.zip")
    script("--zip", file)
    (root / TARGET / "ply_data_test0.h5").write_bytes(b"cut")
    said = script.fails("--zip", file)
    assert "ply_data_test0.h5" in said and "delete the folder" in said
    assert (root / TARGET / "ply_data_test0.h5").read_bytes() == b"cut"


def test_a_zip_that_is_there_is_taken_and_kept_where_it_was(script, tmp_path, left):
    file = write_zip(tmp_path / "mine.zip")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    said = script("--zip", file, "--sha256", checksum, "--root", tmp_path / "other", "--keep-zip")
    assert left(tmp_path / "other") == [TARGET] and file.exists()
    assert "not checked" not in said


def test_keep_zip_keeps_the_downloaded_zip(script, root, served, left):
    folder, url = served
    file = write_zip(folder / "data.zip")
    script("--url", f"{url}/data.zip", "--keep-zip")
    assert (root / f"{TARGET}.zip").read_bytes() == file.read_bytes()
    assert left() == [TARGET, f"{TARGET}.zip"]


def test_a_zip_without_a_folder_of_its_own_is_taken_too(script, tmp_path, left):
    file = write_zip(tmp_path / "mine.zip")
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "flat.zip", "w") as flat:
        for name in whole.namelist():
            flat.writestr(name.rpartition("/")[2], whole.read(name))
    script("--zip", tmp_path / "flat.zip")
    assert left() == [TARGET]
    assert len(ModelNet40(split="test")) == 2


def test_a_wrong_checksum_is_refused(script, served, left):
    folder, url = served
    write_zip(folder / "data.zip")
    assert "the zip has sha256" in script.fails("--url", f"{url}/data.zip", "--sha256", "0" * 64)
    assert left() == []


@pytest.mark.parametrize("name", ["absent.zip", "cut.zip"])
def test_a_download_that_fails_is_one_line(script, served, left, name):
    said = script.fails("--url", f"{served[1]}/{name}")
    assert "download failed" in said and "--zip" in said
    assert ("404" in said) == (name == "absent.zip")
    assert left() == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed.zip", "gopher://a/b.zip", "nonsense"])
def test_an_address_that_cannot_be_had_is_one_line(script, left, monkeypatch, url):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "download failed" in script.fails("--url", url)
    assert left() == []


def test_a_broken_zip_is_refused(script, tmp_path, left):
    file = write_zip(tmp_path / "mine.zip")
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{TARGET}/ply_data_train0.h5")
    at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    flipped = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
    for content in (whole[: len(whole) // 2], b"<html>", flipped):
        file.write_bytes(content)
        assert "not a whole zip" in script.fails("--zip", file)
        assert left() == []
    assert "no such zip" in script.fails("--zip", tmp_path / "absent.zip")


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    ["../out.txt", f"{TARGET}/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:\\out.txt", link(f"{TARGET}/out.txt")],
)
def test_a_zip_that_writes_elsewhere_is_refused_before_anything_is_written(script, tmp_path, left, member):
    file = write_zip(tmp_path / "mine.zip", (member, b"/etc/passwd"))
    said = script.fails("--zip", file)
    assert "do not use that zip" in said and "out.txt" in said
    assert left() == [] and not list(tmp_path.rglob("out.txt"))


def test_a_zip_of_something_else_or_with_broken_data_is_refused(script, tmp_path, left):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no train_files.txt, so it is not ModelNet40" in script.fails("--zip", tmp_path / "other.zip")
    said = script.fails("--zip", write_zip(tmp_path / "mine.zip", drop="label"))
    assert "the data in the zip is broken, and was removed again" in said and "no dataset 'label'" in said
    assert left() == []


def test_ctrl_c_leaves_nothing_behind(script, tmp_path, left, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "check", stop)  # the last step
    code, _, said = script.run("--zip", write_zip(tmp_path / "mine.zip"))
    assert code == 130 and "nothing was left behind" in said
    assert left() == []


def test_a_full_disk_is_said_before_extracting(script, tmp_path, left, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    assert "make room" in script.fails("--zip", write_zip(tmp_path / "mine.zip"))
    assert left() == []


def test_a_root_that_cannot_be_made_is_one_line(script, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in script.fails("--zip", write_zip(tmp_path / "mine.zip"), "--root", tmp_path / "file" / "root")


def test_help_shows_examples(script):
    assert "examples:\n  python datasets/prepare_modelnet40.py" in script("--help")


def test_it_runs_as_a_script_from_the_repository(script, root, left):
    command = [sys.executable, "datasets/prepare_modelnet40.py", "--zip", "absent.zip", "--root", str(root)]
    failed = subprocess.run(command, cwd=script.path.parents[1], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: absent.zip") and failed.stderr.count("\n") == 1
    assert left() == []
