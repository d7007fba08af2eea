"""Predictions for clouds in files: what ``tools/predict.py`` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.io import find_clouds, read_cloud, split_row, write_labelled_ply
from ..errors import Ewa3dError
from ..files import write_atomically
from ..models import PartSegmenter, PointTransformer
from ..progress import track
from .predict import ClassPrediction, PartPrediction, check_category, predict


def predict_files(
    model: PointTransformer,
    patterns: Sequence[str],
    *,
    category: str | None = None,
    out: Path | None = None,
    top: int | None = None,
    as_json: bool = False,
) -> int:
    """Predict clouds in files. A line a cloud goes to stdout, and failures to stderr.

    Args:
        model: a classifier or a segmentation model.
        patterns: files, folders and globs, see `ewa3d.data.io.find_clouds`.
        category: of segmentation, see `ewa3d.predict`.
        out: of segmentation, the folder of the labelled clouds, ``predictions`` where ``None``.
        top: of classification, how many classes to print, 3 where ``None``.
        as_json: print JSON objects: ``file``, ``points``, ``top`` or ``category``, ``parts``, ``ply`` and ``npz``; and,
            where it is so, ``sampled`` (on a mesh), ``row`` of ``rows`` clouds, ``ignored`` points (not finite).

    Returns:
        How many files or patterns failed.

    Raises:
        Ewa3dError: what is wrong with every file: the category, the folder of outputs, an option of the other task.
    """
    check_category(model, category)
    segments = isinstance(model, PartSegmenter)
    if top is not None and top < 1:
        raise Ewa3dError(f"--top {top}: take 1 or more")
    if top is not None and segments:
        raise Ewa3dError("--top is for classification, and this model segments: leave it out")
    if out is not None and not segments:
        raise Ewa3dError("--out is for part segmentation, and this model classifies: take --json > FILE")
    sources, failed = [], 0
    for pattern in patterns:
        try:
            sources += find_clouds(pattern)
        except Ewa3dError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    sources = list({os.path.realpath(source): source for source in sources}.values())
    targets = _targets(sources, out or Path("predictions")) if segments and sources else sources
    jobs = zip(sources, targets, strict=True)
    for source, target in track(jobs, "predicting", len(sources), enabled=len(sources) > 1):
        try:
            found = _predict_file(model, source, target, category, top or 3)
            print(json.dumps(found) if as_json else _describe(found), flush=True)
        except Ewa3dError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    return failed


def _targets(sources: Sequence[str], folder: Path) -> list[str]:
    """Where the outputs of each file go, less their suffixes: all different, and none of them an input."""
    inputs = {identity: source for source in sources if (identity := _identity(split_row(source)[0]))}
    targets: dict[str, str] = {}  # by what a file system that knows no case takes them for
    for source in sources:
        file, row = split_row(source)
        stem = file.stem if row is None else f"{file.stem}-{row}"
        names = chain([stem], (f"{stem}-{i}" for i in count(2)))
        name = next(name for name in names if name.casefold() not in targets)
        targets[name.casefold()] = str(folder / name)
        for suffix in (".ply", ".npz"):
            if (overwritten := inputs.get(_identity(folder / (name + suffix)) or (0, 0))) is not None:
                raise Ewa3dError(f"{folder / name}{suffix} would overwrite the input {overwritten}: take another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise Ewa3dError(f"{folder}: cannot be a folder of outputs ({why.strerror}): take another --out") from None
    return list(targets.values())


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for all names of a file; of a file that is not there, ``None``."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _predict_file(model: PointTransformer, source: str, target: str, category: str | None, top: int) -> dict[str, Any]:
    """Predict one file, write what is to be written, and return what is to be said, as JSON can hold it."""
    cloud = read_cloud(source)
    found = predict(model, cloud.points, category)
    said: dict[str, Any] = {"file": source, "points": len(cloud.points)}
    if cloud.is_mesh:
        said["sampled"] = True
    if cloud.siblings > 1:
        said["row"], said["rows"] = split_row(source)[1] or 0, cloud.siblings
    if ignored := int((~np.isfinite(cloud.points).all(axis=1)).sum()):
        said["ignored"] = ignored
    if isinstance(found, ClassPrediction):
        return said | {"top": [{"class": name, "probability": value} for name, value in found.top(top)]}
    try:
        _write_parts(target, cloud.points, found)
    except OSError as why:
        raise Ewa3dError(f"{target}.*: cannot be written ({why.strerror or why}): check disk and rights") from None
    return said | {"category": found.category, "parts": found.counts(), "ply": f"{target}.ply", "npz": f"{target}.npz"}


def _write_parts(target: str, points: NDArray[np.float64], found: PartPrediction) -> None:
    """``target.ply`` and ``target.npz``."""
    labels, names = found.labels.numpy().astype(np.int32), found.part_map.part_names
    black = torch.zeros(1, 3, dtype=torch.uint8)  # of label -1, the last
    colors = torch.cat([found.part_map.colors(), black]).numpy()[labels]
    own = found.part_map.range_of(found.part_map.categories.index(found.category))
    meaning = [f"label {i} is {names[i]}" for i in own]
    write_labelled_ply(Path(f"{target}.ply"), points, labels, colors, meaning)
    content = BytesIO()
    np.savez(content, points=points, label=labels, probability=found.probabilities.numpy(), part_names=names)
    write_atomically(Path(f"{target}.npz"), content.getvalue())


def _describe(found: dict[str, Any]) -> str:
    """What `_predict_file` returned, in a line for people."""
    notes = [f"{found['points']:,} points"]
    if "sampled" in found:
        notes[0] += " sampled on the surface"
    if "rows" in found:
        notes.append(f"cloud {found['row']} of {found['rows']:,}")
    if "ignored" in found:
        notes.append(f"{found['ignored']:,} of them not finite")
    if "top" in found:
        what = ", ".join(f"{row['class']} {100 * row['probability']:.1f} %" for row in found["top"])
        return f"{found['file']}: {what} ({', '.join(notes)})"
    labelled = max(1, sum(found["parts"].values()))
    what = ", ".join(f"{name} {100 * n / labelled:.1f} %" for name, n in found["parts"].items() if n)
    return f"{found['file']}: {what} ({', '.join(notes)}) in {found['ply']} and .npz"
