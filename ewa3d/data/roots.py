"""Where datasets are looked for, and where caches go."""

from __future__ import annotations

import os
from pathlib import Path


def datasets_root() -> Path:
    """The folder of data sets: ``EWA3D_DATASETS`` where that is set, else ``datasets/`` of the repository."""
    if wanted := os.environ.get("EWA3D_DATASETS"):
        return Path(wanted).expanduser()
    repository = Path(__file__).resolve().parents[2]
    # Installed as a wheel, the package has no repository around it, and a folder `datasets` beside it would be
    # another library's code.
    home = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return home / "datasets"


def cache_root() -> Path:
    """The folder of caches: ``EWA3D_CACHE`` where that is set, else ``~/.cache/ewa3d``. All in it can be deleted."""
    return Path(os.environ.get("EWA3D_CACHE") or "~/.cache/ewa3d").expanduser()
