"""Weights in and out, without the official models: exports, bare state dicts, bad files."""

import json
import os
import pickle

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


def test_a_model_with_experts_is_not_saved_as_plain(tmp_path):
    with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
        ewa3d.save_pretrained(ewa3d.upcycle(tiny()), tmp_path / "export")
    with pytest.raises(ValueError, match="unknown format 'onnx'"):
        ewa3d.save_pretrained(tiny(), tmp_path / "export", format="onnx")
