"""The panels of ``tools/visualize.py``: what a model sees and says of shapes of its dataset, in colours and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import PartMap
from ..data.transforms import sample_first, seeded_index
from ..errors import Ewa3dError
from ..ewa.routing import random_permutation
from ..models import PointTransformer
from ..ops import gather_points, knn
from ..viz.panels import RIGHT, WRONG, Color, Panel
from .evaluate import Evaluation
from .metrics import predict_parts
from .tasks import Batch, PartSegmentation, Pretraining, describe_scores

_COLORS = PartMap({"": "12345678"}).colors()  # Okabe and Ito's, and one more
_PLAIN: Color = (0, 114, 178)
_REBUILT: Color = (213, 94, 0)
_RECONSTRUCTION = "tools/visualize.py reconstruction"
_GHOST = torch.tensor([[214, 217, 222]], dtype=torch.uint8)  # points that only show where the shape is


class Drawing(NamedTuple):
    """Panels in rows of ``columns``, and what there is to say of each shape and of all."""

    panels: list[Panel]
    columns: int
    lines: list[str]


def samples(opened: Evaluation, index: Sequence[int]) -> Drawing:
    """Shapes as the dataset has them, in the colours of their parts."""
    panels, lines = [], []
    for batch, name, line in _shapes(opened, index):
        colors, legend = _part_colors(opened, batch)
        panels.append(Panel(batch["points"][0], colors[batch["part"][0]] if "part" in batch else _PLAIN, name, legend))
        lines.append(line)
    return Drawing(panels, _columns(len(panels)), lines)


def predictions(opened: Evaluation, index: Sequence[int]) -> Drawing:
    """The class of each shape, or its parts beside the true ones, and what is wrong."""
    if isinstance(opened.task, Pretraining):
        raise Ewa3dError(f"a pretraining run predicts no classes: draw what it rebuilds, {_RECONSTRUCTION}")
    draw = _predicted_parts if isinstance(opened.task, PartSegmentation) else _predicted_class
    drawn = [draw(opened, *shape) for shape in _shapes(opened, index)]
    panels = [panel for own, _ in drawn for panel in own]
    columns = 3 if isinstance(opened.task, PartSegmentation) else _columns(len(panels))
    return Drawing(panels, columns, [line for _, line in drawn])


def _predicted_class(opened: Evaluation, batch: Batch, name: str, line: str) -> tuple[list[Panel], str]:
    logits, _ = opened.task.predict(opened.model, _to_device(opened, batch))
    said = opened.dataset.class_names[int(logits.argmax())]
    wrong = said != name
    caption = f"{said} (true: {name})" if wrong else name
    panel = Panel(_seen(opened, batch)[0], WRONG if wrong else _PLAIN, caption, wrong=wrong)
    return [panel], f"{line}: predicted {said}{', wrong' if wrong else ''}"


def _predicted_parts(opened: Evaluation, batch: Batch, name: str, line: str) -> tuple[list[Panel], str]:
    task = opened.task
    assert isinstance(task, PartSegmentation)
    on_device = _to_device(opened, batch)
    logits, truth = task.predict(opened.model, on_device)
    iou = task.scores(*task.tally(logits.float(), truth, on_device))["instance_miou"]
    predicted = predict_parts(logits, on_device["category"], task.part_mask.to(logits.device))[0].cpu()
    points, part = batch["points"][0], batch["part"][0]
    wrong = predicted != part
    share = f"{100 * wrong.float().mean():.1f} % of points wrong"
    colors, legend = _part_colors(opened, batch)
    errors = torch.tensor([RIGHT, WRONG])[wrong.long()]
    panels = [
        Panel(points, colors[part], f"{name}: truth", legend),
        Panel(points, colors[predicted], f"prediction: mIoU {iou:.1f} %", legend),
        Panel(points, errors, share, [("right", RIGHT), ("wrong", WRONG)]),
    ]
    return panels, f"{line}: mIoU {iou:.1f} %, {share}"


def reconstruction(opened: Evaluation, index: Sequence[int]) -> Drawing:
    """What a masked autoencoder is given of each shape, and what it makes of the rest."""
    task = opened.task
    if not isinstance(task, Pretraining):
        raise Ewa3dError(
            f"nothing is rebuilt by a model of task={opened.config.task}: name a run with task=pretraining"
        )
    panels, lines = [], []
    for batch, name, line in _shapes(opened, index):
        on_device = _to_device(opened, batch)
        output = task.reconstruct(opened.model, on_device)
        tallies = task.tally(output["reconstruction"].float(), output["target"], on_device)
        distance = describe_scores(task.scores(*tallies))
        mask, centers = output["mask"], output["centers"].unsqueeze(2)
        shown = (output["groups"] + centers)[~mask].flatten(0, 1).cpu()
        rebuilt = (output["reconstruction"][0] + centers[mask]).flatten(0, 1).float().cpu()
        of_shown, of_rebuilt = _rows(_PLAIN, shown), _rows(_REBUILT, rebuilt)
        points, legend = _seen(opened, batch)[0], [("visible", _PLAIN), ("rebuilt", _REBUILT)]
        visible = f"visible: {int((~mask).sum())} of {mask.numel()} groups"
        panels += [
            Panel(points, _PLAIN, f"{name}: {len(points)} points"),
            _with_centers(points, _GHOST, shown, of_shown, visible, sizes=(0.4, 1.0)),
            Panel(torch.cat([shown, rebuilt]), torch.cat([of_shown, of_rebuilt]), distance, legend),
        ]
        lines.append(f"{line}: {distance}")
    return Drawing(panels, 3, lines)


def tokens(opened: Evaluation, index: Sequence[int]) -> Drawing:
    """From points to tokens: the points, the groups that the model cuts around farthest points, and their centres."""
    panels, lines = [], []
    for batch, name, line in _shapes(opened, index):
        points = _seen(opened, batch)[0]
        centers, groups = _groups(opened.model, points)
        colors = _spread_colors(centers)
        grouped = torch.cat([colors, _GHOST])[groups]  # -1 is the last: no group's
        size = opened.model.patch_embed.group_size
        panels += [
            Panel(points, _PLAIN, f"{name}: {len(points)} points"),
            _with_centers(points, grouped, centers, colors // 2, f"{len(centers)} groups of {size} points"),
            _with_centers(points, _GHOST, centers, colors, f"{len(centers)} tokens", sizes=(0.4, 2.4)),
        ]
        lines.append(f"{line}: {int((groups < 0).sum())} of {len(points)} points are in no group")
    return Drawing(panels, 3, lines)


def experts(opened: Evaluation, index: Sequence[int]) -> Drawing:
    """One random uniform partition of the shapes' tokens, as a training step makes it of its batch's."""
    if opened.config.ewa is None:
        raise Ewa3dError(
            "this run was trained without experts: ewa.num_experts=4 shows how four would share its tokens"
        )
    num_experts = opened.config.ewa.num_experts
    places = [_encoded_groups(opened, i) for i in index]
    batch_size, num_groups = len(index), len(places[0])
    own = num_groups + int(hasattr(opened.model, "cls_token"))  # the class token, first of each shape, is dealt too
    parts = random_permutation(batch_size * own).tensor_split(num_experts)
    expert = torch.empty(batch_size * own, dtype=torch.long)
    for i, part in enumerate(parts):
        expert[part] = i
    expert = expert.view(batch_size, own)[:, -num_groups:]

    palette = PartMap({"": [str(i) for i in range(num_experts)]}).colors()
    legend = [(f"{'' if i else 'expert '}{i + 1}", _color(color)) for i, color in enumerate(palette)]
    lines = [f"  the experts take {', '.join(str(len(part)) for part in parts)} of {batch_size * own} tokens"]
    if own > num_groups:
        lines[0] += ", of which one a shape is its class token, not drawn"
    panels = []
    for dealt, where, (batch, name, line) in zip(expert, places, _shapes(opened, index), strict=True):
        points = _seen(opened, batch)[0]
        centers, groups = _groups(opened.model, points)
        pale = _GHOST.repeat(len(centers) + 1, 1)
        pale[where] = (255 - (255 - palette[dealt].int()) // 3).to(torch.uint8)
        counts = dealt.bincount(minlength=num_experts).tolist()
        panels.append(_with_centers(points, pale[groups], centers[where], palette[dealt], name, legend, (0.8, 2.2)))
        lines.append(f"{line}: tokens by expert {', '.join(map(str, counts))}")
    return Drawing(panels, _columns(len(panels)), lines)


DRAW: dict[str, Callable[[Evaluation, Sequence[int]], Drawing]] = {
    "predictions": predictions,
    "samples": samples,
    "tokens": tokens,
    "experts": experts,
    "reconstruction": reconstruction,
}
"""What can be drawn, of an opened run and shapes of its split. What is random comes from PyTorch's generator."""


def _columns(count: int) -> int:
    """Of a grid that is wider than high, with as few empty places as can be."""
    wide = round(np.sqrt(1.5 * count))
    return count if count <= 4 else min((wide, wide + 1, wide - 1), key=lambda columns: -count % columns)


def _shapes(opened: Evaluation, index: Sequence[int]) -> Iterator[tuple[Batch, str, str]]:
    """A batch for every shape, the name of its class, and a line that says which shape it is."""
    for i in index:
        batch = opened.dataset.batch([i])
        name = opened.dataset.class_names[int(batch["label"])]
        yield batch, name, f"  {i:>5}  {name} ({opened.dataset.source(i)})"


def _to_device(opened: Evaluation, batch: Batch) -> Batch:
    return {key: value.to(opened.accelerator.device) for key, value in batch.items()}


def _seen(opened: Evaluation, batch: Batch) -> Tensor:
    """The points ``(B, num_points, 3)`` that the model makes its tokens of."""
    num_points = opened.config.data.num_points
    if "part" not in batch:
        return sample_first(batch["points"], num_points)
    where = seeded_index(batch["count"], batch["index"], num_points, seed=opened.config.eval.seed)
    return gather_points(batch["points"], where)


def _encoded_groups(opened: Evaluation, index: int) -> Tensor:
    """Places of the groups of a shape whose tokens go through the blocks in training: of an autoencoder the visible."""
    if not isinstance(opened.task, Pretraining):
        return torch.arange(opened.model.patch_embed.num_groups)
    batch = _to_device(opened, opened.dataset.batch([index]))
    mask = opened.task.reconstruct(opened.model, batch)["mask"]
    return (~mask[0].cpu()).nonzero().squeeze(1)


def _part_colors(opened: Evaluation, batch: Batch) -> tuple[Tensor, list[tuple[str, Color]]]:
    """``(parts, 3)`` uint8, and the names and colours of the parts of a shape's category; no names without parts."""
    part_map = PartMap(opened.dataset.metadata.get("parts", {}))
    colors = part_map.colors()
    if "part" not in batch:
        return colors, []
    category = part_map.categories[int(batch["category"])]
    own = part_map.range_of(int(batch["category"]))
    return colors, [(name, _color(colors[i])) for i, name in zip(own, part_map.parts[category], strict=True)]


def _rows(color: Color, points: Tensor) -> Tensor:
    """``(n, 3)`` uint8: one colour for n points."""
    return torch.tensor([color], dtype=torch.uint8).expand(len(points), 3)


def _color(row: Tensor) -> Color:
    red, green, blue = row.tolist()
    return red, green, blue


def _groups(model: PointTransformer, points: Tensor) -> tuple[Tensor, Tensor]:
    """The centres ``(G, 3)`` of a cloud's groups, and which group each point is in ``(N,)``.

    Of several groups it is the one with the nearest centre, of none -1.
    """
    embed = model.patch_embed
    centers = embed.group(points[None])[1]
    members = knn(centers, points[None], embed.group_size)[0]
    distance = (points[members] - centers[0, :, None]).norm(dim=-1)
    nearest, group = torch.full((len(members), len(points)), torch.inf).scatter(1, members, distance).min(dim=0)
    return centers[0], group.masked_fill(nearest.isinf(), -1)


def _spread_colors(centers: Tensor) -> Tensor:
    """``(G, 3)`` uint8: each centre takes the colour that is farthest away among the centres before it."""
    distance = torch.cdist(centers, centers)
    taken = torch.empty(0, dtype=torch.long)
    for row in distance:
        away = torch.full((len(_COLORS),), torch.inf).scatter_reduce(0, taken, row[: len(taken)], "amin")
        taken = torch.cat([taken, away.argmax()[None]])
    return _COLORS[taken]


def _with_centers(
    points: Tensor,
    colors: Tensor,
    centers: Tensor,
    center_colors: Tensor,
    caption: str,
    legend: Sequence[tuple[str, Color]] = (),
    sizes: tuple[float, float] = (0.9, 1.8),
) -> Panel:
    """Points, and other points, by default centres, as balls of another size."""
    colors = torch.cat([colors.expand(len(points), 3), center_colors])
    of_balls = torch.tensor(sizes).repeat_interleave(torch.tensor([len(points), len(centers)]))
    return Panel(torch.cat([points, centers]), colors, caption, legend, of_balls)
