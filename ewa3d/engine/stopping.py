"""What ends a training before its time: a signal, or numbers that are not finite."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import Ewa3dError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGREE_EVERY = 16  # steps; processes have to stop after the same one, and to ask each other makes a GPU wait


class StopRequest:
    """Within it SIGINT and SIGTERM are noted, so that the step that is running ends; a second one is not waited for."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other one may
            self._before = {which: signal.signal(which, self._note) for which in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()

    def agreed(self, accelerator: Accelerator, step: int | None = None) -> bool:
        """Whether to stop now: after optimizer step ``step``, or between epochs. All processes get the same answer."""
        if accelerator.num_processes > 1:
            if step is not None and step % _AGREE_EVERY:
                return False
            noted = accelerator.gather(torch.tensor([self.signum], device=accelerator.device))
            self.signum = int(noted.max())
        return self.signum != 0


def ignore_signals(worker: int) -> None:
    """For a loader's process: Ctrl-C and schedulers signal it too, and the training needs it to the end."""
    for which in _SIGNALS:
        signal.signal(which, signal.SIG_IGN)


class FiniteGuard:
    """Stops a training at the first batch whose loss or gradients are not finite, and names its clouds.

    A GPU is not waited for at every step: it keeps the number of the first such batch, which is read now and then and
    at the end of the epoch, before anything is saved.
    """

    def __init__(self, device: torch.device):
        self.every = 1 if device.type == "cpu" else 32
        self.first = torch.zeros((), dtype=torch.long, device=device)
        self.batches: list[tuple[int, int, Tensor, Tensor]] = []  # since the last look: batch, step, index, loss

    def note(self, batch: int, step: int, index: Tensor, loss: Tensor, norm: Tensor | None) -> bool:
        """Remember a batch; ``norm`` is that of its gradients, where it is known. Whether it is time to look."""
        finite = loss.isfinite() if norm is None else loss.isfinite() & norm.isfinite()
        self.first = torch.where((self.first == 0) & ~finite, batch, self.first)
        self.batches.append((batch, step, index, loss.clone()))
        return len(self.batches) >= self.every

    def look(self, epoch: int, clouds: Dataset, last_good: str) -> None:
        """Raise `Ewa3dError` where one of the batches since the last look was not finite."""
        first = int(self.first)
        for batch, step, index, loss in self.batches:
            if batch == first:
                files = [clouds.source(i) for i in index.tolist()]  # type: ignore[attr-defined]
                what = f"the loss became {float(loss)}" if not loss.isfinite() else "its gradients are not finite"
                raise Ewa3dError(
                    f"epoch {epoch}, step {step}, batch {batch}: {what}; {last_good}. Lower optim.lr, train in fp32, "
                    f"or leave such steps out with train.skip_nonfinite=true. Its clouds: {', '.join(files)}"
                )
        self.batches.clear()
