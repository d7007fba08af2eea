"""Get ModelNet40 in its official hdf5 layout, check it, and put it where ewa3d looks for it."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ewa3d.data.modelnet40 import ModelNet40
from ewa3d.data.roots import datasets_root
from ewa3d.errors import Ewa3dError

URL = "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip"
FOLDER = "modelnet40_ply_hdf5_2048"
COUNTS = {"train": 9840, "test": 2468}
EXAMPLES = """examples:
  python datasets/prepare_modelnet40.py                      download, check, done
  python datasets/prepare_modelnet40.py --root /data         into /data; then set EWA3D_DATASETS=/data
  python datasets/prepare_modelnet40.py --zip FILE.zip       from a zip that you have
  python datasets/prepare_modelnet40.py --sha256 HEX         refuse any other zip
"""


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


def _member_path(member: zipfile.ZipInfo) -> PurePosixPath:
    """The path of a zip's member, where it stays inside the folder it is extracted to.

    Raises:
        Ewa3dError: an absolute path, one with ``..`` or a drive, a link or a device.
    """
    path = PurePosixPath(member.filename.replace("\\", "/"))
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts):
        raise Ewa3dError(f"the zip has a member {member.filename!r} outside its folder: do not use that zip")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Ewa3dError(f"the zip has a member {member.filename!r} that is a link or a device: do not use that zip")
    return path


def extract(file: Path, folder: Path) -> None:
    """Extract a zip into ``folder``, which is new; every member is looked at before the first is written.

    Raises:
        Ewa3dError: no zip, a broken or encrypted one, one that writes elsewhere, or too little space on the disk.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [(member, folder.joinpath(_member_path(member))) for member in archive.infolist()]
            size = sum(member.file_size for member, _ in members)
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
    # RuntimeError: encrypted; EOFError: cut short; NotImplementedError: an unknown compression
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as why:
        raise Ewa3dError(f"{file}: not a whole zip ({why}): get it again") from None


def check(folder: Path) -> None:
    """Load the data as training will, and say how much there is.

    Raises:
        Ewa3dError: files missing or broken.
    """
    for split, official in COUNTS.items():
        data = ModelNet40(folder, "trainval" if split == "train" else split)
        note = "" if len(data) == official else f" (the official hdf5 has {official:,})"
        print(
            f"{split}: {len(data):,} clouds of {data.points.shape[1]:,} points, {len(data.class_names)} classes{note}"
        )


def prepare(root: Path, file: Path | None, url: str, sha256: str | None, keep_zip: bool) -> Path:
    """Put the data into ``root`` and return its folder; nothing is done where it is there already.

    Raises:
        Ewa3dError: whatever of it failed; ``root`` is then as it was.
    """
    target = root / FOLDER
    if target.exists():
        try:
            check(target)
        except Ewa3dError as why:
            raise Ewa3dError(f"{why}; or delete the folder {target} and run this again") from None
        print(f"already there, nothing to do: {target}")
        return target

    if file is not None and not file.is_file():
        raise Ewa3dError(f"{file}: no such zip: check the path given with --zip")
    root.mkdir(parents=True, exist_ok=True)
    # In the root, so that the last step is a rename on one disk.
    with tempfile.TemporaryDirectory(dir=root, prefix=".prepare-") as name:
        work = Path(name)
        archive = file or download(url, work)
        check_sha256(archive, sha256)
        unpacked = work / "unpacked"
        unpacked.mkdir()
        extract(archive, unpacked)
        lists = sorted(unpacked.rglob("train_files.txt"), key=lambda path: len(path.parts))
        if not lists:
            raise Ewa3dError(
                f"{file or url}: the zip has no train_files.txt, so it is not ModelNet40 in hdf5: give another"
            )
        try:
            check(lists[0].parent)
        except Ewa3dError as why:
            raise Ewa3dError(f"the zip was extracted, and its data is broken: {why}") from None
        lists[0].parent.rename(target)
        if keep_zip and file is None:
            kept = root / f"{FOLDER}.zip"
            os.replace(archive, kept)
            print(f"kept the zip: {kept}")
    print(f"ready: {target}")
    return target


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for what a user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of data sets (default: EWA3D_DATASETS, else datasets/)")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="take this zip and download nothing")
    parser.add_argument("--url", default=URL, help="where to download from (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="checksum that the zip must have")
    parser.add_argument("--keep-zip", action="store_true", help="keep the downloaded zip in the folder of data sets")
    args = parser.parse_args(argv)
    root = (args.root or datasets_root()).expanduser()
    try:
        prepare(root, args.zip, args.url, args.sha256, args.keep_zip)
    except (Ewa3dError, OSError) as why:
        print(f"error: {' '.join(str(why).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
