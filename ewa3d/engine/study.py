"""Studies: what is compared, which runs that takes, and the table of those that are there.

A study trains every arm on every task with every seed. Each of these is an ordinary run in a folder of its own, so that
nothing of it is known to the training, and any of them can be looked at, repeated and continued by itself.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from ..errors import Ewa3dError, first_line, quoted, shorten
from ..files import write_atomically
from .config import load_config, read_yaml
from .run import check_same, load_run_config, read_rows
from .schema import Config
from .tasks import Classification, PartSegmentation, Pretraining

_NAME = re.compile(r"\w[\w.-]*")  # of a task or an arm: it becomes a folder
_OURS = re.compile(r"(train\.seed|eval\.split|run\b.*)")  # settings that the study makes itself
_HEAD = ("task", "arm", "seed", "split")
_COST = ("epochs", "train_seconds")

Row = dict[str, Any]


@dataclass
class TaskSpec:
    """What is trained: a recipe, its overrides, and the score that is compared (default: the recipe's task's own)."""

    recipe: str = MISSING
    set: list[str] = field(default_factory=list)
    score: str | None = None


@dataclass
class ArmSpec:
    """A way to train it: more overrides, the tasks it is for (default: all), and its score where it has another one."""

    set: list[str] = field(default_factory=list)
    tasks: list[str] | None = None
    score: str | None = None


@dataclass
class Study:
    """What a study file says. ``{seed}`` in an override becomes the run's seed."""

    baseline: str = MISSING  # the arm that the others are compared with
    seeds: list[int] = field(default_factory=list)
    split: str = "val"  # ``eval.split`` of all runs
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    arms: dict[str, ArmSpec] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One training of a study."""

    task: str
    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: Config
    folder: Path
    score: str  # the column that is compared

    @property
    def name(self) -> str:
        return f"{self.task}/{self.arm}/seed-{self.seed}"

    @property
    def log(self) -> Path:
        """What the training says, beside its folder."""
        return self.folder.with_suffix(".log")

    def result(self) -> Row | None:
        """The run's row of the table; ``None`` where it is not finished."""
        try:
            rows = read_rows(self.folder)
        except ValueError as error:
            raise Ewa3dError(
                f"{self.folder}/metrics.jsonl is damaged ({error}): delete this folder to run it again"
            ) from error
        if not rows or "split" not in rows[-1]:
            return None
        last = {key: value for key, value in rows[-1].items() if isinstance(value, (str, int, float)) and key != "time"}
        epochs = [row for row in rows if "epoch" in row]
        cost = {"epochs": len(epochs), "train_seconds": sum(row["train_seconds"] for row in epochs)}
        return {"task": self.task, "arm": self.arm, "seed": self.seed, **last, **cost}

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.folder / "checkpoints" / "last").is_file()


def load_study(path: Path) -> Study:
    """A study file, checked as far as it can be without its recipes.

    Raises:
        Ewa3dError: no such file, bad YAML, an unknown key (named with the nearest right one), a value that is missing,
            of the wrong type, or names an arm or a task that the file does not have.
    """
    try:
        layer = read_yaml(path)
    except OSError as error:
        raise Ewa3dError(f"{path}: this study file cannot be read: {error.strerror}") from error
    except Exception as error:  # PyYAML and OmegaConf raise many kinds, all of them about this file
        raise Ewa3dError(f"{path} is no readable YAML: {first_line(error)}") from error
    if not isinstance(layer, DictConfig):
        raise Ewa3dError(f"{path}: not a table of keys: see tools/study.py --help for an example")
    try:
        _check_shape(cast(dict[str, Any], OmegaConf.to_container(layer)))
        study = cast(Study, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), layer)))
        _check(study)
    except Ewa3dError as error:
        raise Ewa3dError(f"{path}: {error}") from None
    except Exception as error:  # OmegaConf's own, and what its grammar of references stumbles over
        raise Ewa3dError(f"{path}: {_explain(error)}") from None
    return study


def plan_runs(study: Study, out: Path) -> list[StudyRun]:
    """All runs of a study, seed by seed, so that one that is broken off is balanced and paired.

    Every run's configuration is loaded and checked here: a typo in the last arm is found before the first run.

    Raises:
        Ewa3dError: a configuration that is wrong, named with its task and arm.
    """
    return [
        _plan_run(study, task, arm, seed, out)
        for seed in study.seeds
        for task in study.tasks
        for arm, spec in study.arms.items()
        if spec.tasks is None or task in spec.tasks
    ]


def read_results(runs: Sequence[StudyRun]) -> dict[StudyRun, Row]:
    """The rows of the table, of the runs that are finished, in the order of ``runs``.

    Raises:
        Ewa3dError: a run, finished or begun, was made with another configuration than the study asks for now.
    """
    rows = {}
    for run in runs:
        row = run.result()
        if row or run.begun():  # what has neither starts again anyway
            mend = "delete this folder to run it again, or take another --out"
            check_same(load_run_config(run.folder), run.config, run.folder, scored=bool(row), mend=mend)
        if row:
            rows[run] = row
    return rows


def write_results(rows: Sequence[Row], path: Path) -> None:
    """The table as CSV: a row a run; the columns are those of all runs together, blank where a run lacks one."""
    found = dict.fromkeys(name for row in rows for name in row)
    names = [*_HEAD, *(name for name in found if name not in (*_HEAD, *_COST)), *_COST]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _plan_run(study: Study, task: str, arm: str, seed: int, out: Path) -> StudyRun:
    spec, way = study.tasks[task], study.arms[arm]
    folder = out / task / arm / f"seed-{seed}"
    asked = [item.replace("{seed}", str(seed)) for item in (*spec.set, *way.set)]
    overrides = (*asked, f"train.seed={seed}", f"eval.split={study.split}", f"run.dir={folder}")
    try:
        config = load_config(spec.recipe, overrides)
    except Ewa3dError as error:
        raise Ewa3dError(f"task {task}, arm {arm}: {error}") from None
    score = way.score or spec.score or _default_score(config)
    return StudyRun(task, arm, seed, spec.recipe, overrides, config, folder, score)


def _default_score(config: Config) -> str:
    """The column of the score that also chooses the epoch."""
    if config.task == "part_segmentation":
        return f"{config.eval.protocol}_{PartSegmentation.score}"
    if config.task == "pretraining":
        return f"{Pretraining.protocol}_chamfer_{config.model.chamfer or 'l2'}"
    return f"{Classification.protocol}_{Classification.score}"


def opening_comment(path: Path) -> str:
    """The comment that a study file begins with: what the study asks."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("#").strip() for line in lines)


def _explain(error: Exception) -> str:
    """What OmegaConf found, with the nearest right key where one is unknown."""
    key = shorten(getattr(error, "full_key", None) or "")
    group, _, rest = key.partition(".")
    kind = {"tasks": TaskSpec, "arms": ArmSpec}.get(group, Study) if "." in rest else Study
    known = [f.name for f in fields(kind)]
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError"):
        prefix, _, last = key.rpartition(".")
        near = difflib.get_close_matches(last, known, n=1, cutoff=0.4)
        right = f"{prefix}.{near[0]}" if prefix and near else "".join(near)
        return f"unknown key {key}: " + (f"did you mean {right}?" if near else f"there are {', '.join(known)}")
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing"
    return f"{key}: {first_line(error)}"


def _check_shape(raw: Mapping[str, Any]) -> None:
    """Raise where something else stands for a table or a list, of which OmegaConf's own words say little."""
    examples = {"tasks": "{NAME: {recipe: FILE.yaml}}", "arms": "{NAME: {set: [key=value]}, OTHER: {}}"}
    lists = {"seeds": raw.get("seeds")}
    for group, example in examples.items():
        parts = raw.get(group) or {}
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            raise Ewa3dError(f"{group}: not a table of tables: write for example `{group}: {example}`")
        lists |= {f"{group}.{name}.{key}": part.get(key) for name, part in parts.items() for key in ("set", "tasks")}
    for where, value in lists.items():
        if not isinstance(value, list) and value is not None:
            raise Ewa3dError(f"{where}: not a list: write [{shorten(str(value))}]")
        wrong = [item for item in value or () if where.endswith(".set") and not isinstance(item, str)]
        if wrong:
            raise Ewa3dError(f"{where}: {shorten(str(wrong[0]))} is no key=value: write for example 'train.epochs=10'")


def _check(study: Study) -> None:
    for what in ("seeds", "tasks", "arms"):
        if not getattr(study, what):
            raise Ewa3dError(f"{what} is missing: name one or more")
    if len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise Ewa3dError(f"seeds: {study.seeds}: they must differ and be 0 or more")
    for name in (*study.tasks, *study.arms):
        if not _NAME.fullmatch(name):
            raise Ewa3dError(
                f"{quoted(name)} becomes a folder: take letters, digits and _.- for names of tasks and arms"
            )
    _check_names("baseline", [study.baseline], study.arms)
    for name, arm in study.arms.items():
        _check_names(f"arms.{name}.tasks", arm.tasks or (), study.tasks)
    for where, part in (*_prefixed("tasks", study.tasks), *_prefixed("arms", study.arms)):
        for item in part.set:
            if _OURS.fullmatch(key := item.partition("=")[0].strip()):
                raise Ewa3dError(f"{where}.set: {key} is set by the study: leave it out")


def _prefixed(group: str, parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{group}.{name}", part) for name, part in parts.items()]


def _check_names(where: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise Ewa3dError(f"{where}: {shorten(name)}: no such name: {hint}")
