"""The training loop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from ..data import Clouds
from ..errors import Ewa3dError
from ..ewa import ExpertAverager, is_routed, merge, merge_report
from ..models import PointTransformer, from_pretrained
from ..progress import track
from . import checkpoint as ckpt
from .build import build_model, eval_loader, make_accelerator, open_split, place, train_loader
from .evaluate import draw_scores, evaluate, tally_model
from .export import export_run
from .optim import decay_groups, make_ema, make_scheduler
from .probe import describe_probe
from .run import ROUTED, Run
from .schema import Config
from .step import Step, check_graph, make_step
from .tasks import Task, describe_scores, make_task, score_line


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

    @property
    def evaluated(self) -> PointTransformer:
        """The weights that are validated and exported, experts and all: the moving average's where there is one."""
        return self.plain if self.ema is None else self.ema.module


@dataclass
class Progress:
    """How far a training is; a checkpoint holds it."""

    epoch: int = 0  # finished ones
    step: int = 0  # optimizer steps
    best: float | None = None
    best_epoch: int | None = None


def train(config: Config) -> dict[str, Any]:
    """Train, choose the best epoch, score it once on the test split and export it, as ``config`` says.

    Returns:
        The last row of ``metrics.jsonl``: the scores by protocol, the split, the chosen epoch and what chose it.

    Raises:
        Ewa3dError: bad input: a configuration, a dataset, a folder; or a loss that is not finite.
    """
    accelerator = make_accelerator(config.train)
    set_seed(config.train.seed)
    # everything that can be wrong with the input is found now, not after hours of training
    check_graph(config, accelerator)
    train_set = open_split(config, config.data.train_split)
    test_loader = eval_loader(open_split(config, config.eval.split), config, accelerator)
    select_loader = None
    if config.train.select != "last":
        select_loader = eval_loader(open_split(config, config.train.select), config, accelerator)
    session, notes = start_session(config, accelerator, train_set)

    with Run(config, main=accelerator.is_main_process) as run:
        set_seed(config.train.seed, device_specific=True)  # processes augment and partition differently
        progress = resume(session, run) if config.run.resume else Progress()
        session.scheduler.step_update(progress.step)
        for note in notes:
            run.log(note)

        for epoch in range(progress.epoch + 1, config.train.epochs + 1):
            row = train_epoch(session, progress, epoch) | validate(session, select_loader)
            score = row.get(f"{config.train.select}_{session.task.score}")
            best = score is None or progress.best is None or session.task.is_better(score, progress.best)
            if best:
                progress.best, progress.best_epoch = score, epoch
            progress.epoch = epoch
            run.record({"epoch": epoch, "step": progress.step, **row})
            run.log(_epoch_line(epoch, row, session, best))
            save(session, run, progress, train_set.metadata, best)
        return finish(session, run, test_loader, progress)


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
    return Session(config, accelerator, model, plain, loader, optimizer, step, scheduler, averager, ema, task), notes


def train_epoch(session: Session, progress: Progress, epoch: int) -> dict[str, float]:
    """One pass over the training split: moves ``progress.step`` on and returns the epoch's means."""
    started = time.perf_counter()
    total, correct, seen = train_steps(session, progress, epoch)
    mean_loss = float(total) / len(session.loader)
    if not math.isfinite(mean_loss):
        raise Ewa3dError(f"the training loss became {mean_loss} in epoch {epoch}: lower optim.lr, or train in fp32")
    return {
        "train_loss": mean_loss,
        **({"train_oa": 100 * float(correct) / seen} if seen else {}),
        "lr": max(group["lr"] / group.get("lr_scale", 1.0) for group in session.optimizer.param_groups),  # the full one
        "train_seconds": time.perf_counter() - started,
    }


def train_steps(session: Session, progress: Progress, epoch: int) -> tuple[Tensor, Tensor, int]:
    """The steps of `train_epoch`. Returns the sum of the batches' losses and the number of right rows, both still on
    the device, and the number of all rows, 0 where nothing is right or wrong: the host waits for a GPU nowhere in here.
    """
    accelerator, device = session.accelerator, session.accelerator.device
    session.model.train()
    session.loader.set_epoch(epoch)  # type: ignore[attr-defined]
    total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    seen = 0
    bar = {"unit": session.config.train.batch_size, "enabled": accelerator.is_main_process}
    for batch in track(session.loader, f"epoch {epoch}/{session.config.train.epochs}", len(session.loader), **bar):
        with accelerator.accumulate(session.model):
            inputs, truth = session.task.training_batch(batch)
            loss, right = session.step(inputs, truth)
        if accelerator.sync_gradients:  # a real step, not one that only accumulated
            if session.averager is not None:
                session.averager.step()
            progress.step += 1
            if session.ema is not None:
                session.ema.update(session.plain, progress.step)
            session.scheduler.step_update(progress.step)
        total += loss
        correct += right
        seen += truth.numel()
    return total, correct, seen


def validate(session: Session, loader: DataLoader | None) -> dict[str, Any]:
    """Where the experts are, and the scores of the model as it would be exported on the split that chooses, if any."""
    started = time.perf_counter()
    config, row = session.config, dict[str, Any]()
    if session.averager is not None:
        distances = {name: layer["relative"] for name, layer in merge_report(session.plain).items()}
        row["share_rate"] = session.averager.current_share_rate
        row["expert_distance"] = sum(distances.values()) / len(distances)
        row["expert_distances"] = distances
    if loader is not None:
        exported = session.evaluated  # a routed model as it is: merging would change what it computes
        if session.averager is not None and not is_routed(exported):
            exported = merge(exported)
        tallies = tally_model(exported, session.task, loader, session.accelerator, config.train.precision)
        scores = session.task.scores(*tallies)
        row |= {f"{config.train.select}_{name}": s for name, s in scores.items() if isinstance(s, float)}
    return row | {"eval_seconds": time.perf_counter() - started}


def save(session: Session, run: Run, progress: Progress, labels: dict[str, Any], best: bool) -> None:
    """Write a checkpoint: one process does, of all their random states."""
    averager = session.averager.state_dict() if session.averager is not None else None
    state = {**asdict(progress), "labels": labels, "averager": averager}
    state["random"] = gather_object([ckpt.random_state()])
    if session.accelerator.is_main_process:
        ema = session.ema.module if session.ema is not None else None
        ckpt.save_checkpoint(run.checkpoints, session.plain, session.optimizer, state, best=best, ema=ema)
    session.accelerator.wait_for_everyone()


def resume(session: Session, run: Run) -> Progress:
    """Put everything back as the last checkpoint has it."""
    saved = ckpt.find_checkpoint(run.checkpoints)
    if saved is None:
        run.log(f"{run.dir} has no checkpoint yet: starting from the beginning")
        return Progress()
    ckpt.load_weights(saved, session.plain)
    if session.ema is not None:
        ckpt.load_weights(saved, session.ema.module, ema=True)
    state = ckpt.load_training_state(saved, session.optimizer)
    if session.averager is not None:
        session.averager.load_state_dict(state["averager"])
    ckpt.set_random_state(state["random"][session.accelerator.process_index])
    progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
    run.forget_after(progress.step)
    run.log(f"resumed after epoch {progress.epoch} from {saved}")
    return progress


def finish(session: Session, run: Run, loader: DataLoader, progress: Progress) -> dict[str, Any]:
    """Export the chosen epoch, score it once, draw curves and scores, and say what was reached and where it lies."""
    config, accelerator = session.config, session.accelerator
    model, report = export_run(run.dir, accelerator=accelerator)
    scores, tallies = evaluate(model, session.task, loader, accelerator, config)
    routed = is_routed(session.plain)
    if routed:
        trained = place(from_pretrained(run.dir / ROUTED), accelerator.device)
        as_trained, _ = evaluate(trained, session.task, loader, accelerator, config)
        scores |= {f"{protocol}_routed": by_name for protocol, by_name in as_trained.items()}
    result = {
        "split": config.eval.split,
        "step": progress.step,
        "best_epoch": progress.best_epoch,
        "chosen_by": config.train.select,
        **{f"{protocol}_{name}": s for protocol, by_name in scores.items() for name, s in by_name.items()},
    }
    run.record(result)
    if accelerator.is_main_process:
        from ..viz.plots import training_curves

        training_curves(run.rows(), run.dir / "curves.png")
        draw_scores(run.dir, session.task, config, scores, tallies)
    if report["layers"]:
        difference = report["max_logit_difference"]
        run.log(
            f"merged {len(report['layers'])} expert layers: {session.task.outputs} differ by at most {difference:.1e}"
        )
    chosen = {"last": "the last", "val": "best on val", "test": "best on TEST: an optimistic score"}[
        config.train.select
    ]
    run.log(f"epoch {progress.best_epoch} of {config.train.epochs} ({chosen})")
    for protocol, by_name in scores.items():
        run.log(score_line(config.eval.split, protocol, by_name) + describe_probe(by_name))
    models = f"plain model: {run.dir / 'export'}" + (f"   with its router: {run.dir / ROUTED}" if routed else "")
    run.log(f"run: {run.dir}   {models}   pictures: curves.png, {session.task.picture}")
    return result


def _epoch_line(epoch: int, row: dict[str, Any], session: Session, best: bool) -> str:
    config, select = session.config, session.config.train.select
    parts = [f"epoch {epoch}/{config.train.epochs}", f"loss {row['train_loss']:#.4g}"]
    if "train_oa" in row:
        parts.append(f"train {row['train_oa']:.1f} %")
    if (score := row.get(f"{select}_{session.task.score}")) is not None:
        short = {"oa": f"{score:.2f} %", "instance_miou": f"mIoU {score:.2f} %"}
        said = short.get(session.task.score) or describe_scores({session.task.score: score})
        parts.append(f"{select} {said}{' *' if best else ''}")
    if "expert_distance" in row:
        parts.append(f"β {row['share_rate']:.3f}, experts {row['expert_distance']:.1e} apart")
    return "  ".join([*parts, f"{row['train_seconds'] + row['eval_seconds']:.0f} s"])
