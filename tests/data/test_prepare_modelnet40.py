"""`datasets/prepare_modelnet40.py`: what it puts where, and what it answers when something is wrong."""

import hashlib
import importlib.util
import io
import os
import stat
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

from ewa3d.data.modelnet40 import ModelNet40

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_modelnet40.py"
TARGET = "modelnet40_ply_hdf5_2048"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_modelnet40", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path / "root"))
    return tmp_path / "root"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self.path.endswith("cut.zip"):
            return super().do_GET()
        self.send_response(200)  # promises more than it sends
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"PK\x03\x04")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address it is served under."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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


def fails(script, capsys, *args: str) -> str:
    """The one line that the script prints on stderr, less the progress bar."""
    assert script.main(list(args)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def left(root: Path) -> list[str]:
    return sorted(os.listdir(root)) if root.exists() else []


def test_a_download_is_extracted_checked_and_can_be_loaded(script, root, served, capsys):
    folder, url = served
    checksum = hashlib.sha256(write_zip(folder / "data.zip").read_bytes()).hexdigest()
    assert script.main(["--url", f"{url}/data.zip"]) == 0
    said = capsys.readouterr().out
    assert f"sha256 of the zip: {checksum} (not checked" in said
    assert "train: 6 clouds of 16 points, 2 classes (the official hdf5 has 9,840)" in said
    assert "test: 2 clouds" in said and f"ready: {root / TARGET}" in said
    assert left(root) == [TARGET]
    assert len(ModelNet40(split="trainval")) == 6


def test_a_second_run_says_so_and_does_nothing(script, root, tmp_path, capsys):
    assert script.main(["--zip", str(write_zip(tmp_path / "mine.zip"))]) == 0
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    capsys.readouterr()
    assert script.main(["--url", "http://127.0.0.1:9/never-asked.zip"]) == 0
    assert "already there, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_data_that_is_there_but_broken_is_an_error_and_is_left_alone(script, root, tmp_path, capsys):
    file = write_zip(tmp_path / "mine.zip")
    assert script.main(["--zip", str(file)]) == 0
    (root / TARGET / "ply_data_test0.h5").write_bytes(b"cut")
    said = fails(script, capsys, "--zip", str(file))
    assert "ply_data_test0.h5" in said and "delete the folder" in said
    assert (root / TARGET / "ply_data_test0.h5").read_bytes() == b"cut"


def test_a_zip_that_is_there_is_taken_and_kept_where_it_was(script, tmp_path, capsys):
    file = write_zip(tmp_path / "mine.zip")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    assert script.main(["--zip", str(file), "--sha256", checksum, "--root", str(tmp_path / "other"), "--keep-zip"]) == 0
    assert left(tmp_path / "other") == [TARGET] and file.exists()
    assert "not checked" not in capsys.readouterr().out


def test_keep_zip_keeps_the_downloaded_zip(script, root, served):
    folder, url = served
    file = write_zip(folder / "data.zip")
    assert script.main(["--url", f"{url}/data.zip", "--keep-zip"]) == 0
    assert (root / f"{TARGET}.zip").read_bytes() == file.read_bytes()
    assert left(root) == [TARGET, f"{TARGET}.zip"]


def test_a_wrong_checksum_is_refused(script, root, served, capsys):
    folder, url = served
    write_zip(folder / "data.zip")
    assert "the zip has sha256" in fails(script, capsys, "--url", f"{url}/data.zip", "--sha256", "0" * 64)
    assert left(root) == []


@pytest.mark.parametrize("name", ["absent.zip", "cut.zip"])
def test_a_download_that_fails_is_one_line(script, root, served, capsys, name):
    said = fails(script, capsys, "--url", f"{served[1]}/{name}")
    assert "download failed" in said and "--zip" in said
    assert ("404" in said) == (name == "absent.zip")
    assert left(root) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed.zip", "gopher://a/b.zip", "nonsense"])
def test_an_address_that_cannot_be_had_is_one_line(script, root, capsys, monkeypatch, url):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "download failed" in fails(script, capsys, "--url", url)
    assert left(root) == []


def test_a_broken_zip_is_refused(script, root, tmp_path, capsys):
    file = write_zip(tmp_path / "mine.zip")
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{TARGET}/ply_data_train0.h5")
    at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    flipped = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
    for content in (whole[: len(whole) // 2], b"<html>", flipped):
        file.write_bytes(content)
        assert "not a whole zip" in fails(script, capsys, "--zip", str(file))
        assert left(root) == []
    assert "no such zip" in fails(script, capsys, "--zip", str(tmp_path / "absent.zip"))


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    "member",
    ["../out.txt", f"{TARGET}/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:\\out.txt", link(f"{TARGET}/out.txt")],
)
def test_a_zip_that_writes_elsewhere_is_refused_before_anything_is_written(script, root, tmp_path, capsys, member):
    file = write_zip(tmp_path / "mine.zip", (member, b"/etc/passwd"))
    said = fails(script, capsys, "--zip", str(file))
    assert "do not use that zip" in said and "out.txt" in said
    assert left(root) == [] and not list(tmp_path.rglob("out.txt"))


def test_a_zip_of_something_else_or_with_broken_data_is_refused(script, root, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not ModelNet40 in hdf5" in fails(script, capsys, "--zip", str(tmp_path / "other.zip"))
    file = write_zip(tmp_path / "mine.zip", drop="label")
    said = fails(script, capsys, "--zip", str(file))
    assert "its data is broken" in said and "no dataset 'label'" in said
    assert left(root) == []


def test_a_full_disk_is_said_before_extracting(script, root, tmp_path, capsys, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: usage)
    assert "make room" in fails(script, capsys, "--zip", str(write_zip(tmp_path / "mine.zip")))
    assert left(root) == []


def test_a_root_that_cannot_be_made_is_one_line(script, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    file = write_zip(tmp_path / "mine.zip")
    assert "file" in fails(script, capsys, "--zip", str(file), "--root", str(tmp_path / "file" / "root"))


def test_help_shows_examples(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    assert "examples:\n  python datasets/prepare_modelnet40.py" in capsys.readouterr().out


def test_it_runs_as_a_script_from_the_repository(tmp_path):
    command = [
        sys.executable,
        "datasets/prepare_modelnet40.py",
        "--zip",
        "absent.zip",
        "--root",
        str(tmp_path / "root"),
    ]
    failed = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: absent.zip") and failed.stderr.count("\n") == 1
    assert left(tmp_path / "root") == []
