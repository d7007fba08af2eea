"""Running a study: its trainings as processes of their own, some at a time, and what becomes of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Protocol

from ..files import write_atomically
from ..progress import track
from ..viz.study import draw_differences
from .evaluate import make_folder
from .study import Row, Study, StudyRun, load_study, opening_comment, plan_runs, read_results, write_results
from .study_report import Arm, Comparison, Facts, comparison_table, over_tasks, over_tasks_table, study_report

try:
    import fcntl
except ImportError:  # Windows: there, a run that an earlier study left behind is not noticed
    fcntl = None  # type: ignore[assignment]

_POLL = 0.2  # seconds between looks at the processes


class Job(Protocol):
    """A run that is being trained."""

    def poll(self) -> int | None:
        """The exit code, once it has ended."""

    def stop(self) -> None:
        """End it now."""


def run_study(
    path: Path, start: Callable[[StudyRun], Job], out: Path | None = None, *, jobs: int = 1, train: bool = True
) -> dict[str, str]:
    """Train what a study still lacks; write its ``results.csv``, ``report.md`` and ``report.png``; print its tables.

    Args:
        path: the study file.
        start: starts a run, see `Training`.
        out: the study's folder (default: ``runs/`` and the file's name).
        jobs: how many runs at a time.
        train: whether runs are started; without, the table and the report of what is there are written again.

    Returns:
        The runs that failed, by name, and why.

    Raises:
        Ewa3dError: bad input (the study file, a recipe, a setting), or runs made with another configuration; no run is
            started then.
    """
    study = load_study(path)
    out = out or Path("runs") / path.stem
    runs = plan_runs(study, out)
    rows = read_results(runs)
    make_folder(out)
    failed = _train_all(runs, rows, start, jobs, out) if train else {}
    rows = read_results(runs)
    write_results(list(rows.values()), out / "results.csv")
    for run, row in rows.items():
        if run.score not in row:
            names = ", ".join(
                name for name, value in row.items() if isinstance(value, float) and name != "train_seconds"
            )
            failed[run.name] = f"it has no score {run.score}: {path} may name one of {names}"
    print(_report(path, study, runs, rows, out))
    return failed


class Training:
    """One run as a process of ``tools/train.py``.

    Its log is locked for as long as the process lives, even where the study is killed and the process is not: a study
    that goes on finds the lock and waits, so that no two processes train in one folder.

    Args:
        tool: ``tools/train.py``.
        jobs: how many trainings share the processor: each takes its part of the cores, unless ``OMP_NUM_THREADS`` says
            how many.
        run: the run, which is continued where it has a checkpoint, and else begins from the beginning.
    """

    def __init__(self, tool: Path, jobs: int, run: StudyRun):
        self._tool, self._run = tool, run
        self._environment = {"OMP_NUM_THREADS": str(max(1, _cores() // jobs)), **os.environ}
        self._process: subprocess.Popen[bytes] | None = None
        make_folder(run.log.parent)
        self._log = open(run.log, "ab")  # noqa: SIM115 (until the process has it)
        if not _lock(self._log):
            print(f"{run.name} is still being trained by an earlier process: waiting for it")

    def poll(self) -> int | None:
        if self._process is None:
            if not _lock(self._log):
                return None
            if self._run.result():
                return 0
            self._begin()
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _begin(self) -> None:
        # without a checkpoint: from the beginning, without the rows that an interrupted first epoch may have left
        how = "run.resume=true" if self._run.begun() else "run.overwrite=true"
        command = [sys.executable, str(self._tool), self._run.recipe, *self._run.overrides, how]
        self._log.write(f"$ {shlex.join(command)}\n".encode())
        self._log.flush()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, env=self._environment
        )
        self._log.close()  # the process has it, and with it the lock


def _train_all(
    runs: Sequence[StudyRun], done: Mapping[StudyRun, Row], start: Callable[[StudyRun], Job], jobs: int, out: Path
) -> dict[str, str]:
    """Train all runs that are not ``done``, one line each. Returns those that failed, and why."""
    rows, failed = dict(done), dict[str, str]()
    todo = [run for run in runs if run not in done]
    print(f"{len(done)} of {len(runs)} runs are finished; {len(todo)} to do, {jobs} at a time: {out}", flush=True)
    with closing(_in_turn(todo, start, jobs)) as ended:
        for run, code, seconds in track(ended, "runs", len(todo), unit=0):
            if code == 0 and (row := run.result()):
                rows[run] = row
                write_results([rows[run] for run in runs if run in rows], out / "results.csv")
                reached = f"{run.score} {row[run.score]:.4g}" if run.score in row else f"no score {run.score}"
                said = f"{reached}, {seconds:.0f} s"
            else:
                said = failed[run.name] = _why(run, code)
                said = f"failed: {said}"
            print(f"[{len(rows) + len(failed)}/{len(runs)}] {run.name}: {said}", flush=True)
    return failed


def _in_turn(
    runs: Sequence[StudyRun], start: Callable[[StudyRun], Job], jobs: int
) -> Generator[tuple[StudyRun, int, float], None, None]:
    """Run ``jobs`` at a time; yields each as it ends, with its exit code and its seconds. Closed, it ends all."""
    waiting = list(reversed(runs))
    running: dict[StudyRun, tuple[Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop()
                running[run] = start(run), time.monotonic()
            ended = [(run, code) for run, (job, _) in running.items() if (code := job.poll()) is not None]
            for run, code in ended:
                _, started = running.pop(run)
                yield run, code, time.monotonic() - started
            if not ended:
                time.sleep(_POLL)
    finally:
        for job, _ in running.values():
            job.stop()


def _why(run: StudyRun, code: int) -> str:
    """Why a run failed: what it said last."""
    text = run.log.read_text(encoding="utf-8", errors="replace") if run.log.is_file() else ""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    last = said[-1] if said and not said[-1].startswith("$ ") else "it said nothing"
    reason = f"ended by signal {-code}, " if code < 0 else "ended without a score, " if code == 0 else ""
    return f"{reason}{last} ({run.log})"


def _lock(log: IO[bytes]) -> bool:
    """Lock a file for this process and those that inherit it; ``False`` where another one has it."""
    if fcntl is not None:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(path: Path, study: Study, runs: Sequence[StudyRun], rows: Mapping[StudyRun, Row], out: Path) -> str:
    """Write the report and its picture. Returns its tables, and where the files lie."""
    comparisons = [_compare(study, task, runs, rows) for task in study.tasks]
    panels = {f"{c.task}: {c.unit}": c.intervals() for c in comparisons if c.intervals()}
    if together := over_tasks(comparisons):
        panels["over all tasks: mean of the scores, points"] = together
    picture = out / "report.png"
    if panels:
        draw_differences(panels, study.baseline, picture, same_scale=all(c.in_percent for c in comparisons))
    else:
        picture.unlink(missing_ok=True)  # of a study file that was another one
    facts = Facts(
        name=path.stem,
        question=opening_comment(path),
        arms={name: " ".join(arm.set) for name, arm in study.arms.items()},
        split=study.split,
        seeds=study.seeds,
        total=len(runs),
        missing=[run.name for run in runs if run not in rows],
        optimistic=any(row.get("chosen_by") == study.split for row in rows.values()),
        picture=picture.name if panels else None,
    )
    write_atomically(out / "report.md", study_report(facts, comparisons))
    files = ", ".join(["results.csv", "report.md", *([picture.name] if panels else [])])
    tables = "\n".join(f"\n{c.task} ({study.split} split)\n{comparison_table(c)}" for c in comparisons)
    if table := over_tasks_table(comparisons):
        tables += f"\n\nover all tasks\n{table}"
    return f"{tables}\n\n{len(rows)} of {len(runs)} runs   {files}: {out}"


def _compare(study: Study, task: str, runs: Sequence[StudyRun], rows: Mapping[StudyRun, Row]) -> Comparison:
    """What there is of a task, arm by arm."""
    arms = []
    for name in study.arms:
        own = [run for run in runs if (run.task, run.arm) == (task, name)]
        there = {run.seed: rows[run] for run in own if run in rows and run.score in rows[run]}
        if own:
            column = own[0].score
            scores, seconds = (
                {seed: float(row[key]) for seed, row in there.items()} for key in (column, "train_seconds")
            )
            arms.append(Arm(name, column, scores, seconds))
    return Comparison(task, " ".join([study.tasks[task].recipe, *study.tasks[task].set]), study.baseline, arms)
