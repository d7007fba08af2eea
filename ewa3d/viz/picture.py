"""A scene as one picture: panels drawn by Open3D, captions and legends by matplotlib (both imported where used)."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import Ewa3dError
from .panels import WRONG, Color, Panel, Scene
from .scene import off_screen

_DPI = 100  # a point of a font is 100/72 pixels


def picture(scene: Scene, size: tuple[int, int] | None = None, point_size: float = 1.0) -> bytes:
    """The scene as PNG, the same bytes in every call.

    Args:
        scene: what to draw.
        size: width and height in pixels; by default what its panels need.
        point_size: size of the balls, times the usual.

    Raises:
        Ewa3dError: ``size`` has no room for the panels, or Open3D or a system library is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no display and no global state
    from PIL import Image  # matplotlib brings it

    rows = scene.rows()
    columns = max(map(len, rows))
    width = size[0] if size else columns * (260 if columns <= 4 else 200)
    across = width // columns
    font = min(max(across / 26, 6), 14)  # points
    line = round(1.7 * font * _DPI / 72)  # pixels
    legends = [[_legend_lines(panel, across, font) for panel in row] for row in rows]
    below = [max(map(len, lines)) * line for lines in legends]
    above = line if any(panel.caption for panel in scene.panels) else 0
    text = sum(below) + len(rows) * (above + line // 2)
    height = size[1] if size else text + len(rows) * round(0.85 * across)
    down = (height - text) // len(rows)
    if min(across, down) < 32:
        raise Ewa3dError(
            f"--size {width}x{height} leaves a panel {across}x{down} pixels: take a larger one, or fewer shapes"
        )

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    top = height
    with off_screen(across, down, point_size) as draw:
        for row, lines, legend_height in zip(rows, legends, below, strict=True):
            for column, panel in enumerate(row):
                left, middle = column * across, (column + 0.5) * across
                ink, weight = (_hex(WRONG), "bold") if panel.wrong else ("#222222", "normal")
                fitting = min(font, across * 72 / _DPI / (1.2 * _text_width(panel.caption) + 0.1))
                _write(figure, middle, top - above / 2, panel.caption, fitting, ink, ha="center", weight=weight)
                figure.figimage(draw(panel), left, top - above - down, origin="upper")
                for i, entries in enumerate(lines[column]):
                    _legend_line(figure, entries, middle, top - above - down - (i + 0.5) * line, font)
            top -= above + down + legend_height + line // 2
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.getvalue()


def _legend_lines(panel: Panel, width: int, font: float) -> list[list[tuple[str, Color]]]:
    """The panel's legend, broken into lines no wider than the panel."""
    lines: list[list[tuple[str, Color]]] = []
    room = 0.0
    for name, color in panel.legend:
        needed = _entry_width(name, font)
        if not lines or needed > room:
            lines.append([])
            room = width
        lines[-1].append((name, color))
        room -= needed
    return lines


def _legend_line(figure: Any, entries: list[tuple[str, Color]], middle: float, y: float, font: float) -> None:
    from matplotlib.patches import Circle

    unit = font * _DPI / 72
    x = middle - sum(_entry_width(name, font) for name, _ in entries) / 2
    for name, color in entries:
        figure.add_artist(Circle((x + 0.9 * unit, y), 0.38 * unit, transform=None, facecolor=_hex(color), linewidth=0))
        _write(figure, x + 1.5 * unit, y, name, font, "#222222", ha="left")
        x += _entry_width(name, font)


def _write(figure: Any, x: float, y: float, text: str, font: float, color: str, **style: str) -> None:
    """A line of text at a pixel."""
    figure.text(x, y, text, transform=None, size=font, color=color, va="center_baseline", parse_math=False, **style)


def _entry_width(name: str, font: float) -> float:
    return (_text_width(name) + 2) * font * _DPI / 72


@lru_cache(maxsize=1024)
def _text_width(text: str) -> float:
    """In sizes of the font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=100), ismath=False)[0] / 100


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*np.asarray(color).tolist())
