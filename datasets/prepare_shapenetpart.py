"""Get ShapeNetPart in its official text layout (or, from a zip, in hdf5), check it, and put it where ewa3d looks."""

from __future__ import annotations

import sys
from pathlib import Path

from ewa3d.data.download import Release, main
from ewa3d.data.shapenetpart import ShapeNetPart


def load(folder: Path, split: str) -> tuple[int, str]:
    """How many shapes an official split in ``folder`` has, and what they are in words."""
    data = ShapeNetPart(folder, split)
    low, high = int(data.counts.min()), int(data.counts.max())
    size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    categories, parts = len(data.labels.unique()), len(data.parts.unique())
    return len(data), f"shapes of {size} points, {categories} categories, {parts} parts"


RELEASE = Release(
    name="ShapeNetPart",
    url="https://shapenet.cs.stanford.edu/media/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
    layouts={
        "synsetoffset2category.txt": "shapenetcore_partanno_segmentation_benchmark_v0_normal",
        "*train*.h5": "hdf5_data",
    },
    counts={"train": 12137, "val": 1870, "test": 2874},
    load=load,
)

if __name__ == "__main__":
    sys.exit(main(RELEASE))
