"""The claims of docs/method.md, each with an experiment: what the equation predicts beside what is measured.

python examples/theory.py                                  all of them: about two minutes on one CPU core
python examples/theory.py gradient                         one
python examples/theory.py spread --plots docs/images       and the figure
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean as mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from digits_vit import accuracy, load_splits, make_vit
from timm.layers import Mlp
from tiny_vit import Run, deviations, flat, gradients, rms, sgd_beside_dense, train, weights
from torch import Tensor, nn
from torch.autograd.functional import jvp
from torch.func import functional_call

import ewa3d
from ewa3d.ewa import ExpertAverager, Experts, contraction

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BETA1 = 0.9  # Adam's, PyTorch's default


class Row(NamedTuple):
    """One line of a claim's table. ``predicted`` is NaN where the theory gives no number."""

    what: str
    predicted: float
    measured: float


# ---- 1. the pull is a weight decay of the spread


def decay() -> list[Row]:
    """EWA's step is a unit gradient step on (r/2)·Σ‖D_i‖², and AdamW's decoupled decay at weight_decay = r/lr, on D."""
    layer = Experts([Mlp(8, 16) for _ in range(4)]).double()
    r, lr = contraction(0.3, 4), 5e-4
    before, center, start = weights(layer).requires_grad_(), weights(layer).mean(dim=0), deviations(layer)
    (r / 2 * (before - before.mean(dim=0)).square().sum()).backward()
    decayed = nn.Parameter(start.clone())
    decayed.grad = torch.zeros_like(decayed)
    torch.optim.AdamW([decayed], lr=lr, weight_decay=r / lr).step()
    ExpertAverager(layer, 0.3, "constant").step()
    after = weights(layer)
    parts = 4 * center.square().sum() + start.square().sum()
    rows = [
        Row("difference from a gradient step on (r/2) Σ‖D‖²", 0, (after - before + before.grad).abs().max().item()),
        Row("movement of the mean", 0, (after.mean(dim=0) - center).abs().max().item()),
        Row("spread after / before", 1 - r, rms(deviations(layer)) / rms(start)),
        Row(f"the same by AdamW, lr {lr}, weight_decay {r / lr:.0f}", 1 - r, rms(decayed) / rms(start)),
        Row("Σ‖W‖² / (N‖W̄‖² + Σ‖D‖²)", 1, (before.square().sum() / parts).item()),
    ]
    for scale in (1, 4, 16):
        predicted, measured = decay_through_adam(scale)
        rows.append(Row(f"penalty in Adam's gradient instead: decay a step, noise {scale}", predicted, measured))
    return rows


def decay_through_adam(scale: float, penalty: float = 0.5, lr: float = 1e-3, steps: int = 1000) -> tuple[float, float]:
    """How fast a penalty in the loss shrinks D where gradient noise has this scale: lr·penalty/scale a step."""
    d = nn.Parameter(torch.full((40_000,), 0.2))
    optimizer = torch.optim.Adam([d], lr=lr)
    for _ in range(steps):
        d.grad = penalty * d.detach() + scale * torch.randn_like(d)
        optimizer.step()
    return lr * penalty / scale, -math.log(d.mean().item() / 0.2) / steps


# ---- 2. how far apart noise keeps the experts


def noise_factor(r: float, beta1: float = 0.0) -> float:
    """Stationary spread over the size of one update's noise; updates are correlated in time as Adam's (β₁) or not."""
    q = 1 - r
    return q * math.sqrt((1 + q * beta1) / ((1 - q * beta1) * (1 - q * q)))


def noise() -> list[Row]:
    """Independent updates of variance σ² hold the variance of D at (1 − 1/N)·σ²·q²/(1 − q²), q = 1 − r."""
    rows = []
    for count, r in ((2, 0.4), (4, 0.1), (4, 0.4), (8, 0.4)):
        before, after = drift_apart(count, r, torch.optim.SGD, lr=1.0)
        predicted = (1 - 1 / count) * noise_factor(r) ** 2
        rows.append(Row(f"variance of D, N = {count}, r = {r}", predicted, after**2))
    rows.append(Row("between optimizer step and averaging, N = 8, r = 0.4", predicted / (1 - r) ** 2, before**2))
    for r in (0.1, 0.4):
        _, after = drift_apart(4, r, torch.optim.Adam, lr=1e-3)
        predicted = adam_noise() * math.sqrt(1 - 1 / 4) * noise_factor(r, BETA1)
        rows.append(Row(f"Adam on pure noise: rms of D / lr, N = 4, r = {r}", predicted, after / 1e-3))
    return rows


def adam_noise() -> float:
    """Size of Adam's update over lr where the gradient is nothing but noise: √((1 − β₁)/(1 + β₁))."""
    return math.sqrt((1 - BETA1) / (1 + BETA1))


def drift_apart(
    count: int, r: float, optimizer: Callable[..., torch.optim.Optimizer], lr: float, steps: int = 600
) -> tuple[float, float]:
    """Experts whose gradients are independent noise: rms of D before and after averaging, over the last 200 steps."""
    layer = Experts([nn.Linear(48, 48, bias=False) for _ in range(count)])
    averager = ExpertAverager(layer, r * (count - 1) / count, "constant")
    update = optimizer(layer.parameters(), lr=lr)
    squares = []
    for _ in range(steps):
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        update.step()
        before = rms(deviations(layer))
        averager.step()
        squares.append((before**2, rms(deviations(layer)) ** 2))
    before, after = (math.sqrt(mean(column)) for column in zip(*squares[-200:], strict=True))
    return before, after


# ---- 3. the spread in real training


def predicted_spreads(lrs: Sequence[float], rates: Sequence[float], num_experts: int) -> list[float]:
    """Rms of D after every step, for AdamW whose gradients are noise of constant size and independent in the experts.

    Adam's update is lr·κ·n with κ = `adam_noise` and n of variance 1 and correlation β₁ from step to step. ``variance``
    is that of D, ``together`` the covariance of D and n.
    """
    kappa, variance, together, spreads = adam_noise(), 0.0, 0.0, []
    for lr, rate in zip(lrs, rates, strict=True):
        q, size = 1 - contraction(rate, num_experts), lr * kappa
        variance = q * q * (variance + 2 * size * BETA1 * together + size * size)
        together = q * (BETA1 * together + size)
        spreads.append(math.sqrt(variance * (1 - 1 / num_experts)))
    return spreads


def spread(steps: int = 400) -> list[Row]:
    """Nothing is fitted: learning rate and share rate alone predict how far apart the experts of a training are."""
    rows = []
    for schedule in ("linear", "constant"):
        run = train(0, schedule=schedule, steps=steps)
        predicted = predicted_spreads(run.lrs, run.share_rates, 4)
        for percent in (5, 10, 25, 50, 75, 90, 100):
            step = steps * percent // 100 - 1
            what = f"β {schedule}, {percent:3} % of the steps: lr {run.lrs[step]:.1e}, β {run.share_rates[step]:.3f}"
            rows.append(Row(f"rms of D, {what}", predicted[step], run.spreads[step]))
    return rows + modelnet40()


def modelnet40() -> list[Row]:
    """The recorded run ``ewa_0`` of docs/results (276 steps an epoch): size of the spread, and its fall with lr."""
    folder = RESULTS / "modelnet40_cpu"
    lines = (folder / "ewa_0.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = {row["epoch"]: row for row in map(json.loads, lines) if "epoch" in row}

    def predicted(epoch: int) -> float:
        r = contraction(epochs[epoch]["share_rate"], 4)
        return epochs[epoch]["lr"] * adam_noise() * math.sqrt(1 - 1 / 4) * noise_factor(r, BETA1)

    report = json.loads((folder / "ewa_0.merge_report.json").read_text(encoding="utf-8"))  # of epoch 15
    parameters = sum(p.numel() for p in Mlp(96, 4 * 96).parameters())
    distance = mean(mean(layer["distances"]) for layer in report["layers"].values()) / math.sqrt(parameters)
    rows = [Row("ModelNet40, rms of D at the end of epoch 15", predicted(15), distance)]
    for first, last in ((12, 14), (14, 15), (15, 16)):
        measured = epochs[last]["expert_distance"] / epochs[first]["expert_distance"]
        rows.append(Row(f"ModelNet40, spread at epoch {last} / {first}", predicted(last) / predicted(first), measured))
    return rows


# ---- 4. an expert is a mixture of all experts' histories


def history() -> list[Row]:
    """W_i(T) as a weighted sum of all experts' past updates, for a real training in float64."""
    layer, updates, rates = recorded_training(steps=40)
    start, end = updates.pop(0), weights(layer)
    kept = [math.prod(1 - contraction(rate, 3) for rate in rates[t:]) for t in range(len(rates))]  # P(t, T)
    total = start.clone()
    for update, p in zip(updates, kept, strict=True):
        own, other = 1 / 3 + 2 / 3 * p, (1 - p) / 3
        total += own * update + other * (update.sum(dim=0) - update)
    center = start.mean(dim=0) + sum(update.mean(dim=0) for update in updates)
    rows = [
        Row("linear β: largest error of W_i(T) from the weights", 0, (total - end).abs().max().item()),
        Row("W̄(T) − W̄(0) − Σ mean update: W̄ is not smoothed", 0, (center - end.mean(dim=0)).abs().max().item()),
    ]
    layer, updates, _ = recorded_training(steps=40, schedule="constant")
    q = 1 - contraction(0.3, 3)
    path = average = updates.pop(0).mean(dim=0)
    recent = torch.zeros_like(updates[0])
    for update in updates:
        path = path + update.mean(dim=0)
        average = q * average + (1 - q) * path
        recent = q * (recent + update)
    error = (average + recent - weights(layer)).abs().max().item()
    rows.append(Row("constant β: W_i(T) − (moving average of W̄'s path + own recent updates)", 0, error))
    for age in (1, 2, 5, 20):
        own, other = impulse(age)
        p = 0.6**age
        rows.append(Row(f"β = 0.3, N = 4: weight of an own update of age {age}", 1 / 4 + 3 / 4 * p, own))
        rows.append(Row(f"β = 0.3, N = 4: weight of another's update of age {age}", (1 - p) / 4, other))
    return rows


def recorded_training(steps: int, schedule: str = "linear") -> tuple[Experts, list[Tensor], list[float]]:
    """Three experts fit random targets with AdamW: the layer, its start and its updates ``(N, P)``, its share rates."""
    torch.manual_seed(0)
    ffn = Mlp(6, 12).double()
    layer = Experts([deepcopy(ffn) for _ in range(3)])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.05)
    averager = ExpertAverager(layer, 0.3, schedule, steps)
    updates, rates = [weights(layer)], []
    for _ in range(steps):
        F.mse_loss(layer(torch.randn(50, 6).double()), torch.randn(50, 6).double()).backward()
        before = weights(layer)
        optimizer.step()
        optimizer.zero_grad()
        updates.append(weights(layer) - before)
        averager.step()
        rates.append(averager.current_share_rate)
    return layer, updates, rates


def impulse(age: int) -> tuple[float, float]:
    """One expert of four moves by 1, then ``age`` averaging steps: where it is, and where another is."""
    layer = Experts([nn.Linear(1, 1, bias=False).double() for _ in range(4)])
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(layer.experts[0].get_parameter("weight"))
    averager = ExpertAverager(layer, 0.3, "constant")
    for _ in range(age):
        averager.step()
    return weights(layer)[0].item(), weights(layer)[1].item()


# ---- 5. what the partition does to the gradient


def gradient() -> list[Row]:
    """Equal experts: their gradients add up to the dense one. SGD then moves W̄ by 1/N of the dense step."""
    images, labels = load_splits()["train"]
    dense = make_vit(embed_dim=32, depth=2).double()
    model = ewa3d.upcycle(deepcopy(dense), 4, every=1)
    for net in (dense, model):
        F.cross_entropy(net(images[:64].double()), labels[:64]).backward()
    whole, parts = gradients(dense)[0], gradients(model)
    apart = (parts - parts.mean(dim=0)).square().sum()
    squares = parts.square().sum() / (whole.square().sum() / 4 + apart)
    moved, _ = sgd_beside_dense(0.75, 1, steps=1)
    rows = [
        Row(
            "Σ expert gradients − dense gradient, largest difference", 0, (parts.sum(dim=0) - whole).abs().max().item()
        ),
        Row("Σ‖g_i‖² / (‖G‖²/N + Σ‖g_i − ḡ‖²)", 1, squares.item()),
        Row("plain SGD, one step: distance moved by the merged FFNs / dense", 1 / 4, moved),
    ]
    for share_rate in (0.75, 0.3, 0.0):
        _, error = sgd_beside_dense(share_rate, 4, momentum=0.9, steps=30)
        what = f"SGD, experts' lr·N, decay/N, β = {share_rate}, 30 steps: (merged − dense) / distance moved"
        rows.append(Row(what, 0 if share_rate == 0.75 else math.nan, error))
    return rows


def adam(steps: int = 400) -> list[Row]:
    """Adam forgets the gradient's size but not its noise: W̄ moves as dense at lr/s, s² = N·Σ‖g_i‖² / ‖Σg_i‖²."""
    rows = []
    for ratio in (0.01, 1.0, 100.0):
        predicted = math.sqrt((1 + ratio) / (1 + 4 * ratio))
        measured = adam_drift(ratio, 4) / adam_drift(ratio, 1)
        rows.append(Row(f"drift of the mean / dense, noise-to-signal ρ = {ratio:g}", predicted, measured))
    measured = adam_drift(100, 4, lr=2e-3) / adam_drift(100, 1)
    rows.append(Row("the same, ρ = 100, experts' lr·√N", 2 * predicted, measured))
    run = train(0, steps=steps)
    for first in range(0, steps, steps // 4):
        part = slice(first, first + steps // 4)
        slower = sum(run.moved[part]) / sum(run.dense_moved[part])
        what = f"digits, steps {first + 1} to {part.stop}: W̄'s step against Adam's with Σg_i"
        rows.append(Row(f"{what}, length (1/s)", mean(x**-0.5 for x in run.noisiness[part]), slower))
        rows.append(Row(f"{what}, cosine", 1, mean(run.cosines[part])))
    return rows


def adam_drift(ratio: float, count: int, lr: float = 1e-3, steps: int = 400) -> float:
    """How far ``count`` experts' mean goes along a gradient of 1/count under noise of variance ratio/count."""
    experts = [nn.Parameter(torch.zeros(20_000)) for _ in range(count)]
    optimizer = torch.optim.Adam(experts, lr=lr)
    for _ in range(steps):
        for expert in experts:  # each sees 1/count of the tokens: noise of count × the variance, all divided by count
            expert.grad = (1 + math.sqrt(ratio * count) * torch.randn_like(expert)) / count
        optimizer.step()
    return -mean(expert.mean().item() for expert in experts)


def rates(seeds: int = 3, steps: int = 300) -> list[Row]:
    """Real training with AdamW, dense or EWA, at several learning rates of the FFNs: how far W̄ goes, what is learnt."""
    val = load_splits()["val"]
    settings = {
        "dense": (0, 1),
        "EWA": (4, 1),
        "EWA, experts' lr·√N": (4, 2),
        "dense, FFNs' lr·√N": (0, 2),
        "EWA, experts' lr·N": (4, 4),
    }
    runs = {
        name: [train(seed, num_experts=count, scale=scale, steps=steps) for seed in range(seeds)]
        for name, (count, scale) in settings.items()
    }
    measures: dict[str, Callable[[Run], float]] = {
        "path length of the FFNs": lambda run: sum(run.moved),
        "training loss of the plain model": lambda run: run.loss,
        "validation accuracy, %": lambda run: accuracy(run.model, val),
    }
    rows = []
    for what, measure in measures.items():
        for name, group in runs.items():
            values = [measure(run) for run in group]
            rows.append(
                Row(f"{what}: {name} (by seed: {', '.join(f'{v:.3g}' for v in values)})", math.nan, mean(values))
            )
    return rows


# ---- 6. where it stops: the merged FFN is not the mean of the experts


def gap() -> list[Row]:
    """Mean output of the experts − output of the merged FFN = ½ mean D_i'f''D_i + …: second order in the spread."""
    torch.manual_seed(0)
    ffn, x = Mlp(16, 64).double(), torch.randn(256, 16).double()
    center = flat(ffn)
    direction = torch.randn(4, len(center)).double()
    direction -= direction.mean(dim=0)
    direction *= rms(center) / rms(direction)  # spread 1: as far from the mean as the mean from 0

    def output(vector: Tensor) -> Tensor:
        sizes = [p.numel() for p in ffn.parameters()]
        named = zip(ffn.named_parameters(), vector.split(sizes), strict=True)
        return functional_call(ffn, {name: part.view_as(p) for (name, p), part in named}, (x,))

    def second(d: Tensor) -> Tensor:
        return jvp(lambda v: jvp(output, v, d, create_graph=True)[1], center, d)[1]

    merged = output(center).detach()
    curvature = rms(torch.stack([second(d) for d in direction]).mean(dim=0) / 2) / rms(merged)
    rows, gaps, single = [], [], []
    spreads = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    for spread in spreads:
        outputs = torch.stack([output(center + spread * d) for d in direction]).detach()
        gaps.append(rms(outputs.mean(dim=0) - merged) / rms(merged))
        single.append(rms(outputs - merged) / rms(merged))
        rows.append(Row(f"mean of experts − merged, relative, spread {spread:g}", curvature * spread**2, gaps[-1]))
    for name, values, order in (("mean of experts − merged", gaps, 2), ("one expert − merged", single, 1)):
        slope = math.log(values[2] / values[0]) / math.log(spreads[2] / spreads[0])
        rows.append(Row(f"log-log slope of {name}, spread 1e-4 to 1e-2", order, slope))
    strangers = Experts([Mlp(16, 64).double() for _ in range(4)])
    answers = torch.stack([expert(x) for expert in strangers.experts]).mean(dim=0).detach()
    apart = rms(strangers.merged()(x).detach() - answers) / rms(answers)
    return rows + [Row("independent initialisations: mean of experts − merged, relative", math.nan, apart)]


CLAIMS: dict[str, Callable[[], list[Row]]] = {
    claim.__name__: claim for claim in (decay, noise, spread, history, gradient, adam, rates, gap)
}


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.what) for row in rows)
    lines = [f"{'':{width}}  predicted   measured"]
    for what, predicted, measured in rows:
        expected = "" if math.isnan(predicted) else f"{predicted:.4g}"
        lines.append(f"{what:{width}}  {expected:>9}  {measured:>9.4g}")
    return "\n".join(lines)


def plot_spread(path: Path, steps: int = 400) -> None:
    """Spread, predicted and measured, over a training with each schedule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    for axis, schedule in zip(figure.subplots(1, 2, sharey=True), ("linear", "constant"), strict=True):
        run = train(0, schedule=schedule, steps=steps)
        axis.semilogy(run.lrs, color="#999999", linestyle=":", label="learning rate")
        axis.semilogy(predicted_spreads(run.lrs, run.share_rates, 4), color="#0072B2", label="predicted")
        axis.semilogy(run.spreads, color="#D55E00", label="measured")
        axis.set(title=f"β {schedule}", xlabel="step")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.get_axes()[0].set_ylabel("rms of W_i − W̄")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=CLAIMS, help="one claim (default: all)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the figure of docs/method.md there")
    args = parser.parse_args(arguments)
    for name in [args.name] if args.name else CLAIMS:
        torch.manual_seed(0)
        rows = CLAIMS[name]()
        print(f"{name}: {CLAIMS[name].__doc__}\n\n{table(rows)}\n", flush=True)
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        plot_spread(args.plots / "spread.png")


if __name__ == "__main__":
    main()
