"""What a model sees and says, as pictures, pages and windows: what ``tools/visualize.py`` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import Ewa3dError
from ..files import write_atomically
from ..viz.html import page
from ..viz.panels import Scene
from ..viz.picture import picture
from ..viz.scene import require_display, show
from .evaluate import describe_data, make_folder, open_evaluation
from .scenes import DRAW
from .tasks import PartSegmentation


def visualize(
    what: str,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    shapes: int | None = None,
    index: Sequence[int] = (),
    seed: int = 0,
    out: Path | None = None,
    html: Path | None = None,
    size: tuple[int, int] | None = None,
    point_size: float = 1.0,
) -> Iterator[str]:
    """Draw ``what`` of a run or an export: into files where these are named, else in a window.

    Args:
        what: one of `DRAW`.
        folder: of the run or the export.
        overrides: ``key=value`` settings.
        shapes: how many shapes of the split, drawn at random; by default 1 for ``tokens``, 4 for ``experts``,
            ``reconstruction`` and predictions of parts, else 12.
        index: these shapes instead.
        seed: of the draw of shapes, and of the partition that ``experts`` shows.
        out: a PNG to write.
        html: an HTML page to write.
        size: of the picture or the window, in pixels.
        point_size: size of the balls, times the usual.

    Yields:
        What is drawn and where it lies, in lines for people; of a window's panels before it opens.

    Raises:
        Ewa3dError: no such shapes, no display, a file that cannot be written, Open3D missing, and what
            `open_evaluation` raises.
    """
    if out is None and html is None:
        require_display()  # before the work, not after it
    for file, suffix in ((out, ".png"), (html, ".html")):
        if file is not None and file.suffix.lower() != suffix:
            raise Ewa3dError(f"{file}: its name must end in {suffix}")
    if size is not None and not all(64 <= pixels <= 4096 for pixels in size):
        raise Ewa3dError(f"--size {size[0]}x{size[1]}: each must be from 64 to 4096 pixels")
    if not 0 < point_size < 100:  # NaN fails too
        raise Ewa3dError(f"--point-size {point_size}: must be above 0 and below 100")
    scene, lines = make_scene(what, folder, overrides, shapes=shapes, index=index, seed=seed)
    yield from lines
    if out is not None:
        yield f"picture: {_write(out, picture(scene, size, point_size))}"
    if html is not None:
        yield f"page: {_write(html, page(scene, point_size).encode())}: open it in a browser"
    if out is None and html is None:
        show(scene, size or (1280, 800), point_size)


@torch.inference_mode()
def make_scene(
    what: str,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    shapes: int | None = None,
    index: Sequence[int] = (),
    seed: int = 0,
) -> tuple[Scene, list[str]]:
    """The scene that `visualize` draws, and what there is to say of it."""
    if (shapes is not None and shapes < 1) or seed < 0:
        raise Ewa3dError(f"--shapes {shapes} --seed {seed}: at least 1 shape, and a seed of 0 or more")
    # every point is drawn, so every point is predicted
    opened = open_evaluation(folder, [*overrides, "eval.protocol=whole"])
    parts = isinstance(opened.task, PartSegmentation)
    usual = {"tokens": 1, "experts": 4, "predictions": 4 if parts else 12, "samples": 12, "reconstruction": 4}
    title = f"{what}: {folder}, {opened.config.eval.split} split of {describe_data(opened.config)}"
    chosen = index or _choose(len(opened.dataset), shapes or usual[what], seed)
    for i in chosen:
        if not 0 <= i < len(opened.dataset):
            raise Ewa3dError(f"--index {i}: the split has {len(opened.dataset)} shapes, 0 to {len(opened.dataset) - 1}")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        panels, columns, lines = DRAW[what](opened, chosen)
    return Scene(title, panels, columns), [title, *lines]


def _choose(count: int, shapes: int, seed: int) -> list[int]:
    """``shapes`` of ``count`` shapes, or all where there are fewer, drawn without replacement; in order."""
    return sorted(np.random.default_rng(seed).choice(count, min(shapes, count), replace=False).tolist())


def _write(file: Path, content: bytes) -> str:
    make_folder(file.parent)
    try:
        write_atomically(file, content)
    except OSError as error:
        raise Ewa3dError(f"{file} cannot be written: {error.strerror}: name another file") from error
    return f"{file} ({len(content) / 1000:.0f} kB)"
