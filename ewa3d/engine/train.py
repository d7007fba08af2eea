"""The training loop."""

from __future__ import annotations

import signal
import time
from typing import Any

from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from ..data.check import unlike_published
from ..errors import Ewa3dError, Interrupted
from ..ewa import is_routed, merge, merge_report
from ..models import from_pretrained
from ..progress import track
from .build import eval_loader, make_accelerator, open_split, place
from .checkpoint import set_random_state
from .evaluate import draw_scores, evaluate, tally_model
from .export import export_run
from .probe import describe_probe
from .run import ROUTED, Run
from .schema import Config
from .session import Progress, Session, Sums, resume, save, start_session
from .step import check_graph
from .stopping import FiniteGuard, StopRequest
from .tasks import describe_scores, score_line


def train(config: Config) -> dict[str, Any]:
    """Train, choose the best epoch, score it once on the test split and export it, as ``config`` says.

    Returns:
        The last row of ``metrics.jsonl``: the scores by protocol, the split, the chosen epoch and what chose it.

    Raises:
        Ewa3dError: bad input: a configuration, a dataset, a folder; a loss or gradients that are not finite; a disk
            that is full.
        Interrupted: SIGINT or SIGTERM came, and all is saved.
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
        if run.main and (warning := unlike_published(config.data.name, config.data.root)):
            notes.append(warning)
        for note in notes:
            run.log(note)
        with StopRequest() as stop:
            for epoch in range(progress.epoch + 1, config.train.epochs + 1):
                row = train_epoch(session, progress, epoch, stop, run.last_good)
                if row is None:
                    save(session, run, progress, best=False)
                    raise _interrupted(session, run, progress, stop)
                row |= validate(session, select_loader)
                score = row.get(f"{config.train.select}_{session.task.score}")
                best = score is None or progress.best is None or session.task.is_better(score, progress.best)
                if best:
                    progress.best, progress.best_epoch = score, epoch
                progress.epoch = epoch
                run.record({"epoch": epoch, "step": progress.step, **row})
                run.log(_epoch_line(epoch, row, session, best))
                save(session, run, progress, best=best)
                if stop.agreed(accelerator):
                    raise _interrupted(session, run, progress, stop)
        return finish(session, run, test_loader, progress)


def train_epoch(
    session: Session, progress: Progress, epoch: int, stop: StopRequest | None = None, last_good: str = ""
) -> dict[str, Any] | None:
    """One pass over the training split: moves ``progress`` on and returns the epoch's means, or ``None`` where a signal
    stopped it before its last batch. The arguments are those of `train_steps`."""
    started = time.perf_counter()
    if progress.batch == 0:
        session.sums = Sums.zero(session.accelerator.device)
    train_steps(session, progress, epoch, stop, last_good)
    if progress.batch:
        return None
    session.share_buffers()
    loss, correct, seen, batches = session.sums.of_all_processes(session.accelerator)
    if not batches:
        raise Ewa3dError(f"epoch {epoch}: every step was left out, its loss or gradients not finite: lower optim.lr")
    return {
        "train_loss": loss / batches,
        **({"train_oa": 100 * correct / seen} if seen else {}),
        **({"skipped_steps": progress.skipped} if session.config.train.skip_nonfinite else {}),
        "lr": max(group["lr"] / group.get("lr_scale", 1.0) for group in session.optimizer.param_groups),  # the full one
        "train_seconds": time.perf_counter() - started,
    }


def train_steps(
    session: Session, progress: Progress, epoch: int, stop: StopRequest | None = None, last_good: str = ""
) -> None:
    """The steps of `train_epoch`, summed up in ``session.sums``: the host hardly waits for a GPU in here.

    Args:
        session: what they share.
        progress: is moved on; its ``batch`` is not 0 afterwards where a signal came before the last batch.
        epoch: from 1.
        stop: the signals.
        last_good: what can be gone on from, for the error where numbers are not finite.
    """
    accelerator, config, clouds = session.accelerator, session.config.train, session.loader.dataset
    session.model.train()
    session.loader.set_epoch(epoch)  # type: ignore[attr-defined]
    guard = FiniteGuard(accelerator.device)
    bar = {"unit": config.batch_size, "enabled": accelerator.is_main_process}
    batches = track(session.loader, f"epoch {epoch}/{config.epochs}", len(session.loader), **bar)
    done, progress.batch = progress.batch, 0
    for number, batch in enumerate(batches, start=1):
        if number <= done:
            continue
        if session.random is not None:
            set_random_state(session.random)
            session.random = None
        with accelerator.accumulate(session.model):
            inputs, truth = session.task.training_batch(batch)
            loss, right = session.step(inputs, truth)
        real = accelerator.sync_gradients  # a real step, not one that only accumulated
        if config.skip_nonfinite:
            finite = bool(loss.isfinite())
        else:
            finite = True
            norm = session.step.norm if real else None
            if guard.note(number, progress.step + 1, batch["index"], loss, norm):
                guard.look(epoch, clouds, last_good)
        if finite:
            session.sums.add(loss, right, truth.numel())
        if real and session.step.skipped:
            progress.skipped += 1
        elif real:
            if session.averager is not None:
                session.averager.step()
            progress.step += 1
            if session.ema is not None:
                session.ema.update(session.plain, progress.step)
            session.scheduler.step_update(progress.step)
        if real and number < len(session.loader) and stop is not None and stop.agreed(accelerator, progress.step):
            progress.batch = number
            break
    guard.look(epoch, clouds, last_good)


def _interrupted(session: Session, run: Run, progress: Progress, stop: StopRequest) -> Interrupted:
    within = f" and {progress.batch} of {len(session.loader)} batches" if progress.batch else ""
    line = (
        f"stopped by {signal.Signals(stop.signum).name} after epoch {progress.epoch}{within}: all is saved, "
        f"`{run.dir / 'config.yaml'} run.resume=true` goes on"
    )
    return Interrupted(stop.signum, line if session.accelerator.is_main_process else "")


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
    if row.get("skipped_steps"):
        parts.append(f"{row['skipped_steps']} steps left out")
    if "expert_distance" in row:
        parts.append(f"β {row['share_rate']:.3f}, experts {row['expert_distance']:.1e} apart")
    return "  ".join([*parts, f"{row['train_seconds'] + row['eval_seconds']:.0f} s"])
