"""A run's folder: its configuration, log, metrics and checkpoints."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import Ewa3dError
from ..files import write_atomically
from .checkpoint import checkpoints
from .config import load_config, to_yaml
from .schema import Config

ROUTED = "export_routed"  # beside export/, the model with its router where a run has one

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

# may differ between a run and its continuation
_FREE = ("run.", "train.device", "train.cuda_graph", "train.num_workers", "eval.", "data.root")


class _Console(logging.StreamHandler):
    """Whoever read the console may be gone (a closed pipe): training and ``log.txt`` go on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _LogFile(logging.FileHandler):
    """A full disk ends the training with one clear line, not each line with a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what `emit` is handling


class Run:
    """Opens ``runs/NAME`` for one training: ``config.yaml  log.txt  metrics.jsonl  tensorboard/  checkpoints/``.

    Args:
        config: the run's configuration; ``run.dir`` is filled in where it is not set.
        main: whether this process writes; of several, one does.

    Raises:
        Ewa3dError: a run is there already (and neither resumed nor overwritten), or differs from the one to resume, or
            the folder cannot be written.
    """

    def __init__(self, config: Config, *, main: bool = True):
        self.dir = Path(config.run.dir or Path("runs") / config.recipe)
        config.run.dir = str(self.dir)
        self.main = main
        self.checkpoints = self.dir / "checkpoints"
        self.metrics = self.dir / "metrics.jsonl"
        if main:
            try:
                self._prepare(config)
            except OSError as why:
                raise self._unwritable(why) from why
        self._logger = logging.getLogger(f"ewa3d.run.{id(self)}")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._writer: Any = None
        if main:
            file = _LogFile(self.dir / "log.txt", encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._logger.handlers = [_Console(sys.stdout), file]
        else:
            self._logger.handlers = [logging.NullHandler()]

    def _prepare(self, config: Config) -> None:
        file = self.dir / "config.yaml"
        if file.exists() and config.run.overwrite and not config.run.resume:  # never a folder that is no run
            shutil.rmtree(self.dir)
        if (self.checkpoints / "last").exists() and not config.run.resume:
            raise Ewa3dError(
                f"{self.dir} holds a run already: run.resume=true continues it, run.overwrite=true deletes it, "
                "run.dir=… takes another folder"
            )
        if file.exists() and config.run.resume:
            check_same(load_config(file), config, self.dir)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # what was asked for this once is not kept: training from this file again must not delete the run
        once = replace(config, run=replace(config.run, resume=False, overwrite=False))
        write_atomically(file, to_yaml(once))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = error if isinstance(error, OSError) and error.errno in _FULL else None
        with suppress(OSError) if full else nullcontext():  # what could not be written before cannot be now
            if self._writer is not None:
                self._writer.close()
            for handler in self._logger.handlers:
                handler.close()
        if full:
            raise self._unwritable(full) from full

    def log(self, message: str) -> None:
        """A line for the person at the console and for ``log.txt``."""
        self._logger.info(message)

    def record(self, row: dict[str, Any]) -> None:
        """A row for ``metrics.jsonl``; its numbers go to TensorBoard too."""
        if not self.main:
            return
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time": round(time.time(), 1)}) + "\n")
        step = row.get("step", 0)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # of a run that is resumed, the curves from here on are drawn once
            self._writer = SummaryWriter(str(self.dir / "tensorboard"), purge_step=step)
        for key, value in row.items():
            if isinstance(value, float):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def _unwritable(self, why: OSError) -> Ewa3dError:
        mend = "make room" if why.errno in _FULL else "take another run.dir"
        return Ewa3dError(f"{self.dir}: cannot be written ({why.strerror or why}): {mend}; {self.last_good}")

    @property
    def last_good(self) -> str:
        """What the run can be gone on from, for the error that ends it."""
        last = next(iter(checkpoints(self.checkpoints)), None)
        return f"the last good checkpoint is {last}" if last is not None else "there is no checkpoint yet"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``."""
        return read_rows(self.dir)

    def forget_after(self, step: int) -> None:
        """Drop rows of steps after ``step``: a resumed run writes them again."""
        if self.main:
            kept = [json.dumps(row) + "\n" for row in self.rows() if row.get("step", 0) <= step and "split" not in row]
            write_atomically(self.metrics, "".join(kept))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``; where the run has ended, the last one has its scores and a ``split``."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    # a kill may have cut the last line; its epoch is trained again
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check_same(old: Config, new: Config, folder: Path, *, scored: bool = False, mend: str | None = None) -> None:
    """Raise where the run in ``folder`` was made with another configuration, apart from what changes no result.

    Args:
        old: the run's configuration.
        new: the one that is asked for.
        folder: of the run.
        scored: its scores are to be taken as they are, so ``eval`` has to be the same too.
        mend: what to do about it, for the message; by default for someone who resumes this one run.
    """
    before, now = _flat(asdict(old)), _flat(asdict(new))
    free = tuple(prefix for prefix in _FREE if not (scored and prefix == "eval."))
    mend = mend or f"resume it with `{folder}/config.yaml run.resume=true`, or take another run.dir"
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(free):
            raise Ewa3dError(f"{folder} was run with {key}={before.get(key)}, not {now.get(key)}: {mend}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def load_run_config(folder: Path) -> Config:
    """The configuration of the run in ``folder``.

    Raises:
        Ewa3dError: no run is there.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise Ewa3dError(f"{folder} is no run: it has no config.yaml; give a folder that tools/train.py wrote")
    return load_config(file)
