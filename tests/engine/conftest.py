"""A tiny run on the built-in shapes."""

from pathlib import Path

import pytest

from ewa3d.engine.config import load_config

TINY_RUN = [
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


@pytest.fixture(scope="session")
def tiny_run() -> list[str]:
    """The overrides that make a run of a second."""
    return TINY_RUN


@pytest.fixture
def tiny_config(tmp_path: Path):
    """``tiny_config("key=value", …, dir="name")``: the configuration of a run of a second in a temporary folder."""

    def make(*overrides: str, dir: str = "run"):
        return load_config(overrides=[*TINY_RUN, f"run.dir={tmp_path / dir}", *overrides])

    return make
