"""Trainings that are stopped, damaged or short of room, and go on as if nothing had been."""

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_files import assert_same_end, rows_of, state_of
from timm.scheduler import CosineLRScheduler

import ewa3d
from ewa3d.engine import checkpoint
from ewa3d.engine.config import load_config
from ewa3d.engine.train import train
from ewa3d.errors import Interrupted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def signal_after(monkeypatch):
    """``signal_after(signum, step)``: the process gets the signal when the training has taken that step."""
    original = CosineLRScheduler.step_update

    def arm(signum: int, step: int) -> None:
        def update(self, num_updates: int) -> None:
            original(self, num_updates)
            if num_updates == step:
                monkeypatch.setattr(CosineLRScheduler, "step_update", original)
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(CosineLRScheduler, "step_update", update)

    return arm


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["ewa=null", "train.skip_nonfinite=true"],
        ["train.accumulation=2", "train.num_workers=1"],
        ["task=part_segmentation"],
        ["ema.decay=0.9", "optim.layer_decay=0.7"],
        ["task=pretraining"],
        ["ewa.routing=topk", "ewa.average_until=0.5", "ewa.router.jitter=0.1"],
    ],
)
def test_a_run_that_signals_stopped_ends_as_the_one_that_never_stopped(tiny_config, signal_after, options):
    whole = tiny_config(*options, dir="whole")
    train(whole)
    steps = rows_of(Path(whole.run.dir))[0]["step"]  # an epoch's
    for signum, step, within in ((signal.SIGTERM, 1, True), (signal.SIGINT, 2 * steps, False)):
        signal_after(signum, step)
        with pytest.raises(Interrupted, match=f"stopped by {signum.name} after epoch {0 if within else 2}") as stopped:
            train(tiny_config(*options, "run.resume=true", dir="stopped"))
        assert stopped.value.signum == signum and (" batches: " in str(stopped.value)) == within
        torch.manual_seed(12345)  # another process would start elsewhere, too
    resumed = tiny_config(*options, "run.resume=true", dir="stopped")
    train(resumed)
    assert_same_end(Path(whole.run.dir), Path(resumed.run.dir))


def test_a_signal_is_one_line_and_the_shell_s_exit_code(tiny_run, tmp_path, signal_after, monkeypatch, capsys):
    signal_after(signal.SIGTERM, 2)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny_run, f"run.dir={tmp_path / 'run'}"])
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "tools" / "train.py"), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == (
        f"stopped by SIGTERM after epoch 0 and 2 of 3 batches: all is saved, `{tmp_path}/run/config.yaml "
        "run.resume=true` goes on\n"
    )


def test_handlers_are_as_before_when_a_training_has_ended(tiny_config):
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    train(tiny_config("train.epochs=1"))
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_reaches_loader_processes_too_and_does_no_harm(tiny_run, tmp_path):
    """A terminal signals the whole group; a worker that died of it would take the training with it, unsaved."""
    folder = tmp_path / "run"
    options = [*tiny_run, "train.epochs=500", "train.num_workers=2", f"run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "train.py"), *options],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "checkpoints" / "last").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.startswith("stopped by SIGINT after epoch ") and len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run) -> Path:
    """A run of three epochs of three steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(load_config(overrides=[*tiny_run, f"run.dir={folder}"]))
    return folder


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def foreign_model(saved: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, saved / "model.safetensors")


def foreign_optimizer(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "optimizer.safetensors")
    tensors["0.exp_avg"] = torch.zeros(3)
    save_file(tensors, saved / "optimizer.safetensors")


def without(key: str):
    def damage(saved: Path) -> None:
        state = json.loads((saved / "state.json").read_text())
        del state[key]
        (saved / "state.json").write_text(json.dumps(state))

    return damage


def setting(saved: Path, name: str, value: object) -> None:
    state = json.loads((saved / "state.json").read_text())
    state["groups"][0][name] = value
    (saved / "state.json").write_text(json.dumps(state))


DAMAGES = {
    "model cut": lambda c: truncate(c / "model.safetensors"),
    "optimizer cut": lambda c: truncate(c / "optimizer.safetensors"),
    "state cut": lambda c: truncate(c / "state.json"),
    "state of something else": lambda c: (c / "state.json").write_text("[]"),
    "state without the average's": without("averager"),
    "state without random states": without("processes"),
    "model of something else": foreign_model,
    "optimizer of something else": foreign_optimizer,
    "optimizer's settings of another kind": lambda c: setting(c, "lr", "fast"),
    "optimizer's settings too few": lambda c: setting(c, "betas", [0.9]),
    "model gone": lambda c: (c / "model.safetensors").unlink(),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(finished, tmp_path, damage):
    folder = shutil.copytree(finished, tmp_path / "run")
    DAMAGES[damage](folder / "checkpoints" / "step-9")
    train(load_config(folder / "config.yaml", ["run.resume=true"]))
    log = (folder / "log.txt").read_text()
    assert f"resumed after epoch 2 from {folder}/checkpoints/step-6" in log
    if damage != "all gone":
        assert f"passed over: {folder}/checkpoints/step-9" in log
    assert_same_end(finished, folder)


def test_where_no_checkpoint_can_be_used_the_first_fault_is_told(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for saved in (folder / "checkpoints").glob("step-*"):
        truncate(saved / "model.safetensors")
    with pytest.raises(ewa3d.Ewa3dError, match=r"no checkpoint can be used.*step-9/model\.safetensors is damaged"):
        train(load_config(folder / "config.yaml", ["run.resume=true"]))
    assert len(list((folder / "checkpoints").glob("step-*"))) >= 2, "nothing is deleted"


@pytest.mark.parametrize("named", ["step-7", "../../elsewhere", "", "step-²"])
def test_a_pointer_that_names_nothing_is_no_obstacle_to_resuming(finished, tmp_path, named):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "checkpoints" / "last").write_text(named)
    train(load_config(folder / "config.yaml", ["run.resume=true"]))
    assert_same_end(finished, folder)


def test_a_row_that_a_kill_has_cut_is_written_again(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    truncate(folder / "metrics.jsonl")
    train(load_config(folder / "config.yaml", ["run.resume=true"]))
    assert_same_end(finished, folder)


def test_rows_from_before_the_first_checkpoint_are_written_again(finished, tmp_path):
    """A kill between an epoch's row and its checkpoint."""
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    train(load_config(folder / "config.yaml", [f"run.dir={folder}", "run.resume=true"]))
    assert_same_end(finished, folder)


def test_a_kill_between_the_two_pointers_costs_nothing(finished, tmp_path, monkeypatch):
    """The first epoch is the best: there is no older one that `best` could name."""

    class Killed(BaseException):
        pass

    original, config = checkpoint.point_at, finished / "config.yaml"

    def once(saved: Path, name: str = "last") -> None:
        original(saved, name)
        monkeypatch.setattr(checkpoint, "point_at", original)
        raise Killed

    monkeypatch.setattr(checkpoint, "point_at", once)
    with pytest.raises(Killed):
        train(load_config(config, [f"run.dir={tmp_path / 'run'}"]))
    train(load_config(config, [f"run.dir={tmp_path / 'run'}", "run.resume=true"]))
    assert_same_end(finished, tmp_path / "run")


def test_half_a_checkpoint_is_cleared_away(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("step-9", "step-6"):
        shutil.copytree(folder / "checkpoints" / name, folder / "checkpoints" / f".{name}.tmp")
    (folder / "checkpoints" / "last").write_text("step-6\n")
    train(load_config(folder / "config.yaml", ["run.resume=true"]))
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_resumed_run_keeps_the_number_of_processes(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for file in (folder / "checkpoints").glob("step-*/state.json"):
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "processes": 2 * state["processes"]}))
    with pytest.raises(ewa3d.Ewa3dError, match=r"of a training with 2 process\(es\), and this one has 1: resume it"):
        train(load_config(folder / "config.yaml", ["run.resume=true"]))


@pytest.mark.parametrize(("room", "what"), [(60_000, "checkpoints/step-6"), (100, "")])
def test_a_full_disk_is_one_clear_error_and_costs_no_checkpoint(
    finished, tmp_path, tiny_config, signal_after, room, what
):
    """A limit on the size of files fails a write as a full disk does: within it, with `OSError`."""
    signal_after(signal.SIGTERM, 3)
    config = tiny_config()
    with pytest.raises(Interrupted):
        train(config)
    folder = Path(config.run.dir)
    before = state_of(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(ewa3d.Ewa3dError, match=r"cannot be written \(File too large\): make room") as full:
            train(tiny_config("run.resume=true"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(full.value).startswith(f"{folder / what}: ") and "step-3" in str(full.value)
    assert state_of(folder).keys() == before.keys() and not list((folder / "checkpoints").glob(".*"))
    train(tiny_config("run.resume=true"))
    assert_same_end(finished, folder)


def test_resuming_a_finished_run_changes_nothing_and_exports_again(tiny_config):
    config = tiny_config("train.epochs=1")
    train(config)
    folder = Path(config.run.dir)
    before, weights = rows_of(folder), state_of(folder)
    train(tiny_config("train.epochs=1", "run.resume=true"))
    after = rows_of(folder)
    assert [row.get("epoch") for row in after] == [row.get("epoch") for row in before] == [1, None]
    assert all(torch.equal(value, state_of(folder)[key]) for key, value in weights.items())


def test_a_run_that_moved_is_resumed_where_it_is(tiny_config, tmp_path):
    train(tiny_config("train.epochs=1", dir="old"))
    moved = (tmp_path / "old").rename(tmp_path / "new")
    train(load_config(moved / "config.yaml", ["run.resume=true"]))
    assert not (tmp_path / "old").exists()


def test_resuming_with_another_configuration_is_refused(tiny_config):
    train(tiny_config("train.epochs=1"))
    with pytest.raises(ewa3d.Ewa3dError, match=r"was run with optim\.lr=0\.0005, not 0\.1"):
        train(tiny_config("train.epochs=1", "optim.lr=0.1", "run.resume=true"))
