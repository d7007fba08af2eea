"""Where the time of training goes, and how fast batches come."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

from ewa3d.data import PointClouds
from ewa3d.data.transforms import sample_random, scale_and_shift
from ewa3d.engine.build import make_accelerator, open_split, train_loader
from ewa3d.engine.config import load_config
from ewa3d.engine.schema import Config
from ewa3d.engine.train import Session, start_session
from ewa3d.errors import Ewa3dError
from ewa3d.progress import track

from .reference import reference_loader
from .suites import Row, Setting, row
from .timing import in_turn, peak_memory, synchronize

PARTS = ("data", "grouping", "tokens", "transformer", "optimizer", "averaging")


def train(setting: Setting) -> list[Row]:
    """One epoch of training with experts, split into its parts, in every precision; and its memory."""
    rows = []
    for precision in setting.precisions:
        config = configure(setting, precision)
        accelerator = make_accelerator(config.train)
        session, _ = start_session(config, accelerator, open_split(config, config.data.train_split))
        seconds: dict[str, float] = defaultdict(float)
        started = time.perf_counter()
        memory = peak_memory(partial(split_epoch, session, seconds))
        whole = time.perf_counter() - started
        more = {"precision": precision, "model": setting.model, "data": setting.data}
        rows.append(row("epoch", whole, "s", peak_mib=memory, steps=len(session.loader), **more))
        rows += [row(f"epoch: {part}", 100 * seconds[part] / whole, "%", **more) for part in PARTS]
        rows.append(row("epoch: the rest", 100 * (1 - sum(seconds.values()) / whole), "%", **more))
    return rows


def data(setting: Setting) -> list[Row]:
    """Batches loaded and augmented, ours and one cloud at a time, as in the official code."""
    config = configure(setting, "fp32")
    dataset = open_split(config, config.data.train_split)
    if not isinstance(dataset, PointClouds):
        raise Ewa3dError(f"--data {setting.data}: the data suite is for classification sets")
    loader = train_loader(dataset, config.train, torch.device(setting.device))
    theirs = reference_loader(dataset, setting.num_points, setting.batch_size)

    def ours() -> None:
        for batch in loader:
            scale_and_shift(sample_random(batch["points"], setting.num_points))

    def textbook() -> None:
        for _ in theirs:
            pass

    times = in_turn({"ours": ours, "textbook": textbook}, max(3, setting.rounds // 2), warmup=1, label="loading")
    clouds = len(loader) * setting.batch_size
    more = {"data": setting.data, "clouds": clouds}
    return [
        row("loading and augmentation, ours", clouds / times["ours"].median, "clouds/s", **more),
        row("loading and augmentation, textbook", clouds / times["textbook"].median, "clouds/s", **more),
        row("textbook / ours", times.ratio("textbook", "ours"), "×", **more),
    ]


def configure(setting: Setting, precision: str) -> Config:
    """The configuration of a training with experts."""
    overrides = [
        f"model.name={setting.model}",
        f"data.name={setting.data}",
        f"data.num_points={setting.num_points}",
        f"train.batch_size={setting.batch_size}",
        f"train.precision={precision}",
        f"train.device={setting.device}",
    ]
    if setting.root is not None:
        overrides.append(f"data.root={Path(setting.root).resolve()}")
    return load_config(overrides=overrides)


def split_epoch(session: Session, seconds: dict[str, float]) -> None:
    """An epoch as `ewa3d.engine.train` runs it, its seconds added up by part.

    The backward pass is cut at the tokens, so that what is before them and what is behind them is timed apart.
    """

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize()
        seconds[name] += time.perf_counter() - started

    config, model = session.config, session.plain
    device, bf16 = session.accelerator.device.type, config.train.precision == "bf16"
    model.train()
    session.loader.set_epoch(1)  # type: ignore[attr-defined]
    batches = iter(track(session.loader, f"epoch in {config.train.precision}", len(session.loader)))
    while True:
        with part("data"):
            batch = next(batches, None)
            if batch is None:
                return
            (points,), truth = session.task.training_batch(batch)
        with part("grouping"):
            groups, centers = model.patch_embed.group(points)
        with part("tokens"), torch.autocast(device, torch.bfloat16, enabled=bf16):
            tokens = model.patch_embed.embed(groups)
        with part("transformer"):
            cut = tokens.detach().requires_grad_()
            with (
                patch.object(model.patch_embed, "forward", return_value=(cut, centers)),
                torch.autocast(device, torch.bfloat16, enabled=bf16),
            ):
                logits = model(points)
            F.cross_entropy(logits.float(), truth, label_smoothing=config.optim.label_smoothing).backward()
        with part("tokens"):
            tokens.backward(cut.grad)
        with part("optimizer"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad or torch.inf)
            session.optimizer.step()
            session.optimizer.zero_grad()
        with part("averaging"):
            if session.averager is not None:
                session.averager.step()
