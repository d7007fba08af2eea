"""What is measured. A suite returns rows for people and for JSON."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.flop_counter import FlopCounterMode

import ewa3d
from ewa3d.engine.build import place
from ewa3d.engine.optim import decay_groups
from ewa3d.models import PointClassifier
from ewa3d.ops import farthest_point_sample, knn

from . import reference
from .timing import Spread, Times, in_turn, peak_memory, product_rate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN = ("reference, plain process", "ours, plain process")  # without the settings of ewa3d.engine.cpu
GROUPINGS = ((32, 1024, 64), (16, 2048, 128), (8, 8192, 512), (8, 8192, 1200))


@dataclass
class Setting:
    """What all suites share."""

    device: str
    model: str
    batch_size: int
    num_points: int
    rounds: int
    data: str
    root: str | None
    precisions: tuple[str, ...] = tuple(DTYPES)

    def clouds(self) -> tuple[Tensor, Tensor]:
        points = torch.randn(self.batch_size, self.num_points, 3)
        points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
        return points.to(self.device), torch.randint(40, (self.batch_size,), device=self.device)


Row = dict[str, Any]


def row(what: str, measured: Spread | float | None, unit: str, **more: Any) -> Row:
    """A line of a table: a figure with its unit and, where it was measured repeatedly, its quartiles."""
    spread = asdict(measured) if isinstance(measured, Spread) else {"median": measured}
    return {"what": what, "unit": unit, **spread, **more}


def ms(times: Times, name: str, clouds: int = 1) -> Spread:
    """Milliseconds of a candidate, a cloud."""
    spread, factor = times[name], 1e3 / clouds
    return Spread(factor * spread.median, factor * spread.low, factor * spread.high, spread.count)


def ops(setting: Setting) -> list[Row]:
    """Farthest point sampling and nearest neighbours, ours and the textbook's."""
    rows = []
    for batch, count, samples in GROUPINGS:
        points = torch.randn(batch, count, 3, device=setting.device)
        centers = points[:, :samples].contiguous()
        candidates: dict[str, Callable[[], Any]] = {
            "FPS": partial(farthest_point_sample, points, samples),
            "FPS, textbook": partial(reference.farthest_point_sample, points, samples),
            "kNN (32)": partial(knn, centers, points, 32),
            "kNN (32), textbook": partial(reference.knn, centers, points, 32),
        }
        times = in_turn(candidates, setting.rounds, label=f"{count} to {samples}")
        for name in ("FPS", "kNN (32)"):
            what = f"{name}, {count} → {samples}"
            rows.append(row(what, ms(times, name, batch), "ms/cloud", batch=batch))
            rows.append(row(f"{what}: textbook / ours", times.ratio(f"{name}, textbook", name), "×", batch=batch))
    return rows


def model(setting: Setting) -> list[Row]:
    """The setting's model against the reference, with experts, merged; and the share of the machine's rate."""
    rows, clouds = [], setting.clouds()
    for precision in setting.precisions:
        plain = make_model(setting)
        theirs = reference.reference_of(plain).to(setting.device)
        experts = ewa3d.upcycle(deepcopy(plain), 4, every=2)
        averager = ewa3d.ExpertAverager(experts, 0.3, "constant")
        merged = ewa3d.merge(experts)
        difference = max_difference(plain, theirs, clouds[0])
        flops = count_flops(theirs, clouds[0])

        step, step_ewa = training_step(plain, precision), training_step(experts, precision, averager)
        theirs_step = training_step(theirs, precision, optimizer=AdamW(theirs.parameters(), lr=1e-6))
        candidates = {"ours": step, "EWA": step_ewa, "ours, plain process": step}
        candidates |= {"reference, plain process": theirs_step, "reference": theirs_step}
        steps = in_turn(
            {name: partial(f, *clouds) for name, f in candidates.items()} | {"averaging": averager.step},
            setting.rounds,
            plain=PLAIN,
            label=f"training steps in {precision}",
        )
        models: dict[str, nn.Module] = {"ours": plain, "merged": merged, "ours, plain process": plain}
        models |= {"reference, plain process": theirs, "reference": theirs}
        passes = in_turn(
            {name: partial(infer, m, clouds[0], precision) for name, m in models.items()},
            setting.rounds,
            plain=PLAIN,
            label=f"inference in {precision}",
        )
        size, rate = setting.batch_size, product_rate(setting.device, DTYPES[precision])
        more = {"precision": precision, "model": setting.model, "batch": size}
        for kind, times in (("training step", steps), ("inference", passes)):
            work = flops * (3 if kind == "training step" else 1)
            for name in times.seconds:
                if name != "averaging":
                    rows.append(row(f"{kind}, {name}", ms(times, name, size), "ms/cloud", **more))
            for other in ("reference, plain process", "reference", "ours, plain process"):
                rows.append(row(f"{kind}: {other} / ours", times.ratio(other, "ours"), "×", **more))
            share = 100 * work / times["ours"].median / rate
            rows.append(row(f"{kind}: share of a large product's rate", share, "%", **more))
        rows.append(row("training step: EWA / dense", steps.ratio("EWA", "ours"), "×", **more))
        rows.append(row("training step: averaging alone", ms(steps, "averaging"), "ms", **more))
        rows.append(row("inference: merged / never upcycled", passes.ratio("merged", "ours"), "×", **more))
        rows.append(row("rate of a large product", rate / 1e9, "GFLOP/s", **more))
        rows.append(row("forward pass, nominal", flops / size / 1e9, "GFLOP/cloud", **more))
        rows.append(row("forward pass, ours", count_flops(plain, clouds[0]) / size / 1e9, "GFLOP/cloud", **more))
        rows.append(row("largest difference of logits to the reference (fp32)", difference, "", **more))
    return rows


def sizes(setting: Setting) -> list[Row]:
    """Every size, dense and with experts: time and memory."""
    rows, clouds = [], setting.clouds()
    for name in ewa3d.list_models("point_mae_*"):
        for precision in setting.precisions:
            plain = make_model(setting, name)
            experts = ewa3d.upcycle(deepcopy(plain), 4, every=2)
            averager = ewa3d.ExpertAverager(experts, 0.3, "constant")
            steps = {"dense": training_step(plain, precision), "EWA": training_step(experts, precision, averager)}
            candidates: dict[str, Callable[[], Any]] = {kind: partial(step, *clouds) for kind, step in steps.items()}
            candidates["forward"] = partial(infer, plain, clouds[0], precision)
            times = in_turn(candidates, max(3, setting.rounds // 2), warmup=1, label=f"{name} in {precision}")
            more = {"precision": precision, "model": name, "batch": setting.batch_size}
            kinds = {"forward": "inference", "dense": "training step, dense", "EWA": "training step, EWA"}
            for kind, what in kinds.items():
                memory = peak_memory(candidates[kind])
                each = ms(times, kind, setting.batch_size)
                rows.append(row(f"{name}: {what}", each, "ms/cloud", peak_mib=memory, **more))
    return rows


def make_model(setting: Setting, name: str | None = None) -> PointClassifier:
    """A training model on the device, set up as the engine does."""
    made = cast(PointClassifier, ewa3d.create_model(name or setting.model))
    return place(made, torch.device(setting.device)).train()


def training_step(
    model: nn.Module,
    precision: str,
    averager: ewa3d.ExpertAverager | None = None,
    optimizer: Optimizer | None = None,
) -> Callable[[Tensor, Tensor], None]:
    """Forward, backward, clipping, optimizer (ours: fused, the engine's groups) and averaging, as one function."""
    update = optimizer or AdamW(decay_groups(model, 0.05), lr=1e-6, fused=True)

    def step(points: Tensor, labels: Tensor) -> None:
        model.train()
        with torch.autocast(points.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(points)
        F.cross_entropy(logits.float(), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        update.step()
        if averager is not None:
            averager.step()
        update.zero_grad()

    return step


@torch.inference_mode()
def infer(model: nn.Module, points: Tensor, precision: str) -> Tensor:
    """Logits in eval mode."""
    with torch.autocast(points.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model.eval()(points)


def max_difference(ours: nn.Module, theirs: nn.Module, points: Tensor) -> float:
    """The largest difference of logits in eval mode, fp32."""
    return float((infer(ours, points, "fp32") - infer(theirs, points, "fp32")).abs().max())


def count_flops(model: nn.Module, points: Tensor) -> int:
    """Floating-point operations of the products of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        infer(model, points, "fp32")
    return counter.get_total_flops()
