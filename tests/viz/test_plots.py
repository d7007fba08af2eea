"""Pictures: what is drawn, by its pixels."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ewa3d import Ewa3dError
from ewa3d.viz import plots
from ewa3d.viz.plots import category_bars, confusion_matrix, feature_map, training_curves

BLUE, ORANGE, GREEN = map(to_rgb, plots.COLORS[:3])
HIT = colormaps["Blues"](1.0)[:3]  # a class that is always right


def rows(experts: bool, parts: bool = False) -> list[dict]:
    return [
        {"epoch": e, "train_loss": 3 / e, "train_oa": 10.0 * e, "val_oa": 9.0 * e, "lr": 1e-3 / e}
        | ({"expert_distance": 0.1 / e} if experts else {})
        | ({"val_instance_miou": 8.0 * e} if parts else {})
        for e in range(1, 6)
    ]


@pytest.mark.parametrize(("experts", "parts", "panels"), [(True, True, 5), (True, False, 4), (False, False, 3)])
def test_curves_have_a_panel_for_what_was_recorded(tmp_path, experts, parts, panels):
    training_curves([*rows(experts, parts), {"split": "test", "single_oa": 50.0}], tmp_path / "curves.png")
    picture = imread(tmp_path / "curves.png")[..., :3]
    width = picture.shape[1] // panels
    assert abs(width - 440) < 5
    for panel in range(panels):
        part = picture[:, panel * width : (panel + 1) * width]
        coloured = (part.max(-1) - part.min(-1)) > 0.3  # text and grid are grey, curves are not
        assert coloured.sum() > 100, f"panel {panel} has no curve"


def test_a_run_without_accuracy_has_no_panel_for_it(tmp_path):
    told = [{"epoch": e, "train_loss": 1 / e, "val_chamfer_l2": 0.1 / e, "lr": 1e-3} for e in range(1, 6)]
    assert abs(curves_of(told, tmp_path).shape[1] // 3 - 440) < 5


def test_a_run_of_one_epoch_is_drawn(tmp_path):
    training_curves(rows(False)[:1], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_every_expert_layer_has_a_curve(tmp_path):
    layers = {f"blocks.{i}.mlp": 0.05 * 10.0**-i for i in (1, 3, 5)}
    told = [{**row, "expert_distances": {name: d / row["epoch"] for name, d in layers.items()}} for row in rows(True)]
    picture = curves_of(told, tmp_path)
    panel = picture[:, 3 * picture.shape[1] // 4 :]
    for depth in (0.1, 0.475, 0.85):
        assert is_color(panel, colormaps["viridis"](depth)[:3]).sum() > 100, "one of the layers has no curve"
    mean_only = curves_of(rows(True), tmp_path)
    assert not is_color(mean_only, colormaps["viridis"](0.475)[:3]).any(), "rows of older runs have the mean alone"


def curves_of(told: list[dict], folder: Path) -> np.ndarray:
    training_curves(told, folder / "curves.png")
    return imread(folder / "curves.png")[..., :3]


def is_color(picture: np.ndarray, color: tuple[float, ...], tolerance: float = 0.02) -> np.ndarray:
    return (np.abs(picture - np.asarray(color)) <= tolerance).all(axis=-1)


def cells_of(path: Path, size: int) -> np.ndarray:
    """The pixels of every cell of a drawn matrix whose first and last class are always right: (size, size, h, w, 3)."""
    picture = imread(path)[..., :3]
    y, x = np.nonzero(is_color(picture, HIT))
    edges = [np.linspace(line.min(), line.max() + 1, size + 1) for line in (y, x)]
    width = int(edges[1][1] - edges[1][0]) - 6  # less the lines between cells
    grid = [[picture[round(a) + 3 :, round(b) + 3 :][:width, :width] for b in edges[1][:-1]] for a in edges[0][:-1]]
    return np.array(grid)


def has_text(cells: np.ndarray) -> np.ndarray:
    """Which cells are not of one colour."""
    return np.ptp(cells, axis=(2, 3)).max(axis=-1) > 0.3


@pytest.mark.parametrize("size", [3, 13, 40, 55])
def test_a_confusion_matrix_is_drawn_cell_by_cell(tmp_path, size):
    matrix = np.diag(np.full(size, 20))
    matrix[1, 1], matrix[1, 0] = 15, 5  # a quarter of class 1 is taken for class 0
    names = [f"class_{i}" for i in range(size)]
    confusion_matrix(matrix, names, tmp_path / "confusion.png", "a title that is long enough for two lines: 97.50 %")
    cells = cells_of(tmp_path / "confusion.png", size)
    assert cells.shape[2] >= 20, "room for three digits"
    middle = np.median(cells, axis=(2, 3))
    diagonal = np.eye(size, dtype=bool)
    hits = middle[diagonal & (np.arange(size) != 1)]
    assert (np.abs(hits - HIT) < 0.02).all()
    assert np.abs(middle[1, 1] - colormaps["Blues"](0.75)[:3]).max() < 0.02, "paler where less is right"
    red, _, blue = middle[1, 0]
    assert red > blue + 0.2, "a confusion is orange, and below the diagonal: rows are the truth"
    diagonal[1, 0] = True
    assert (middle[~diagonal] == 1).all(), "nothing else was confused"
    assert (has_text(cells) == diagonal).all(), "every hit and every confusion has its number, the rest has none"


def test_a_class_without_clouds_and_one_that_is_never_right(tmp_path):
    matrix = [[5, 0, 0, 0], [0, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion_matrix(matrix, ["right", "absent", "wrong", "right, too"], tmp_path / "confusion.png")
    cells = cells_of(tmp_path / "confusion.png", 4)
    assert (cells[1] == 1).all(), "a row of nothing is empty"
    assert has_text(cells)[2, 2], "0 % is said"


def test_more_classes_than_have_room_for_numbers(tmp_path):
    confusion_matrix(np.eye(130), [f"class {i}" for i in range(130)], tmp_path / "confusion.png")
    assert not has_text(cells_of(tmp_path / "confusion.png", 130)).any()


@pytest.mark.parametrize(
    "scores", [{"Mug": 80.0, "Lamp": 20.0, "Car": 65.0}, {f"class {i}": 2.0 * i for i in range(51)}]
)
def test_bars_are_as_long_as_their_scores_and_in_their_order(tmp_path, scores):
    category_bars(scores, tmp_path / "bars.png", "a title", "accuracy, %")
    bars = is_color(imread(tmp_path / "bars.png")[..., :3], BLUE)
    starts = np.flatnonzero(np.diff(bars.any(axis=1).astype(int)) == 1) + 1
    ends = [bars[y + 3].nonzero()[0].max() + 1 for y in starts]
    drawn = [score for score in scores.values() if score > 0]
    assert len(ends) == len(drawn)
    scale, zero = np.polyfit(drawn, ends, 1)
    assert ends == pytest.approx(scale * np.array(drawn) + zero, abs=1.5)
    assert bars.nonzero()[1].min() == pytest.approx(zero, abs=3), "but for what the axis covers"


def test_the_mean_of_bars_is_a_line(tmp_path):
    category_bars({"a": 100.0, "b": 0.0, "c": 20.0}, tmp_path / "bars.png")
    picture = imread(tmp_path / "bars.png")[..., :3]
    orange = is_color(picture, ORANGE, 0.1).sum(axis=0)
    _, x = np.nonzero(is_color(picture, BLUE))
    at = (orange.argmax() - x.min()) / (x.max() + 1 - x.min())
    assert at == pytest.approx(0.4, abs=0.01)
    assert orange.max() > 0.3 * picture.shape[0], "dashed, from top to bottom"


def clusters(classes: int, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features of well separated classes, in turns, along a line; and their labels."""
    labels = np.arange(classes * each) % classes
    noise = np.random.default_rng(0).normal(size=(len(labels), 8))
    return noise + 100.0 * labels[:, None], labels


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_classes_that_are_apart_are_apart_on_the_map(tmp_path, method):
    features, labels = clusters(3)
    feature_map(features, labels, ["a", "b", "c"], tmp_path / "map.png", method, "three classes")
    picture, _ = map_and_legend(tmp_path / "map.png")
    means, spreads = [], []
    for color in (BLUE, ORANGE, GREEN):
        pale = 0.75 * np.asarray(color) + 0.25  # of points that are three quarters opaque
        points = np.argwhere(is_color(picture, pale) | is_color(picture, color, 0.1))
        assert len(points) > 30
        means.append(points.mean(axis=0))
        spreads.append(points.std(axis=0).max())
    gaps = [np.linalg.norm(a - b) for a, b in zip(means, means[1:] + means[:1], strict=True)]
    assert min(gaps) > 3 * max(spreads)
    feature_map(features, labels, ["a", "b", "c"], tmp_path / "again.png", method, "three classes")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "map.png").read_bytes(), "the same picture each time"


def map_and_legend(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pixels left and right of the map's right edge."""
    picture = imread(path)[..., :3]
    frame = np.flatnonzero((picture < 0.7).all(axis=-1).mean(axis=0) > 0.8).max()
    return picture[:, :frame], picture[:, frame + 5 :]


def test_every_class_of_a_large_dataset_looks_different():
    assert len({plots._style(i) for i in range(55)}) == 55


def test_a_map_names_its_classes_in_the_legend(tmp_path):
    """Forty classes take two columns, none of them cut off; a class without clouds takes no line."""
    features, labels = clusters(40, each=3)
    feature_map(features, labels, [f"class {i}" for i in range(41)], tmp_path / "map.png")
    _, right = map_and_legend(tmp_path / "map.png")
    legend = (right < 0.9).any(axis=-1)
    assert not legend[:, -3:].any() and not legend[:3].any() and not legend[-3:].any()
    lines = (np.diff(legend.any(axis=1).astype(int)) == 1).sum()
    assert lines == 20


def test_two_clouds_make_no_map(tmp_path):
    with pytest.raises(Ewa3dError, match="needs three clouds or more, not 2"):
        feature_map(np.eye(2), [0, 1], ["a", "b"], tmp_path / "map.png")
