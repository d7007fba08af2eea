"""Scenes as pages: all in one file, and the numbers are those of the scene."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from ewa3d.viz.html import page
from ewa3d.viz.panels import Panel, Scene
from ewa3d.viz.viewer import PAGE


def example() -> Scene:
    draw = np.random.default_rng(0)
    panels = [
        Panel(
            draw.standard_normal((n, 3)) * 5 - 2,
            draw.integers(0, 256, (n, 3)),
            f"</script><b>panel {n}</b> é",
            [("<i>seat</i>", (0, 114, 178)), ("leg", (230, 159, 0))],
            draw.uniform(0.5, 2, n),
            wrong=n == 7,
        )
        for n in (1, 7, 400)
    ]
    return Scene("a <title> & more, %SCENE%", panels, 2)


def embedded(text: str) -> dict:
    (found,) = re.findall(r'<script id="scene" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def numbers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_all_points_are_in_the_page():
    scene = example()
    data = embedded(page(scene, point_size=1.5))
    assert data["columns"] == 2 and len(data["panels"]) == 3
    for found, panel in zip(data["panels"], scene.panels, strict=True):
        n = len(panel.xyz)
        assert found["count"] == n and found["caption"] == panel.caption and found["wrong"] == (n == 7)
        assert found["legend"] == [["<i>seat</i>", [0, 114, 178]], ["leg", [230, 159, 0]]]
        np.testing.assert_array_equal(numbers(found["points"], "<f4").reshape(n, 3), panel.xyz.astype(np.float32))
        np.testing.assert_array_equal(numbers(found["colors"], "u1").reshape(n, 3), panel.rgb)
        np.testing.assert_array_equal(numbers(found["radii"], "<f4"), panel.radii(1.5).astype(np.float32))
        np.testing.assert_allclose(found["center"], (panel.xyz.min(0) + panel.xyz.max(0)) / 2)
        distance = np.linalg.norm(panel.xyz - found["center"], axis=1).max()
        assert found["extent"] == pytest.approx(distance if n > 1 else 1)


def test_the_page_loads_nothing():
    text = page(example())
    assert not re.search(
        r"https?:|//\w+\.|\bsrc\s*=|<link|@import|url\(|\bfetch\(|import\(|XMLHttpRequest|WebSocket", text
    )


def test_captions_stay_text():
    text = page(example())
    assert text.count("</script>") == 2 and "<b>" not in text and "<i>seat" not in text
    assert "<title>a &lt;title&gt; &amp; more, %SCENE%</title>" in text


def test_the_viewer_is_small_and_gets_all_that_it_uses():
    script = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)[0]
    data = embedded(page(example()))
    assert len(PAGE) < 10_000
    assert set(re.findall(r"\blook\.(\w+)", script)) <= set(data["look"])
    assert set(re.findall(r"\bpanel\.(\w+)", script)) <= set(data["panels"][0])
    declared = set(re.findall(r"\w+", " ".join(re.findall(r"uniform \w+ ([^;]+);", script))))
    used = set(re.findall(r'uniform\("(\w+)"\)', script)) | {"ambient", "shine", "fog"}
    assert used == declared


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_the_viewer_is_javascript(tmp_path):
    (tmp_path / "viewer.js").write_text(re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)[0], encoding="utf-8")
    checked = subprocess.run(["node", "--check", tmp_path / "viewer.js"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
