"""A training that `torchrun` starts, and what each of its processes saw: ``RANK.json`` in the folder given first.

With ``--signal-at STEP`` the last process gets SIGTERM after that optimizer step.
"""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path

import torch

from ewa3d.engine import session, stopping
from ewa3d.engine.cli import run_command
from ewa3d.engine.config import load_config
from ewa3d.engine.train import train
from ewa3d.ewa import ExpertAverager, experts

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--signal-at", type=int)
parser.add_argument("overrides", nargs="*")
args = parser.parse_intermixed_args()
seen: dict = {"partitions": [], "experts": [], "processes": 0, "backend": ""}


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


draw = experts.random_permutation


def watched_draw(*arguments, **options) -> torch.Tensor:
    order = draw(*arguments, **options)
    seen["partitions"].append(digest(order))
    return order


class Watched(ExpertAverager):
    def step(self) -> None:
        super().step()
        weights = [p for layer in self.layers for params in layer.parameter_sets().values() for p in params]
        seen["experts"].append(digest(*weights))
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and self.steps == args.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    try:
        train(load_config(overrides=args.overrides))
    finally:
        seen["processes"] = torch.distributed.get_world_size()
        seen["backend"] = torch.distributed.get_backend()
        (args.out / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


experts.random_permutation = watched_draw
session.ExpertAverager = Watched
stopping._AGREE_EVERY = 2
run_command(main)
