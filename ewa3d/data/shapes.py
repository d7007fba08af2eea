"""Built-in shapes: labelled, part-labelled point clouds made on the spot, for the demo and the tests.

A class is a short function that draws its proportions and yields ``(part, mesh)`` pieces, made with five primitives
(`lathe`, `rod`, `box`, `arc`, `panel`); a mesh is a soup of triangles ``(t, 3, 3)``. A cloud is drawn uniformly from
the area of all its pieces. Lengths are in arbitrary units and y is up, as in ModelNet40.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi, sin

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import Ewa3dError
from .dataset import PartClouds, PointClouds, to_unit_sphere
from .part_map import PartMap

Array = NDArray[np.float64]
Point = Array | tuple[float, float, float]
Draw = Callable[[float, float], float]  # a uniform number between two bounds
Pieces = Iterator[tuple[str, Array]]
Build = Callable[[Draw], Pieces]

PARTS: dict[str, tuple[str, ...]] = {}
"""The parts of every class, classes in the order of their labels; filled by `_shape`."""

_BUILD: dict[str, Build] = {}
_PER_CLASS = {"train": 100, "val": 20, "test": 40}
_SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


def _facets(grid: Array) -> Array:
    """The two triangles of every cell of a grid of vertices ``(m, n, 3)``, as ``(2 (m - 1) (n - 1), 3, 3)``."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[:-1, 1:], grid[1:, 1:]
    return np.stack([a, b, c, d, c, b], axis=2).reshape(-1, 3, 3)


def lathe(profile: Sequence[tuple[float, float]], start: Point, end: Point) -> Array:
    """Revolve ``profile``, rows of (radius, fraction of the way from ``start`` to ``end``), about that axis."""
    radius, height = np.asarray(profile, dtype=float).T[:, :, None, None]
    axis = np.subtract(end, start)
    across = np.linalg.svd(axis[None])[2][1:]  # (2, 3): an orthonormal basis of the plane the axis pierces
    angle = np.linspace(0, 2 * pi, 17)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ across
    return _facets(start + height * axis + radius * ring)


def rod(start: Point, end: Point, radius: float, tip: float | None = None) -> Array:
    """A closed cylinder, or a frustum whose radius at ``end`` is ``tip``; a short one is a disc."""
    return lathe([(0, 0), (radius, 0), (radius if tip is None else tip, 1), (0, 1)], start, end)


_SQUARE = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]
_BOX = _facets(np.array([[(s * x, y, s * z) for x, z in _SQUARE] for s, y in ((0, 0), (1, 0), (1, 1), (0, 1))]))


_ALL, _NO_FLOOR, _WALLS = slice(0, 24), slice(8, 24), slice(8, 16)  # triangles of _BOX


def box(size: Point, at: Point, taper: float = 1.0, faces: slice = _ALL) -> Array:
    """A box of extents ``size`` standing on ``at``, the centre of its floor; ``taper`` scales its ceiling.

    What stands on another piece leaves its floor away: two faces in one place would make labels a matter of chance.
    """
    narrowing = 1 + (taper - 1) * _BOX[..., 1:2] * (1, 0, 1)
    return (_BOX * narrowing * size + at)[faces]


def arc(size: tuple[float, float], tube: float, span: tuple[float, float], at: Point) -> Array:
    """A tube of radius ``tube`` along an ellipse of half-axes ``size`` in the x-y plane, over the angles ``span``."""
    along, around = np.linspace(*span, 13)[:, None], np.linspace(0, 2 * pi, 9)
    x = np.cos(along) * (size[0] + tube * np.cos(around))
    y = np.sin(along) * (size[1] + tube * np.cos(around))
    return _facets(np.stack([x, y, np.broadcast_to(tube * np.sin(around), x.shape)], axis=2) + at)


def panel(*corners: Point) -> Array:
    """A thin sheet with four ``corners``, in order around it."""
    a, b, c, d = corners
    return _facets(np.array([[a, b], [d, c]], dtype=float))


def _moved(point: Point, x: float = 0, y: float = 0, z: float = 0) -> Array:
    return np.add(point, (x, y, z))


def _ring(count: int, radius: float, y: float) -> Array:
    """``count`` points ``(count, 3)`` on a level circle about the up axis."""
    return np.array([(radius * cos(t), y, radius * sin(t)) for t in pi / 4 + 2 * pi * np.arange(count) / count])


def _corners(width: float, depth: float, y: float) -> Array:
    """The corners ``(4, 3)`` of a level rectangle about the up axis."""
    return np.array([(x * width, y, z * depth) for x, z in _SQUARE[:4]])


def _upright(width: float, height: float) -> Array:
    """The corners ``(4, 3)`` of a rectangle that stands on the origin in the x-y plane."""
    return np.array([(-width / 2, 0, 0), (width / 2, 0, 0), (width / 2, height, 0), (-width / 2, height, 0)])


def _shape(*parts: str) -> Callable[[Build], Build]:
    """Register the function below as the class of its name, with these parts."""

    def register(build: Build) -> Build:
        PARTS[build.__name__], _BUILD[build.__name__] = parts, build
        return build

    return register


@_shape("body", "wing", "tail", "engine")
def airplane(u: Draw) -> Pieces:
    length, r, fin = u(1.8, 2.4), u(0.1, 0.16), u(0.3, 0.45)
    span, chord, sweep, lift = u(0.8, 1.2), u(0.35, 0.5), u(0.1, 0.6), u(-0.05, 0.15)
    end = -0.48 * length
    hull = [(0, 0), (0.4 * r, 0.02), (r, 0.35), (r, 0.8), (0.7 * r, 0.94), (0, 1)]
    yield "body", lathe(hull, (-length / 2, 0, 0), (length / 2, 0, 0))
    for y, z in ((1, 0), (0, 1), (0, -1)):
        top = (end, y * fin, z * fin)
        yield "tail", panel((end, 0, 0), (end + fin, 0, 0), _moved(top, 0.3 * fin), _moved(top, -0.1))
    for side in (-1, 1):
        tip = np.array((-sweep, lift, side * span))
        yield "wing", panel((0, 0, 0), (chord, 0, 0), _moved(tip, 0.4 * chord), tip)
        mount = _moved(0.35 * tip, y=-0.6 * r)
        yield "engine", rod(mount, _moved(mount, 0.4), 0.4 * r, 0.5 * r)


@_shape("frame", "mattress", "headboard", "pillow")
def bed(u: Draw) -> Pieces:
    w, d, h, soft, head = u(0.9, 1.9), u(1.9, 2.2), u(0.2, 0.4), u(0.15, 0.3), u(0.4, 0.9)
    yield "frame", box((w, 0.15, d), (0, h - 0.15, 0), faces=_WALLS)
    for foot in _corners(w - 0.1, d - 0.1, 0):
        yield "frame", box((0.1, h - 0.15, 0.1), foot)
    yield "mattress", box((w - 0.06, soft, d - 0.06), (0, h, 0), faces=_NO_FLOOR)
    yield "headboard", box((w, soft + head, 0.08), (0, h, -d / 2 - 0.04))
    for x in (-w / 4, w / 4) if w > 1.3 else (0,):  # a double bed has two pillows
        yield "pillow", box((0.55, 0.12, 0.35), (x, h + soft, 0.28 - d / 2), 0.7, _NO_FLOOR)


@_shape("body", "neck", "cap")
def bottle(u: Draw) -> Pieces:
    r, h, shoulder, long = u(0.22, 0.42), u(0.8, 1.4), u(0.55, 0.85), u(0.15, 0.5)
    thin, top = u(0.25, 0.45) * r, (0, h + long, 0)
    bend = (0.8 * r + 0.2 * thin, (1 + shoulder) / 2)
    yield "body", lathe([(0, 0), (r, 0), (r, shoulder), bend, (thin, 1)], (0, 0, 0), (0, h, 0))
    yield "neck", lathe([(thin, 0), (thin, 1)], (0, h, 0), top)
    yield "cap", rod(top, (0, h + long + u(0.06, 0.15), 0), 1.25 * thin)


@_shape("body", "cabin", "wheel")
def car(u: Draw) -> Pieces:
    length, w, h, r = u(1.8, 2.4), u(0.75, 0.95), u(0.3, 0.45), u(0.17, 0.24)
    yield "body", box((length, h, w), (0, r, 0), u(0.93, 1))
    cabin = u(0.4, 0.75) * length, u(0.28, 0.45), 0.93 * w
    yield "cabin", box(cabin, (u(-0.12, 0.05) * length, r + h, 0), u(0.65, 0.9), _NO_FLOOR)
    for hub in _corners(u(0.55, 0.68) * length, w, r):
        yield "wheel", rod(_moved(hub, z=-0.08), _moved(hub, z=0.08), r)


@_shape("seat", "back", "leg", "arm")
def chair(u: Draw) -> Pieces:
    """Half of the chairs have no arms; a back is a board on two posts or a rail on a row of slats."""
    w, d, h, thick = u(0.45, 0.6), u(0.42, 0.55), u(0.4, 0.55), u(0.02, 0.04)
    yield "seat", box((w, u(0.04, 0.1), d), (0, h, 0))
    for foot in _corners(0.9 * w, 0.9 * d, 0):
        yield "leg", rod(foot, _moved(foot, y=h), 0.7 * thick, thick)
    low, rise = np.array((0, h, -d / 2)), np.array((0, u(0.4, 0.7), -u(0, 0.12)))
    solid, side = u(0, 1) < 0.5, np.array((w / 2, 0, 0))
    for x in np.linspace(-0.9, 0.9, 2 if solid else int(u(3, 6))):
        yield "back", rod(low + x * side, low + x * side + rise, 0.02)
    rail = low + (0.2 if solid else 0.8) * rise
    yield "back", panel(rail - side, rail + side, low + rise + side, low + rise - side)
    if u(0, 1) < 0.5:
        elbow = u(0.18, 0.26)
        for x in (-w / 2, w / 2):
            yield "arm", box((0.06, 0.04, d), (x, h + elbow, 0))
            yield "arm", box((0.05, elbow, 0.05), (x, h, d / 3))


@_shape("body", "neck", "head")
def guitar(u: Draw) -> Pieces:
    r, deep, waist = u(0.32, 0.42), u(0.08, 0.2), u(0.3, 0.42)
    small = u(0.65, 0.9) * r
    end = waist + small + u(0.6, 1.1)
    for y, size in ((0, r), (waist, small)):
        yield "body", rod((0, y, -deep / 2), (0, y, deep / 2), size)
    yield "neck", box((u(0.07, 0.11), end - waist, 0.05), (0, waist, deep / 2))
    yield "head", box((u(0.14, 0.2), u(0.18, 0.28), 0.05), (0, end, deep / 2), u(0.7, 1.2))


@_shape("base", "pole", "shade")
def lamp(u: Draw) -> Pieces:
    h, low, shade = u(0.7, 1.8), u(0.3, 0.42), u(0.3, 0.5)
    yield "base", rod((0, 0, 0), (0, u(0.04, 0.12), 0), u(0.2, 0.32), u(0.1, 0.2))
    yield "pole", rod((0, 0, 0), (0, h, 0), u(0.025, 0.05))
    yield "shade", lathe([(low, 0), (u(0.4, 0.95) * low, 1)], (0, h - 0.4 * shade, 0), (0, h + 0.6 * shade, 0))


@_shape("body", "handle")
def mug(u: Draw) -> Pieces:
    r, h, wall = u(0.32, 0.5), u(0.8, 1.3), 0.06
    foot = u(0.75, 1.05) * r
    cup = [(0, 0), (foot, 0), (r, 1), (r - wall, 1), (foot - wall, 0.08), (0, 0.08)]
    yield "body", lathe(cup, (0, 0, 0), (0, h, 0))
    reach, middle = (u(0.25, 0.38), u(0.25, 0.38) * h), ((foot + r - wall) / 2, u(0.45, 0.55) * h, 0)
    yield "handle", arc(reach, u(0.05, 0.08), (-pi / 2, pi / 2), middle)


@_shape("body", "nose", "fin")
def rocket(u: Draw) -> Pieces:
    r, h, bulge, flare = u(0.18, 0.28), u(1.0, 1.6), u(0.7, 0.9), u(2.0, 2.8)
    yield "body", rod((0, 0, 0), (0, h, 0), u(0.8, 1) * r, r)
    tip = [(r, 0), (bulge * r, 0.4), (0.5 * bulge * r, 0.75), (0, 1)]
    yield "nose", lathe(tip, (0, h, 0), (0, h + u(0.4, 0.7), 0))
    high, drop = u(0.35, 0.6), u(0, 0.2)
    for way in _ring(int(u(3, 5)), r, 0):
        low = _moved(flare * way, y=-drop)
        yield "fin", panel(0.8 * way, _moved(way, y=high), _moved(low, y=0.5 * high), low)


@_shape("seat", "back", "arm")
def sofa(u: Draw) -> Pieces:
    w, d, h, seats = u(1.3, 2.4), u(0.75, 0.95), u(0.3, 0.5), int(u(1, 4))
    arm, thick, high = u(0.12, 0.25), u(0.15, 0.28), h + u(0.15, 0.3)
    inner, front, behind = w - 2 * arm, d / 2, thick - d / 2
    reach = 0.48 * inner / seats
    yield "seat", panel(*_moved(_upright(inner, 0.6 * h), z=front))
    for x in (np.arange(seats) - (seats - 1) / 2) * inner / seats:
        yield "seat", panel(*_moved(_upright(2 * reach, 0.4 * h), x, 0.6 * h, front))
        yield (
            "seat",
            panel((x - reach, h, front), (x + reach, h, front), (x + reach, h, behind), (x - reach, h, behind)),
        )
    yield "back", box((inner, u(0.35, 0.55), thick), (0, h, (thick - d) / 2), u(0.9, 1), _NO_FLOOR)
    yield "back", panel(*_moved(_upright(inner, h), z=-d / 2))
    for side in (-0.5, 0.5):
        yield "arm", box((arm, high, d), (side * (w - arm), 0, 0))


@_shape("seat", "leg", "rung")
def stool(u: Draw) -> Pieces:
    """Taller than wide, with splayed and braced legs: what tells it from a table."""
    h, r, legs, thick, level = u(0.65, 1.0), u(0.18, 0.26), int(u(3, 5)), u(0.02, 0.035), u(0.2, 0.45)
    plate = u(0.04, 0.1)
    yield "seat", rod((0, h, 0), (0, h + plate, 0), r) if u(0, 1) < 0.6 else box((1.8 * r, plate, 1.8 * r), (0, h, 0))
    feet, tops = _ring(legs, u(0.8, 1.2) * r, 0), _ring(legs, 0.8 * r, h)
    braces = feet + level * (tops - feet)
    for foot, top in zip(feet, tops, strict=True):
        yield "leg", rod(foot, top, thick)
    for a, b in pairwise([*braces, braces[0]]):
        yield "rung", rod(a, b, 0.7 * thick)


@_shape("top", "leg")
def table(u: Draw) -> Pieces:
    """A board on four legs or a disc on a pedestal, always wider than high."""
    w, h, plate, thick = u(1.0, 1.7), u(0.5, 0.8), u(0.04, 0.1), u(0.03, 0.07)
    if u(0, 1) < 0.35:
        yield "top", rod((0, h, 0), (0, h + plate, 0), w / 2)
        yield "leg", rod((0, 0, 0), (0, h, 0), thick)
        yield "leg", rod((0, 0, 0), (0, 0.04, 0), u(0.2, 0.3) * w)
    else:
        d = u(0.55, 1) * w
        yield "top", box((w, plate, d), (0, h, 0))
        for foot in _corners(0.9 * w, 0.9 * d, 0):
            yield "leg", rod(foot, _moved(foot, y=h), 0.7 * thick, thick)


@_shape("foot", "body", "neck")
def vase(u: Draw) -> Pieces:
    """Open and bellied, with a flared lip: no cap as on a bottle, no handle as on a mug."""
    foot, belly, waist, lip = u(0.15, 0.28), u(0.32, 0.55), u(0.14, 0.25), u(0.28, 0.42)
    low, h, neck, peak = u(0.06, 0.15), u(0.6, 1.1), u(0.2, 0.45), u(0.4, 0.65)
    rise = [(foot + (belly - foot) * sin(t * pi / 2), peak * t) for t in (0, 0.25, 0.5, 0.75, 1)]
    fall = [(waist + (belly - waist) * cos(t * pi / 2), peak + (1 - peak) * t) for t in (0.3, 0.6, 0.8, 1)]
    flare = [(waist + (lip - waist) * t**2, t) for t in (0, 0.4, 0.7, 1)]
    yield "foot", rod((0, 0, 0), (0, low, 0), 1.25 * foot, foot)
    yield "body", lathe(rise + fall, (0, low, 0), (0, low + h, 0))
    yield "neck", lathe(flare, (0, low + h, 0), (0, low + h + neck, 0))


PART_MAP = PartMap(PARTS)
_PART_ID = {name: i for i, name in enumerate(PART_MAP.part_names)}


def _sample(mesh: Array, count: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
    """``count`` independent points ``(count, 3)``, uniform over the area of a mesh, and the triangle of each."""
    corner, edges = mesh[:, 0], mesh[:, 1:] - mesh[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).cumsum()
    triangle = area.searchsorted(rng.random(count) * area[-1], side="right")
    uv = rng.random((count, 2))
    uv = np.where(uv.sum(axis=1, keepdims=True) > 1, 1 - uv, uv)  # fold the parallelogram onto its triangle
    return corner[triangle] + (uv[:, :, None] * edges[triangle]).sum(axis=1), triangle


def _cloud(name: str, count: int, noise: float, rng: np.random.Generator) -> tuple[Array, NDArray[np.intp]]:
    """One shape of class ``name``: points ``(count, 3)`` and their global part ids ``(count,)``."""
    parts, meshes = zip(*_BUILD[name](rng.uniform), strict=True)
    points, triangle = _sample(np.concatenate(meshes), count, rng)
    part = np.repeat([_PART_ID[f"{name}/{part}"] for part in parts], [len(mesh) for mesh in meshes])
    yaw = rng.uniform(0, 2 * pi)
    turn = np.array([(cos(yaw), 0, -sin(yaw)), (0, 1, 0), (sin(yaw), 0, cos(yaw))])
    points = to_unit_sphere(points @ turn) + noise * rng.standard_normal((count, 3))
    return to_unit_sphere(points), part[triangle]


@dataclass
class _Made:
    points: Tensor  # (n, P, 3)
    parts: Tensor  # (n, P)
    labels: Tensor  # (n,)
    sources: list[str]


def _make(split: str, num_points: int, per_class: int | None, seed: int, noise: float) -> _Made:
    """The shapes of a split, as `Shapes` describes them."""
    if split not in _SPLITS:
        raise Ewa3dError(f"shapes has no split '{split}': choose one of {', '.join(_SPLITS)}")
    if num_points < 2 or seed < 0 or (per_class is not None and per_class < 1):
        raise Ewa3dError("shapes: num_points must be at least 2, per_class at least 1 and seed at least 0")
    names, halves = list(PARTS), list(_PER_CLASS)
    keys = [
        (halves.index(half), label, i)
        for half in _SPLITS[split]
        for i in range(per_class or _PER_CLASS[half])
        for label in range(len(names))
    ]
    points = np.empty((len(keys), num_points, 3), dtype=np.float32)
    parts = np.empty((len(keys), num_points), dtype=np.int64)
    for row, key in enumerate(keys):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        points[row], parts[row] = _cloud(names[key[1]], num_points, noise, rng)
    return _Made(
        torch.from_numpy(points),
        torch.from_numpy(parts),
        torch.tensor([label for _, label, _ in keys]),
        [f"shapes/{halves[half]}/{names[label]}/{i:04d}" for half, label, i in keys],
    )


class Shapes(PointClouds):
    """Procedural objects of 13 classes: nothing to download, the same on every call.

    Every shape has its own random stream, named by (seed, split, class, number): splits never share a shape, a smaller
    ``per_class`` gives the first of the shapes a larger one gives, and ``trainval`` is ``train`` followed by ``val``.
    Points are independent draws from the surface, so any prefix of a cloud is a fair sample of it. Shapes are listed
    in turns, one of each class, so any prefix of the dataset is balanced.

    Args:
        split: ``train``, ``val``, ``trainval`` or ``test``.
        num_points: points a cloud, at least 2.
        per_class: shapes a class, of ``trainval`` in each half; by default 100 in train, 20 in val and 40 in test.
        seed: of all random draws, not negative.
        noise: standard deviation of the Gaussian noise on a point, where the shape has radius 1.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        num_points: int = 1024,
        per_class: int | None = None,
        seed: int = 0,
        noise: float = 0.01,
    ):
        made = _make(split, num_points, per_class, seed, noise)
        super().__init__(made.points, made.labels, list(PARTS), sources=made.sources)


class ShapeParts(PartClouds):
    """The objects of `Shapes`, point for point, with part labels: 13 categories, 40 parts.

    Chairs may lack arms, and a small part may go without a point in a sparse cloud.

    Args:
        split: and the others, see `Shapes`.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        num_points: int = 2048,
        per_class: int | None = None,
        seed: int = 0,
        noise: float = 0.01,
    ):
        made = _make(split, num_points, per_class, seed, noise)
        counts = torch.full((len(made.labels),), num_points)
        points, parts = made.points.flatten(0, 1), made.parts.flatten()
        super().__init__(points, counts, parts, made.labels, PART_MAP, sources=made.sources)
