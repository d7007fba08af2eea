"""Gives a reader broken files and holds it to what every reader promises.

It returns what it documents or raises `Ewa3dError`, one line that names the file; in little time and memory; it opens
no file but those it was given, and starts nothing.
"""

from __future__ import annotations

import random
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from fuzz_mutations import mutate
from fuzz_targets import Files, Target

import ewa3d
from ewa3d.data import hdf5
from ewa3d.errors import Ewa3dError

SECONDS = 5  # of CPU time
_NEVER = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "subprocess.Popen", "socket.connect")
_NEVER += ("socket.getaddrinfo", "ctypes.dlopen", "shutil.rmtree", "os.remove", "os.rename", "os.symlink", "os.link")
_HOME = Path(ewa3d.__file__).parent
_LIBRARIES = tuple({str(_HOME), sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})


@dataclass(frozen=True)
class Outcome:
    """What became of an input: ``read``, ``refused`` or ``failed``, and why."""

    kind: str
    why: str = ""
    seconds: float = 0.0


class Watch:
    """Notices what a reader opens and starts, by Python's audit events. A hook cannot be taken away: there is one."""

    def __init__(self) -> None:
        self.folder: str | None = None  # what may be read; None: not watching
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _NEVER:
            self.seen.append(f"{event} {args!r}"[:200])
        elif event == "exec" and isinstance(args[0], CodeType) and "__import__" in args[0].co_names:  # as our seeds do
            self.seen.append("runs code")
        elif event == "open" and isinstance(args[0], (str, bytes)):
            path = args[0] if isinstance(args[0], str) else args[0].decode("utf-8", "surrogateescape")
            if not path.startswith((self.folder, "/proc/self/", "/dev/null", *_LIBRARIES)) or "/../" in path:
                self.seen.append(f"opens {path!r}"[:200])


WATCH = Watch()


class Coverage:
    """The steps from line to line of ewa3d's own code that were ever taken."""

    def __init__(self) -> None:
        self.known: set[tuple[int, int, int]] = set()
        self._new = False

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(_HOME)):
            return None
        code, before = id(frame.f_code), 0

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal before
            step = (code, before, frame.f_lineno)
            before = frame.f_lineno
            if step not in self.known:
                self.known.add(step)
                self._new = True
            return line

        return line

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._new = False
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    @property
    def grew(self) -> bool:
        return self._new


@contextmanager
def one_hdf5_child() -> Iterator[None]:
    """All HDF5 files by one child, or a start a file would be most of the time."""
    shared, own = hdf5.Reader(), hdf5.Reader

    class Shared(own):  # type: ignore[misc, valid-type]
        def __new__(cls) -> Any:
            return shared

    hdf5.Reader, kept = Shared, own.__exit__  # type: ignore[misc]
    own.__exit__ = lambda *_: None  # type: ignore[assignment, method-assign]
    start = hdf5._start

    def unwatched() -> Any:
        folder, WATCH.folder = WATCH.folder, None
        try:
            return start()
        finally:
            WATCH.folder = folder

    hdf5._start = unwatched
    try:
        yield
    finally:
        hdf5.Reader, own.__exit__, hdf5._start = own, kept, start  # type: ignore[misc, method-assign]
        shared.close()


def try_input(target: Target, folder: Path) -> Outcome:
    """Read the input in ``folder``."""
    WATCH.seen, WATCH.folder = [], str(folder)
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
        outcome = Outcome("read")
    except Ewa3dError as error:
        outcome = _judge(error, target, folder)
    except AssertionError as error:
        outcome = Outcome("failed", f"returns what it should not: {error}")
    except Exception as error:
        outcome = Outcome("failed", f"{type(error).__name__}: {_where(error)}: {error}"[:300])
    finally:
        WATCH.folder = None
    seconds = time.process_time() - start
    if WATCH.seen:
        outcome = Outcome("failed", f"it {WATCH.seen[0]}")
    elif seconds > SECONDS:
        outcome = Outcome("failed", f"took {seconds:.1f} s of CPU time")
    return Outcome(outcome.kind, outcome.why, seconds)


def _judge(error: Ewa3dError, target: Target, folder: Path) -> Outcome:
    said, chain = str(error), [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)  # type: ignore[arg-type]
    if (any(map(_is_memory, chain)) and not target.reserves) or "more memory than there is" in said:
        return Outcome("failed", f"takes too much memory: {_where(chain[-1])}: {said}"[:300])
    if len(said.splitlines()) != 1 or not said.strip():
        return Outcome("failed", f"says not one line: {said!r}"[:300])
    if len(said) > 2000:
        return Outcome("failed", f"says {len(said)} letters: {said[:100]}")
    if target.names_file and str(folder) not in said:
        return Outcome("failed", f"names no file: {said}"[:300])
    return Outcome("refused", said)


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out; Python's parser says so too of what is nested too deeply."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    in_parser = trace is not None and trace.tb_frame.f_code.co_filename.endswith("ast.py")
    return isinstance(error, MemoryError) and not in_parser


def _where(error: BaseException) -> str:
    """The last line of ewa3d that an exception came through."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(str(_HOME)):
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class Campaign:
    """Inputs for a reader, one after the other. What took a new step through the code is changed further."""

    def __init__(self, target: Target, folder: Path, seed: int, *, guided: bool):
        self.target, self.folder = target, folder
        self.draw = random.Random(seed)
        self.seeds = target.seeds()
        self.corpus: list[tuple[Files, str]] = [(files, name) for files in self.seeds for name in files]
        self.coverage = Coverage() if guided else None
        self._written: dict[str, bytes] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def check_seeds(self) -> list[Outcome]:
        """Read the good files: it makes the readers import what they need, and says what is no good one."""
        outcomes = []
        for files in self.seeds:
            self._write(files)
            with suppress(Ewa3dError):
                self.target.read(self.folder)
            self._write(files)
            outcomes.append(try_input(self.target, self.folder))
        return outcomes

    def _write(self, files: Files) -> None:
        """Make the folder hold these files and no others."""
        if self.target.makes:
            shutil.rmtree(self.folder / self.target.makes, ignore_errors=True)
        for name in self._written.keys() - files.keys():
            (self.folder / name).unlink()
        for name, content in files.items():
            if self._written.get(name) is not content:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self._written = dict(files)

    def step(self) -> Outcome:
        """Make an input, leave it in the folder and read it."""
        start, name = self.draw.choice(self.corpus[-50:] if self.draw.random() < 0.3 else self.corpus)
        others = [files[name] for files in self.seeds if name in files]
        changed = {**start, name: mutate(self.draw, start[name], others)}
        self._write(changed)
        if self.coverage is None:
            return try_input(self.target, self.folder)
        with self.coverage.watching():
            outcome = try_input(self.target, self.folder)
        if self.coverage.grew:
            self.corpus.append((changed, name))
        return outcome
