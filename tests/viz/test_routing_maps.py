"""Heat maps of routing: what is drawn, by its pixels and texts."""

from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imread

from ewa3d.viz.routing import class_order, routing_maps

FULL = colormaps["Blues"](1.0)[:3]


def drawn(tmp_path, monkeypatch, counts, names) -> Figure:
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))
    )
    routing_maps(counts, names, tmp_path / "maps.png", dict.fromkeys(counts, "entropy 0.5"), "a title")
    return figures[0]


def test_classes_that_share_an_expert_are_neighbours():
    vague = np.full((6, 3), 5.0)
    clear = np.array([[0, 9, 1], [8, 1, 1], [0, 0, 9], [0, 7, 3], [0, 0, 0], [9, 0, 1]])
    # class 4 has no choices in either layer
    vague[4] = 0
    assert class_order([vague, clear]) == class_order([clear, vague]) == [5, 1, 0, 3, 2]


def test_a_row_is_the_share_of_its_class_and_classes_without_choices_are_left_out(tmp_path, monkeypatch):
    counts = {"blocks.1.mlp": np.array([[0, 30], [0, 0], [2, 0]]), "blocks.3.mlp": np.array([[15, 15], [0, 0], [1, 1]])}
    figure = drawn(tmp_path, monkeypatch, counts, ["mug", "nothing", "car"])
    first, second, load, even, _ = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["car", "mug"]
    assert first.images[0].get_array().tolist() == [[1, 0], [0, 1]]
    assert second.images[0].get_array().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert first.get_title() == "blocks.1.mlp\nentropy 0.5" and second.get_title().startswith("blocks.3.mlp")
    np.testing.assert_allclose([bar.get_height() for bar in load.patches], [2 / 32, 30 / 32])
    np.testing.assert_allclose([bar.get_height() for bar in even.patches], [0.5, 0.5])
    picture = imread(tmp_path / "maps.png")[..., :3]
    assert (np.abs(picture - FULL).max(axis=-1) < 0.02).sum() > 1000


def test_forty_classes_and_many_layers_are_legible(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    counts = {f"blocks.{i}.mlp": rng.integers(0, 99, (40, 8)) for i in range(7)}
    figure = drawn(tmp_path, monkeypatch, counts, [f"class number {i}" for i in range(40)])
    assert len(figure.axes) == 2 * 7 + 1  # places that no layer takes are gone
    names = figure.axes[0].get_yticklabels()
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert len(boxes) == 40 and all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert max(imread(tmp_path / "maps.png").shape) < 3000
