"""What is drawn of a run: the numbers behind the pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ewa3d import Ewa3dError
from ewa3d.engine import scenes, tasks
from ewa3d.engine.build import open_split
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import evaluate_folder, load_model, open_evaluation
from ewa3d.engine.run import load_run_config
from ewa3d.engine.scenes import DRAW
from ewa3d.engine.train import train
from ewa3d.engine.visualize import make_scene, visualize
from ewa3d.ewa.experts import Experts
from ewa3d.viz.panels import RIGHT, WRONG


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run) -> dict[str, Path]:
    """A finished run of each task."""
    folder = tmp_path_factory.mktemp("visualize")
    tasks = ("classification", "part_segmentation", "pretraining")
    for task in tasks:
        train(load_config(overrides=[*tiny_run, f"run.dir={folder / task}", f"task={task}"]))
    return {task: folder / task for task in tasks}


def colors(panel) -> set[tuple[int, ...]]:
    return set(map(tuple, panel.rgb.tolist()))


def test_drawn_classes_are_the_scored_ones(runs):
    scores, _ = evaluate_folder(runs["classification"])
    scene, lines = make_scene("predictions", runs["classification"], shapes=99)
    assert len(scene.panels) == 52 and len(lines) == 53 and scene.columns == 9
    right = [not panel.wrong for panel in scene.panels]
    assert 100 * sum(right) / 52 == pytest.approx(scores["single"]["oa"])
    for panel, line in zip(scene.panels, lines[1:], strict=True):
        assert (" (true: " in panel.caption) == panel.wrong == line.endswith("wrong")
        assert colors(panel) == ({WRONG} if panel.wrong else {(0, 114, 178)})
        assert panel.xyz.shape == (64, 3)


def test_drawn_parts_are_the_scored_ones(runs):
    folder = runs["part_segmentation"]
    scores, _ = evaluate_folder(folder)
    scene, lines = make_scene("predictions", folder, ["eval.protocol=official"], shapes=99)
    assert len(scene.rows()) == 52 and scene.columns == 3
    ious = [float(line.split("mIoU ")[1].split(" %")[0]) for line in lines[1:]]
    assert np.mean(ious) == pytest.approx(scores["whole"]["instance_miou"], abs=0.05)
    points = wrong = 0
    for truth, predicted, errors in scene.rows():
        legend = [color for _, color in truth.legend]
        assert colors(truth) <= set(legend) and colors(predicted) <= set(legend) and predicted.legend == truth.legend
        assert (truth.xyz == predicted.xyz).all() and (truth.xyz == errors.xyz).all()
        differ = (truth.rgb != predicted.rgb).any(axis=1)
        np.testing.assert_array_equal(errors.rgb, np.where(differ[:, None], WRONG, RIGHT))
        points, wrong = points + len(differ), wrong + differ.sum()
    assert 100 - 100 * wrong / points == pytest.approx(scores["whole"]["oa"])


def test_what_is_right_is_drawn_twice_alike(runs, monkeypatch):
    def know(self, model, batch):
        return nn.functional.one_hot(batch["part"], 40).float(), batch["part"]

    monkeypatch.setattr(tasks.PartSegmentation, "predict", know)
    scene, _ = make_scene("predictions", runs["part_segmentation"])
    assert len(scene.rows()) == 4
    for truth, predicted, errors in scene.rows():
        np.testing.assert_array_equal(truth.rgb, predicted.rgb)
        assert colors(errors) == {RIGHT} and errors.caption == "0.0 % of points wrong"
        assert predicted.caption == "prediction: mIoU 100.0 %"


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_samples_are_the_dataset_s(runs, task):
    scene, lines = make_scene("samples", runs[task], ["eval.split=val"], index=[5, 0])
    dataset = open_split(load_run_config(runs[task]), "val")
    for i, panel, line in zip([5, 0], scene.panels, lines[1:], strict=True):
        np.testing.assert_array_equal(panel.xyz, dataset.batch([i])["points"][0].numpy())
        assert panel.caption == dataset.class_names[int(dataset.labels[i])]
        assert dataset.source(i) in line and line.split()[0] == str(i)
        if task == "part_segmentation":
            all_colors = dataset.part_map.colors().numpy()
            np.testing.assert_array_equal(panel.rgb, all_colors[dataset.batch([i])["part"][0]])
            assert [name for name, _ in panel.legend] == list(dataset.part_map.parts[panel.caption])


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_groups_are_the_model_s(runs, task):
    scene, _ = make_scene("tokens", runs[task], index=[3])
    points, grouped, tokens = scene.panels
    assert len(points.xyz) == 64 and len(grouped.xyz) == len(tokens.xyz) == 64 + 8
    groups, centers = load_model(runs[task]).patch_embed.group(torch.from_numpy(points.xyz).float()[None])
    np.testing.assert_array_equal(grouped.xyz[64:], centers[0].numpy())
    np.testing.assert_array_equal(tokens.xyz[64:], centers[0].numpy())
    members = (groups + centers[:, :, None])[0].numpy()  # (8, 4, 3)

    of_group = tokens.rgb[64:]
    assert len(np.unique(of_group, axis=0)) == 8
    for point, color in zip(points.xyz, grouped.rgb[:64], strict=True):
        own = [g for g in range(8) if np.isclose(members[g], point, atol=1e-5).all(axis=1).any()]
        nearest = min(own, key=lambda g: np.linalg.norm(centers[0, g].numpy() - point), default=None)
        expected = (214, 217, 222) if nearest is None else of_group[nearest]
        np.testing.assert_array_equal(color, expected)


def test_groups_beside_each_other_differ_in_colour():
    centers = torch.rand(64, 3)
    found = scenes._spread_colors(centers)
    distance = torch.cdist(centers, centers) + 9 * torch.eye(64)
    assert (found != found[distance.argmin(dim=1)]).any(dim=1).all()


class Constant(nn.Module):
    """An expert whose output says who it is."""

    def __init__(self, number: int):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, x):
        return 0 * x + self.number


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_tokens_go_to_the_experts_that_a_layer_would_deal_them_to(runs, task):
    class_token = int(task == "classification")
    scene, lines = make_scene("experts", runs[task], seed=5)
    torch.manual_seed(5)
    dealt = (
        Experts(Constant(i) for i in range(3)).train()(torch.zeros(4, class_token + 8, 1)).long()[:, class_token:, 0]
    )
    legend = np.array([color for _, color in scene.panels[0].legend])
    assert len(scene.panels) == 4 and legend.shape == (3, 3)
    for row, panel, line in zip(dealt, scene.panels, lines[2:], strict=True):
        np.testing.assert_array_equal(panel.rgb[64:], legend[row])
        assert line.endswith("tokens by expert " + ", ".join(str((row == i).sum().item()) for i in range(3)))
    assert lines[1].startswith(
        "  the experts take 12, 12, 12 of 36" if class_token else "  the experts take 11, 11, 10 of 32"
    )
    other, _ = make_scene("experts", runs[task], index=[0, 1, 2, 3], seed=6)
    assert any((a.rgb[64:] != b.rgb[64:]).any() for a, b in zip(scene.panels, other.panels, strict=True))


def test_drawn_reconstructions_are_the_scored_ones(runs):
    folder = runs["pretraining"]
    scores, _ = evaluate_folder(folder)
    scene, lines = make_scene("reconstruction", folder, shapes=99)
    distances = [float(line.split("Chamfer-L2 ")[1].removesuffix("e-3")) for line in lines[1:]]
    assert len(scene.rows()) == 52 and np.mean(distances) == pytest.approx(
        1000 * scores["masked"]["chamfer_l2"], abs=1e-3
    )
    for points, visible, rebuilt in scene.rows():
        assert len(points.xyz) == 64 and len(visible.xyz) == 64 + 4 * 4 and len(rebuilt.xyz) == 8 * 4
        assert visible.caption == "visible: 4 of 8 groups" and rebuilt.caption.startswith("Chamfer-L2 ")
        np.testing.assert_array_equal(visible.xyz[:64], points.xyz)
        shown = visible.xyz[64:]
        np.testing.assert_array_equal(rebuilt.xyz[:16], shown)
        to_points = np.linalg.norm(shown[:, None] - points.xyz, axis=-1).min(axis=1)
        assert to_points.max() < 1e-6, "what is visible is of the cloud"
        assert [tuple(rebuilt.rgb[i]) for i in (0, 16)] == [color for _, color in rebuilt.legend]


def test_only_what_training_encodes_is_dealt_to_experts(runs):
    scene, lines = make_scene("experts", runs["pretraining"], shapes=2)
    assert lines[1] == "  the experts take 3, 3, 2 of 8 tokens"
    assert all(len(panel.xyz) == 64 + 4 for panel in scene.panels)


def test_each_kind_of_run_is_asked_for_what_it_does(runs):
    with pytest.raises(
        Ewa3dError, match=r"a pretraining run predicts no classes: .* tools/visualize\.py reconstruction"
    ):
        make_scene("predictions", runs["pretraining"])
    with pytest.raises(Ewa3dError, match="nothing is rebuilt by a model of task=classification"):
        make_scene("reconstruction", runs["classification"])


def test_a_run_without_experts_shows_a_partition_only_when_asked(runs):
    with pytest.raises(Ewa3dError, match=r"ewa\.num_experts=4"):
        make_scene("experts", runs["classification"], ["ewa=null"])
    scene, _ = make_scene("experts", runs["classification"], ["ewa=null", "ewa.num_experts=5"], shapes=1)
    assert len(scene.panels[0].legend) == 5


@pytest.mark.parametrize("what", DRAW)
def test_the_same_seed_draws_the_same_scene(runs, what):
    folder = runs["pretraining" if what == "reconstruction" else "classification"]
    first, again, other = (make_scene(what, folder, shapes=3, seed=s)[0] for s in (1, 1, 2))

    def content(scene):
        return [(panel.caption, panel.xyz.tolist(), panel.rgb.tolist()) for panel in scene.panels]

    assert content(first) == content(again) != content(other)
    assert first.title.startswith(f"{what}: ") and first.title.endswith("test split of shapes")


def test_an_export_is_drawn_too(runs):
    from_run, _ = make_scene("predictions", runs["classification"], index=[0, 1])
    exported, _ = make_scene("predictions", runs["classification"] / "export", ["data.per_class=4"], index=[0, 1])
    for a, b in zip(from_run.panels, exported.panels, strict=True):
        assert a.caption == b.caption and (a.xyz == b.xyz).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": [52]}, "--index 52: the split has 52 shapes, 0 to 51"),
        ({"index": [-1]}, "--index -1"),
        ({"shapes": 0}, "at least 1 shape"),
        ({"seed": -1}, "a seed of 0 or more"),
        ({"out": Path("picture.jpg")}, "picture.jpg: its name must end in .png"),
        ({"out": Path("picture.png"), "html": Path("page.txt")}, "page.txt: its name must end in .html"),
        ({"size": (10, 10)}, "64 to 4096 pixels"),
        ({"point_size": float("nan")}, "--point-size nan"),
    ],
)
def test_bad_requests_are_named(runs, options, message, tmp_path):
    with pytest.raises(Ewa3dError, match=message):
        list(visualize("samples", runs["classification"], **({"html": tmp_path / "page.html"} | options)))


def test_a_file_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(Ewa3dError, match=r"page\.html cannot be written"):
        list(visualize("samples", runs["classification"], html=tmp_path / "page.html"))
    (tmp_path / "file").touch()
    with pytest.raises(Ewa3dError, match=r"this folder cannot be made"):
        list(visualize("samples", runs["classification"], html=tmp_path / "file" / "page.html"))


def test_a_shape_is_drawn_alike_whatever_is_beside_it(runs):
    opened = open_evaluation(runs["classification"])
    together, alone = DRAW["predictions"](opened, [1, 2, 3]), DRAW["predictions"](opened, [2])
    assert together.lines[1] == alone.lines[0]
