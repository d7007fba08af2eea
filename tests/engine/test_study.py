"""Studies: what a file may say, which runs that takes, going on after a kill, failures, the table."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ewa3d import Ewa3dError
from ewa3d.engine import study_runs
from ewa3d.engine.config import load_config, to_yaml
from ewa3d.engine.study import load_study, plan_runs
from ewa3d.engine.study_runs import Training, run_study

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "shapes_classification.yaml"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(study_runs, "_POLL", 0.01)


@pytest.fixture
def write(tmp_path):
    """``write(key=YAML, …)``: a study file of two arms and two seeds, changed; ``None`` leaves a key out."""

    def make(**changed: str | None) -> Path:
        known = {"baseline": "dense", "seeds": "[0, 1]", "split": "val"}
        known |= {"tasks": f"{{shapes: {{recipe: {RECIPE}}}}}", "arms": "{dense: {set: [ewa=null]}, ewa: {}}"}
        file = tmp_path / "mine.yaml"
        lines = [f"{key}: {value}\n" for key, value in (known | changed).items() if value is not None]
        file.write_text("# Does it help?\n# Really?\n" + "".join(lines))
        return file

    return make


class Fake:
    """Stands in for trainings: leaves what one leaves, and remembers which were started."""

    def __init__(self, fail=(), interrupt=None):
        self.started, self.stopped, self.most = [], [], 0
        self.fail, self.interrupt, self.alive = fail, interrupt, 0

    def __call__(self, run):
        self.started.append(run.name)
        self.alive += 1
        self.most = max(self.most, self.alive)
        return FakeJob(self, run)


class FakeJob:
    def __init__(self, trainings, run):
        self.trainings, self.run, self.polls = trainings, run, 0

    def poll(self):
        run, trainings = self.run, self.trainings
        if trainings.interrupt == run.name:
            raise KeyboardInterrupt
        self.polls += 1
        if self.polls < 2:
            return None
        trainings.alive -= 1
        if run.name in trainings.fail:
            run.log.parent.mkdir(parents=True, exist_ok=True)
            run.log.write_text("epoch 1/3\nerror: out of luck\n\n")
            return 2
        finish(run)
        return 0

    def stop(self):
        self.trainings.stopped.append(self.run.name)


def finish(run, **scores):
    """What a finished training leaves behind."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    scores = scores or {"single_oa": 80.0 + run.seed + (run.arm != "dense") / 2, "single_macc": 70.0}
    last = {"split": run.config.eval.split, "step": 6, "best_epoch": 2, "chosen_by": "val", **scores, "time": 9.0}
    epochs = [{"epoch": epoch, "step": 3 * epoch, "train_seconds": 1.5, "val_oa": 1.0} for epoch in (1, 2)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*epochs, last)))


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"basline": "dense"}, "unknown key basline: did you mean baseline?"),
        ({"tasks": "{shapes: {recip: x}}"}, "unknown key tasks.shapes.recip: did you mean tasks.shapes.recipe?"),
        ({"arms": "{dense: {scores: x}}"}, "unknown key arms.dense.scores: did you mean arms.dense.score?"),
        ({"tasks": "{shapes: {set: []}}"}, "tasks.shapes.recipe is missing"),
        ({"baseline": None}, "baseline is missing"),
        ({"arms": None}, "arms is missing: name one or more"),
        ({"seeds": "[0, one]"}, "seeds[1]: "),
        ({"seeds": "[0, 0]"}, "seeds: [0, 0]: they must differ"),
        ({"baseline": "dens"}, "baseline: dens: no such name: did you mean dense?"),
        ({"arms": "{dense: {tasks: [shape]}}"}, "arms.dense.tasks: shape: no such name: did you mean shapes?"),
        ({"arms": "{dense: {}, a/b: {}}"}, "'a/b' becomes a folder"),
        ({"arms": "{dense: {set: [train.seed=3]}}"}, "arms.dense.set: train.seed is set by the study: leave it out"),
        ({"arms": "{dense: {set: [run.dir=x]}}"}, "arms.dense.set: run.dir is set by the study"),
        ({"arms": "{dense: }"}, "arms: not a table of tables: write for example `arms: {NAME: {set: [key=value]}"),
        ({"arms": "[dense, ewa]"}, "arms: not a table of tables"),
        ({"tasks": "{shapes: configs/shapes.yaml}"}, "tasks: not a table of tables"),
        ({"seeds": "3"}, "seeds: not a list: write [3]"),
        ({"arms": "{dense: {set: ewa=null}}"}, "arms.dense.set: not a list: write [ewa=null]"),
        ({"seeds": "x" * 9999}, "seeds: not a list: write [xxx"),
        ({"arms": "{dense: {set: [{ewa: 1}]}}"}, "arms.dense.set: {'ewa': 1} is no key=value"),
        ({"arms": "{dense: {}, 8: {}}"}, "arms.8: Key 8 (int) is incompatible"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(write, changed, message):
    with pytest.raises(Ewa3dError) as error:
        load_study(write(**changed))
    assert message in str(error.value) and str(error.value).startswith(str(write()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("- 1", "not a table of keys"), ("", "is missing"), ("a: [", "no readable YAML")]
)
def test_a_file_that_is_no_study(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(Ewa3dError, match=message):
        load_study(tmp_path / "bad.yaml")
    with pytest.raises(Ewa3dError, match=r"absent\.yaml: this study file cannot be read: No such file"):
        load_study(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"arms": "{dense: {}, ewa: {set: [ewa.num_expert=8]}}"},
            "task shapes, arm ewa: 'ewa.num_expert=8': unknown key",
        ),
        ({"split": "vla"}, "eval.split=vla: no such choice: did you mean val?"),
        ({"tasks": "{shapes: {recipe: configs/nothing.yaml}}"}, "configs/nothing.yaml: no such recipe"),
    ],
)
def test_a_typo_in_an_arm_is_found_before_anything_runs(write, tmp_path, changed, message):
    trainings = Fake()
    with pytest.raises(Ewa3dError) as error:
        run_study(write(**changed), trainings, tmp_path / "out")
    assert message in str(error.value)
    assert not trainings.started and not (tmp_path / "out").exists()


def test_runs_are_planned_seed_by_seed_with_the_arms_settings_after_the_tasks(write, tmp_path):
    tasks = f"{{a: {{recipe: {RECIPE}, set: [train.epochs=5, optim.lr=1e-3]}}, b: {{recipe: {RECIPE}}}}}"
    arms = "{dense: {set: [ewa=null, train.epochs=7]}, p: {set: ['model.pretrained=x_{seed}/export'], tasks: [a]}}"
    runs = plan_runs(load_study(write(tasks=tasks, arms=arms, seeds="[3, 1]", split="test")), tmp_path)
    assert [run.name for run in runs[:3]] == ["a/dense/seed-3", "a/p/seed-3", "b/dense/seed-3"]
    assert [run.name for run in runs[3:]] == ["a/dense/seed-1", "a/p/seed-1", "b/dense/seed-1"]
    dense, pretrained, _ = (run.config for run in runs[:3])
    assert (dense.ewa, dense.train.epochs, dense.optim.lr, dense.train.seed) == (None, 7, 1e-3, 3)
    assert dense.eval.split == "test" and dense.run.dir == str(tmp_path / "a" / "dense" / "seed-3")
    assert pretrained.model.pretrained == "x_3/export" and pretrained.train.epochs == 5
    assert runs[4].config.model.pretrained == "x_1/export"


@pytest.mark.parametrize(
    ("recipe", "settings", "column"),
    [
        ("shapes_classification", "", "single_oa"),
        ("shapes_partseg", "", "whole_instance_miou"),
        ("shapes_partseg", "eval.protocol=official", "official_instance_miou"),
        ("pretrain_modelnet40_cpu", "", "masked_chamfer_l2"),
        ("pretrain_modelnet40_cpu", "model.chamfer=l1", "masked_chamfer_l1"),
    ],
)
def test_the_score_is_that_which_chooses_the_epoch(write, tmp_path, recipe, settings, column):
    tasks = f"{{some: {{recipe: {ROOT / 'configs' / recipe}.yaml, set: [{settings}]}}}}"
    assert {run.score for run in plan_runs(load_study(write(tasks=tasks)), tmp_path)} == {column}


def test_a_study_from_start_to_report(write, tmp_path, capsys):
    trainings, out = Fake(), tmp_path / "out"
    assert run_study(write(), trainings, out) == {}
    assert trainings.started == [f"shapes/{arm}/seed-{seed}" for seed in (0, 1) for arm in ("dense", "ewa")]
    assert trainings.most == 1
    rows = table(out)
    assert list(rows[0])[:4] == ["task", "arm", "seed", "split"] and list(rows[0])[-2:] == ["epochs", "train_seconds"]
    assert (
        rows[1] | {"seed": "0", "split": "val", "single_oa": "80.5", "epochs": "2", "train_seconds": "3.0"} == rows[1]
    )
    report = (out / "report.md").read_text()
    assert "Does it help? Really?" in report and "+0.50 [+0.50, +0.50]" in report and "Incomplete" not in report
    assert (out / "report.png").is_file()
    said = capsys.readouterr().out
    assert "[1/4] shapes/dense/seed-0: single_oa 80, " in said and "+0.50 [+0.50, +0.50]" in said and str(out) in said


def test_jobs_run_at_the_same_time(write, tmp_path):
    trainings = Fake()
    run_study(write(), trainings, tmp_path / "out", jobs=3)
    assert trainings.most == 3 and len(table(tmp_path / "out")) == 4


def test_a_failed_run_is_named_and_the_others_are_trained(write, tmp_path, capsys):
    trainings, out = Fake(fail=["shapes/ewa/seed-0"]), tmp_path / "out"
    failed = run_study(write(), trainings, out)
    assert failed == {"shapes/ewa/seed-0": f"error: out of luck ({out / 'shapes/ewa/seed-0.log'})"}
    assert len(trainings.started) == 4 and len(table(out)) == 3
    assert "shapes/ewa/seed-0: failed: error: out of luck" in capsys.readouterr().out
    report = (out / "report.md").read_text()
    assert "**Incomplete**: missing are shapes/ewa/seed-0." in report and "(one seed: no interval)" in report
    again = Fake()
    assert run_study(write(), again, out) == {} and again.started == ["shapes/ewa/seed-0"]


def test_an_interruption_ends_the_running_ones_and_the_finished_stay_as_they_are(write, tmp_path):
    trainings, out = Fake(interrupt="shapes/dense/seed-1"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(write(), trainings, out)
    assert trainings.stopped == ["shapes/dense/seed-1"]
    assert len(table(out)) == 2, "the table is written after every run"
    before = {path: path.stat().st_mtime_ns for path in out.glob("shapes/*/seed-0/*")}
    again = Fake()
    run_study(write(), again, out)
    assert again.started == ["shapes/dense/seed-1", "shapes/ewa/seed-1"]
    assert before and all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    run_study(write(), again, out)
    assert len(again.started) == 2, "nothing is left to do"


def test_reporting_starts_nothing(write, tmp_path):
    trainings, out = Fake(), tmp_path / "out"
    runs = plan_runs(load_study(write()), out)
    run_study(write(), trainings, out, train=False)
    assert "0 of 4 runs are finished" in (out / "report.md").read_text() and not (out / "report.png").exists()
    for run in runs[:3]:
        finish(run)
    run_study(write(), trainings, out, train=False)
    assert not trainings.started and len(table(out)) == 3
    assert "3 of 4 runs are finished" in (out / "report.md").read_text() and (out / "report.png").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": "{dense: {set: [ewa=null]}, ewa: {set: [ewa.every=3]}}"}, "seed-0 was run with ewa.every="),
        ({"split": "test"}, "was run with eval.split=val, not test: delete this folder to run it again"),
    ],
)
def test_a_changed_configuration_is_refused(write, tmp_path, changed, message):
    out = tmp_path / "out"
    for run in plan_runs(load_study(write()), out):
        finish(run)
    trainings = Fake()
    for train in (True, False):
        with pytest.raises(Ewa3dError) as error:
            run_study(write(seeds="[0, 1, 2]", **changed), trainings, out, train=train)
        assert message in str(error.value)
    assert not trainings.started
    assert run_study(write(seeds="[0, 1, 2]"), trainings, out) == {}, "more seeds are no change of what is there"
    assert trainings.started == ["shapes/dense/seed-2", "shapes/ewa/seed-2"]


def test_columns_are_those_of_all_runs_and_a_score_that_is_not_there_is_said(write, tmp_path):
    out = tmp_path / "out"
    arms = "{dense: {set: [ewa=null]}, ewa: {score: routed_oa}, lost: {score: nowhere_oa}}"
    for run in plan_runs(load_study(write(arms=arms, seeds="[0]")), out):
        finish(run, single_oa=80.0, **({"routed_oa": 82.0} if run.arm == "ewa" else {}))
    failed = run_study(write(arms=arms, seeds="[0]"), Fake(), out)
    assert list(failed) == ["shapes/lost/seed-0"] and "no score nowhere_oa" in failed["shapes/lost/seed-0"]
    assert "may name one of single_oa" in failed["shapes/lost/seed-0"]
    assert [row["routed_oa"] for row in table(out)] == ["", "82.0", ""]
    report = (out / "report.md").read_text()
    assert "ewa (routed_oa)" in report and "+2.00 (one seed: no interval)" in report


STUB = """
import json, os, sys, time
settings = dict(item.split("=", 1) for item in sys.argv[2:])
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
print(json.dumps(settings), flush=True)
{body}
"""
SUCCESS = """
os.makedirs(settings["run.dir"], exist_ok=True)
with open(settings["run.dir"] + "/metrics.jsonl", "a") as file:
    file.write('{"split": "val", "chosen_by": "val", "single_oa": 50.0}\\n')
"""


@pytest.fixture
def one(write, tmp_path, monkeypatch):
    """``one(body)``: a run, and what starts it with a stand-in for tools/train.py that ends in ``body``."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(body: str):
        tool = tmp_path / "stub.py"
        tool.write_text(STUB.replace("{body}", body))
        run = plan_runs(load_study(write()), tmp_path / "out")[0]
        return run, partial(Training, tool, 1)

    return make


def wait(job, seconds: float = 30) -> int | None:
    end = time.monotonic() + seconds
    while (code := job.poll()) is None and time.monotonic() < end:
        time.sleep(0.01)
    return code


def said(run) -> list[str]:
    return run.log.read_text().splitlines()


def test_a_training_has_its_share_of_the_cores_unless_the_user_has_said_how_many(one, monkeypatch):
    run, start = one(SUCCESS)
    monkeypatch.setattr(study_runs, "_cores", lambda: 8)
    assert wait(Training(start.args[0], 3, run)) == 0
    assert said(run)[1] == "threads 2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert wait(Training(start.args[0], 3, run)) == 0 and len(said(run)) == 3, "a finished run is not run again"
    (run.folder / "metrics.jsonl").unlink()
    assert wait(Training(start.args[0], 3, run)) == 0
    assert said(run)[4] == "threads 5"


def test_what_has_a_checkpoint_goes_on_and_what_has_none_starts_again(one):
    run, start = one(SUCCESS)
    assert wait(start(run)) == 0
    asked = json.loads(said(run)[2])
    assert asked["run.overwrite"] == "true" and "run.resume" not in asked
    assert load_config(RECIPE, [f"{key}={value}" for key, value in asked.items()]).ewa is None
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "last").write_text("step-3\n")
    assert wait(start(run)) == 0
    asked = json.loads(said(run)[5])
    assert asked["run.resume"] == "true" and "run.overwrite" not in asked


def test_a_training_that_an_earlier_study_left_behind_is_waited_for(one, tmp_path, capsys):
    """The first one stands for the child of a study that was killed: it holds the log's lock."""
    run, start = one(f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n{SUCCESS}")
    first = start(run)
    assert first.poll() is None
    second = start(run)
    assert wait(second, 0.3) is None
    assert capsys.readouterr().out == f"{run.name} is still being trained by an earlier process: waiting for it\n"
    (tmp_path / "go").touch()
    assert wait(second) == 0 and wait(first) == 0
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 1, "it was trained once"


def test_stopping_ends_the_process(one):
    run, start = one("time.sleep(60)")
    job = start(run)
    job.poll()
    job.stop()
    assert job.poll() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("print('error: no data'); sys.exit(2)", "error: no data ("),
        ("os.kill(os.getpid(), 9)", "ended by signal 9, "),
        ("", "ended without a score, "),
    ],
)
def test_a_failure_is_named_with_the_last_line_of_the_log(one, write, tmp_path, body, why):
    run, start = one(body)
    failed = run_study(write(seeds="[0]", arms="{dense: {set: [ewa=null]}}"), start, tmp_path / "out")
    assert list(failed) == [run.name] and failed[run.name].startswith(why) and str(run.log) in failed[run.name]


def tool(monkeypatch, *arguments: object) -> int:
    """The exit code of tools/study.py, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    try:
        runpy.run_path(str(ROOT / "tools" / "study.py"), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def test_exit_codes_of_the_tool(write, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert tool(monkeypatch, write(), "--out", out, "--jobs", 0) == 2
    assert capsys.readouterr().err == "error: --jobs 0: must be 1 or more\n"
    assert tool(monkeypatch, write(baseline="dens"), "--out", out) == 2
    for run in plan_runs(load_study(write()), out):
        finish(run)
    assert tool(monkeypatch, write(), "--out", out, "--report") == 0
    capsys.readouterr()
    arms = "{dense: {set: [ewa=null]}, ewa: {score: nowhere}}"
    assert tool(monkeypatch, write(arms=arms), "--out", out, "--report") == 1
    assert capsys.readouterr().err.startswith("failed: shapes/ewa/seed-0: it has no score nowhere")


def test_sigterm_ends_it_as_ctrl_c_does_and_says_how_to_go_on(write, monkeypatch, capsys):
    def be_ended(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(study_runs, "run_study", be_ended)
    assert tool(monkeypatch, write()) == 143
    assert capsys.readouterr().err == "interrupted; the same command goes on, and --report shows what is there\n"


def test_a_real_study_that_is_killed_goes_on_to_its_end(write, tmp_path, tiny_run):
    """Real trainings. The first was killed in its first epoch; then the study is, but not the training that it runs."""
    settings = json.dumps([item for item in tiny_run if "ewa" not in item and "epochs" not in item])
    arms = "{dense: {set: [ewa=null]}, ewa: {set: [ewa.num_experts=3, ewa.every=1]}}"
    tasks = f"{{shapes: {{recipe: {RECIPE}, set: {settings[:-1]}, train.epochs=2, train.precision=fp32]}}}}"
    file, out = write(tasks=tasks, arms=arms, seeds="[0]"), tmp_path / "out"
    run = plan_runs(load_study(file), out)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    (run.folder / "metrics.jsonl").write_text('{"epoch": 1, "step": 1, "train_seconds": 1.0}\n')  # and no checkpoint
    command = [sys.executable, str(ROOT / "tools" / "study.py"), str(file), "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if line.startswith("[1/2] shapes/dense/seed-0: single_oa "):
                break
        killed.kill()
    first = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    assert len(first) > 5

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs" in again.stdout and "shapes/dense/seed-0:" not in again.stdout
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items()), "finished runs are not touched"
    assert [row["split"] for row in table(out)] == ["val"] * 2
    for arm in ("dense", "ewa"):
        metrics = out / "shapes" / arm / "seed-0" / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [row.get("epoch") for row in rows] == [1, 2, None]
    assert "2 of 2 runs are finished" in (out / "report.md").read_text()
