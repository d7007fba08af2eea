"""Clouds drawn by Open3D (imported where used): off screen into an image, or in a window that turns.

Points are balls whose shading is painted on: alike on every driver, with or without a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Ewa3dError, first_line
from .panels import AMBIENT, FIELD_OF_VIEW, FOG, LIGHT, SHINE, Panel, Scene, camera_axes

APT_PACKAGES = "libegl1 libgl1 libidn2-0 libusb-1.0-0"
"""What Open3D 0.20 needs of a Debian or Ubuntu without GPU and display; Mesa's drivers come with the first two."""

_DRAWS_WITHOUT_DISPLAY = (0, 20)  # the first version that does
_MEND = f"on Debian and Ubuntu, sudo apt-get install --no-install-recommends {APT_PACKAGES}"
_OR_A_PAGE = ", or name a page, which does without (--html FILE.html)"

Draw = Callable[[Panel], NDArray[np.uint8]]


def require_display() -> None:
    """Raise `Ewa3dError` where no window can open: Open3D would draw off screen for ever."""
    if not sys.platform.startswith("linux") or os.environ.get("WAYLAND_DISPLAY") or _x_display_answers():
        return
    raise Ewa3dError("no display for a window here: name a picture (--out FILE.png) or a page (--html FILE.html)")


def _x_display_answers() -> bool:
    if not os.environ.get("DISPLAY"):
        return False
    try:
        x11 = ctypes.CDLL("libX11.so.6")
    except OSError:
        return False
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(None)
    if display:
        x11.XCloseDisplay(ctypes.c_void_p(display))
    return bool(display)


@contextmanager
def off_screen(width: int, height: int, point_size: float = 1.0) -> Iterator[Draw]:
    """A function that draws panels, one after the other, as images ``(height, width, 3)`` on white.

    The same panel gives the same image in every call. Drawn larger and shrunk, so that edges are smooth.

    Args:
        width: of the images, in pixels.
        height: of the images.
        point_size: size of the balls, times the usual.

    Raises:
        Ewa3dError: Open3D or a system library is missing.
    """
    factor = 3 if max(width, height) <= 1000 else 2
    with _window("ewa3d", factor * width, factor * height, visible=False) as (o3d, window):

        def draw(panel: Panel) -> NDArray[np.uint8]:
            window.clear_geometries()
            window.add_geometry(_mesh(o3d, panel, point_size, FOG))
            camera = _fitted_camera(o3d, panel, point_size, factor * width, factor * height)
            if not window.get_view_control().convert_from_pinhole_camera_parameters(camera, True):
                raise RuntimeError("Open3D did not take the camera")
            large = np.asarray(window.capture_screen_float_buffer(do_render=True))
            small = large.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
            return (255 * small + 0.5).astype(np.uint8)

        yield draw


def show(scene: Scene, size: tuple[int, int] = (1280, 800), point_size: float = 1.0) -> None:
    """Open a window with all panels side by side and return when it is closed. It has no room for captions.

    Raises:
        Ewa3dError: no display, or Open3D or a system library is missing.
    """
    require_display()
    right, up, _ = camera_axes()
    step = 2.1 * max(panel.extent for panel in scene.panels)
    moved = [
        replace(panel, points=panel.xyz - panel.center + step * (column * right - row * up))
        for row, panels in enumerate(scene.rows())
        for column, panel in enumerate(panels)
    ]
    everything = Panel(np.concatenate([panel.xyz for panel in moved]), (0, 0, 0))
    with _window(scene.title, *size, visible=True) as (o3d, window):
        for panel in moved:
            window.add_geometry(_mesh(o3d, panel, point_size, fog=0))  # the eye moves: no side is the far one
        camera = _fitted_camera(o3d, everything, point_size, *size)
        window.get_view_control().convert_from_pinhole_camera_parameters(camera, True)
        window.run()


@contextmanager
def _window(title: str, width: int, height: int, *, visible: bool) -> Iterator[tuple[Any, Any]]:
    """Open3D and an open `Visualizer` of it."""
    o3d = _import_open3d()
    window = o3d.visualization.Visualizer()
    quiet = o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error)  # it warns, then falls back to EGL
    with quiet, _runtime_folder():
        opened = window.create_window(window_name=title, width=width, height=height, visible=visible)
    if not opened:  # going on would crash the process
        if tuple(map(int, o3d.__version__.split(".")[:2])) < _DRAWS_WITHOUT_DISPLAY:
            raise Ewa3dError(f"Open3D {o3d.__version__} draws on displays only: pip install 'open3d>=0.20'{_OR_A_PAGE}")
        raise Ewa3dError(f"Open3D can draw nothing here, no graphics driver was found: {_MEND}")
    try:
        options = window.get_render_option()
        options.background_color = np.ones(3)
        options.light_on = False  # colours are what is drawn
        yield o3d, window
    finally:
        window.destroy_window()


def _import_open3d() -> Any:
    try:
        return importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        if error.name != "open3d":
            raise
        raise Ewa3dError(f"Open3D draws pictures and is not installed: pip install open3d{_OR_A_PAGE}") from error
    except (ImportError, OSError) as error:
        raise Ewa3dError(f"Open3D cannot be imported ({first_line(error)}): {_MEND}") from error


@contextmanager
def _runtime_folder() -> Iterator[None]:
    """Where there is no `XDG_RUNTIME_DIR`, libwayland complains on stderr although nobody needs Wayland."""
    if "XDG_RUNTIME_DIR" in os.environ:
        yield
        return
    os.environ["XDG_RUNTIME_DIR"] = tempfile.gettempdir()
    try:
        yield
    finally:
        del os.environ["XDG_RUNTIME_DIR"]


def _fitted_camera(o3d: Any, panel: Panel, point_size: float, width: int, height: int) -> Any:
    """The fixed view, from as near as shows all balls of the panel with a little air around them."""
    axes = camera_axes()
    slope = np.tan(np.radians(FIELD_OF_VIEW / 2))  # of the shorter side
    half = slope * np.array((width, height)) / min(width, height)
    radii = panel.radii(point_size)[:, None]
    seen = (panel.xyz - panel.center) @ axes.T
    middle = (seen.min(axis=0) + seen.max(axis=0)) / 2
    for _ in range(4):  # what is near looks larger, so that the middle of the picture is found step by step
        across, depth = seen[:, :2] - middle[:2], seen[:, 2:] - middle[2]
        distance = (1.04 * (np.abs(across) + radii) / half + depth).max()
        low, high = ((across + side * radii) / (distance - depth) for side in (-1, 1))
        middle[:2] += distance * (low.min(axis=0) + high.max(axis=0)) / 2

    turn = axes * np.array((1, -1, -1))[:, None]  # a camera's axes are right, down and ahead
    camera = o3d.camera.PinholeCameraParameters()
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = turn
    extrinsic[:3, 3] = -turn @ (panel.center + middle @ axes + distance * axes[2])
    camera.extrinsic = extrinsic
    focal = min(width, height) / 2 / slope
    camera.intrinsic = o3d.camera.PinholeCameraIntrinsic(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    return camera


def _mesh(o3d: Any, panel: Panel, point_size: float, fog: float) -> Any:
    """One mesh of all balls, in shaded colours; the farthest fade by ``fog``."""
    splits = 2 if len(panel.xyz) <= 3000 else 1  # 320 or 80 triangles a ball
    sphere = o3d.geometry.TriangleMesh.create_icosahedron().subdivide_midpoint(splits)
    ball, faces = np.asarray(sphere.vertices), np.asarray(sphere.triangles)
    ball = ball / np.linalg.norm(ball, axis=1, keepdims=True)

    axes = camera_axes()
    lit = ball @ axes.T @ LIGHT  # cosine between a corner's normal and the light
    light = AMBIENT + (1 - AMBIENT) * np.clip(0.5 + 0.6 * lit, 0, 1)
    shine = SHINE * np.maximum(lit, 0) ** 10
    depth = 0.5 - (panel.xyz - panel.center) @ axes[2] / (2 * panel.extent)  # 0 nearest, 1 farthest
    base = panel.rgb / 255
    base = base + (1 - base) * fog * depth[:, None]
    colors = base[:, None] * light[:, None]
    colors = colors + (1 - colors) * shine[:, None]

    corners = panel.xyz[:, None] + panel.radii(point_size)[:, None, None] * ball
    triangles = faces + len(ball) * np.arange(len(panel.xyz), dtype=np.int32)[:, None, None]
    mesh = o3d.geometry.TriangleMesh()
    mesh.vertices = o3d.utility.Vector3dVector(corners.reshape(-1, 3))
    mesh.triangles = o3d.utility.Vector3iVector(triangles.reshape(-1, 3))
    mesh.vertex_colors = o3d.utility.Vector3dVector(colors.reshape(-1, 3))
    return mesh
