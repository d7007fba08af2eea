"""What pictures, windows and pages show: clouds of balls side by side, each with a caption and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Color = tuple[int, int, int]  # sRGB, 0 to 255

WRONG: Color = (208, 28, 28)
RIGHT: Color = (178, 182, 188)

FOG = 0.45  # how far the farthest balls fade into the paper
AMBIENT = 0.5  # light on the dark side of a ball, where its bright side has 1
SHINE = 0.3  # white in the highlight
FIELD_OF_VIEW = 24.0  # degrees: a long lens, hardly any distortion


def _unit(x: float, y: float, z: float) -> NDArray[np.float64]:
    return np.array((x, y, z)) / np.linalg.norm((x, y, z))


AZIMUTH, ELEVATION = 215.0, 22.0  # degrees, of the eye; 0 is on +z, 90 on +x
LIGHT = _unit(-0.45, 0.75, 0.5)  # where it comes from: right, up, towards the eye


@dataclass
class Panel:
    """A cloud to draw.

    Args:
        points: ``(n, 3)``, n ≥ 1, in any units; y is up.
        colors: ``(n, 3)`` from 0 to 255, or one `Color` for all.
        caption: above the cloud.
        legend: names of colours, below it.
        sizes: ``(n,)``, how many times the usual ball each is; one number for all.
        wrong: a mistake: the caption is red.
    """

    points: ArrayLike
    colors: ArrayLike
    caption: str = ""
    legend: Sequence[tuple[str, Color]] = ()
    sizes: ArrayLike = 1.0
    wrong: bool = False

    def __post_init__(self) -> None:
        self.xyz = np.asarray(self.points, dtype=np.float64)
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3 or len(self.xyz) == 0:
            raise ValueError(f"points must be (n, 3) with n > 0, got {self.xyz.shape}")
        self.rgb = np.broadcast_to(np.asarray(self.colors, dtype=np.uint8), self.xyz.shape)
        low, high = self.xyz.min(axis=0), self.xyz.max(axis=0)
        self.center = (low + high) / 2
        self.extent = float(np.linalg.norm(self.xyz - self.center, axis=1).max()) or 1.0

    def radii(self, point_size: float = 1.0) -> NDArray[np.float64]:
        """``(n,)``: balls just large enough that those of a surface nearly touch, ``point_size`` times that."""
        usual = 0.95 * point_size * self.extent / np.sqrt(max(len(self.xyz), 64))
        return usual * np.broadcast_to(np.asarray(self.sizes, dtype=np.float64), len(self.xyz))


@dataclass
class Scene:
    """Panels in rows of ``columns``, and what they are together."""

    title: str
    panels: list[Panel]
    columns: int

    def rows(self) -> list[list[Panel]]:
        return [self.panels[i : i + self.columns] for i in range(0, len(self.panels), self.columns)]


def camera_axes() -> NDArray[np.float64]:
    """``(3, 3)``: the directions right, up and towards the eye, which looks from the front, above and right.

    Shapes of ModelNet40 and ShapeNet look along −z; the viewer's right is then −x.
    """
    azimuth, elevation = np.radians((AZIMUTH, ELEVATION))
    towards = np.array((np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)))
    right = np.array((np.cos(azimuth), 0, -np.sin(azimuth)))
    return np.stack([right, np.cross(towards, right), towards])
