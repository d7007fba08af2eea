"""What a data set's own lists say it consists of, before anything but these lists is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import Ewa3dError, first_line
from . import hdf5
from .reading import Stored, read_h5

GET_IT = "datasets/README.md says how"


@dataclass
class Inventory:
    """A data set on the disk.

    Args:
        name: as `ewa3d.data.DATASETS` calls it.
        layout: such as ``"hdf5"``.
        folder: where it lies.
        files: what the lists name, by official split; a file holds one cloud, or many.
        read: one of the files, given its split too.
        check: raise where something in what was read is not as it should be.
        own: whether it is a set of one's own, of which nothing is published.
        episodes: whether the files are episodes, which share clouds.
        faults: what is wrong with the lists, a line each: where, what, the mend.
    """

    name: str
    layout: str
    folder: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    read: Callable[[str, Path], Stored] = lambda split, path: read_h5([path], GET_IT)
    check: Callable[[Stored], None] = lambda stored: None
    own: bool = False
    episodes: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        """The folder that a user calls the data set's: of ScanObjectNN's variants the one around them."""
        return self.folder.parent if self.name.startswith("scanobjectnn") else self.folder

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep an `Ewa3dError` as one of the faults, and go on after it."""
        try:
            yield
        except Ewa3dError as error:
            self.faults.append(str(error))

    @cached_property
    def heads(self) -> dict[Path, int | str]:
        """How many clouds each HDF5 file says it holds, or what is wrong with it; without those missing."""
        listed = dict.fromkeys(path for paths in self.files.values() for path in paths)
        heads: dict[Path, int | str] = {}
        with hdf5.Reader() as reader:
            for path in (path for path in listed if path.suffix == ".h5" and path.exists()):
                try:
                    heads[path] = read_head(reader, path)
                except Ewa3dError as error:
                    heads[path] = str(error)
        return heads

    def count(self) -> dict[str, int | None]:
        """Clouds by split, from the lists and the heads of HDF5 files, whether or not the other files are there.

        ``None`` where a file would have to be read. HDF5 files that are missing or broken do not count.
        """
        return {split: _total(map(self._count, paths)) for split, paths in self.files.items()}

    def _count(self, path: Path) -> int | None:
        if path.suffix != ".h5":
            return None if path.suffix == ".dat" else 1
        return head if isinstance(head := self.heads.get(path), int) else 0


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)


def read_head(reader: hdf5.Reader, path: Path) -> int:
    """How many clouds an HDF5 file says that it holds.

    Raises:
        Ewa3dError: it is not whole, or lacks ``data (n, points, 3)`` or ``label (n, 1)``.
    """
    try:
        found = reader.open(path, ["data", "label"])
    except (OSError, ValueError) as why:
        raise Ewa3dError(f"{path}: not a whole HDF5 file ({first_line(why)}): get the file again ({GET_IT})") from None
    data, label = (item and item.shape for item in map(found.get, ("data", "label")))
    if not data or len(data) != 3 or data[2] != 3 or not label or label[0] != data[0]:
        raise Ewa3dError(
            f"{path}: data is {data} and label {label}, and should be (n, points, 3) and (n, 1): get the file again "
            f"({GET_IT})"
        )
    return data[0]
