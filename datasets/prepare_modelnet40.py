"""Get ModelNet40 in its official hdf5 layout, check it, and put it where ewa3d looks for it."""

from __future__ import annotations

import sys
from pathlib import Path

from ewa3d.data.download import Release, main
from ewa3d.data.modelnet40 import ModelNet40


def load(folder: Path, split: str) -> tuple[int, str]:
    """How many shapes an official split in ``folder`` has, and what they are in words."""
    data = ModelNet40(folder, "trainval" if split == "train" else split)
    return len(data), f"clouds of {data.points.shape[1]:,} points, {len(data.class_names)} classes"


RELEASE = Release(
    name="ModelNet40",
    url="https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
    layouts={"train_files.txt": "modelnet40_ply_hdf5_2048"},
    counts={"train": 9840, "test": 2468},
    load=load,
)

if __name__ == "__main__":
    sys.exit(main(RELEASE))
