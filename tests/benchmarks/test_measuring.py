"""What the benchmark's figures mean."""

import json
import runpy
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch

import ewa3d
from benchmarks import growth, suites
from benchmarks.timing import Spread, Times, in_turn, peak_memory, plain_process, product_rate
from benchmarks.training import PARTS, split_epoch
from ewa3d.engine.build import make_accelerator, open_split
from ewa3d.engine.session import Progress, start_session
from ewa3d.engine.train import train_steps

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


def test_ratios_are_taken_round_by_round():
    """A machine that is twice as slow in one round changes no ratio."""
    times = Times({"slow": [2.0, 4.0, 2.0], "fast": [1.0, 2.0, 1.0]})
    assert times.ratio("slow", "fast") == Spread(2.0, 2.0, 2.0, 3)
    assert times["slow"].median == 2.0 and times["slow"].count == 3


def test_candidates_take_turns_and_warm_ups_do_not_count():
    calls = []
    times = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, plain=["b"], warmup=1)
    # every other round goes backwards; a plain one is called once more before it is measured, so is who comes after it
    assert calls == ["a", "b", "b", "b", "b", "a", "a"] + ["a", "b", "b", "b", "b", "a", "a"]
    assert len(times.seconds["a"]) == len(times.seconds["b"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process held at its peak")
def test_peak_memory_is_that_of_the_call():
    held = []
    assert 60 < peak_memory(lambda: held.append(torch.ones(16 << 20).sum())) < 100  # 64 MiB of float32, then freed


def test_a_plain_process_is_left_as_it_was_found():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with plain_process():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


def test_a_rate_is_operations_over_time(monkeypatch):
    times = Times({"product": [0.5, 0.5]})
    monkeypatch.setattr("benchmarks.timing.in_turn", lambda *_, **__: times)
    product_rate.cache_clear()
    assert product_rate("cpu", torch.float32) == 2 * 4096**3 / 0.5
    product_rate.cache_clear()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epoch_taken_apart_trains_as_a_whole_one(tiny_config, precision):
    config = tiny_config(f"train.precision={precision}", "optim.label_smoothing=0.1")
    accelerator = make_accelerator(config.train)
    dataset = open_split(config, "train")
    weights = []
    for split in (False, True):
        torch.manual_seed(0)
        session, _ = start_session(config, accelerator, dataset)
        torch.manual_seed(1)
        if split:
            seconds = dict.fromkeys(PARTS, 0.0)
            split_epoch(session, seconds)
            assert all(value > 0 for value in seconds.values()) and seconds.keys() == set(PARTS)
        else:
            session.scheduler.step_update = lambda _: None  # the benchmark keeps one learning rate
            train_steps(session, Progress(), 1)
        weights.append(deepcopy(session.plain.state_dict()))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], msg=lambda m, n=name: f"{n}: {m}")


def run_tool(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_tool_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suites, "GROUPINGS", ((2, 64, 8),))
    run_tool(monkeypatch, "--suite", "ops", "--rounds", 2, "--device", "cpu", "--out", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["machine"]["torch"] == torch.__version__ and written["machine"]["seed"] == 0
    rows = {row["what"]: row for row in written["suites"]["ops"]}
    assert rows["FPS, 64 → 8"]["count"] == 2 and rows["FPS, 64 → 8"]["unit"] == "ms/cloud"
    assert rows["FPS, 64 → 8: textbook / ours"]["median"] > 0
    assert "kNN (32), 64 → 8: textbook" in capsys.readouterr().out


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    for name, values in {"POINTS": (100, 2000), "BATCHES": (2, 4), "EXPERTS": (1, 2), "DEPTHS": (2, 4)}.items():
        monkeypatch.setattr(growth, name, values)
    tiny = partial(ewa3d.create_model, embed_dim=24, num_heads=2, num_groups=8, group_size=4)
    monkeypatch.setattr(ewa3d, "create_model", lambda name, task="classification", **o: tiny(name, task, **o))
    picture = tmp_path / "growth.png"
    arguments = ("--rounds", 2, "--batch-size", 4, "--points", 64, "--device", "cpu", "--plot", picture)
    run_tool(monkeypatch, "--suite", "growth", *arguments, "--out", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["suites"]["growth"]
    assert {(row["axis"], row["value"]) for row in rows} >= {("points", 2000), ("batch", 4), ("experts", 2)}
    assert all(row["median"] > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "point_bert_small"], "the reference is Point-MAE's"),
        (["--suite", "data", "--data", "nowhere"], "nowhere"),
        (["--plot", "a.png", "--suite", "ops"], "--plot draws the growth suite"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        run_tool(monkeypatch, *arguments, "--device", "cpu")
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
