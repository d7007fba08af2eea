"""Reading the field's pickled arrays without running what is in them.

A pickle is a program. The official ``.dat`` and ``.pkl`` data files need five functions of NumPy and one of Python;
here each is a stand-in of our own that checks what it is given, and any other name in the file is refused before it is
imported. The stand-ins matter: NumPy's own ``dtype.__setstate__`` and ``ndarray.__setstate__`` trust their input, and
a crafted state makes them read memory that is not theirs.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ..errors import Ewa3dError, first_line, quoted

_PLAIN_DTYPE = re.compile(r"[<>=|]?(b1|[iuf][1248])")  # booleans, integers, floats of 1 to 8 bytes; never objects


class _Refused(Exception):
    """Something in a pickle that is no plain array."""


class _Allowed:
    """A function that a pickle may call. An object of our own, so that a pickle cannot set its attributes."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused(f"an attribute {name}")

    def __setstate__(self, state: object) -> None:
        raise _Refused("a changed function")


class _DType:
    """Stand-in for ``numpy.dtype``: the type's code, then its byte order by ``__setstate__``."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise _Refused(f"an array of type {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _version, order, *rest = state
        # (subarray, names, fields, itemsize, alignment, flags) of a plain type
        if order not in ("<", ">", "=", "|") or rest[:3] != [None, None, None]:
            raise _Refused("an array with fields")
        if order != "|":
            self.numpy = self.numpy.newbyteorder(order)


class _Array:
    """Stand-in for ``numpy.ndarray``: filled by ``__setstate__``, or at once from a buffer."""

    def __init__(self) -> None:
        self.numpy: np.ndarray | None = None

    def fill(self, data: Any, dtype: object, shape: Any, fortran: bool) -> _Array:
        if not isinstance(dtype, _DType):
            raise _Refused("an array without a plain type")
        # A pickle of Python 2 holds bytes as text.
        raw = data.encode("latin1") if isinstance(data, str) else data
        flat = np.frombuffer(raw, dtype.numpy)
        self.numpy = flat.reshape(tuple(shape), order="F" if fortran else "C")
        return self

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, fortran)


def _reconstruct(_type: object, _shape: object, _code: object) -> _Array:
    return _Array()


def _frombuffer(buffer: object, dtype: object, shape: object, order: str) -> _Array:
    return _Array().fill(buffer, dtype, shape, order == "F")


def _scalar(dtype: object, data: object = b"") -> _Array:
    return _Array().fill(data, dtype, (), False)


def _encode(text: str, codec: str = "") -> bytes:
    # Protocol 2 has no bytes: they come as text and this call. Other codecs would be looked up, so imported.
    if codec != "latin1":
        raise _Refused(f"text in {codec!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # how protocol 2 spells it


def _no_call(*_: object) -> None:
    raise _Refused("a call of numpy.ndarray")


_NUMPY: dict[str, Callable[..., Any]] = {"_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer}
_ALLOWED = {
    ("numpy", "dtype"): _Allowed(_DType),
    ("numpy", "ndarray"): _Allowed(_no_call),  # only ever an argument of _reconstruct
    ("_codecs", "encode"): _Allowed(_encode),
    ("__builtin__", "bytes"): _Allowed(_no_bytes),
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    for _home, _name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")):
        _ALLOWED[f"{_core}.{_home}", _name] = _Allowed(_NUMPY[_name])


class _Whole:
    """A file that is never asked for more than is left of it: room would be made for all of that first."""

    def __init__(self, file: BinaryIO):
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self.size - self._file.tell():
            raise EOFError("it ends too early")
        return self._file.read(count)


# the one in Python: that in C makes room for as many values as a file says that it will refer to
_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):
    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # which makes no room before there is something to fill it

    dispatch: ClassVar = {**_InPython.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(quoted(f"{module}.{name}")[1:-1]) from None


class _Room:
    """How much a file of ``size`` bytes can hold: it may name one thing many times, and what names such things too."""

    def __init__(self, size: int):
        self._left = 16 * size

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _Refused("the same things over and over")


def _plain(value: Any, room: _Room) -> Any:
    """``value`` with every stand-in replaced by its array."""
    room.take(1)
    if isinstance(value, _Array):
        if value.numpy is None:
            raise _Refused("an array without content")
        room.take(value.numpy.nbytes)
        return value.numpy
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, room) for item in value)
    if isinstance(value, dict):
        return {_plain_key(key): _plain(item, room) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise _Refused(f"a {type(value).__name__.lstrip('_')}")


def _plain_key(key: Any) -> Any:
    if isinstance(key, (str, int)):
        return key
    raise _Refused(f"a key that is a {type(key).__name__.lstrip('_')}")


def load_arrays(path: str | Path) -> Any:
    """Read a pickle of NumPy arrays (protocols 2 to 5, NumPy 1 and 2) and nothing but NumPy arrays.

    Args:
        path: the file.

    Returns:
        Its lists, tuples and dicts of arrays (booleans, integers, floats; read-only), numbers, texts and ``None``. A
        NumPy scalar is an array of shape ``()``.

    Raises:
        Ewa3dError: no such file, not a whole pickle, or anything else than arrays in it. Nothing of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            whole = _Whole(file)
            return _plain(_Unpickler(whole, encoding="latin1").load(), _Room(whole.size))
    except OSError as why:
        raise Ewa3dError(f"{path}: cannot be read ({why.strerror or why}): check the path and its rights") from None
    except _Refused as why:
        raise Ewa3dError(
            f"{path}: holds {why}, and only plain NumPy arrays are read (nothing was run): "
            "make the file again from data that you trust"
        ) from None
    # A broken or hostile pickle fails in many ways (EOFError, TypeError, MemoryError, a loop without end …).
    except Exception as why:
        raise Ewa3dError(
            f"{path}: not a whole pickle of NumPy arrays ({first_line(why)}): get or make the file again"
        ) from None


def as_cloud(value: Any, where: str) -> np.ndarray:
    """``value`` as a table of points, ``(points, 3 or more)`` floats; ``where`` is the file and row of an error."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] < 3 or value.dtype.kind != "f":
        raise Ewa3dError(f"{where}: a cloud is no array (points, 6) of floats: make the file again")
    return value


def as_label(value: Any, where: str) -> int:
    """``value``, a number or an array of one, as an integer; ``where`` is the file and row of an error."""
    array = np.asarray(value) if isinstance(value, (int, np.ndarray)) else np.empty(0)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise Ewa3dError(f"{where}: a label is no single integer: make the file again")
    return int(array.item())
