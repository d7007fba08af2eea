"""The averaging step of EWA: after each optimizer step, experts move towards their mean."""

from __future__ import annotations

import math

import torch
from torch import nn

from .experts import Experts, mean_tensor

SCHEDULES = ("constant", "linear", "cosine")


def share_rate_at(step: int, share_rate: float, schedule: str = "linear", total_steps: int | None = None) -> float:
    """The share rate β of averaging step ``step``, counted from 1.

    Args:
        step: the averaging step; steps after ``total_steps`` keep its rate.
        share_rate: the final rate.
        schedule: ``constant``, ``linear`` (rises from 0 in proportion to the step) or ``cosine`` (rises from 0 along
            half a cosine: slow at both ends).
        total_steps: how many steps the rise takes; not needed for ``constant``.
    """
    if schedule == "constant":
        return share_rate
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown share-rate schedule {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if not total_steps or total_steps < 1:
        raise ValueError(f"the {schedule} share-rate schedule needs total_steps, the number of optimizer steps")
    progress = min(step / total_steps, 1.0)
    return share_rate * (progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2)


def contraction(share_rate: float, num_experts: int) -> float:
    """r = βN/(N−1): the part of an expert's distance from the mean that one averaging step takes away."""
    return share_rate * num_experts / (num_experts - 1)


def check_share_rate(share_rate: float, num_experts: int) -> None:
    """Raise `ValueError` unless 0 ≤ β ≤ (N−1)/N, where r is within [0, 1] and experts never overshoot their mean."""
    limit = (num_experts - 1) / num_experts
    if not 0 <= share_rate <= limit:
        raise ValueError(f"share rate {share_rate} is out of range: for {num_experts} experts it is 0 to {limit:.4g}")


class ExpertAverager:
    """Pulls the experts of every `Experts` layer towards their mean. Call `step` after each optimizer step::

        averager = ExpertAverager(model, share_rate=0.3, schedule="linear", total_steps=steps)
        ...
        optimizer.step()
        averager.step()

    One step with rate β moves each expert of N to W_i ← (1−β)·W_i + β/(N−1)·Σ_{j≠i} W_j (EWA, arXiv 2308.06093,
    equation 3), which is W_i ← W_i + r·(W̄ − W_i) with r = βN/(N−1): the mean W̄ stays, every distance from it shrinks
    by the factor 1 − r. With gradient accumulation call it for real optimizer steps only.

    Args:
        model: a model with `Experts` layers (after `upcycle`), on its final device.
        share_rate: β at the end of the schedule, 0 to (N−1)/N.
        schedule: ``constant``, ``linear`` (0 to β, the default) or ``cosine``.
        total_steps: the number of optimizer steps of the whole training; not needed for ``constant``.
        until: the part of ``total_steps`` after which experts are left to themselves ("early EWA"), above 0 to 1; the
            schedule reaches its end there.

    Raises:
        ValueError: no expert layer in the model, a share rate out of range, an unknown schedule, no ``total_steps``.
    """

    def __init__(
        self,
        model: nn.Module,
        share_rate: float = 0.3,
        schedule: str = "linear",
        total_steps: int | None = None,
        *,
        until: float = 1.0,
    ):
        self.layers = [module for module in model.modules() if isinstance(module, Experts)]
        if not self.layers:
            raise ValueError("the model has no expert layers to average: call ewa3d.upcycle(model) first")
        for layer in self.layers:
            check_share_rate(share_rate, layer.num_experts)
        if not 0 < until <= 1:
            raise ValueError(f"until={until}: experts are averaged for a part of training, above 0 to 1")
        if until < 1 and not total_steps:
            raise ValueError(f"until={until} is a part of total_steps, the number of optimizer steps: name it")
        self.share_rate = share_rate
        self.schedule = schedule
        self.total_steps = max(round(until * total_steps), 1) if total_steps else None
        self.stops = until < 1
        self.steps = 0
        share_rate_at(0, share_rate, schedule, self.total_steps)  # a bad one is an error now

    @property
    def current_share_rate(self) -> float:
        """The rate that the last step used: 0 before the first, and after the last of early EWA."""
        if self.steps == 0 or (self.stops and self.steps > (self.total_steps or 0)):
            return 0.0
        return share_rate_at(self.steps, self.share_rate, self.schedule, self.total_steps)

    @torch.no_grad()
    def step(self) -> None:
        """Average once, at the rate that the schedule gives for this step."""
        self.steps += 1
        rate = self.current_share_rate
        if rate == 0:
            return
        for layer in self.layers:
            weight = contraction(rate, layer.num_experts)
            for params in layer.parameter_sets().values():
                mean = mean_tensor(params)
                for param in params:
                    param.lerp_(mean, weight)

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs: the number of steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = int(state["steps"])
