"""Facts of the official models: manifests, and outputs computed with their code."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def official():
    """Loads a fixture by name: ``.manifest``, ``.parameters``, ``.state`` (official weights) and ``.arrays``."""
    folder = Path(os.environ.get("EWA3D_COMPAT", "absent"))
    if not folder.is_dir():
        if os.environ.get("EWA3D_REQUIRE_DATA") == "1":
            pytest.fail("EWA3D_REQUIRE_DATA=1, but EWA3D_COMPAT names no folder of parity fixtures")
        pytest.skip("outputs of the official models are not here: set EWA3D_COMPAT to their folder")
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def load(name: str) -> SimpleNamespace:
        facts = json.loads((folder / f"{name}.json").read_text())
        return SimpleNamespace(
            manifest=facts["state_dict"],
            parameters=facts["parameters"],
            state=module.fill(facts["state_dict"]),
            arrays=dict(np.load(folder / f"{name}.npz")),
        )

    return load
