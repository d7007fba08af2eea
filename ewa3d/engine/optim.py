"""What changes the weights besides the gradient: parameter groups, the learning rate's schedule, the moving average."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from ..ewa import expert_layers
from .schema import Config, EmaConfig


def decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None, expert_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups by the official rule: no decay for biases, norms (all 1-D parameters) and names with ``token``.

    Args:
        model: with timm's ``group_matcher`` where ``layer_decay`` is given.
        weight_decay: of the other parameters.
        layer_decay: each layer learns at this part of the next one's rate (BEiT, arXiv 2106.08254, section 3.2); the
            groups carry it as ``lr_scale``, which timm's schedulers follow.
        expert_lr: the experts learn at so many times the others' rate, with the part of the weight decay that leaves
            its product with the rate as it is (docs/method.md, section 4).
    """
    if layer_decay is not None:
        groups = param_groups_layer_decay(model, weight_decay, ("*.bias", "*token*"), layer_decay=layer_decay)
    else:
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            no_decay = parameter.ndim <= 1 or name.endswith(".bias") or "token" in name
            (free if no_decay else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if expert_lr == 1:
        return groups
    experts = {id(p) for layer in expert_layers(model).values() for p in layer.experts.parameters()}
    apart = []
    for group in groups:
        own = [p for p in group["params"] if id(p) in experts]
        others = [p for p in group["params"] if id(p) not in experts]
        scale = group.get("lr_scale", 1.0) * expert_lr
        apart.append({**group, "params": others})
        apart.append({**group, "params": own, "lr_scale": scale, "weight_decay": group["weight_decay"] / expert_lr})
    return [group for group in apart if group["params"]]


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


def make_ema(config: EmaConfig, model: nn.Module) -> ModelEmaV3:
    """The moving average of a model's weights, BatchNorm's statistics and all; it is updated with the step's number.

    Experts are averaged each for itself. Both this average and the merge are linear, so the merge of the average is the
    average of the merges; and as EWA's own step leaves the experts' mean where it is, the two do not get in each
    other's way: EWA pulls experts towards their mean, this smooths the path of the mean over time.

    Args:
        config: its decay; with ``warmup`` that of step t is at most 1 - t^(-2/3).
        model: unwrapped, on its final device.
    """
    return ModelEmaV3(model, decay=config.decay, use_warmup=config.warmup)
