"""Trainings killed with SIGKILL at random moments, again and again, end as the one that was left alone."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from run_files import assert_same_end, train_in_child

KILLS = 5  # of each of the four trainings
SLOW_IMPORTS = ["ewa3d.engine.train", "sklearn.metrics", "torch.utils.tensorboard", "matplotlib.figure"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_a_training_killed_again_and_again_ends_as_one_that_was_not(tiny_run, tmp_path, task, workers):
    """Every other kill waits for a checkpoint that is being written. What resumes is a new process each time."""
    context = multiprocessing.get_context("forkserver")  # imports PyTorch once, for all trainings
    context.set_forkserver_preload(["run_files", *SLOW_IMPORTS])

    def start(name: str) -> multiprocessing.process.BaseProcess:
        options = [f"task={task}", "train.epochs=10", f"train.num_workers={workers}", "run.resume=true"]
        process = context.Process(target=train_in_child, args=([*tiny_run, *options, f"run.dir={tmp_path / name}"],))
        process.start()
        return process

    whole = start("whole")
    started = time.monotonic()
    whole.join()
    duration = time.monotonic() - started
    assert whole.exitcode == 0

    dice = random.Random(f"{task}{workers}")
    checkpoints = tmp_path / "killed" / "checkpoints"
    kills, while_writing, longest, ended = 0, 0, duration / 6, False
    while kills < KILLS or not while_writing:
        process = start("killed")
        if kills % 2 and not ended:
            wait_for_writing(process, checkpoints)
            time.sleep(dice.uniform(0, 0.005))
        else:
            process.join(dice.uniform(0, longest))
        if process.is_alive():
            process.kill()
            kills += 1
            process.join()
            while_writing += any(checkpoints.glob(".*"))
        else:  # what is left to kill is the writing of the export
            assert process.exitcode == 0 and while_writing
            ended, longest = True, longest / 2
    last = start("killed")
    last.join()
    assert last.exitcode == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    print(f"{task}, {workers} workers: {kills} kills, {while_writing} while a checkpoint was written")


def wait_for_writing(process: multiprocessing.process.BaseProcess, checkpoints: Path) -> None:
    """Until a checkpoint begins to be written, or the training ends."""
    before = {path.name for path in checkpoints.glob(".*")}
    while process.is_alive() and not {path.name for path in checkpoints.glob(".*")} - before:
        time.sleep(0.001)
