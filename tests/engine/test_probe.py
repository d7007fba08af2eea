"""The linear probe: what a linear SVM reads from frozen features, and from those of the same model untrained."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import ewa3d
from ewa3d.engine.config import load_config
from ewa3d.engine.evaluate import describe_evaluation, evaluate_folder, load_model, open_evaluation
from ewa3d.engine.probe import pooled_features, predict_linear
from ewa3d.engine.tasks import Task
from ewa3d.engine.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run):
    """A run of a few seconds that has learned something."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    longer = ["train.epochs=8", "data.per_class=12", "optim.lr=2e-3", f"run.dir={folder}"]
    return folder, train(load_config(overrides=[*tiny_run, *longer]))


def test_the_svm_separates_what_is_linearly_separable_and_repeats():
    centers = 4 * torch.eye(5, 8)
    labels = torch.arange(5).repeat(20)
    rows = centers[labels] + 0.3 * torch.randn(100, 8)
    predicted = predict_linear(rows[:50], labels[:50], rows[50:])
    assert torch.equal(predicted, labels[50:])
    assert torch.equal(predicted, predict_linear(rows[:50], labels[:50], rows[50:]))
    shuffled = labels[torch.randperm(100)]
    assert (predict_linear(rows[:50], shuffled[:50], rows[50:]) == shuffled[50:]).float().mean() < 0.5


def test_the_probe_is_a_score_of_its_own_beside_the_single_pass(finished):
    folder, result = finished
    scores, what = evaluate_folder(folder, ["eval.probe=true"])
    assert list(scores) == ["source", "split", "single", "linear_probe"]
    assert scores["single"]["oa"] == result["single_oa"]
    assert scores["linear_probe"]["trained_on"] == "train" and scores["linear_probe"]["C"] == 0.01
    lines = describe_evaluation(scores, what).splitlines()
    assert lines[-1] == (
        f"test split, linear_probe: overall accuracy {scores['linear_probe']['oa']:.2f} %, mean class accuracy "
        f"{scores['linear_probe']['macc']:.2f} % (linear SVM with C = 0.01 on the frozen features of the train split)"
    )
    assert lines[-2].startswith("test split, single: ") and "SVM" not in lines[-2]


def test_the_probe_s_score_is_that_of_an_svm_on_both_splits_features(finished):
    from sklearn.metrics import accuracy_score
    from sklearn.svm import LinearSVC

    folder, _ = finished
    rows = {}
    for split in ("train", "test"):
        model, task, _, loader, accelerator, _ = open_evaluation(folder, [f"eval.split={split}"])
        rows[split] = [tensor.numpy() for tensor in pooled_features(model, task, loader, accelerator)]
    svm = LinearSVC(C=0.01, dual=False, max_iter=10_000).fit(*rows["train"])
    expected = 100 * accuracy_score(rows["test"][1], svm.predict(rows["test"][0]))
    assert evaluate_folder(folder, ["eval.probe=true"])[0]["linear_probe"]["oa"] == pytest.approx(expected)


def test_the_same_model_untrained_is_drawn_from_the_seed_and_nothing_else(finished):
    folder, _ = finished
    torch.manual_seed(5)
    first, what = evaluate_folder(folder, ["eval.probe=true", "eval.untrained=true"])
    torch.manual_seed(99)
    again, _ = evaluate_folder(folder, ["eval.probe=true", "eval.untrained=true"])
    other, _ = evaluate_folder(folder, ["eval.probe=true", "eval.untrained=true", "eval.seed=1"])
    assert first == again
    assert other["linear_probe"] == first["linear_probe"]
    assert other["linear_probe_untrained"] != first["linear_probe_untrained"]
    assert first["linear_probe"] != first["linear_probe_untrained"]
    assert "test split, linear_probe_untrained: " in describe_evaluation(first, what)


def test_probing_leaves_the_model_as_it_was(finished):
    folder, _ = finished
    before = load_model(folder).state_dict()
    evaluate_folder(folder, ["eval.probe=true", "eval.untrained=true"])
    assert all(torch.equal(value, before[key]) for key, value in load_model(folder).state_dict().items())


def test_a_part_segmenter_is_probed_for_its_categories(tiny_config):
    config = tiny_config("task=part_segmentation", "train.epochs=1")
    train(config)
    scores, _ = evaluate_folder(Path(config.run.dir), ["eval.probe=true"])
    assert 0 <= scores["linear_probe"]["oa"] <= 100 and set(scores) == {"source", "split", "whole", "linear_probe"}


def test_a_training_run_ends_with_its_probe_where_the_recipe_asks_for_it(tiny_config, capsys):
    result = train(tiny_config("eval.probe=true", "train.epochs=1"))
    assert f"test split, linear_probe: overall accuracy {result['linear_probe_oa']:.2f} %" in capsys.readouterr().out
    assert result["linear_probe_trained_on"] == "train"


def test_any_model_with_tokens_has_features():
    """What a task without a pooling of its own takes: maximum and mean over the tokens, of unmasked clouds."""

    class Tokens(nn.Module):
        def forward_features(self, points):
            return torch.stack([points[:, :, 0], -points[:, :, 1]], dim=-1)

    task = Task(SimpleNamespace(data=SimpleNamespace(num_points=3), eval=SimpleNamespace(seed=0)), {})
    points = torch.arange(24.0).reshape(1, 8, 3)
    features = task.features(Tokens(), {"points": points})
    assert features.tolist() == [[6.0, -1.0, 3.0, -4.0]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.probe=true", "eval.split=train"], r"eval\.split=train is trained on .*: take val or test"),
        (
            ["eval.probe=true", "eval.split=val", "data.train_split=trainval", "train.select=last"],
            r"eval\.split=val is trained on .*: take test",
        ),
        (["eval.untrained=true"], r"eval\.untrained=true: .* add eval\.probe=true"),
    ],
)
def test_a_probe_is_never_scored_on_what_it_was_trained_on(overrides, message):
    with pytest.raises(ewa3d.Ewa3dError, match=message):
        load_config(overrides=overrides)
