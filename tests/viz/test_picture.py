"""Scenes as pictures: panels, captions and legends, by their pixels."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from ewa3d import Ewa3dError
from ewa3d.viz.panels import RIGHT, WRONG, Panel, Scene
from ewa3d.viz.picture import picture

BLUE, ORANGE = (0, 114, 178), (230, 159, 0)


def pixels(scene: Scene, **options) -> np.ndarray:
    image = imread(io.BytesIO(picture(scene, **options)), format="png")
    return (255 * image[..., :3] + 0.5).astype(np.uint8)


def count(image: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((image == color).all(axis=-1).sum())


def cloud(n: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 3))


def parts(n: int = 300) -> np.ndarray:
    return np.where(cloud(n)[:, :1] > 0, BLUE, ORANGE)


def test_panels_that_agree_are_equal_and_errors_are_red(open3d):
    wrong = np.where(np.arange(300)[:, None] < 60, WRONG, RIGHT)
    truth, prediction, errors, none = (Panel(cloud(), c) for c in (parts(), parts(), wrong, RIGHT))
    image = pixels(Scene("", [truth, prediction, errors, none], 4), size=(800, 180))
    first, second, third, fourth = np.split(image, 4, axis=1)
    assert image.shape == (180, 800, 3)
    np.testing.assert_array_equal(first, second)
    red = (third[..., 0].astype(int) > third[..., 1].astype(int) + 60).sum()
    assert 200 < red < 0.5 * (third != 255).any(axis=-1).sum()
    assert (np.ptp(fourth.astype(int), axis=-1) < 30).all()


def test_the_same_call_writes_the_same_file(open3d):
    scene = Scene("", [Panel(cloud(), parts(), "caption", [("one", BLUE)])], 1)
    first = picture(scene)
    assert first.startswith(b"\x89PNG") and picture(scene) == first
    assert picture(scene, point_size=2) != first


def test_legends_have_their_colours_and_break_into_lines(open3d):
    short = Scene("", [Panel(cloud(), RIGHT, legend=[("seat", BLUE), ("leg", ORANGE)])], 1)
    image = pixels(short)
    assert count(image, BLUE) > 30 and count(image, ORANGE) > 30
    rows = [np.argwhere((image == color).all(axis=-1))[:, 0].mean() for color in (BLUE, ORANGE)]
    assert abs(rows[0] - rows[1]) < 1 and min(rows) > 0.8 * len(image)

    names = [(f"a rather long name {i}", (10 * i, 0, 250)) for i in range(12)]
    image = pixels(Scene("", [Panel(cloud(), RIGHT, legend=names), Panel(cloud(), RIGHT)], 2))
    assert image.shape[1] == 520 and all(count(image[:, :260], color) > 30 for _, color in names)
    assert not any(count(image[:, 260:], color) for _, color in names)


def test_captions_are_black_and_of_mistakes_red(open3d):
    def caption(**options) -> np.ndarray:
        return pixels(Scene("", [Panel(cloud(), RIGHT, **options)], 1))[:20]

    right, wrong, long = caption(caption="chair"), caption(caption="sofa", wrong=True), caption(caption="very " * 20)
    assert right.min() < 60 and np.ptp(right.astype(int), axis=-1).max() < 12
    assert count(wrong, WRONG) > 20 and wrong[..., 0].min() > 150
    assert (long[:, [0, -1]] == 255).all() and long.min() < 120  # shrunk to fit


def test_dollars_and_backslashes_are_text(open3d):
    caption = r"$\broken{"
    picture(Scene("", [Panel(cloud(), RIGHT, caption, [(caption, BLUE)])], 1))


def test_rows_hold_columns_panels(open3d):
    image = pixels(Scene("", [Panel(cloud(), color) for color in (BLUE, ORANGE, RIGHT)], 2))
    top, bottom = np.split(image[: len(image) // 2 * 2], 2)
    assert image.shape[1] == 520
    assert (bottom[:, 260:] == 255).all() and (bottom[:, :260] != 255).any() and (top[:, 260:] != 255).any()


def test_a_picture_too_small_for_its_panels_is_refused():
    panels = [Panel(cloud(), BLUE, "caption") for _ in range(30)]
    with pytest.raises(Ewa3dError, match="--size 300x200 leaves a panel"):
        picture(Scene("", panels, 3), (300, 200))
