"""One optimizer step: what it computes, what it leaves alone, and how a CUDA graph of it is used."""

import json
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import AdamW

import ewa3d
from ewa3d.data import PointClouds
from ewa3d.engine.build import beside_the_model, build_model, make_accelerator, open_split, train_loader
from ewa3d.engine.session import Progress, start_session
from ewa3d.engine.step import GraphedStep, TrainStep, check_graph, rates_in_tensors
from ewa3d.engine.tasks import make_task
from ewa3d.engine.train import train, train_steps
from ewa3d.ewa import ExpertAverager


def small(device: str = "cpu") -> tuple[nn.Module, AdamW]:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return model, AdamW([{"params": weights}, {"params": rest, "weight_decay": 0.0}], lr=1e-2, fused=True)


def batches(count: int) -> list[tuple[tuple[torch.Tensor], torch.Tensor]]:
    return [((torch.randn(6, 4),), torch.randint(3, (6,))) for _ in range(count)]


def test_a_step_is_forward_loss_backward_clipping_and_optimizer(tiny_config):
    config = tiny_config("optim.clip_grad=0.1", "optim.label_smoothing=0.2")
    model, optimizer = small()
    twin, _ = small()
    twin.load_state_dict(model.state_dict())
    by_hand = AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    step = TrainStep(config, Accelerator(cpu=True), model, optimizer)
    for (x,), truth in batches(3):
        loss, right = step((x,), truth)
        logits = twin(x)
        expected = F.cross_entropy(logits, truth, label_smoothing=0.2)
        expected.backward()
        assert nn.utils.clip_grad_norm_(twin.parameters(), 0.1) > 0.1, "a test that could not fail otherwise"
        by_hand.step()
        by_hand.zero_grad()
        assert not loss.requires_grad and loss.item() == pytest.approx(expected.item())
        assert right.item() == (logits.argmax(1) == truth).sum().item()
        assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    "options", [[], ["train.precision=bf16"], ["ewa=null"], ["task=part_segmentation"], ["task=pretraining"]]
)
def test_nothing_in_training_reads_from_the_device(tiny_config, options):
    """The meta device has no values: whatever reads one, and so would wait for a GPU, is an error there."""
    config = tiny_config(*options)
    accelerator, dataset = make_accelerator(config.train), open_split(config, "train")
    model = build_model(config, dataset.metadata)[0].to("meta").train()
    step = TrainStep(config, accelerator, model, AdamW(model.parameters()))
    averager = ExpertAverager(model, schedule="constant") if config.ewa else None
    batch = dataset.to("meta").batch(range(8))
    for _ in range(2):
        inputs, truth = make_task(config, dataset.metadata).training_batch(batch)
        loss, right = step(inputs, truth)
        if averager is not None:
            averager.step()
        assert loss.device.type == right.device.type == "meta" and loss.shape == right.shape == ()


def test_a_model_that_returns_a_dict_has_computed_its_loss(tiny_config):
    class SelfTaught(nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).square().mean(), "more": x}

    model = SelfTaught(4, 2)
    before, x = model.weight.detach().clone(), torch.randn(6, 4)
    step = TrainStep(tiny_config(), Accelerator(cpu=True), model, AdamW(model.parameters(), lr=1e-2))
    expected = model(x)["loss"].item()
    loss, right = step((x,), torch.empty(0, dtype=torch.long))
    assert loss.item() == expected and not loss.requires_grad
    assert right.item() == 0 and right.dtype == torch.long
    assert not torch.equal(model.weight, before)


# Where the training data lie


@pytest.mark.parametrize(
    ("device", "free", "workers", "moved"),
    [("cuda", 5.0, 0, True), ("cuda", 3.9, 0, False), ("cuda", 5.0, 2, False), ("cpu", 5.0, 0, False)],
)
def test_data_go_to_a_gpu_where_they_take_less_than_a_quarter_of_what_is_free(
    tiny_config, monkeypatch, device, free, workers, moved
):
    config = tiny_config(f"train.num_workers={workers}").train
    data = PointClouds(torch.randn(10, 20, 3), torch.zeros(10, dtype=torch.long), ["thing"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * data.nbytes), 0))
    monkeypatch.setattr(PointClouds, "to", lambda self, device: f"on {device}")
    assert beside_the_model(data, config, torch.device(device)) == ("on cuda" if moved else data)


def test_only_data_on_the_host_of_a_gpu_are_pinned(tiny_config, monkeypatch):
    config = tiny_config().train
    data = PointClouds(torch.randn(32, 20, 3), torch.zeros(32, dtype=torch.long), ["thing"])
    assert not train_loader(data, config, torch.device("cpu")).pin_memory
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    assert train_loader(data, config, torch.device("cuda")).pin_memory
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    monkeypatch.setattr(PointClouds, "to", lambda self, _: clouds_on_meta)
    clouds_on_meta = PointClouds(data.points.to("meta"), data.labels.to("meta"), ["thing"])
    loader = train_loader(data, config, torch.device("cuda"))
    assert loader.dataset is clouds_on_meta and not loader.pin_memory


# The graph


def test_learning_rates_in_tensors_do_what_numbers_do_and_are_gone_afterwards():
    model, optimizer = small()
    twin = deepcopy(model)
    other = AdamW(twin.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
    for network in (model, twin):
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
    rates = [torch.tensor(3e-3), torch.tensor(3e-3)]
    with pytest.raises(RuntimeError, match="afterwards too"), rates_in_tensors(optimizer, rates, capturable=True):
        assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
        assert all(group["capturable"] for group in optimizer.param_groups)
        optimizer.step()
        raise RuntimeError("afterwards too")
    other.step()
    assert [(group["lr"], group["capturable"]) for group in optimizer.param_groups] == [(1e-2, False)] * 2
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two)


class OnTheHost:
    """What a CUDA graph does, acted on the CPU: recording changes nothing, a replay does what was recorded, with the
    memory that was recorded.
    """

    def __init__(self, monkeypatch, model: nn.Module, optimizer: AdamW):
        self.model, self.optimizer = model, optimizer
        self.recordings = self.replays = 0
        stream = SimpleNamespace(wait_stream=lambda _: None)
        for name, value in {
            "Stream": lambda _: stream,
            "current_stream": lambda: stream,
            "stream": lambda _: self.nothing(),
            "CUDAGraph": lambda: self,
            "graph": lambda *_, **__: self.recording(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def nothing(self):
        yield

    @contextmanager
    def recording(self):
        assert all(group["capturable"] for group in self.optimizer.param_groups)
        assert all(isinstance(group["lr"], torch.Tensor) for group in self.optimizer.param_groups)
        weights, state = deepcopy(self.model.state_dict()), deepcopy(self.optimizer.state_dict()["state"])
        yield
        self.model.load_state_dict(weights)
        for key, values in state.items():
            for name, value in values.items():
                self.optimizer.state[self.parameters()[key]][name].copy_(value)
        self.recordings += 1

    def parameters(self):
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def replay(self):
        graphed = self.graphed
        with rates_in_tensors(self.optimizer, graphed.rates):
            for held, new in zip(graphed.result, graphed.step((graphed.held[0],), graphed.held[1]), strict=True):
                held.copy_(new)
        self.replays += 1


def test_a_graph_is_recorded_once_and_every_batch_is_trained_once_at_its_own_rate(tiny_config, monkeypatch):
    config, data = tiny_config(), batches(8)
    model, optimizer = small()
    start = deepcopy(model.state_dict())
    rates = [1e-2 / (i + 1) for i in range(len(data))]

    def losses(step, optimizer):
        found = []
        for rate, (inputs, truth) in zip(rates, data, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate  # as the scheduler does
            loss, right = step(inputs, truth)
            found += [loss.item(), right.item()]
            assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        return found

    acted = OnTheHost(monkeypatch, model, optimizer)
    acted.graphed = GraphedStep(TrainStep(config, Accelerator(cpu=True), model, optimizer))
    graphed = losses(acted.graphed, optimizer)
    assert (acted.recordings, acted.replays) == (1, len(data) - GraphedStep.warm_up)

    twin, other = small()
    twin.load_state_dict(start)
    eager = losses(TrainStep(config, Accelerator(cpu=True), twin, other), other)
    assert graphed == pytest.approx(eager)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    ("device", "processes", "accumulation", "obstacle"),
    [
        ("cpu", 1, 1, "it needs an NVIDIA GPU, and this training runs on cpu"),
        ("cuda", 2, 1, "it takes one process, and there are 2"),
        ("cuda", 1, 4, "it cannot accumulate, and train.accumulation=4"),
    ],
)
def test_what_no_graph_can_hold_is_refused(tiny_config, device, processes, accumulation, obstacle):
    config = tiny_config("train.cuda_graph=true", f"train.accumulation={accumulation}")
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    with pytest.raises(ewa3d.Ewa3dError, match=rf"^train\.cuda_graph=true: {obstacle}: set train\.cuda_graph=false$"):
        check_graph(config, accelerator)
    check_graph(tiny_config(f"train.accumulation={accumulation}"), accelerator)


def test_a_graph_on_the_cpu_is_refused_before_anything_is_written(tiny_config):
    config = tiny_config("train.cuda_graph=true")
    with pytest.raises(ewa3d.Ewa3dError, match="needs an NVIDIA GPU"):
        train(config)
    assert not Path(config.run.dir).exists()


# On a GPU


@pytest.fixture
def on_gpu(tiny_config):
    """`tiny_config` for a GPU. What accelerate remembers of the process, its device among it, is forgotten for it."""

    def forget():
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)

    forget()
    yield lambda *overrides: tiny_config("train.device=cuda", "model.drop_path_rate=0", "optim.lr=1e-3", *overrides)
    forget()


def session_on_gpu(config):
    torch.manual_seed(0)
    session, _ = start_session(config, make_accelerator(config.train), open_split(config, "train"))
    session.scheduler.step_update(0)
    return session


@pytest.mark.gpu
@pytest.mark.parametrize("options", [[], ["train.precision=bf16"], ["task=part_segmentation"], ["ewa=null"]])
def test_a_gpu_trains_alike_with_a_graph_and_without(on_gpu, options):
    config = on_gpu(*options)
    losses = []
    for graph in (False, True):
        config.train.cuda_graph = graph
        session = session_on_gpu(config)
        assert isinstance(session.step, GraphedStep) == graph
        session.model.train()
        for module in session.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batch = open_split(config, "train").to("cuda").batch(range(16))
        found = []
        for i in range(10):
            torch.manual_seed(i)  # the same draws and partitions in both
            with session.accelerator.accumulate(session.model):
                loss, _ = session.step(*session.task.training_batch(batch))
            if session.averager is not None:
                session.averager.step()
            session.scheduler.step_update(i + 1)
            found.append(loss.item())
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2 if "train.precision=bf16" in options else 1e-3)
    assert losses[0][-1] < losses[0][0], "a test that could not fail otherwise"


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["false", "true"])
@pytest.mark.parametrize("options", [[], ["task=part_segmentation"], ["train.precision=bf16"]])
def test_the_host_does_not_wait_for_a_gpu_inside_an_epoch(on_gpu, options, graph):
    session = session_on_gpu(on_gpu(f"train.cuda_graph={graph}", *options))
    assert session.loader.dataset.device.type == "cuda"
    progress = Progress()
    for epoch in (1, 2):  # kernels are compiled, and the graph is recorded
        train_steps(session, progress, epoch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_steps(session, progress, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_run_with_a_graph_learns_and_is_resumed_with_and_without(on_gpu):
    options = ["train.epochs=6", "data.per_class=12"]
    train(on_gpu("train.cuda_graph=true", *options))
    folder = Path(on_gpu().run.dir)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train_loss"] for row in rows if "epoch" in row]
    assert len(losses) == 6 and losses[-1] < losses[0]
    saved = folder / "checkpoints" / (folder / "checkpoints" / "last").read_text().strip()
    groups = json.loads((saved / "state.json").read_text())["groups"]
    assert all(isinstance(group["lr"], float) for group in groups)
    for graph in ("true", "false"):
        (folder / "checkpoints" / "last").write_text(f"step-{rows[4]['step']}\n")  # as if it had stopped after epoch 5
        train(on_gpu(f"train.cuda_graph={graph}", "run.resume=true", *options))
