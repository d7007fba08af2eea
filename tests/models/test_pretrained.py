"""Weights in and out, without the official models: exports, bare state dicts, bad files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ewa3d

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}


def tiny(**options):
    return ewa3d.create_model("point_mae_tiny", **TINY, **options)


def test_an_export_round_trips(tmp_path):
    model = tiny(num_classes=5)
    folder = ewa3d.save_pretrained(model, tmp_path / "export", metadata={"class_names": list("abcde")})
    again = ewa3d.from_pretrained(folder)
    points = torch.rand(2, 40, 3)
    assert torch.equal(again(points), model.eval()(points))
    assert again.metadata == {"class_names": list("abcde")}
    assert again.config == model.config
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    second = ewa3d.save_pretrained(again, tmp_path / "second")
    assert json.loads((second / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


KINDS = {
    "classifier": lambda family: ewa3d.create_model(f"{family}_tiny", num_classes=5, fps_min_norm=0.03, **TINY),
    "segmenter": lambda family: ewa3d.create_model(
        f"{family}_tiny", "part_segmentation", num_classes=5, num_categories=2, **TINY
    ),
    "autoencoder": lambda family: ewa3d.create_model("point_mae_tiny", "pretraining", decoder_depth=1, **TINY),
    "merged": lambda family: ewa3d.merge(ewa3d.upcycle(KINDS["classifier"](family), 3, init="independent")),
    "routed": lambda family: ewa3d.upcycle(KINDS["classifier"](family), 3, routing="topk", init="independent"),
}


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_comes_back_bit_for_bit(tmp_path, kind, family):
    """A training step first: running statistics, and weights that no initialisation gives."""
    model, points = KINDS[kind](family).train(), torch.rand(2, 40, 3)
    more = {"segmenter": [torch.tensor([1, 0])], "autoencoder": [torch.arange(8).expand(2, 8) < 4]}.get(kind, [])

    def outputs(of):
        out = of(points, *more)
        return out if isinstance(out, dict) else {"logits": out}

    sum(value.square().mean() for value in outputs(model).values() if value.requires_grad).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    again = ewa3d.from_pretrained(ewa3d.save_pretrained(model, tmp_path / "export"))
    assert type(again) is type(model) and again.config == model.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    ours, theirs = outputs(model.eval()), outputs(again)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_merged_model_loads_strictly_into_a_fresh_one(tmp_path):
    dense = ewa3d.merge(ewa3d.upcycle(tiny(), 3, init="independent"))
    ewa3d.save_pretrained(dense, tmp_path / "export")
    report = ewa3d.load_pretrained(tiny(), tmp_path / "export", strict=True)
    assert len(report.matched) == len(dense.state_dict())


@pytest.mark.parametrize("container", [None, "model", "state_dict", "base_model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_and_wrapped_state_dicts_load(tmp_path, container, prefix):
    state = {prefix + key: value for key, value in tiny().state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "weights.pth")
    report = ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth", strict=True)
    assert report.missing == report.unexpected == []


def test_names_that_are_no_text_are_passed_over(tmp_path):
    torch.save({**tiny().state_dict(), (1, 2): torch.ones(1), 3: torch.ones(1)}, tmp_path / "weights.pth")
    assert ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth").unexpected == []


def test_create_model_takes_weights(tmp_path):
    model = tiny()
    ewa3d.save_pretrained(model, tmp_path / "export")
    again = tiny(pretrained=tmp_path / "export")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    assert "pretrained" not in again.config


def test_strict_says_what_differs(tmp_path):
    state = tiny().state_dict()
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    report = ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth")
    assert (report.missing, report.unexpected) == (["norm.weight"], ["extra"])
    with pytest.raises(ewa3d.Ewa3dError, match=r"missing 1: norm\.weight; unexpected 1: extra"):
        ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth", strict=True)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"base_model": tiny().state_dict(), "metrics": Malicious()}, "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Malicious()}))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ewa3d.Ewa3dError, match=name):
            ewa3d.load_pretrained(tiny(), name)
    assert not (tmp_path / "pwned").exists()


class Calling:
    """Pickled, it is a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        Calling(open, "pwned", "w"),
        Calling(eval, "open('pwned', 'w')"),
        Calling(np.save, "pwned", np.zeros(1)),
        {"acc": [Calling(os.mkdir, "pwned")]},
        np.zeros(3),
        np.random.RandomState(0),
        Path("pwned"),
    ],
    ids=lambda more: type(more).__name__,
)
def test_whatever_is_neither_tensor_nor_score_is_refused_unread(tmp_path, monkeypatch, more, new_format):
    monkeypatch.chdir(tmp_path)
    state = {"base_model": tiny().state_dict(), "best_metrics": more}
    torch.save(state, "evil.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ewa3d.Ewa3dError, match=r"evil\.pth .*is not opened, for safety") as caught:
        ewa3d.load_pretrained(tiny(), "evil.pth")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_])
def test_scores_that_are_numpy_scalars_are_read_over(tmp_path, kind, new_format):
    state = {"base_model": tiny().state_dict(), "metrics": {"acc": kind(1)}, "best_metrics": [kind(0)]}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=new_format)
    report = ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth", strict=True)
    assert len(report.matched) == len(tiny().state_dict())


def test_the_scores_of_a_file_from_before_numpy_2_are_read_over(tmp_path):
    state = {"base_model": tiny().state_dict(), "metrics": {"acc": np.float64(92.9)}}
    torch.save(state, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.pth").read_bytes()
    names = {b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"}
    (now,) = [name for name in names if name in content]
    (other,) = names - {now}
    (tmp_path / "old.pth").write_bytes(content.replace(now, other))
    for name in ("new.pth", "old.pth"):
        assert ewa3d.load_pretrained(tiny(), tmp_path / name, strict=True).missing == []


def test_a_numpy_type_that_lies_about_itself_reaches_no_numpy(tmp_path):
    """The state of a type comes from the file; NumPy would believe one that says that numbers are objects."""

    class Lying:
        def __reduce__(self):
            return np.dtype, ("f8", False, True), (3, "<", None, None, None, 10**9, 1, 63)

    score = Calling(np.float64(0).__reduce__()[0], Lying(), b"\xff" * 8)
    torch.save({"base_model": tiny().state_dict(), "metrics": score}, tmp_path / "lying.pth")
    assert ewa3d.load_pretrained(tiny(), tmp_path / "lying.pth", strict=True).missing == []


def test_the_head_s_sizes_are_those_of_the_file_unless_others_are_asked_for(tmp_path):
    file = ewa3d.save_pretrained(tiny(num_classes=15), tmp_path / "cls.pth", format="official")
    assert tiny(pretrained=file).num_classes == tiny(pretrained=file).config["num_classes"] == 15
    assert tiny(pretrained=file, num_classes=7).num_classes == 7
    parts = {"task": "part_segmentation", "num_classes": 9, "num_categories": 3}
    file = ewa3d.save_pretrained(tiny(**parts), tmp_path / "parts.pth", format="official")
    again = tiny(task="part_segmentation", pretrained=file)
    assert (again.num_classes, again.num_categories) == (9, 3)
    assert tiny(pretrained=file).num_classes == 40, "a head for parts says nothing of classes"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "no such weights file"),
        ("text.pth", b"hello", "text.pth"),
        ("empty.pth", b"", "no readable PyTorch file"),
        ("broken.safetensors", b"12345678123", "no readable safetensors file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ewa3d.Ewa3dError, match=message):
        ewa3d.load_pretrained(tiny(), tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ewa3d.Ewa3dError, match=r"weights\.pth is no readable PyTorch file"):
        ewa3d.load_pretrained(tiny(), tmp_path / "weights.pth")


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ewa3d.Ewa3dError, match="none of its 1 keys fits PointClassifier"):
        ewa3d.load_pretrained(tiny(), tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ewa3d.Ewa3dError, match="holds a list, not a state dict"):
        ewa3d.load_pretrained(tiny(), tmp_path / "list.pth")


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ewa3d.Ewa3dError, match=r"is no export: it has no config\.json"):
        ewa3d.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ewa3d.Ewa3dError, match="does not describe a model"):
        ewa3d.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"depth": 10**9}, "depth=1000000000, and there are"),
        ({"embed_dim": 10**7}, "values, and its weights have"),
        ({"num_classes": 10**9}, "values, and its weights have"),
        ({"num_heads": 0}, "does not describe a model"),
        ({"embed_dim": -24}, "does not describe a model"),
        ({"embed_dim": 1e400}, "does not describe a model"),
        ({"depth": "two"}, "does not describe a model"),
        ({"pretrained": "/etc/passwd"}, "an export has its own weights"),
    ],
    ids=str,
)
def test_a_config_that_claims_what_its_weights_are_not_is_refused(tmp_path, changed, message):
    folder = ewa3d.save_pretrained(tiny(), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ewa3d.Ewa3dError, match=message) as error:
        ewa3d.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_config_of_a_billion_experts_is_refused(tmp_path):
    folder = ewa3d.save_pretrained(ewa3d.upcycle(tiny(), 2, routing="topk"), tmp_path / "export")
    text = (folder / "config.json").read_text()
    assert ewa3d.from_pretrained(folder)
    (folder / "config.json").write_text(text.replace('"num_experts": 2', '"num_experts": 1000000000'))
    with pytest.raises(ewa3d.Ewa3dError, match="num_experts=1000000000, and there are"):
        ewa3d.from_pretrained(folder)


def test_a_model_with_experts_is_not_saved_as_plain(tmp_path):
    with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
        ewa3d.save_pretrained(ewa3d.upcycle(tiny()), tmp_path / "export")
    with pytest.raises(ValueError, match="unknown format 'tflite'"):
        ewa3d.save_pretrained(tiny(), tmp_path / "export", format="tflite")
