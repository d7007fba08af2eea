"""tools/predict.py, as a user runs it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ewa3d
from ewa3d.data.io import read_cloud

ROOT = Path(__file__).parents[1]
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"


def run(*arguments: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "120"}
    options = {"capture_output": True} | options
    return subprocess.run(command, cwd=cwd, env=environment, text=True, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with two exports, a run, and clouds of several kinds, one of them broken."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("here")
    names = ["airplane", "chair", "desk lamp"]
    model = ewa3d.create_model("point_mae_tiny", num_classes=3, **TINY)
    metadata = {"class_names": names, "data": {"num_points": 64}}
    ewa3d.save_pretrained(model, folder / "run" / "export", metadata=metadata)
    model = ewa3d.create_model("point_mae_tiny", "part_segmentation", num_classes=5, num_categories=2, **TINY)
    parts = {"Chair": ["seat", "back", "leg"], "Mug": ["body", "handle"]}
    ewa3d.save_pretrained(model, folder / "segmenter", metadata={**metadata, "parts": parts})

    points = np.random.default_rng(0).standard_normal((500, 3))
    (folder / "clouds" / "more").mkdir(parents=True)
    np.save(folder / "clouds" / "a.npy", points)
    np.savetxt(folder / "clouds" / "b.xyz", points[:3])
    (folder / "clouds" / "broken.ply").write_text("ply\nformat ascii 1.0\nelement vertex 7\nend_header\n")
    (folder / "clouds" / "more" / "mesh.obj").write_text(OBJ)
    (folder / "clouds" / "notes.md").write_text("not a cloud")
    return folder


def test_a_folder_with_a_broken_file_is_finished_and_exits_with_1(here):
    done = run("run", "clouds", "--top", 2, cwd=here)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["clouds/a.npy", "clouds/b.xyz", "clouds/more/mesh.obj"]
    assert all(line.count(" %") == 2 for line in lines)
    assert lines[1].endswith("(3 points)") and lines[2].endswith("(10,000 points sampled on the surface)")
    assert done.stderr.startswith("error: clouds/broken.ply: not read as .ply (")
    assert len(done.stderr.splitlines()) == 1


def test_json_lines_and_globs(here):
    done = run("run/export", "clouds/[ab].*", "clouds/**/*.obj", "--json", cwd=here)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["file"], row["points"]) for row in rows] == [
        ("clouds/a.npy", 500), ("clouds/b.xyz", 3), ("clouds/more/mesh.obj", 10_000)
    ]  # fmt: skip
    for row in rows:
        assert {place["class"] for place in row["top"]} == {"airplane", "chair", "desk lamp"}
        assert sum(place["probability"] for place in row["top"]) == pytest.approx(1, abs=1e-5)
    model = ewa3d.from_pretrained(here / "run" / "export")
    name, probability = ewa3d.predict(model, np.load(here / "clouds" / "a.npy")).top()[0]
    assert rows[0]["top"][0]["class"] == name
    assert rows[0]["top"][0]["probability"] == pytest.approx(probability, rel=1e-4)


def test_segmentation_writes_a_label_for_every_point(here):
    done = run("segmenter", "clouds/a.npy", "clouds/more", "--category", "Mug", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "in predictions/a.ply and .npz" in done.stdout and ("body" in done.stdout or "handle" in done.stdout)
    cloud = read_cloud(here / "predictions" / "a.ply")
    np.testing.assert_array_equal(cloud.points, np.load(here / "clouds" / "a.npy"))
    assert set(cloud.labels.tolist()) <= {3, 4}
    with np.load(here / "predictions" / "mesh.npz") as mesh:
        assert mesh["label"].shape == (10_000,) and set(mesh["label"].tolist()) <= {3, 4}
        assert mesh["part_names"].tolist()[3:] == ["Mug/body", "Mug/handle"]
    assert sorted(file.name for file in (here / "predictions").iterdir()) == [
        "a.npz", "a.ply", "mesh.npz", "mesh.ply"
    ]  # fmt: skip

    done = run("segmenter", "clouds/a.npy", "--category", "Chair", "--out", "my/labels", "--json", cwd=here)
    row = json.loads(done.stdout)
    assert row["category"] == "Chair" and sum(row["parts"].values()) == 500 and row["npz"] == "my/labels/a.npz"
    assert (here / row["ply"]).is_file() and (here / row["npz"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "clouds/a.npy"], "nowhere is no run"),
        (["segmenter", "clouds/a.npy", "--category", "chair"], "no category 'chair': did you mean 'Chair'?"),
    ],
)
def test_what_is_wrong_with_all_files_is_one_line_and_exit_code_2(arguments, message, here):
    done = run(*arguments, cwd=here)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_results_reach_a_file_while_the_progress_bar_is_on_the_terminal(here):
    reader, terminal = pty.openpty()
    with open(here / "out.jsonl", "w") as out:
        done = run("run", "clouds", "--json", cwd=here, stdout=out, stderr=terminal, capture_output=False)
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(reader, 1 << 16):
            seen += piece
    except OSError:
        pass  # how Linux says that nobody writes any more
    os.close(reader)
    assert done.returncode == 1
    rows = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and b"predicting" in seen and b"broken.ply" in seen and b'"top"' not in seen
