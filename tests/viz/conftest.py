"""Fixtures of the tests that draw."""

import os

import pytest

from ewa3d import Ewa3dError
from ewa3d.viz.scene import off_screen


@pytest.fixture(scope="session")
def open3d():
    """Open3D, drawing. Where it cannot, its tests are skipped; in CI that is a failure."""
    try:
        with off_screen(8, 8):
            pass
    except Ewa3dError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    import open3d

    return open3d
