"""What `datasets/prepare_*.py` share: download a data set or take a zip, check it, put it where ewa3d looks for it."""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import Ewa3dError, first_line, quoted
from .hdf5 import MOST_DEFLATED
from .roots import datasets_root


@dataclass(frozen=True)
class Release:
    """A data set as its authors give it out: one zip, in one of a few layouts.

    Args:
        name: the data set's.
        url: of the zip.
        layouts: for each layout a file that its folder has (a pattern such as ``*.h5``) and the name this folder gets
            in the folder of data sets. The first is what ``url`` holds.
        counts: how many shapes the official splits have.
        load: loads one of these splits from a layout's folder, as training will; returns how many shapes there are,
            and what they are in words. It raises `Ewa3dError` where files are missing or broken.
    """

    name: str
    url: str
    layouts: Mapping[str, str]
    counts: Mapping[str, int]
    load: Callable[[Path, str], tuple[int, str]]


class _Bar:
    """The progress bar that pooch asks for: ``total``, ``update``, ``reset``, ``close``."""

    def __init__(self, progress: Progress, what: str):
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    @property
    def total(self) -> float | None:
        return self._progress.tasks[self._task].total

    @total.setter
    def total(self, size: int) -> None:
        self._progress.update(self._task, total=size or None)  # 0: the server did not say

    def update(self, count: int) -> None:
        self._progress.update(self._task, advance=count)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop_task(self._task)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def download(url: str, folder: Path) -> Path:
    """Download ``url`` into ``folder`` with a progress bar.

    Raises:
        Ewa3dError: the network or the server failed.
    """
    pooch.get_logger().setLevel("WARNING")  # what it would say, `main` says
    try:
        with _progress() as progress:
            downloader = pooch.HTTPDownloader(progressbar=_Bar(progress, "downloading"), chunk_size=1 << 16)
            return Path(pooch.retrieve(url, known_hash=None, fname="data.zip", path=folder, downloader=downloader))
    # ValueError: an address that pooch or requests cannot read
    except (requests.exceptions.RequestException, ValueError) as why:
        raise Ewa3dError(
            f"{url}: download failed ({why}): try again, or fetch the zip by other means and give it with --zip"
        ) from None


def check_sha256(file: Path, wanted: str | None) -> None:
    """Hold the file to its checksum where one is wanted, else print the one it has."""
    found = pooch.file_hash(str(file), alg="sha256")
    if wanted is None:
        print(f"sha256 of the zip: {found} (not checked: none was given)")
    elif found != wanted.strip().lower():
        raise Ewa3dError(f"the zip has sha256 {found} and not {wanted}: it is damaged or another file; get it again")


# Zips


@contextmanager
def _open_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip; what is wrong with it, also while its members are read, becomes one `Ewa3dError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as why:  # the system's have a number, those of a broken member have none
        if why.errno is not None:
            raise Ewa3dError(f"{file}: cannot be extracted ({first_line(why)}): mend what is said here") from None
        raise Ewa3dError(f"{file}: not a whole zip ({first_line(why)}): get it again") from None
    # RuntimeError: encrypted, or an unknown compression; EOFError: cut short; ValueError: names that are no text
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError) as why:
        raise Ewa3dError(f"{file}: not a whole zip ({first_line(why)}): get it again") from None


def _members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The members of a zip with their paths, where all of them stay inside the folder they are extracted to.

    Raises:
        Ewa3dError: an absolute path, one with ``..`` or a drive, a link or a device.
    """
    out = []
    for member in archive.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        kind = stat.S_IFMT(member.external_attr >> 16)
        if not member.filename or path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts):
            raise Ewa3dError(
                f"{archive.filename}: has a member {quoted(member.filename)} outside its folder: do not use that zip"
            )
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Ewa3dError(
                f"{archive.filename}: has a member {quoted(member.filename)} that is a link or a device: do not use "
                "that zip"
            )
        out.append((member, path))
    return out


def find_layout(file: Path, release: Release) -> tuple[PurePosixPath, str]:
    """The folder in a zip that holds the data, and the name it gets. Nothing is extracted for it.

    Raises:
        Ewa3dError: no zip, one that writes elsewhere, or one of something else.
    """
    with _open_zip(file) as archive:
        paths = [path for member, path in _members(archive) if not member.is_dir()]
    for pattern, name in release.layouts.items():
        if found := [path for path in paths if path.match(pattern)]:
            return min(found, key=lambda path: len(path.parts)).parent, name
    raise Ewa3dError(
        f"{file}: the zip has no {' or '.join(release.layouts)}, so it is not {release.name} as ewa3d reads it: give "
        "another"
    )


def extract(file: Path, folder: Path) -> None:
    """Extract a zip into ``folder``, which is new; every member is looked at before the first is written.

    Raises:
        Ewa3dError: no zip, a broken or encrypted one, one that writes elsewhere, or too little space on the disk.
    """
    with _open_zip(file) as archive:
        members = [(member, folder.joinpath(path)) for member, path in _members(archive)]
        size = sum(member.file_size for member, _ in members)
        if size > MOST_DEFLATED * file.stat().st_size:
            raise Ewa3dError(f"{file}: claims {size / 1e6:,.0f} MB, which it cannot hold: do not use that zip")
        free = shutil.disk_usage(folder).free
        if size > free:
            raise Ewa3dError(f"{folder.parent}: {size / 1e6:.0f} MB needed and {free / 1e6:.0f} MB free: make room")
        with _progress() as progress:
            bar = _Bar(progress, "extracting")
            bar.total = size
            for member, target in members:
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
                        bar.update(len(block))
                    out.flush()
                    os.fsync(out.fileno())


# All of it


def check(release: Release, folder: Path) -> None:
    """Load every split as training will, and say how much there is.

    Raises:
        Ewa3dError: files missing or broken.
    """
    for split, official in release.counts.items():
        count, what = release.load(folder, split)
        note = "" if count == official else f" (the official release has {official:,})"
        print(f"{split}: {count:,} {what}{note}")


def prepare(
    release: Release,
    root: Path,
    *,
    file: Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    keep_zip: bool = False,
) -> Path:
    """Put a data set into ``root`` and return its folder; nothing is done where it is there already.

    Args:
        release: which.
        root: the folder of data sets.
        file: the zip; ``None`` downloads it.
        url: where from, if not from the official place.
        sha256: that the zip must have.
        keep_zip: keep the downloaded zip in ``root``.

    Raises:
        Ewa3dError: whatever of it failed; ``root`` is then as it was.
    """
    if file is not None:
        if not file.is_file():
            raise Ewa3dError(f"{file}: no such zip: check the path given with --zip")
        return _put(release, root, file, sha256)
    target = root / next(iter(release.layouts.values()))
    if target.exists():
        return _keep(release, target)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".prepare-") as work:
        archive = download(url or release.url, Path(work))
        target = _put(release, root, archive, sha256)
        if keep_zip:
            kept = root / f"{target.name}.zip"
            os.replace(archive, kept)
            print(f"kept the zip: {kept}")
    return target


def _keep(release: Release, target: Path) -> Path:
    """Check the data that is there already."""
    try:
        check(release, target)
    except Ewa3dError as why:
        raise Ewa3dError(f"{why}; or delete the folder {target} and run this again") from None
    print(f"already there, nothing to do: {target}")
    return target


def _put(release: Release, root: Path, archive: Path, sha256: str | None) -> Path:
    """Extract a zip into ``root`` and check what was in it."""
    check_sha256(archive, sha256)
    inner, name = find_layout(archive, release)
    target = root / name
    if target.exists():
        return _keep(release, target)
    root.mkdir(parents=True, exist_ok=True)
    # In the root, so that the last step is a rename on one disk.
    with tempfile.TemporaryDirectory(dir=root, prefix=".prepare-") as work:
        unpacked = Path(work, "unpacked")
        unpacked.mkdir()
        extract(archive, unpacked)
        (unpacked / inner).rename(target)
        # Checked in its place and not before: the cache of parsed text goes by the folder's path, so a check in the
        # temporary folder would fill one that nobody finds again. This one serves the first training.
        try:
            check(release, target)
        except BaseException as why:  # Ctrl-C too
            target.rename(Path(work, "refused"))
            if isinstance(why, Ewa3dError):
                raise Ewa3dError(f"the data in the zip is broken, and was removed again: {why}") from None
            raise
    print(f"ready: {target}")
    return target


def main(release: Release, argv: list[str] | None = None) -> int:
    """The command line of ``datasets/prepare_*.py``. Returns the exit code: 0, or 2 for what a user can mend."""
    command = f"python datasets/prepare_{release.name.lower()}.py"
    parser = argparse.ArgumentParser(
        description=f"Get {release.name}, check it, and put it where ewa3d looks for it.\n"
        f"Its folder will be {' or '.join(release.layouts.values())}.",
        epilog=f"""examples:
  {command}                      download, check, done
  {command} --root /data         into /data; then set EWA3D_DATASETS=/data
  {command} --zip FILE.zip       from a zip that you have
  {command} --sha256 HEX         refuse any other zip
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, help="folder of data sets (default: EWA3D_DATASETS, else datasets/)")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="take this zip and download nothing")
    parser.add_argument("--url", default=release.url, help="where to download from (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="checksum that the zip must have")
    parser.add_argument("--keep-zip", action="store_true", help="keep the downloaded zip in the folder of data sets")
    args = parser.parse_args(argv)
    root = (args.root or datasets_root()).expanduser()
    try:
        prepare(release, root, file=args.zip, url=args.url, sha256=args.sha256, keep_zip=args.keep_zip)
    except (Ewa3dError, OSError) as why:
        print(f"error: {' '.join(str(why).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return 130
    return 0
