"""One optimizer step, run as written or replayed from a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import Ewa3dError
from ..ewa import aux_loss, is_routed
from .schema import Config

Inputs = tuple[Tensor, ...]


class Step(Protocol):
    """What `TrainStep` and `GraphedStep` are to the training loop."""

    @property
    def norm(self) -> Tensor | None: ...

    @property
    def skipped(self) -> bool: ...

    def __call__(self, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]: ...


class TrainStep:
    """Forward, loss, backward, clipping and optimizer for one batch; while accumulating, gradients only.

    Nothing in it reads a value back from the device, so the host runs ahead of a GPU, and a CUDA graph can hold it.

    Args:
        config: of the run.
        accelerator: that prepared model and optimizer.
        model: in training mode.
        optimizer: of its parameters.

    Call:
        The model's inputs and the truth of every row of its logits, both as `Task.training_batch` returns them, to the
        batch's loss ``()``, without a graph, and how many rows were right ``()``, int64. The loss is the cross entropy
        of logits; a model that returns a dict, as one for pretraining, has computed its ``loss`` itself, and no row is
        right. What routers add to the loss that is trained on is not in it, so that it compares between models.

    Attributes:
        norm: of the gradients of the last optimizer step, before clipping, ``()``; ``None`` where nothing needs it.
        skipped: with ``train.skip_nonfinite``, whether the last optimizer step was left out; then the model is as it
            was before, BatchNorm's statistics and all. It is known on the host, so a GPU is waited for.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer):
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.bf16 = config.train.precision == "bf16"
        self.clip_grad = config.optim.clip_grad
        self.label_smoothing = config.optim.label_smoothing
        self.routed = is_routed(model)
        self.norm: Tensor | None = None
        self.skipped = False
        self._skips = config.train.skip_nonfinite
        self._buffers: list[Tensor] | None = None  # before the batches that accumulate for one optimizer step

    def __call__(self, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        if self._skips and self._buffers is None:
            self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(*inputs)
        loss, right = training_loss(output, truth, self.label_smoothing)
        extra = aux_loss(self.model) if self.routed else None
        self.accelerator.backward(loss if extra is None else loss + extra)
        if self.accelerator.sync_gradients:
            if self.clip_grad is not None or self._skips:
                limit = math.inf if self.clip_grad is None else self.clip_grad
                self.norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
            self.skipped = self._skips and self._undone(loss.detach())
        if not self.skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), right

    def _undone(self, loss: Tensor) -> bool:
        """Take back what batches whose loss or gradients are not finite did to the model; whether there was need to."""
        assert self.norm is not None and self._buffers is not None
        bad = (~loss.isfinite() | ~self.norm.isfinite()).float()
        skipped = bool(self.accelerator.reduce(bad) > 0)  # of all processes
        if skipped:
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                    buffer.copy_(before)
        self._buffers = None
        return skipped


def training_loss(output: Any, truth: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss ``()`` of a model's output in training and how many rows were right ``()``, int64: see `TrainStep`."""
    if isinstance(output, Mapping):
        return output["loss"], torch.zeros((), dtype=torch.long, device=truth.device)
    logits, truth = output.float().flatten(0, -2), truth.flatten()
    loss = F.cross_entropy(logits, truth, label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(dim=1) == truth).sum()


class GraphedStep:
    """A `TrainStep` that is recorded once as a CUDA graph and from then on replayed: one launch for all its kernels.

    The first batches are trained eagerly, on the stream that the recording will use. They are the warm-up that
    PyTorch's "CUDA semantics" prescribes and ordinary steps of the training at once, so nothing that they did to
    weights, optimizer, BatchNorm or random state has to be undone. Recording then runs nothing; the batch at hand and
    those after it are copied into the recorded inputs and replayed. Random numbers are new in every replay: PyTorch
    moves the generator's offset on.

    A graph reads memory, not Python: the learning rates lie in tensors that are filled before every replay from the
    optimizer's groups. The groups themselves hold numbers at all other times, as the scheduler and checkpoints expect.

    Args:
        step: on a GPU, of one process, without accumulation, with a fused optimizer. Every batch must have the shapes
            of the first.

    Call:
        As `TrainStep`; what it returns is overwritten by the next call, ``norm`` too.
    """

    warm_up = 3
    skipped = False

    def __init__(self, step: TrainStep):
        self.step = step
        device = step.accelerator.device
        self.rates = [torch.zeros((), device=device) for _ in step.optimizer.param_groups]
        self.stream = torch.cuda.Stream(device)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: list[Tensor] = []  # inputs and truth, as the graph reads them
        self.result: tuple[Tensor, Tensor]  # as the graph writes it

    @property
    def norm(self) -> Tensor | None:
        return self.step.norm

    def __call__(self, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        for rate, group in zip(self.rates, self.step.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.calls += 1
        if self.calls <= self.warm_up:
            return self._eager(inputs, truth)
        if self.graph is None:
            self.graph = self._record(inputs, truth)
        for held, new in zip(self.held, (*inputs, truth), strict=True):
            held.copy_(new)
        self.graph.replay()
        return self.result

    def _eager(self, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)  # each stream waits for the other, so memory may change hands as well
        with torch.cuda.stream(self.stream), rates_in_tensors(self.step.optimizer, self.rates):
            result = self.step(inputs, truth)
        current.wait_stream(self.stream)
        return result

    def _record(self, inputs: Inputs, truth: Tensor) -> torch.cuda.CUDAGraph:
        self.held = [tensor.clone() for tensor in (*inputs, truth)]
        graph = torch.cuda.CUDAGraph()
        # a loader's thread that pins memory meanwhile is none of the recording's business: "thread_local"
        recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        with rates_in_tensors(self.step.optimizer, self.rates, capturable=True), recording:
            self.result = self.step(tuple(self.held[:-1]), self.held[-1])
        return graph


@contextmanager
def rates_in_tensors(optimizer: Optimizer, rates: list[Tensor], *, capturable: bool = False) -> Iterator[None]:
    """The optimizer's groups with these learning rates and this ``capturable``; afterwards they are as they were.

    A fused optimizer computes the same with either ``capturable``: it keeps its step count on the device anyway, and
    asks for the mark only where it is recorded.
    """
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, capturable
    try:
        yield
    finally:
        for group, (lr, mark) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = lr, mark


def make_step(config: Config, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> Step:
    """The step that ``train.cuda_graph`` asks for."""
    step = TrainStep(config, accelerator, model, optimizer)
    return GraphedStep(step) if config.train.cuda_graph else step


def check_graph(config: Config, accelerator: Accelerator) -> None:
    """Raise `Ewa3dError` where ``train.cuda_graph`` asks for what cannot be recorded."""
    if not config.train.cuda_graph:
        return
    obstacle = ""
    if accelerator.device.type != "cuda":
        obstacle = f"it needs an NVIDIA GPU, and this training runs on {accelerator.device.type}"
    elif accelerator.num_processes > 1:
        obstacle = f"it takes one process, and there are {accelerator.num_processes}"
    elif config.train.accumulation > 1:
        obstacle = f"it cannot accumulate, and train.accumulation={config.train.accumulation}"
    elif config.train.skip_nonfinite:
        obstacle = "train.skip_nonfinite=true asks after every step whether to take it"
    elif config.ewa is not None and config.ewa.routing == "topk":
        obstacle = "how many tokens an expert gets differs from step to step with ewa.routing=topk"
    if obstacle:
        raise Ewa3dError(f"train.cuda_graph=true: {obstacle}: set train.cuda_graph=false")
