import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from ewa3d.data.shapes import PART_MAP, PARTS, ShapeParts, Shapes
from ewa3d.errors import Ewa3dError
from ewa3d.ops import knn

SPLITS = ("train", "val", "trainval", "test")


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes("train", num_points=512, per_class=12)


@pytest.fixture(scope="module")
def parted() -> ShapeParts:
    return ShapeParts("train", num_points=512, per_class=12)


def test_same_arguments_give_the_same_tensors(shapes, parted):
    for first, second in (
        (shapes, Shapes("train", num_points=512, per_class=12)),
        (parted, ShapeParts("train", num_points=512, per_class=12)),
    ):
        a, b = first.batch(range(len(first))), second.batch(range(len(second)))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_shapes_with_parts_are_the_same_shapes(shapes, parted):
    assert torch.equal(parted.points.view(-1, 512, 3), shapes.points)
    assert torch.equal(parted.labels, shapes.labels)
    assert parted.sources == shapes.sources and parted.class_names == shapes.class_names


def test_another_seed_shares_no_shape(shapes):
    points = torch.cat([shapes.points, Shapes("train", num_points=512, per_class=12, seed=1).points]).flatten(1)
    assert len(points.unique(dim=0)) == 2 * len(shapes)


def test_fewer_shapes_a_class_are_the_first_of_more(shapes):
    few = Shapes("train", num_points=512, per_class=3)
    assert torch.equal(few.points, shapes.points[: len(few)])
    assert few.sources == shapes.sources[: len(few)]


@pytest.mark.parametrize("split, per_class", [("train", 100), ("val", 20), ("trainval", 120), ("test", 40)])
def test_default_sizes_are_balanced(split, per_class):
    data = Shapes(split, num_points=8)
    assert data.class_names == list(PARTS) and len(PARTS) >= 12
    assert torch.bincount(data.labels).tolist() == [per_class] * len(PARTS)


def test_any_prefix_of_the_dataset_is_balanced(shapes):
    assert torch.bincount(shapes.labels[: 5 * len(PARTS)]).tolist() == [5] * len(PARTS)


def test_trainval_is_train_then_val():
    train, val, both = (Shapes(s, num_points=64, per_class=4) for s in ("train", "val", "trainval"))
    assert torch.equal(both.points, torch.cat([train.points, val.points]))
    assert both.sources == train.sources + val.sources


def test_splits_share_no_shape():
    clouds = [Shapes(s, num_points=64, per_class=10, noise=0.0) for s in ("train", "val", "test")]
    points = torch.cat([c.points for c in clouds]).flatten(1)
    assert len(points.unique(dim=0)) == len(points)
    sources = [source for c in clouds for source in c.sources]
    assert len(set(sources)) == len(sources)


def test_clouds_are_normalised(shapes):
    assert shapes.points.shape == (12 * len(PARTS), 512, 3) and shapes.points.dtype == torch.float32
    assert shapes.points.mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(shapes.points.norm(dim=2).amax(dim=1), torch.ones(len(shapes)))


def test_every_part_of_a_class_occurs_and_no_other(parted):
    assert PART_MAP.parts == PARTS == parted.part_map.parts
    parts = parted.parts.view(len(parted), -1)
    for label, names in enumerate(PARTS.values()):
        assert 2 <= len(names) <= 5
        assert set(parts[parted.labels == label].unique().tolist()) == set(PART_MAP.range_of(label))


def test_part_labels_follow_the_points(parted):
    """Up is y: a part that stands on another has the higher points, cloud by cloud."""
    names = PART_MAP.part_names
    for above, below in (("table/top", "table/leg"), ("lamp/shade", "lamp/base"), ("rocket/nose", "rocket/fin")):
        up, down = names.index(above), names.index(below)
        batch = parted.batch(torch.nonzero(parted.labels == parted.class_names.index(above.split("/")[0])).flatten())
        for height, part in zip(batch["points"][..., 1], batch["part"], strict=True):
            assert height[part == up].mean() > height[part == down].mean() + 0.2


def test_parts_can_be_told_by_where_points_are():
    """Coinciding faces would make labels a matter of chance: points near each other mostly have one part."""
    data = ShapeParts("val", num_points=4096, per_class=3)
    for cloud in range(len(data)):
        sample = data[cloud]
        neighbor = knn(sample["points"][None], sample["points"][None], 5)[0]
        agree = (sample["part"][neighbor] == sample["part"][:, None]).float().mean()
        assert agree > 0.93, data.source(cloud)


def test_sample_tells_where_it_came_from(shapes, parted):
    for data in (shapes, parted):
        sample = data[len(PARTS) + 3]
        assert data.source(int(sample["index"])) == f"shapes/train/{shapes.class_names[sample['label']]}/0001"
        assert sample["label"] == 3
    assert sample["category"] == 3 and sample["count"] == 512 and sample["part"].shape == (512,)


def test_shapes_of_a_class_vary(shapes):
    """Beyond yaw and sampling: the ratio of height to girth, which neither changes, differs between shapes."""
    reach = shapes.points[..., [0, 2]].norm(dim=2).amax(dim=1)
    slenderness = (shapes.points[..., 1].amax(dim=1) - shapes.points[..., 1].amin(dim=1)) / reach
    for label in range(len(PARTS)):
        ratio = slenderness[shapes.labels == label]
        assert ratio.std() / ratio.mean() > 0.03, shapes.class_names[label]


def test_yaw_is_random(shapes):
    """The long axis of the cars, seen from above, points every way."""
    ground = shapes.points[shapes.labels == shapes.class_names.index("car")][..., [0, 2]].double()
    axis = torch.linalg.eigh(ground.mT @ ground).eigenvectors[:, :, 1]
    angle = 2 * torch.atan2(axis[:, 1], axis[:, 0])
    assert torch.stack([angle.cos().mean(), angle.sin().mean()]).norm() < 0.7


def test_any_prefix_of_a_cloud_is_a_fair_sample():
    data = ShapeParts("train", num_points=2048, per_class=4)
    points = data.points.view(len(data), 2048, 3)
    head, tail = points[:, :512], points[:, 512:]
    assert (head.mean(dim=1) - tail.mean(dim=1)).abs().max() < 0.15
    is_part = torch.nn.functional.one_hot(data.parts.view(len(data), 2048)).double()
    assert (is_part[:, :512].mean(dim=1) - is_part[:, 512:].mean(dim=1)).abs().max() < 0.15


def test_noise_moves_points_off_the_surface():
    """A noiseless bottle has a flat bottom: many points at exactly its lowest height."""
    on_floor = []
    for noise in (0.0, 0.02):
        data = Shapes("val", per_class=1, noise=noise)
        height = data.points[data.class_names.index("bottle"), :, 1]
        on_floor.append(int((height < height.min() + 1e-4).sum()))
    assert on_floor[0] > 20 and on_floor[1] < 5


@pytest.mark.parametrize("split", ["tset", "", "Train"])
def test_unknown_split_names_the_choices(split):
    with pytest.raises(Ewa3dError) as error:
        Shapes(split)
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name in SPLITS)


@pytest.mark.parametrize("wrong", [{"num_points": 1}, {"per_class": 0}, {"seed": -1}])
def test_impossible_sizes_and_seeds_are_refused(wrong):
    with pytest.raises(Ewa3dError, match=next(iter(wrong))):
        Shapes("val", **wrong)


def test_classes_can_be_learned():
    """From the quantiles of height, distance to the axis and distance to the centre, none of which knows the yaw."""

    def features(data: Shapes) -> np.ndarray:
        p = data.points
        values = torch.stack([p[..., 1], p[..., [0, 2]].norm(dim=2), p.norm(dim=2)], dim=1)
        return values.quantile(torch.linspace(0, 1, 17), dim=2).permute(1, 2, 0).flatten(1).numpy()

    train, test = (Shapes(split, num_points=256, per_class=n) for split, n in (("train", 30), ("test", 10)))
    forest = RandomForestClassifier(100, random_state=0).fit(features(train), train.labels)
    assert forest.score(features(test), test.labels) > 0.8
