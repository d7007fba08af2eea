"""Panels drawn by Open3D: by their pixels."""

import importlib
import os
import sys

import numpy as np
import pytest

from ewa3d import Ewa3dError
from ewa3d.viz import scene
from ewa3d.viz.panels import RIGHT, WRONG, Panel, Scene, camera_axes
from ewa3d.viz.scene import APT_PACKAGES, off_screen, require_display, show

RED, GREEN, BLUE = (255, 0, 0), (0, 160, 0), (0, 0, 255)


def draw(*panels: Panel, width: int = 120, height: int = 90, **options) -> list[np.ndarray]:
    with off_screen(width, height, **options) as draw_panel:
        return [draw_panel(panel) for panel in panels]


def where(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """``(n, 2)``, rows and columns of pixels of a colour's hue: its strong channels stand out from its weak ones."""
    pixels, color = image.astype(int), np.array(color)
    strong = pixels[..., color >= 128].min(axis=-1)
    weak = pixels[..., color < 128].max(axis=-1)
    return np.argwhere(strong > weak + 60)


def cloud(n: int = 500) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 3))


def test_the_cloud_fills_the_picture_and_is_cut_nowhere(open3d):
    for stretch in ((1, 1, 1), (3, 0.2, 0.2), (0.1, 2, 0.1), (40, 40, 40)):
        (image,) = draw(Panel(cloud() * stretch + 7, GREEN))
        assert image.shape == (90, 120, 3) and image.dtype == np.uint8
        ink = np.argwhere((image != 255).any(axis=-1))
        (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
        assert top > 0 and left > 0 and bottom < 89 and right < 119
        assert bottom - top >= 78 or right - left >= 105
        assert len(where(image, (0, 255, 0))) > 100


def test_every_colour_is_there_and_none_besides(open3d):
    points = cloud(300)
    colors = np.repeat([RED, (0, 255, 0), BLUE], 100, axis=0)
    (image,) = draw(Panel(points, colors))
    assert all(len(where(image, color)) > 200 for color in (RED, (0, 255, 0), BLUE))
    assert len(where(image, (255, 255, 0))) < 100  # yellow is only where edges mix
    (grey,) = draw(Panel(points, RIGHT))
    assert (np.ptp(grey.astype(int), axis=-1) < 30).all()


def test_the_view_is_from_the_front_above_and_right_with_y_up(open3d):
    right, up, towards = camera_axes()
    np.testing.assert_allclose(camera_axes() @ camera_axes().T, np.eye(3), atol=1e-12)
    assert towards[1] > 0 and towards[2] < 0 and up[1] > 0.9 and right[0] < 0  # shapes look along -z

    def middles(first, second):
        (image,) = draw(Panel([first, second], [RED, BLUE]))
        return where(image, RED).mean(axis=0), where(image, BLUE).mean(axis=0)

    red, blue = middles((0, 1, 0), (0, -1, 0))
    assert red[0] < blue[0] - 40
    red, blue = middles(right, -right)
    assert red[1] > blue[1] + 40
    (image,) = draw(Panel([towards, -towards], [RED, BLUE]))
    assert len(where(image, RED)) > 500 and len(where(image, BLUE)) == 0  # the nearer ball hides the other


def test_balls_are_round_smooth_and_lit(open3d):
    (image,) = draw(Panel([(0, 0, 0)], WRONG), width=101, height=101)
    ink = (image != 255).any(axis=-1)
    rows, columns = np.nonzero(ink)
    across = np.ptp(rows) + 1
    assert abs(across - (np.ptp(columns) + 1)) <= 1 and abs(ink.sum() / (np.pi / 4 * across**2) - 1) < 0.03
    edge = ink & ~np.pad(ink, 1)[2:, 1:-1] & (image.min(axis=-1) > 100)
    assert edge.any()  # between ball and paper lies a mixture
    assert image[30, 35].sum() > image[75, 65].sum() + 60  # light comes from above and left


@pytest.mark.parametrize("option", ["size", "point_size"])
def test_balls_grow(open3d, option):
    points, few = cloud(40), {"width": 90, "height": 90}
    if option == "size":
        small, large = draw(Panel(points, RED), Panel(points, RED, sizes=np.full(40, 2.0)), **few)
    else:
        (small,), (large,) = draw(Panel(points, RED), **few), draw(Panel(points, RED), point_size=2, **few)
    assert (large != 255).any(axis=-1).sum() > 1.3 * (small != 255).any(axis=-1).sum()


def test_the_same_panel_is_the_same_picture(open3d):
    panels = [Panel(cloud(), RED), Panel(cloud(50), BLUE), Panel(cloud(), RED)]
    first, other, third = draw(*panels)
    again, _, _ = draw(*panels)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_nothing_is_said_on_the_way(open3d, capfd, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    draw(Panel(cloud(20), RED))
    assert capfd.readouterr() == ("", "")
    assert "XDG_RUNTIME_DIR" not in os.environ


@pytest.mark.parametrize(
    ("version", "mend"),
    [("0.20.0", f"apt-get install --no-install-recommends {APT_PACKAGES}"), ("0.19.1", "pip install 'open3d>=0.20'")],
)
def test_a_window_that_does_not_open_is_one_line(open3d, monkeypatch, version, mend):
    class NoWindow:
        def create_window(self, **options) -> bool:
            return False

        def __getattr__(self, name):
            raise AssertionError(f"{name} of a window that did not open: Open3D would crash")

    monkeypatch.setattr(open3d.visualization, "Visualizer", NoWindow)
    monkeypatch.setattr(open3d, "__version__", version)
    with pytest.raises(Ewa3dError) as caught:
        draw(Panel(cloud(20), RED))
    assert mend in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (ImportError("libusb-1.0.so.0: cannot open shared object file\nmore"), APT_PACKAGES),
        (OSError("libGL.so.1: cannot open shared object file"), APT_PACKAGES),
        (ModuleNotFoundError("No module named 'open3d'", name="open3d"), "pip install open3d"),
    ],
)
def test_an_open3d_that_does_not_import_is_one_line(monkeypatch, error, mend):
    def refuse(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(Ewa3dError) as caught:
        draw(Panel(cloud(20), RED))
    assert mend in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
@pytest.mark.parametrize("display", ["", ":987"])
def test_without_a_display_no_window_is_waited_for(monkeypatch, display):
    """Open3D would go on off screen, and its loop would never end."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    for wait in (require_display, lambda: show(Scene("", [Panel(cloud(20), RED)], 1))):
        with pytest.raises(Ewa3dError, match=r"no display .*--out FILE\.png"):
            wait()


def test_a_window_shows_all_panels_side_by_side(open3d, monkeypatch):
    """The window's loop is replaced by a look at what it would show."""
    monkeypatch.setattr(scene, "require_display", lambda: None)
    seen = []

    class Window:
        def __init__(self, real=open3d.visualization.Visualizer):
            self.real = real()

        def create_window(self, visible, **options):
            assert visible
            return self.real.create_window(visible=False, **options)

        def run(self):
            seen.append(np.asarray(self.real.capture_screen_float_buffer(do_render=True)))

        def __getattr__(self, name):
            return getattr(self.real, name)

    monkeypatch.setattr(open3d.visualization, "Visualizer", Window)
    panels = [Panel(cloud() + shift, color) for shift, color in ((0, RED), (50, (0, 255, 0)), (-9, BLUE))]
    show(Scene("title", panels, columns=2), (300, 200))
    image = (255 * seen[0]).astype(np.uint8)
    red, green, blue = (where(image, color).mean(axis=0) for color in (RED, (0, 255, 0), BLUE))
    assert image.shape == (200, 300, 3)
    assert abs(red[0] - green[0]) < 10 and red[1] < green[1] - 50
    assert abs(red[1] - blue[1]) < 10 and red[0] < blue[0] - 50


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((4, 2)), np.zeros(3)])
def test_a_panel_takes_points(points):
    with pytest.raises(ValueError, match="points must be"):
        Panel(points, RED)
