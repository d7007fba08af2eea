"""HDF5 files at arm's length.

libhdf5 believes what a file says: on one that is damaged or hostile it may crash, hang or ask for all memory, and links
in it may name any other file. So a child process opens the files, with bounds on its time and, where the system can, on
its memory; what crashes is the child. No dataset is read that claims more than the bytes of the file can stand for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import Ewa3dError

MOST_DEFLATED = 1032  # bytes that one byte of deflate can stand for, which no other filter of a point cloud exceeds
_CHILD = Path(__file__).with_name("hdf5_child.py")
_PATIENCE = 20  # seconds an answer may take
_SLOWEST = 1 << 20  # and one more for every so many bytes of the file
_LARGEST_CHUNK = 1 << 26  # bytes of a chunk that is larger than its dataset


@dataclass(frozen=True)
class Described:
    """A dataset of the file that is open."""

    kind: str  # as NumPy's dtype.kind
    type: str
    shape: tuple[int, ...] | None  # None: it has none
    itemsize: int
    stored: int  # bytes in the file
    chunk: int  # bytes of a chunk, 0 where it has none

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Described:
        return cls(**{**facts, "shape": tuple(facts["shape"]) if facts["shape"] is not None else None})


class Reader:
    """Reads HDF5 files one by one, in a child process of its own; a context manager.

    Both methods raise ValueError with what is wrong with the file.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._size = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; the next file starts another."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def open(self, path: Path, names: Sequence[str]) -> dict[str, Described | None]:
        """Open a file, and say what it has of ``names``; ``None`` is something else than a dataset."""
        with path.open("rb") as file:  # what cannot be opened at all is said in Python's words
            self._size = os.fstat(file.fileno()).st_size
        answer = self._ask({"open": str(path.absolute()), "names": list(names)})
        return {name: item and Described.of(item) for name, item in answer["found"].items()}

    def read(self, name: str, item: Described, dtype: type[np.generic], row: int | None = None) -> np.ndarray:
        """The values of a dataset of the open file, or of one of its rows, as ``dtype``."""
        if item.shape is None:
            raise ValueError(f"dataset {name!r} has no values")
        most = min(item.stored, self._size) * (MOST_DEFLATED if item.chunk else 1)
        if item.itemsize * prod(item.shape) > most or item.chunk > max(most, _LARGEST_CHUNK):
            raise ValueError(f"dataset {name!r} claims {item.type} {item.shape}, and has {most} bytes at most")
        values = np.empty(item.shape if row is None else item.shape[1:], dtype)
        self._ask({"read": name, "dtype": values.dtype.str, "row": row}, values)
        return values

    def _ask(self, request: dict[str, Any], into: np.ndarray | None = None) -> dict[str, Any]:
        """The child's answer; the values after it go ``into`` an array."""
        child = self._child = self._child or _start()
        assert child.stdin is not None and isinstance(child.stdout, BufferedReader)
        patience = _PATIENCE + self._size // _SLOWEST
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(patience, stop)
        watch.daemon = True
        watch.start()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline())
            if into is not None and "error" not in answer and into.nbytes:
                whole = answer["bytes"] == into.nbytes == child.stdout.readinto(into.data.cast("B"))
                if not whole:
                    raise EOFError
        except (OSError, EOFError, ValueError):  # it is gone, perhaps in the middle of a word
            self.close()
            how = f"took longer than {patience} s over" if late.is_set() else "crashed on"
            raise ValueError(f"the HDF5 library {how} it") from None
        except BaseException:  # Ctrl-C: what it would still say must not be taken for another answer
            self.close()
            raise
        finally:
            watch.cancel()
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def _start() -> subprocess.Popen[bytes]:
    # no filters of other libraries: a file names them, and the HDF5 library would load their code
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}
    command = [sys.executable, "-I", str(_CHILD), json.dumps(sys.path)]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
    except OSError as why:
        raise Ewa3dError(
            f"{sys.executable}: does not start to read HDF5 files ({why}): check the installation"
        ) from why
