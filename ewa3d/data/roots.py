"""Where datasets are looked for, and where caches go."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import Ewa3dError


def datasets_root() -> Path:
    """The folder of data sets: ``EWA3D_DATASETS`` where that is set, else ``datasets/`` of the repository."""
    if wanted := os.environ.get("EWA3D_DATASETS"):
        return Path(wanted).expanduser()
    repository = Path(__file__).resolve().parents[2]
    # Installed as a wheel, the package has no repository around it, and a folder `datasets` beside it would be
    # another library's code.
    home = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return home / "datasets"


def find_root(root: str | Path | None, get_it: str) -> Path:
    """The folder that ``root`` names; ``None`` is `datasets_root`.

    A relative ``root`` that is not in the working directory is taken from `datasets_root`, so that a set's name is
    enough.

    Args:
        root: as a user gives it, ``~`` allowed.
        get_it: how to get the data, for the error.

    Raises:
        Ewa3dError: no such folder, or one that may not be read.
    """
    home = datasets_root()
    wanted = Path(root).expanduser() if root is not None else home
    try:
        for folder in (wanted, home / wanted):
            if folder.is_dir():
                return folder
    except OSError as why:
        raise Ewa3dError(f"{wanted}: cannot be read ({why.strerror or why}): check its rights") from None
    also = "" if wanted.is_absolute() else f", here or in {home}"
    raise Ewa3dError(f"{wanted}: no such folder of data sets{also}: set EWA3D_DATASETS or give a root ({get_it})")


def cache_root() -> Path:
    """The folder of caches: ``EWA3D_CACHE`` where that is set, else ``~/.cache/ewa3d``. All in it can be deleted."""
    return Path(os.environ.get("EWA3D_CACHE") or "~/.cache/ewa3d").expanduser()
