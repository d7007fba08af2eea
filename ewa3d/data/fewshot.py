"""Few-shot classification on ModelNet40: N-way K-shot episodes, cut here or as the field publishes them.

An episode (a *fold*) is N classes with K training shapes and 20 test shapes each; there are ten of every kind (5 or 10
way, 10 or 20 shot), and the score is the mean over them (Sharma & Kaul, NeurIPS 2020). Labels count the classes of the
episode from 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import Ewa3dError
from .dataset import PointClouds
from .modelnet40 import ModelNet40
from .pickles import as_cloud, as_label, load_arrays
from .reading import Stored, check
from .rectangle import rectangle
from .roots import find_root
from .text_clouds import Flat

NUM_FOLDS = 10
TEST_SHAPES = 20  # a class
_GET_IT = "datasets/README.md says where from; the dataset modelnet40_fewshot cuts episodes from ModelNet40 itself"


class FewShotModelNet40(PointClouds):
    """An episode cut from ModelNet40: its training shapes from the official training split, its test shapes from test.

    So what was pretrained on the training split has not seen the test shapes. An episode follows from ``way``,
    ``shot``, ``fold`` and the order of ModelNet40's files alone. These are not the field's published episodes
    (`PublishedFewShot`): scores on the two do not compare.

    Args:
        root: where ModelNet40 is, as for `ModelNet40`.
        split: ``"train"`` or ``"test"``; there is no validation split.
        way: classes of the episode.
        shot: training shapes of each.
        fold: which episode, 0 or more.

    Raises:
        Ewa3dError: ModelNet40 is missing or broken or has too few classes or shapes, or an unknown split.
    """

    def __init__(self, root: str | Path | None = None, split: str = "train", *, way: int, shot: int, fold: int):
        _check_split(split)
        whole = ModelNet40(root, "test" if split == "test" else "trainval")
        self.split, self.folder = split, whole.folder
        classes = choose_classes(len(whole.class_names), way, shot, fold)
        taken = shot if split == "train" else TEST_SHAPES
        chosen = [_choose_shapes(whole, label, taken, (way, shot, fold)) for label in classes]
        episode = whole.subset(np.concatenate(chosen))
        super().__init__(
            episode.points,
            torch.arange(way).repeat_interleave(taken),
            [whole.class_names[label] for label in classes],
            sources=episode.sources,
        )


def choose_classes(num_classes: int, way: int, shot: int, fold: int) -> list[int]:
    """The classes of an episode, ``way`` of ``num_classes``, ascending.

    Raises:
        Ewa3dError: more are asked for than there are.
    """
    if way > num_classes:
        raise Ewa3dError(f"data.way={way}: ModelNet40 here has {num_classes} classes: take a smaller way")
    return sorted(np.random.RandomState([way, shot, fold]).permutation(num_classes)[:way].tolist())


def _choose_shapes(whole: ModelNet40, label: int, count: int, episode: tuple[int, int, int]) -> NDArray[np.int64]:
    """The places of ``count`` shapes of a class, drawn from a stream of its own."""
    members = np.flatnonzero(whole.labels.numpy() == label)
    if len(members) < count:
        raise Ewa3dError(
            f"{whole.folder}: {whole.class_names[label]} has {len(members)} shapes in the official {whole.split} split "
            f"where this episode takes {count}: point data.root at all of ModelNet40, or take a smaller shot"
        )
    return np.random.RandomState([*episode, label]).permutation(members)[:count]


class PublishedFewShot(PointClouds):
    """An episode that the field published: ``ModelNetFewshot/5way_10shot/0.pkl`` and so on.

    The pickles are read through an allow-list (`ewa3d.data.pickles`): one that holds more than arrays is refused, and
    nothing in it is run. They have old labels (of ModelNet40) instead of names; a class is named ``class 17`` after it.

    Args:
        root: the folder of data sets, or ``ModelNetFewshot`` itself. ``None`` is ``EWA3D_DATASETS``, else the
            repository's ``datasets/``.
        split: ``"train"`` or ``"test"``; there is no validation split.
        way: classes of the episode: 5 or 10.
        shot: training shapes of each: 10 or 20.
        fold: which episode, 0 to 9.

    Raises:
        Ewa3dError: a file that is missing, refused, or no such episode; an unknown split.
    """

    def __init__(self, root: str | Path | None = None, split: str = "train", *, way: int, shot: int, fold: int):
        _check_split(split)
        path = find_episode(root, way, shot, fold)
        self.split, self.folder = split, path.parent
        content = load_arrays(path)
        rows = {name: _read_rows(content, name, path) for name in ("train", "test")}
        old_of = _old_labels([row for of in rows.values() for row in of], way, path)
        if (counts := np.bincount([new for _, new, _ in rows["train"]], minlength=way).tolist()) != [shot] * way:
            raise Ewa3dError(
                f"{path}: has {counts} training shapes of its classes where {way}-way {shot}-shot has {shot} of each: "
                f"get the file again ({_GET_IT})"
            )
        clouds, labels, _ = zip(*rows[split], strict=True)
        sources = [f"{path.name}:{split} {row}" for row in range(len(clouds))]
        stored = Stored(Flat.of(clouds, normals=False), np.array(labels, dtype=np.int64), sources)
        check(stored, self.folder, way, f"the episode has {way} classes", _GET_IT)
        points, _ = rectangle(stored, np.arange(len(labels)), f"{path} ({split})")
        names = [f"class {old}" for old in old_of]
        super().__init__(torch.from_numpy(points), torch.from_numpy(stored.labels), names, sources=sources)


def find_episode(root: str | Path | None, way: int, shot: int, fold: int) -> Path:
    """The pickle of a published episode at or under ``root`` (see `find_root`).

    Raises:
        Ewa3dError: no such root, or no such file there.
    """
    home = find_root(root, _GET_IT)
    places = [home / folder / f"{way}way{joint}{shot}shot" for folder in ("", "ModelNetFewshot") for joint in ("_", "")]
    for place in places:
        if (path := place / f"{fold}.pkl").is_file():
            return path
    raise Ewa3dError(
        f"{home}: has no {fold}.pkl in ModelNetFewshot/{way}way_{shot}shot (published are 5 and 10 way, 10 and 20 "
        f"shot, folds 0 to 9): give the right root ({_GET_IT})"
    )


def _read_rows(content: Any, split: str, path: Path) -> list[tuple[NDArray[np.float32], int, int]]:
    """The shapes of a split: points, label in the episode, label in ModelNet40."""
    rows = content.get(split) if isinstance(content, dict) else None
    if not isinstance(rows, (list, tuple)) or not rows or not all(map(_is_row, rows)):
        raise Ewa3dError(
            f"{path}: has no {split!r}, a list of (points, new label, old label): get the file again ({_GET_IT})"
        )
    where = f"{path}:{split}"
    return [
        (as_cloud(points, f"{where} {i}"), as_label(new, f"{where} {i}"), as_label(old, f"{where} {i}"))
        for i, (points, new, old) in enumerate(rows)
    ]


def _is_row(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 3


def _old_labels(rows: list[tuple[NDArray[np.float32], int, int]], way: int, path: Path) -> list[int]:
    """The label in ModelNet40 of every label of the episode."""
    pairs = sorted({(new, old) for _, new, old in rows})
    if [new for new, _ in pairs] != list(range(way)) or len({old for _, old in pairs}) != way:
        raise Ewa3dError(
            f"{path}: its labels are not 0 to {way - 1}, each of one class: get the file again ({_GET_IT})"
        )
    return [old for _, old in pairs]


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise Ewa3dError(f"a few-shot episode has no split {split!r}: take train or test")
