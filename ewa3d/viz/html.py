"""A scene as one HTML file that turns in any browser: no network, no library, all points inside."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .panels import AMBIENT, AZIMUTH, ELEVATION, FIELD_OF_VIEW, FOG, LIGHT, SHINE, WRONG, Panel, Scene
from .viewer import PAGE


def page(scene: Scene, point_size: float = 1.0) -> str:
    """The scene as HTML: drag to turn all panels, wheel or pinch to zoom, double click to go back.

    Points, colours and radii of a panel are base64 of little-endian float32, uint8 and float32 arrays, in the JSON of
    the element ``scene``.

    Args:
        scene: what to show.
        point_size: size of the balls, times the usual.
    """
    look = {
        "ambient": AMBIENT,
        "azimuth": AZIMUTH,
        "elevation": ELEVATION,
        "fieldOfView": FIELD_OF_VIEW,
        "fog": FOG,
        "light": LIGHT.tolist(),
        "shine": SHINE,
    }
    data = {
        "columns": min(scene.columns, len(scene.panels)),
        "look": look,
        "panels": [_panel(panel, point_size) for panel in scene.panels],
    }
    # in JSON, "<" is only inside strings: escaped, no caption can end the script element
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"TITLE": html.escape(scene.title), "WRONG": "rgb({}, {}, {})".format(*WRONG), "SCENE": text}
    return re.sub(r"%([A-Z]+)%", lambda match: parts[match[1]], PAGE)


def _panel(panel: Panel, point_size: float) -> dict[str, Any]:
    return {
        "caption": panel.caption,
        "wrong": panel.wrong,
        "legend": [[name, [int(value) for value in color]] for name, color in panel.legend],
        "count": len(panel.xyz),
        "center": panel.center.tolist(),
        "extent": panel.extent,
        "points": _base64(panel.xyz, "<f4"),
        "colors": _base64(panel.rgb, "u1"),
        "radii": _base64(panel.radii(point_size), "<f4"),
    }


def _base64(values: ArrayLike, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()
