"""The README's Python is run as it stands."""

import re
from pathlib import Path

import pytest
import torch

import ewa3d

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(word: str) -> str:
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_the_training_loop_and_the_merge(folder):
    loader = [(torch.rand(2, 128, 3), torch.tensor([0, 39]))]
    names = {"torch": torch, "ewa3d": ewa3d, "loader": loader, "epochs": 1}
    exec(block("for points, labels in loader"), names)
    assert names["averager"].steps == 1
    exec(block("save_pretrained"), names)
    assert {path.name for path in folder.iterdir()} == {"export", "model.pth"}
    points = torch.rand(1, 128, 3)
    torch.testing.assert_close(names["same"](points), names["model"].eval()(points), rtol=0, atol=1e-5)


def test_weights_for_a_merge():
    model = ewa3d.create_model("point_mae_tiny", num_classes=3, embed_dim=24, depth=2, num_heads=2)
    ewa3d.upcycle(model, 2, init="independent")

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    names = {"ewa3d": ewa3d, "model": model, "loss": loss}
    names["batches"] = [(torch.rand(2, 64, 3), torch.tensor([0, 2]))]
    exec(block("learn_weights"), names)
    assert names["better"].state_dict().keys() == ewa3d.merge(model).state_dict().keys()
    assert list(names["weights"]) == ["blocks.1.mlp"] and names["weights"]["blocks.1.mlp"][0] != 0.5


def test_official_weights(folder, capsys):
    ewa3d.save_pretrained(ewa3d.create_model("point_mae_small"), folder / "modelnet_1k.pth", format="official")
    exec(block("load_pretrained"), {"ewa3d": ewa3d})
    assert capsys.readouterr().out == "matched 174 keys\n"


def test_part_segmentation():
    names = {"torch": torch, "ewa3d": ewa3d}
    exec(block("part_segmentation"), names)
    assert names["logits"].shape == (2, 2048, 50)


def test_pretraining():
    names = {"torch": torch, "ewa3d": ewa3d}
    exec(block('task="pretraining"'), names)
    assert names["output"]["mask"].sum(dim=1).tolist() == [38, 38]
    assert names["model"].mask_token.grad is not None


def test_a_learned_router():
    names = {"ewa3d": ewa3d, "criterion": torch.nn.functional.cross_entropy, "points": torch.rand(2, 128, 3)}
    names |= {"model": ewa3d.create_model("point_mae_tiny"), "labels": torch.tensor([0, 39])}
    exec(block('routing="topk"'), names)
    names["loss"].backward()
    assert names["model"].blocks[1].mlp.router.weight.grad.abs().sum() > 0


def test_predicting(folder, capsys):
    model = ewa3d.create_model("point_mae_tiny", num_classes=2, embed_dim=24, depth=2, num_heads=2)
    export = folder / "runs" / "modelnet40_cpu" / "export"
    ewa3d.save_pretrained(model, export, metadata={"class_names": ["bed", "sofa"]})
    exec(block("ewa3d.predict"), {"ewa3d": ewa3d, "points": torch.rand(3000, 3)})
    assert "'bed'" in capsys.readouterr().out


def test_to_the_hub_and_back(folder, monkeypatch):
    export = ewa3d.save_pretrained(ewa3d.create_model("point_mae_tiny"), folder / "runs" / "modelnet40_cpu" / "export")
    pushed = []

    class Api:  # of huggingface_hub, with nothing behind it
        def __init__(self, token=None):
            self.repo_id = "user/name"

        def create_repo(self, repo_id, private, exist_ok):
            pushed.append((repo_id, private))
            return self

        def upload_folder(self, *, folder_path, **_):
            pushed.append(sorted(path.name for path in folder_path.iterdir()))

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("ewa3d.models.hub.snapshot_download", lambda repo_id, **_: str(export))
    names = {"ewa3d": ewa3d}
    exec(block("push_to_hub"), names)
    assert pushed == [("user/name", True), ["README.md", "config.json", "model.safetensors"]]
    assert names["model"].num_classes == 40


def test_any_vit():
    names: dict = {}
    exec(block("import timm"), names)
    assert names["plain"](torch.rand(1, 3, 224, 224)).shape == (1, 10)


def test_every_file_it_names_exists():
    for path in set(re.findall(r"(?:configs|tools|datasets|docs|tests)/[\w./]+\.\w+", README)):
        assert (ROOT / path).is_file(), path
