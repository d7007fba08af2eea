"""`tools/visualize.py routing`, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from ewa3d import Ewa3dError
from ewa3d.engine import routing
from ewa3d.engine.config import load_config
from ewa3d.engine.routing import draw_routing
from ewa3d.engine.train import train

ROOT = Path(__file__).parents[2]
TOPK = ("ewa.routing=topk", "ewa.share_rate=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """``finished("key=value", …)``: the folder of a finished run of a second, made once."""
    folder = tmp_path_factory.mktemp("routing")
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = folder / f"run{len(made)}"
            train(load_config(overrides=[*tiny_run, "train.epochs=1", f"run.dir={made[overrides]}", *overrides]))
        return made[overrides]

    return run


def test_the_tool_draws_and_writes_what_it_says(finished, tmp_path):
    run = finished(*TOPK, "ewa.router.top_k=2")
    command = [sys.executable, str(ROOT / "tools" / "visualize.py"), "routing", str(run), "--out", "new/routing.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    title, head, first, second, *_, advice, last = result.stdout.splitlines()
    assert title == f"{run}: choices of 52 clouds of shapes, val split"
    assert head.split()[0] == "layer" and [row.split()[0] for row in (first, second)] == [
        "blocks.0.mlp",
        "blocks.1.mlp",
    ]
    assert advice.startswith("advice: keep ") and "a heuristic after ViMoE" in advice
    assert last == "picture: new/routing.png   numbers: new/routing.json"

    numbers = json.loads((tmp_path / "new" / "routing.json").read_text())
    assert (numbers["split"], numbers["clouds"], len(numbers["class_names"])) == ("val", 52, 13)
    for row, (name, layer) in zip((first, second), numbers["layers"].items(), strict=True):
        counts = torch.tensor(layer["counts"])
        assert counts.shape == (13, 3) and (counts.sum(dim=1) == 4 * 9 * 2).all(), (
            "4 clouds of 9 tokens, 2 choices each"
        )
        assert layer["load"] == pytest.approx((counts.sum(dim=0) / counts.sum()).tolist())
        assert row.split()[:4] == [
            name,
            *(f"{layer[key]:.3f}" for key in ("load_entropy", "routing_entropy", "specialisation")),
        ]
        assert f"{layer['advice']}: {layer['reason']}" in row
    picture = imread(tmp_path / "new" / "routing.png")[..., :3]
    assert (picture.max(axis=-1) - picture.min(axis=-1) > 0.3).mean() > 0.02, "nothing is blue"


def test_the_export_with_its_router_says_the_same_of_the_same_clouds(finished, tmp_path):
    run = finished(*TOPK, "ewa.router.top_k=2")
    draw_routing(run, tmp_path / "run.png", ["eval.split=test", "eval.batch_size=7"])
    (line, *_) = draw_routing(run / "export_routed", tmp_path / "export.png", ["data.per_class=4"])
    assert line.endswith("choices of 52 clouds of shapes, test split")
    of_run, of_export = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "export"))
    assert of_run["layers"] == of_export["layers"]


def test_a_run_without_a_validation_split_is_looked_at_on_the_test_split(finished, tmp_path):
    (line, *_) = draw_routing(finished(*TOPK, "train.select=last"), tmp_path / "a.png")
    assert line.endswith("test split")


def test_part_segmentation_s_classes_are_categories(finished, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(routing, "routing_maps", lambda *args: given.append(args))
    draw_routing(finished(*TOPK, "task=part_segmentation"), tmp_path / "a.png")
    counts, names = given[0][:2]
    assert "airplane" in names
    assert all((table.sum(axis=1) == 4 * 8).all() and len(table) == len(names) for table in counts.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "the experts of blocks.0.mlp are dealt tokens at random: nothing is routed there"),
        (("ewa=null",), "no experts (dense, or merged): nothing is routed"),
    ],
)
def test_a_run_without_a_router_is_refused_in_a_line(finished, tmp_path, overrides, message):
    with pytest.raises(Ewa3dError) as raised:
        draw_routing(finished(*overrides), tmp_path / "a.png")
    said = str(raised.value)
    assert message in said and said.endswith("ewa.routing=topk trains a router") and "\n" not in said


def test_a_picture_needs_a_name(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "visualize.py"), "routing", "nowhere"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: routing is drawn into a file: name it with --out\n"
    with pytest.raises(Ewa3dError, match=r"a\.pdf: its name must end in \.png"):
        draw_routing(tmp_path, tmp_path / "a.pdf")
    with pytest.raises(Ewa3dError, match="is no run"):
        draw_routing(tmp_path, tmp_path / "a.png")
