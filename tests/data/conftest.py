"""What the tests of `datasets/prepare_*.py` share: the script, a folder of data sets, a server of zips."""

import os
import runpy
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


class Script:
    """A script of `datasets/`, run as a user runs it, but in this process."""

    def __init__(self, name: str, capsys, monkeypatch):
        self.path = REPOSITORY / "datasets" / name
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def run(self, *args: str | Path) -> tuple[int, str, str]:
        """The exit code, and what stdout and stderr have."""
        self._monkeypatch.setattr(sys, "argv", [str(self.path), *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(self.path), run_name="__main__")
        said = self._capsys.readouterr()
        return stopped.value.code, said.out, said.err

    def __call__(self, *args: str | Path) -> str:
        """What it prints where it succeeds."""
        code, out, err = self.run(*args)
        assert code == 0, err
        return out

    def fails(self, *args: str | Path) -> str:
        """The one line that it prints on stderr where it fails, less the progress bar."""
        code, _, err = self.run(*args)
        assert code == 2
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]


@pytest.fixture
def script_named(capsys, monkeypatch):
    return partial(Script, capsys=capsys, monkeypatch=monkeypatch)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder of data sets, which does not exist yet. Caches have a folder of their own too."""
    monkeypatch.setenv("EWA3D_DATASETS", str(tmp_path / "root"))
    monkeypatch.setenv("EWA3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "root"


@pytest.fixture
def left(root):
    """What is in a folder, by default that of data sets."""
    return lambda folder=root: sorted(os.listdir(folder)) if folder.exists() else []


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self.path.endswith("cut.zip"):
            return super().do_GET()
        self.send_response(200)  # promises more than it sends
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"PK\x03\x04")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address it is served under."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
