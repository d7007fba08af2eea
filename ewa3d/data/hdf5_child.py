"""The other end of `ewa3d.data.hdf5`: a script that opens HDF5 files, as stdin tells it, and answers on stdout.

It imports nothing of ewa3d, so that it starts in a tenth of a second. It may crash: that is what it is for.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])  # the h5py of the process that asks, wherever it has it from

import h5py
import numpy as np

_SPARE = 1 << 30  # bytes that a file may take, more than it needs for its datasets
_MAPPED = 0  # bytes of address space that Python and its libraries have


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer ``{"open": path, "names": [name, …]}`` and ``{"read": name, "dtype": text, "row": number or null}``.

    An answer is a line of JSON; after that of ``read`` come the values, in as many bytes as it says.
    """
    file: h5py.File | None = None
    for line in requests:
        request, values = json.loads(line), None
        try:
            if "open" in request:
                if file is not None:
                    file.close()
                _limit_memory(0)
                file = h5py.File(request["open"], "r")
                answer: dict[str, Any] = {"found": _describe(file, request["names"])}
            else:
                assert file is not None
                values = _read(file[request["read"]], request["dtype"], request["row"])
                answer = {"shape": values.shape, "bytes": values.nbytes}
        except MemoryError:
            answer = {"error": "it takes more memory than there is"}
        except Exception as why:  # on bytes that are no such file, h5py raises whatever it stumbles over
            answer = {"error": " ".join(str(why).split()) or type(why).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        if values is not None and values.nbytes:
            answers.write(values.data.cast("B"))
        answers.flush()


def _describe(file: h5py.File, names: list[str]) -> dict[str, Any]:
    """What the root has under ``names``; ``None`` is no dataset."""
    found: dict[str, Any] = {}
    for name in names:
        if (link := file.get(name, getlink=True)) is None:
            continue
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name!r} is a link to elsewhere, which is not followed")
        item = file[name]
        found[name] = None
        if isinstance(item, h5py.Dataset):
            layout = item.id.get_create_plist()  # before its shape: of a virtual one, that opens other files
            if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
                raise ValueError(f"dataset {name!r} lies in other files, which are not opened")
            found[name] = {
                "kind": item.dtype.kind,
                "type": str(item.dtype),
                "itemsize": item.dtype.itemsize,
                "shape": item.shape,
                "stored": item.id.get_storage_size(),
                "chunk": int(np.prod(item.chunks, dtype=object)) * item.dtype.itemsize if item.chunks else 0,
            }
    return found


def _read(item: h5py.Dataset, dtype: str, row: int | None) -> np.ndarray:
    size = item.size * max(np.dtype(dtype).itemsize, item.dtype.itemsize)
    _limit_memory(2 * size)
    return np.ascontiguousarray(item.astype(dtype)[() if row is None else row])


def _limit_memory(size: int) -> None:
    """Where the system can, no more than ``size`` bytes and a little besides."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_MAPPED + size + _SPARE, most))


def _mapped() -> int:
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 1 << 32


if __name__ == "__main__":
    _MAPPED = _mapped()
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, answers)
