"""Pictures: what is drawn, by its pixels."""

import pytest
from matplotlib.image import imread

from ewa3d.viz.plots import training_curves


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


def test_a_run_of_one_epoch_is_drawn(tmp_path):
    training_curves(rows(False)[:1], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
