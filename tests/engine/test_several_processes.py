"""Training on several processes, really started by torchrun: experts, partitions, scores, stopping and resuming."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType
from run_files import assert_same_end, rows_of

import ewa3d
from ewa3d.engine.build import make_accelerator
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import evaluate_folder

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("watched_training.py")
# 78 clouds for training, 39 a process: 9 batches of 4, which are 5 optimizer steps, the last of a single batch
OPTIONS = ["data.per_class=6", "train.batch_size=4", "train.accumulation=2", "train.epochs=2", "eval.batch_size=8"]


def torchrun(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(SCRIPT), str(out), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def seen_in(out: Path) -> list[dict]:
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module", params=[[], ["ema.decay=0.9", "ewa.routing=topk"]], ids=["ewa", "ema, router"])
def trained(request, tiny_run, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished run of two processes and its options."""
    out = tmp_path_factory.mktemp("two")
    options = [*tiny_run, *OPTIONS, *request.param]
    done = torchrun(out, *options, f"run.dir={out / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and done.stdout.count("test split, ") == len(request.param) // 2 + 1
    return out, options


def test_experts_are_equal_on_all_processes_after_every_step(trained):
    first, second = seen_in(trained[0])
    assert first["processes"] == second["processes"] == 2 and first["backend"] == "gloo"
    assert first["experts"] == second["experts"]
    assert len(first["experts"]) == 2 * 5, "only real steps average, not those that accumulate"
    assert len(set(first["experts"])) == 10


def test_processes_draw_their_own_partitions(trained):
    first, second = seen_in(trained[0])
    if not first["partitions"]:
        pytest.skip("a learned router draws none")
    assert len(first["partitions"]) == len(second["partitions"]) == 2 * 9 * 2
    assert not set(first["partitions"]) & set(second["partitions"])


def test_the_scores_are_those_of_one_process(trained):
    """26 test clouds in batches of 8 for two: the last is uneven."""
    folder = trained[0] / "run"
    scores, _ = evaluate_folder(folder)
    row = rows_of(folder)[-1]
    assert row["single_oa"] == scores["single"]["oa"] and row["single_macc"] == scores["single"]["macc"]
    chosen, _ = evaluate_folder(folder, ["eval.split=val"])
    if "single_routed_oa" not in row:
        assert rows_of(folder)[row["best_epoch"] - 1]["val_oa"] == chosen["single"]["oa"]


def test_a_signal_to_one_process_stops_all_after_the_same_step_and_resuming_ends_as_without(trained, tmp_path):
    out, options = trained
    stopped = torchrun(tmp_path, "--signal-at=1", *options, f"run.dir={tmp_path / 'run'}")
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped by SIGTERM after epoch 0 and 4 of 9 batches") == 1, "one of them speaks"
    first, second = seen_in(tmp_path)
    assert len(first["experts"]) == len(second["experts"]) == 2
    resumed = torchrun(tmp_path, *options, "run.resume=true", f"run.dir={tmp_path / 'run'}")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(out / "run", tmp_path / "run")


def test_a_run_of_two_processes_is_not_resumed_by_one(trained):
    folder = trained[0] / "run"
    with pytest.raises(ewa3d.Ewa3dError, match=r"of a training with 2 process\(es\), and this one has 1"):
        from ewa3d.engine.train import train

        train(load_config(folder / "config.yaml", ["run.resume=true"]))


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_cutting_weights_up_is_refused(tiny_config, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: kind))
    with pytest.raises(ewa3d.Ewa3dError, match=f"configured for {kind.value}.*start with torchrun"):
        make_accelerator(tiny_config().train)
