"""Losses and gradients that are not finite: named with their batch, or left out and counted."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from run_files import rows_of, state_of
from torch import nn
from torch.optim import AdamW

import ewa3d
from ewa3d.engine.build import make_accelerator, open_split
from ewa3d.engine.step import TrainStep, check_graph
from ewa3d.engine.tasks import Classification
from ewa3d.engine.train import train


@pytest.fixture
def spoil(monkeypatch):
    """``spoil(n, …)``: the points of the n-th batches, counted from 1, are NaN. Returns all batches' ``index``."""
    original = Classification.training_batch

    def arm(*numbers: int) -> list[list[int]]:
        seen: list[list[int]] = []

        def training_batch(self, batch):
            (points,), labels = original(self, batch)
            seen.append(batch["index"].tolist())
            return (points * float("nan") if len(seen) in numbers else points,), labels

        monkeypatch.setattr(Classification, "training_batch", training_batch)
        return seen

    return arm


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_clouds_and_checkpoint(tiny_config, spoil):
    batches = spoil(5)
    config = tiny_config()
    with pytest.raises(ewa3d.Ewa3dError) as stopped:
        train(config)
    said, folder = str(stopped.value), Path(config.run.dir)
    clouds = open_split(config, "train")
    assert said.startswith("epoch 2, step 5, batch 2: the loss became nan; the last good checkpoint is ")
    assert f"{folder}/checkpoints/step-3. Lower optim.lr" in said
    assert said.endswith("Its clouds: " + ", ".join(clouds.source(i) for i in batches[4])) and len(batches) == 5
    assert len(said.splitlines()) == 1
    assert all(value.isfinite().all() for value in state_of(folder).values())


def test_before_the_first_checkpoint_the_error_says_that_there_is_none(tiny_config, spoil):
    spoil(2)
    with pytest.raises(ewa3d.Ewa3dError, match=r"epoch 1, step 2, batch 2: .*; there is no checkpoint yet"):
        train(tiny_config())


def test_gradients_that_are_not_finite_stop_the_run_at_their_own_step(tiny_config, monkeypatch):
    """Their step would leave NaN in the weights, and the next batch, which is blameless, would be blamed."""
    original = Accelerator.backward
    calls = []

    def backward(self, loss):
        original(self, loss)
        calls.append(loss)
        if len(calls) == 4:
            next(p for group in self._optimizers[0].param_groups for p in group["params"]).grad.fill_(float("inf"))

    monkeypatch.setattr(Accelerator, "backward", backward)
    with pytest.raises(ewa3d.Ewa3dError, match="epoch 2, step 4, batch 1: its gradients are not finite"):
        train(tiny_config())


def test_steps_that_are_not_finite_are_left_out_and_counted(tiny_config, spoil, capsys):
    spoil(2, 4)
    config = tiny_config("train.skip_nonfinite=true")
    train(config)
    rows = rows_of(Path(config.run.dir))
    assert [row["skipped_steps"] for row in rows if "epoch" in row] == [1, 2, 2]
    assert [row["step"] for row in rows] == [2, 4, 7, 7]
    assert all(value.isfinite().all() for value in state_of(Path(config.run.dir)).values())
    assert "2 steps left out" in capsys.readouterr().out


def test_a_run_of_which_nothing_is_left_stops(tiny_config, spoil):
    spoil(1, 2, 3)
    with pytest.raises(ewa3d.Ewa3dError, match="epoch 1: every step was left out"):
        train(tiny_config("train.skip_nonfinite=true"))


class Normed(nn.Module):
    """A model with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(self.norm(x))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_left_out_changes_nothing(tiny_config, accumulation):
    """Weights, BatchNorm's statistics and the optimizer; and the step after it is what it would have been."""
    config = tiny_config("train.skip_nonfinite=true", f"train.accumulation={accumulation}")
    accelerator = make_accelerator(config.train)
    torch.manual_seed(0)
    model = Normed()
    optimizer = accelerator.prepare(AdamW(model.parameters(), lr=0.1))
    step = TrainStep(config, accelerator, model, optimizer)
    good, bad, truth = torch.randn(4, 3), torch.full((4, 3), float("nan")), torch.tensor([0, 1, 1, 0])

    def window(first: torch.Tensor) -> None:
        for number in range(accumulation):
            accelerator.gradient_state._set_sync_gradients(number == accumulation - 1)
            step((first if number == 0 else good,), truth)

    def state() -> list[torch.Tensor]:
        moments = [v for values in optimizer.state.values() for v in values.values()]
        return [value.clone() for value in (*model.state_dict().values(), *moments)]

    window(good)
    assert not step.skipped
    before = state()
    window(bad)
    assert step.skipped and all(map(torch.equal, state(), before))
    window(good)
    assert not step.skipped and not all(map(torch.equal, state(), before))
    assert all(value.isfinite().all() for value in state())


def test_a_recorded_step_cannot_be_left_out(tiny_config):
    config = tiny_config("train.skip_nonfinite=true", "train.cuda_graph=true")
    accelerator = make_accelerator(config.train)
    with pytest.raises(ewa3d.Ewa3dError, match=r"train\.cuda_graph=true: "):
        check_graph(config, accelerator)
