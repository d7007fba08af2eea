"""The data doctor: ``python -m ewa3d.data.check [ROOT]`` says which data sets there are and what is wrong with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Ewa3dError
from .examine import check_clouds, check_files
from .finders import FINDERS
from .inventory import GET_IT, Inventory
from .published import PUBLISHED, as_published, describe_counts
from .roots import find_root

_MOST_LINES = 20  # that are printed of the faults of a data set
_EXAMPLES = """examples:
  python -m ewa3d.data.check                   all data sets in EWA3D_DATASETS, else in datasets/
  python -m ewa3d.data.check /data --full      read every file of those in /data
  python -m ewa3d.data.check /data/psb_parts   one data set

exit code: 0 nothing is wrong, 1 something is, 2 there is no such folder
"""


@dataclass
class SetReport:
    """A data set that was found.

    Args:
        name: as `ewa3d.data.DATASETS` calls it.
        layout: such as ``"hdf5"``.
        folder: where it lies.
        counts: clouds by official split; ``None`` where only reading the files would tell.
        published: what the counts should be; empty for a set of one's own.
        faults: what is missing or broken, a line each: where, what, the mend.
        notes: what is worth knowing and no fault.
    """

    name: str
    layout: str
    folder: Path
    counts: Mapping[str, int | None]
    published: Mapping[str, tuple[int, ...]]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What `check` found at ``root``: data sets, faults besides theirs, folders without a data set that it knows."""

    root: Path
    sets: list[SetReport] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    full: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or broken."""
        return not self._count_faults()

    def _count_faults(self) -> int:
        return len(self.faults) + sum(len(found.faults) for found in self.sets)

    def __str__(self) -> str:
        lines = []
        for found, row in zip(self.sets, _rows(self.root, self.sets), strict=True):
            lines.append(row)
            lines += [f"  fault: {text}" for text in found.faults[:_MOST_LINES]]
            if (more := len(found.faults) - _MOST_LINES) > 0:
                lines.append(f"  and {more:,} more faults")
            lines += [f"  note: {text}" for text in found.notes]
        lines += [f"fault: {text}" for text in self.faults]
        if self.unknown:
            lines.append(f"no data set in: {', '.join(path.name for path in self.unknown)}")
        looked = "every file was read" if self.full else "files were not read: --full does"
        count = self._count_faults()
        lines.append(f"{count:,} fault{'s' * (count > 1)}" if count else f"nothing is missing or broken ({looked})")
        return "\n".join(lines)


def _rows(root: Path, sets: list[SetReport]) -> list[str]:
    """A line a data set, in columns."""
    table = []
    for found in sets:
        place = str(found.folder if found.folder == root else found.folder.relative_to(root))
        whole = ": as published" if as_published(found.counts, found.published) else ""
        table.append((found.name, found.layout, place, describe_counts(found.counts, found.published) + whole))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def check(root: str | Path | None = None, *, full: bool = False) -> Report:
    """Look for data sets at ``root`` or in the folders there, and for what is wrong with them.

    The lists of every set are read, and whether their files are there; of HDF5 files the heads. A set that lies there
    in several folders is checked in each.

    Args:
        root: a folder of data sets, or the folder of one; ``None`` is ``EWA3D_DATASETS``, else ``datasets/``.
        full: read every file too, and check every cloud: labels, parts, coordinates, too few points, and whether it is
            in two splits.

    Raises:
        Ewa3dError: no such folder, or one that may not be read.
    """
    home = find_root(root, GET_IT)
    report = Report(home, full=full)
    found, faults = _find(home)
    found = [item for item in found if item.place == home]
    if not found and not faults:
        for folder in _folders_in(home):
            here, wrong = _find(folder)
            found += here
            faults += wrong
            if not here and not wrong:
                report.unknown.append(folder)
    report.sets = [_examine(item, full) for item in found]
    report.faults = faults
    if not found and not faults:
        report.faults = [f"{home}: no data set in it that ewa3d knows: get one ({GET_IT}), or give its folder"]
    return report


def _folders_in(home: Path) -> list[Path]:
    try:
        return sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as why:
        raise Ewa3dError(f"{home}: cannot be read ({why.strerror or why}): check its rights") from None


def _find(folder: Path) -> tuple[list[Inventory], list[str]]:
    """The data sets at or under a folder; where it is called as one is that is not in it, what that lacks."""
    faults = []
    for find, names in FINDERS.items():
        try:
            return find(folder), []
        except Ewa3dError as error:
            if any(folder.match(name) for name in names):
                faults.append(str(error))
        except OSError as why:
            return [], [f"{folder}: cannot be read ({why.strerror or why}): check its rights"]
    return [], faults


def _examine(item: Inventory, full: bool) -> SetReport:
    counts, published = item.count(), {} if item.own else PUBLISHED[item.name]
    out = SetReport(item.name, item.layout, item.folder, counts, published, item.faults + list(check_files(item)))
    if full:
        clouds = check_clouds(item)
        out.counts = {split: clouds.counts.get(split, 0) if n is None else n for split, n in counts.items()}
        out.faults += [fault for fault in clouds.faults if fault not in out.faults]
        out.notes += clouds.notes
    elif None in out.counts.values():
        out.notes.append("these files are counted by reading them: --full")
    if as_published(out.counts, out.published) is False:
        out.notes.append("not the published set: scores on it do not compare with the field's")
    return out


def unlike_published(name: str, root: str | Path | None = None) -> str | None:
    """A line where the data set that a run would take has other counts than published.

    From lists and the heads of HDF5 files: it takes about half a second.

    Args:
        name: one of `ewa3d.data.DATASETS`.
        root: as the data set takes it.

    Returns:
        ``None`` where the counts are those published, none are, or only reading the files would tell.
    """
    files_of = "modelnet40" if name == "modelnet40_fewshot" else name
    finder = next((find for find in FINDERS if files_of.startswith(find.__name__.removeprefix("find_"))), None)
    try:
        found = [item for item in (finder(root) if finder else []) if item.name == files_of and not item.own]
    except Ewa3dError:  # the loader says it
        return None
    for item in found:
        counts, published = item.count(), PUBLISHED[item.name]
        if as_published(counts, published) is False:
            return (
                f"{item.folder}: {describe_counts(counts, published)}: scores do not compare with the field's "
                f"(python -m ewa3d.data.check {item.place})"
            )
    return None


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1 where something is wrong, 2 where there is no such folder."""
    parser = argparse.ArgumentParser(
        prog="python -m ewa3d.data.check",
        description="Say which data sets are there, whether they are those published, and what is wrong with them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", nargs="?", help="a folder of data sets, or of one (default: EWA3D_DATASETS)")
    parser.add_argument("--full", action="store_true", help="read every file and check every cloud")
    args = parser.parse_args(argv)
    try:
        report = check(args.root, full=args.full)
    except Ewa3dError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
