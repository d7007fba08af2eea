"""`tools/visualize.py`, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from ewa3d.engine.config import load_config
from ewa3d.engine.scenes import DRAW
from ewa3d.engine.train import train

ROOT = Path(__file__).parents[1]


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "visualize.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "COLUMNS": "120", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run) -> Path:
    folder = tmp_path_factory.mktemp("tool") / "run"
    train(load_config(overrides=[*tiny_run, f"run.dir={folder}", "task=part_segmentation"]))
    return folder


def test_a_picture_and_a_page(finished, tmp_path):
    files = "--out", "deep/parts.png", "--html", "parts.html"
    result = run("predictions", finished, "--shapes", "2", *files, "--size", "600x500", "eval.split=val", cwd=tmp_path)
    if result.returncode == 2 and "apt-get" in result.stderr and not os.environ.get("CI"):
        pytest.skip(result.stderr)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    title, *lines, picture, page = result.stdout.splitlines()
    assert "val split of shapes" in title and len(lines) == 2 and "mIoU" in lines[0]
    assert picture.startswith("picture: deep/parts.png (") and page.startswith("page: parts.html (")
    image = imread(tmp_path / "deep" / "parts.png")
    assert image.shape == (500, 600, 3) and (image < 0.9).any(axis=-1).mean() > 0.05
    assert (tmp_path / "parts.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_page_needs_neither_open3d_nor_a_display(finished, tmp_path, monkeypatch):
    (tmp_path / "open3d.py").write_text("raise ImportError('libEGL.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    page = run("samples", finished, "--html", "page.html", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    picture = run("samples", finished, "--out", "picture.png", cwd=tmp_path)
    assert picture.returncode == 2 and len(picture.stderr.splitlines()) == 1
    assert picture.stderr.startswith("error: Open3D cannot be imported (libEGL.so.1") and "apt-get" in picture.stderr


def test_help_teaches():
    result = run("--help")
    assert result.returncode == 0 and "examples:" in result.stdout
    for what in DRAW:
        assert f"  {what}  " in result.stdout and f"python tools/visualize.py {what} " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("samples", "nowhere"), "no display for a window here"),
        (("samples", "nowhere", "--out", "a.png"), "nowhere is no run"),
        (("samples", "nowhere", "--size", "big"), "--size big: write width and height"),
        (("samples", "nowhere", "--index", "1,b"), "--index 1,b: write numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
