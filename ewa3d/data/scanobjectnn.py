"""ScanObjectNN (Uy et al., ICCV 2019): 15 classes of objects cut from scans of real rooms, in three variants."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import Ewa3dError
from .dataset import PointClouds
from .reading import check, check_split, read_h5
from .rectangle import normalise
from .roots import find_root
from .splits import choose_split

_GET_IT = "datasets/README.md says where from"
FOLDERS = ("ScanObjectNN", "scanobjectnn", "h5_files", "ScanObjectNN/h5_files")
CLASS_NAMES = (
    "bag",
    "bin",
    "box",
    "cabinet",
    "chair",
    "desk",
    "display",
    "door",
    "shelf",
    "table",
    "bed",
    "pillow",
    "sink",
    "sofa",
    "toilet",
)
VARIANTS = {
    "obj_bg": ("main_split", "objectdataset.h5"),
    "obj_only": ("main_split_nobg", "objectdataset.h5"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5"),
}
"""The folder of every variant, and its files' name after ``training_`` or ``test_``."""


class ScanObjectNN(PointClouds):
    """A variant of ScanObjectNN in memory: clouds of 2,048 points.

    ``root`` itself is taken if it has ``main_split`` or ``main_split_nobg``, else the first of these under it that has
    one of the two: ``ScanObjectNN``, ``scanobjectnn``, ``h5_files``, ``ScanObjectNN/h5_files``. ``.folder`` says
    where the file lies that was read.

    Args:
        variant: ``"obj_bg"`` (objects with what is around them), ``"obj_only"`` (without) or ``"pb_t50_rs"`` (moved,
            rotated and scaled boxes that miss up to half of the object: the hardest).
        root: the folder of data sets, or the folder of this one. ``None`` is ``EWA3D_DATASETS``, else the
            repository's ``datasets/``.
        split: ``"train"`` (the official one less the validation part), ``"val"``, ``"trainval"`` (the whole official
            train) or ``"test"``. Of ``pb_t50_rs``, which holds every object several times and does not say which are
            the same, ``"val"`` shares objects with ``"train"``: its scores are too high.
        unit_sphere: normalise each cloud to the unit sphere; the official Point-MAE code takes them as they are stored.
        val_fraction: part of each class of the official train that is ``"val"`` (see `stratified_split`).
        split_seed: seed of that draw.

    Raises:
        Ewa3dError: data that is missing, broken or not finite, an unknown variant or split.
    """

    def __init__(
        self,
        variant: str,
        root: str | Path | None = None,
        split: str = "train",
        *,
        unit_sphere: bool = True,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ):
        check_split("ScanObjectNN", split)
        path = find_file(variant, root, "test" if split == "test" else "training")
        self.variant, self.split, self.folder = variant, split, path.parent
        stored = read_h5([path], _GET_IT)
        check(stored, self.folder, len(CLASS_NAMES), f"ScanObjectNN has {len(CLASS_NAMES)} classes", _GET_IT)
        chosen = choose_split(stored.labels, split, val_fraction, split_seed, self.folder)
        points = stored.clouds.points.reshape(len(stored.labels), -1, 3)[chosen]
        super().__init__(
            torch.from_numpy(normalise(points) if unit_sphere else points),
            torch.from_numpy(stored.labels[chosen]),
            CLASS_NAMES,
            sources=[stored.sources[i] for i in chosen],
        )


def find_file(variant: str, root: str | Path | None, official: str) -> Path:
    """The file of a variant's ``"training"`` or ``"test"`` split at or under ``root`` (see `find_root`).

    Raises:
        Ewa3dError: no such variant or root, no ScanObjectNN there, or not this variant of it.
    """
    if variant not in VARIANTS:
        raise Ewa3dError(f"ScanObjectNN has no variant {variant!r}: take one of {', '.join(VARIANTS)}")
    home = find_root(root, _GET_IT)
    for place in (home, *(home / name for name in FOLDERS)):
        if any((place / folder).is_dir() for folder, _ in VARIANTS.values()):
            break
    else:
        raise Ewa3dError(
            f"{home}: no ScanObjectNN in it; looked for main_split and main_split_nobg here and in "
            f"{', '.join(FOLDERS)}: give the right root ({_GET_IT})"
        )
    folder, name = VARIANTS[variant]
    path = place / folder / f"{official}_{name}"
    if not path.is_file():
        here = [other for other, (f, n) in VARIANTS.items() if (place / f / f"{official}_{n}").is_file()]
        raise Ewa3dError(
            f"{path}: missing, and the variant {variant} needs it (variants that are here: {', '.join(here) or 'none'}"
            f"): get it ({_GET_IT})"
        )
    return path
