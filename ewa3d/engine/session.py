"""What the steps of a training share, how far it is, and both put back from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from ..data import Clouds
from ..errors import Ewa3dError, first_line
from ..ewa import ExpertAverager
from ..models import PointTransformer
from . import checkpoint as ckpt
from .build import build_model, place, train_loader
from .optim import decay_groups, make_ema, make_scheduler
from .run import Run
from .schema import Config
from .step import Step, make_step
from .tasks import Task, make_task


@dataclass
class Sums:
    """What an epoch's row is made of: sums over the batches so far, of this process."""

    loss: Tensor  # the tensors stay on the device: the host waits for no GPU
    correct: Tensor
    seen: int = 0  # rows that are right or wrong
    batches: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, correct: Tensor, seen: int) -> None:
        self.loss += loss
        self.correct += correct
        self.seen += seen
        self.batches += 1

    def of_all_processes(self, accelerator: Accelerator) -> tuple[float, float, int, int]:
        """Loss, correct, seen and batches, summed over the processes."""
        sums = torch.stack([self.loss, self.correct])
        counts = torch.tensor([self.seen, self.batches], device=sums.device)
        loss, correct = accelerator.reduce(sums, "sum").tolist()
        seen, batches = accelerator.reduce(counts, "sum").tolist()
        return loss, correct, seen, batches


@dataclass
class Progress:
    """How far a training is; a checkpoint holds it."""

    epoch: int = 0  # finished ones
    step: int = 0  # optimizer steps
    best: float | None = None
    best_epoch: int | None = None
    batch: int = 0  # batches of the epoch after ``epoch`` that are done, where training was stopped within it
    skipped: int = 0  # steps that were left out, their gradients not being finite


@dataclass
class Session:
    """What the steps of a training share."""

    config: Config
    accelerator: Accelerator
    model: nn.Module  # as accelerate prepared it
    plain: PointTransformer  # the same, unwrapped
    loader: DataLoader
    optimizer: Optimizer
    step: Step
    scheduler: CosineLRScheduler
    averager: ExpertAverager | None
    ema: ModelEmaV3 | None
    task: Task
    sums: Sums  # of the epoch that is running
    # the random state to go on with, where a run was stopped within an epoch: to begin an epoch draws from it
    random: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def evaluated(self) -> PointTransformer:
        """The weights that are validated and exported, experts and all: the moving average's where there is one."""
        return self.plain if self.ema is None else self.ema.module

    def share_buffers(self) -> None:
        """Give all processes the first one's BatchNorm statistics: each has those of the batches that it saw."""
        if self.accelerator.num_processes > 1:
            for model in (self.plain, *([self.ema.module] if self.ema is not None else [])):
                for buffer in model.buffers():
                    buffer.copy_(broadcast(buffer))


def start_session(config: Config, accelerator: Accelerator, train_set: Clouds) -> tuple[Session, list[str]]:
    """Model, optimizer and schedules for ``train_set``, and what is to be said of them."""
    if len(train_set) < config.train.batch_size * accelerator.num_processes:
        raise Ewa3dError(
            f"train.batch_size={config.train.batch_size} on {accelerator.num_processes} process(es) is more than the "
            f"{len(train_set)} training clouds: make it smaller"
        )
    plain, notes = build_model(config, train_set.metadata)
    place(plain, accelerator.device)
    fused = accelerator.device.type in ("cpu", "cuda")
    optim, expert_lr = config.optim, config.ewa.expert_lr if config.ewa is not None else 1.0
    adamw = AdamW(decay_groups(plain, optim.weight_decay, optim.layer_decay, expert_lr), lr=optim.lr, fused=fused)
    model, optimizer, loader = accelerator.prepare(
        plain, adamw, train_loader(train_set, config.train, accelerator.device)
    )
    step = make_step(config, accelerator, model, optimizer)

    steps_per_epoch = math.ceil(len(loader) / config.train.accumulation)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch)
    averager = None
    if config.ewa is not None:
        ewa, total = config.ewa, config.train.epochs * steps_per_epoch
        averager = ExpertAverager(plain, ewa.share_rate, ewa.schedule, total, until=ewa.average_until)
    ema = None
    if config.ema is not None:
        ema = make_ema(config.ema, plain)
        notes.append(f"moving average of the weights, decay {config.ema.decay}: it is validated and exported")
    parameters = sum(p.numel() for p in plain.parameters())
    where = f"{accelerator.device}, {accelerator.num_processes} process(es)"
    notes.append(f"{train_set} on {where}; {parameters:,} parameters while training")
    task = make_task(config, train_set.metadata)
    sums = Sums.zero(accelerator.device)
    session = Session(config, accelerator, model, plain, loader, optimizer, step, scheduler, averager, ema, task, sums)
    return session, notes


def save(session: Session, run: Run, progress: Progress, *, best: bool) -> None:
    """Write a checkpoint: one process does, with what is each one's own.

    Raises:
        Ewa3dError: it cannot be written, as on a full disk; the checkpoint before it is as it was.
    """
    averager = session.averager.state_dict() if session.averager is not None else None
    sums = session.sums
    own = {
        "random": ckpt.random_state(),
        "sums": [sums.loss.item(), sums.correct.item(), sums.seen, sums.batches] if progress.batch else None,
    }
    processes = gather_object([own])
    if session.accelerator.is_main_process:
        labels = session.loader.dataset.metadata  # type: ignore[attr-defined]
        state = {**asdict(progress), "labels": labels, "averager": averager, "processes": processes}
        ema = session.ema.module if session.ema is not None else None
        ckpt.save_checkpoint(run.checkpoints, session.plain, session.optimizer, state, best=best, ema=ema)
    session.accelerator.wait_for_everyone()


def resume(session: Session, run: Run) -> Progress:
    """Put everything back as the last checkpoint has it, or where that is damaged as the one before it has it.

    Raises:
        Ewa3dError: no checkpoint can be used, or it is of another number of processes.
    """
    faults: list[Ewa3dError] = []
    for saved in ckpt.checkpoints(run.checkpoints):
        try:
            progress, processes = _restore(session, saved)
        except Ewa3dError as fault:
            faults.append(fault)
            run.log(f"passed over: {fault}")
            continue
        if processes != session.accelerator.num_processes:
            raise Ewa3dError(
                f"{saved} is of a training with {processes} process(es), and this one has "
                f"{session.accelerator.num_processes}: resume it with as many"
            )
        if session.accelerator.is_main_process:
            ckpt.point_at(saved)
        run.forget_after(progress.step)
        within = f" and {progress.batch} of the next one's {len(session.loader)} batches" if progress.batch else ""
        run.log(f"resumed after epoch {progress.epoch}{within} from {saved}")
        return progress
    if faults:
        raise Ewa3dError(f"{run.dir}: no checkpoint can be used: run.overwrite=true begins anew ({faults[0]})")
    run.forget_after(0)
    run.log(f"{run.dir} has no checkpoint yet: starting from the beginning")
    return Progress()


def _restore(session: Session, saved: Path) -> tuple[Progress, int]:
    """Load one checkpoint. Returns how far it is, and how many processes wrote it."""
    state = ckpt.read_state(saved)
    try:
        progress = Progress(**{item.name: state[item.name] for item in fields(Progress)})
        processes = state["processes"]
        own = processes[min(session.accelerator.process_index, len(processes) - 1)]
        ckpt.load_weights(saved, session.plain)
        if session.ema is not None:
            ckpt.load_weights(saved, session.ema.module, ema=True)
        ckpt.load_optimizer(saved, session.optimizer, state["groups"])
        if session.averager is not None:
            session.averager.load_state_dict(state["averager"])
        ckpt.set_random_state(own["random"])
        if progress.batch:
            session.random = own["random"]
            loss, correct, session.sums.seen, session.sums.batches = own["sums"]
            session.sums.loss.fill_(loss)
            session.sums.correct.fill_(correct)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as why:
        raise Ewa3dError(f"{saved} is no checkpoint of this run ({type(why).__name__}: {first_line(why)})") from why
    return progress, len(processes)
