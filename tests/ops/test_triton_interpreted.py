"""The Triton kernels without a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_the_kernels_compute_what_pytorch_does_under_triton_s_interpreter():
    """In a process of its own: Triton has to be told before it is imported, and here it may have been."""
    tests = Path(__file__).with_name("test_triton_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        cwd=tests.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "skipped" not in run.stdout, run.stdout + run.stderr
