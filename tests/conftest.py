"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# no deadline: wall time is nobody's promise; in CI the same examples each time, so that a failure there repeats here
settings.register_profile("ewa3d", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ewa3d")
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets, `EWA3D_DATASETS`. Where `EWA3D_REQUIRE_DATA=1` its absence is a failure."""
    root = os.environ.get("EWA3D_DATASETS")
    if root and Path(root).is_dir():
        return Path(root)
    if os.environ.get("EWA3D_REQUIRE_DATA") == "1":
        pytest.fail("EWA3D_REQUIRE_DATA=1, but EWA3D_DATASETS names no folder of real datasets")
    pytest.skip("real datasets are not here: set EWA3D_DATASETS to their folder")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
