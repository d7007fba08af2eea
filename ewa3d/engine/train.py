"""The training loop."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from ..data.transforms import sample_random, scale_and_shift
from ..errors import Ewa3dError
from ..ewa import ExpertAverager, merge, merge_report
from ..progress import track
from . import checkpoint as ckpt
from .build import build_model, eval_loader, make_accelerator, open_split, train_loader
from .config import Config
from .evaluate import describe_scores, evaluate, predict_logits
from .export import export_run
from .metrics import classification_scores
from .run import Run


def train(config: Config) -> dict[str, Any]:
    """Train, choose the best epoch, score it once on the test split and export it, as ``config`` says.

    Returns:
        What the last row of ``metrics.jsonl`` says: the scores by protocol, the chosen epoch, the export's folder.

    Raises:
        Ewa3dError: bad input: a configuration, a dataset, a folder; or a loss that is not finite.
    """
    accelerator = make_accelerator(config.train)
    set_seed(config.train.seed)
    # everything that can be wrong with the input is found now, not after hours of training
    train_set = open_split(config.data, config.data.train_split)
    test_loader = eval_loader(open_split(config.data, config.eval.split), config, accelerator)
    select_loader = None
    if config.train.select != "last":
        select_loader = eval_loader(open_split(config.data, config.train.select), config, accelerator)
    if len(train_set) < config.train.batch_size * accelerator.num_processes:
        raise Ewa3dError(
            f"train.batch_size={config.train.batch_size} on {accelerator.num_processes} process(es) is more than the "
            f"{len(train_set)} training clouds: make it smaller"
        )
    model, notes = build_model(config, len(train_set.class_names))
    model.to(accelerator.device)
    if accelerator.device.type == "cpu" and config.train.precision == "bf16":
        for block in model.blocks:
            block.attn.fused_attn = False  # plain attention: there, the fused one's backward pass is slower
    with Run(config, main=accelerator.is_main_process) as run:
        optimizer: Optimizer = AdamW(
            decay_groups(model, config.optim.weight_decay),
            lr=config.optim.lr,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        loader = train_loader(train_set, config.train)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        plain = accelerator.unwrap_model(model)

        steps_per_epoch = math.ceil(len(loader) / config.train.accumulation)
        scheduler = make_scheduler(optimizer, config, steps_per_epoch)
        averager = None
        if config.ewa is not None:
            total = config.train.epochs * steps_per_epoch
            averager = ExpertAverager(plain, config.ewa.share_rate, config.ewa.schedule, total)

        progress: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "best": None,
            "best_epoch": None,
            "class_names": train_set.class_names,
        }
        saved = ckpt.find_checkpoint(run.checkpoints) if config.run.resume else None
        set_seed(config.train.seed, device_specific=True)  # processes augment and partition differently
        if saved is not None:
            ckpt.load_weights(saved, plain)
            progress = ckpt.load_training_state(saved, optimizer)
            if averager is not None:
                averager.load_state_dict(progress["averager"])
            ckpt.set_random_state(progress.pop("random")[accelerator.process_index])
            run.forget_after(progress["step"])
            run.log(f"resumed after epoch {progress['epoch']} from {saved}")
        scheduler.step_update(progress["step"])

        for note in notes:
            run.log(note)
        parameters = sum(p.numel() for p in plain.parameters())
        run.log(
            f"{train_set} on {accelerator.device}, {accelerator.num_processes} process(es); {parameters:,} parameters"
        )

        for epoch in range(progress["epoch"] + 1, config.train.epochs + 1):
            started = time.perf_counter()
            loader.set_epoch(epoch)
            row = train_epoch(model, loader, optimizer, scheduler, averager, accelerator, config, progress, epoch)
            row |= {"epoch": epoch, "step": progress["step"], "train_seconds": time.perf_counter() - started}
            if averager is not None:
                row["share_rate"] = averager.current_share_rate
                row["expert_distance"] = _mean([layer["relative"] for layer in merge_report(plain).values()])

            started = time.perf_counter()
            if select_loader is not None:
                exported = merge(plain) if averager is not None else plain
                logits, labels = predict_logits(exported, select_loader, accelerator, config, config.train.precision)
                scores = classification_scores(logits, labels)
                row |= {f"{config.train.select}_{name}": score for name, score in scores.items()}
            row["eval_seconds"] = time.perf_counter() - started

            score = row.get(f"{config.train.select}_oa", float(epoch))
            best = progress["best"] is None or score > progress["best"]
            if best:
                progress |= {"best": score, "best_epoch": epoch}
            progress["epoch"] = epoch
            run.record(row)
            run.log(_epoch_line(row, config, best))
            state = {**progress, "random": gather_object([ckpt.random_state()])}
            if accelerator.is_main_process:
                if averager is not None:
                    state["averager"] = averager.state_dict()
                ckpt.save_checkpoint(run.checkpoints, progress["step"], plain, optimizer, state, best=best)
            accelerator.wait_for_everyone()
        return finish(run, config, accelerator, test_loader, progress)


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    scheduler: CosineLRScheduler,
    averager: ExpertAverager | None,
    accelerator: Accelerator,
    config: Config,
    progress: dict[str, Any],
    epoch: int,
) -> dict[str, float]:
    """One pass over ``loader``; counts optimizer steps in ``progress["step"]`` and returns the epoch's means."""
    model.train()
    device = accelerator.device
    total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    seen = 0
    label = f"epoch {epoch}/{config.train.epochs}"
    for batch in track(loader, label, len(loader), unit=config.train.batch_size, enabled=accelerator.is_main_process):
        with accelerator.accumulate(model):
            points = scale_and_shift(sample_random(batch["points"], config.data.num_points))
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
                logits = model(points).float()
            loss = F.cross_entropy(logits, batch["label"], label_smoothing=config.optim.label_smoothing)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.optim.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:  # a real step, not one that only accumulated
            if averager is not None:
                averager.step()
            progress["step"] += 1
            scheduler.step_update(progress["step"])
        # sums stay on the device: reading them here would make it wait in every step
        total += loss.detach()
        correct += (logits.detach().argmax(dim=1) == batch["label"]).sum()
        seen += len(batch["label"])
    mean_loss = float(total) / len(loader)
    if not math.isfinite(mean_loss):
        raise Ewa3dError(f"the training loss became {mean_loss} in epoch {epoch}: lower optim.lr, or train in fp32")
    return {"train_loss": mean_loss, "train_oa": 100 * float(correct) / seen, "lr": optimizer.param_groups[0]["lr"]}


def finish(
    run: Run, config: Config, accelerator: Accelerator, loader: DataLoader, progress: dict[str, Any]
) -> dict[str, Any]:
    """Export the chosen epoch, score it once, draw the curves, and say what was reached and where it lies."""
    accelerator.wait_for_everyone()
    model, report = export_run(run.dir, accelerator=accelerator)
    scores = evaluate(model, loader, accelerator, config)
    result = {
        "split": config.eval.split,
        "step": progress["step"],
        "best_epoch": progress["best_epoch"],
        "chosen_by": config.train.select,
        **{f"{protocol}_{name}": s for protocol, by_name in scores.items() for name, s in by_name.items()},
    }
    run.record(result)
    if accelerator.is_main_process:
        from ..viz.plots import training_curves

        training_curves(run.rows(), run.dir / "curves.png")
    if report["layers"]:
        difference = report["max_logit_difference"]
        run.log(f"merged {len(report['layers'])} expert layers: logits differ by at most {difference:.1e}")
    chosen = {"last": "the last", "val": "best on val", "test": "best on TEST: an optimistic score"}[
        config.train.select
    ]
    run.log(f"epoch {progress['best_epoch']} of {config.train.epochs} ({chosen})")
    for line in describe_scores(scores, config.eval.split):
        run.log(line)
    run.log(f"run: {run.dir}   plain model: {run.dir / 'export'}   curves: {run.dir / 'curves.png'}")
    return result


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The official rule: no decay for biases, norms (all 1-D parameters) and names with ``token``."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        no_decay = parameter.ndim <= 1 or name.endswith(".bias") or "token" in name
        (free if no_decay else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_scheduler(optimizer: Optimizer, config: Config, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine to ``min_lr``, set anew after every optimizer step."""
    optim = config.optim
    return CosineLRScheduler(
        optimizer,
        t_initial=config.train.epochs * steps_per_epoch,
        lr_min=optim.min_lr,
        warmup_t=round(optim.warmup_epochs * steps_per_epoch),
        warmup_lr_init=optim.warmup_lr,
        t_in_epochs=False,
    )


def _epoch_line(row: dict[str, Any], config: Config, best: bool) -> str:
    parts = [
        f"epoch {row['epoch']}/{config.train.epochs}",
        f"loss {row['train_loss']:.3f}",
        f"train {row['train_oa']:.1f} %",
    ]
    if (score := row.get(f"{config.train.select}_oa")) is not None:
        parts.append(f"{config.train.select} {score:.2f} %{' *' if best else ''}")
    if "expert_distance" in row:
        parts.append(f"β {row['share_rate']:.3f}, experts {row['expert_distance']:.1e} apart")
    return "  ".join([*parts, f"{row['train_seconds'] + row['eval_seconds']:.0f} s"])


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
