"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from ewa3d.engine.config import load_config

# no deadline: wall time is nobody's promise; in CI the same examples each time, so that a failure there repeats here
settings.register_profile("ewa3d", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ewa3d")
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and PyTorch finds none here")


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


@pytest.fixture(scope="session")
def tiny_run() -> list[str]:
    """The overrides that make a run of a second."""
    return [
        "model.name=point_mae_tiny",
        "model.embed_dim=24",
        "model.depth=2",
        "model.num_heads=2",
        "model.num_groups=8",
        "model.group_size=4",
        "data.num_points=64",
        "data.per_class=4",
        "ewa.num_experts=3",
        "ewa.every=1",
        "optim.warmup_epochs=1",
        "train.epochs=3",
        "train.batch_size=16",
        "train.device=cpu",
    ]


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_run: list[str]):
    """``tiny_config("key=value", …, dir="name")``: the configuration of a run of a second in a temporary folder."""

    def make(*overrides: str, dir: str = "run"):
        return load_config(overrides=[*tiny_run, f"run.dir={tmp_path / dir}", *overrides])

    return make
