"""Models on the Hugging Face Hub: the library's own mixin, with a folder in the place of the Hub. No network."""

import copy
import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hub_mixin
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

import ewa3d
from ewa3d.models import PartSegmenter, PointClassifier, PointTransformer, hub

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 4}


def tiny(task="classification", **options):
    return ewa3d.create_model("point_mae_tiny", task, **TINY, **options)


class FolderHub:
    """What the tests need of `HfApi` and `snapshot_download`, on a folder."""

    def __init__(self, root: Path):
        self.root, self.asked = root, []

    def __call__(self, token=None):  # HfApi(token=…)
        return self

    def create_repo(self, repo_id, private=None, exist_ok=False):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.repo_id = repo_id
        return self

    def upload_folder(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(self, repo_id, *, allow_patterns, **options):
        self.asked.append((repo_id, options))
        files = [path.name for path in (self.root / repo_id).iterdir()]
        wanted = {file for file in files for pattern in allow_patterns if fnmatch.fnmatch(file, pattern)}
        assert wanted == {"config.json", "model.safetensors"}
        return str(self.root / repo_id)


@pytest.fixture
def the_hub(tmp_path, monkeypatch):
    fake = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(hub_mixin, "HfApi", fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return fake


def same_state(a, b) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_pushed_and_loaded_by_name(the_hub):
    model = tiny(num_classes=2)
    model.metadata = {"task": "classification", "class_names": ["bed", "sofa"], "data": {"name": "modelnet40"}}
    assert isinstance(model, ModelHubMixin)
    assert model.push_to_hub("user/beds") == "https://hub/user/beds/commit/1"
    for again in (
        ewa3d.from_pretrained("user/beds"),
        PointTransformer.from_pretrained("user/beds"),
        PointClassifier.from_pretrained("user/beds", revision="v1", token="t"),
    ):
        assert type(again) is PointClassifier and not again.training
        assert same_state(again, model) and again.metadata == model.metadata and again.config == model.config
    assert the_hub.asked[0] == ("user/beds", {}) and the_hub.asked[2][1] == {"revision": "v1", "token": "t"}


def test_the_card_says_what_it_is_and_its_code_runs(the_hub, capsys):
    model = tiny(num_classes=2)
    model.metadata = {"class_names": ["bed", "sofa"], "data": {"name": "modelnet40", "num_points": 1024}}
    model.push_to_hub("user/beds")
    card = ModelCard.load(the_hub.root / "user" / "beds" / "README.md")
    assert card.data.library_name == "ewa3d"
    assert {"point-cloud", "classification", "model_hub_mixin"} <= set(card.data.tags)
    assert "2 classes: bed, sofa." in card.text and "`modelnet40`, 1,024 points" in card.text
    assert "Merge" not in card.text
    code = card.text.partition("```python\n")[2].partition("```")[0]
    exec(code, {"points": torch.rand(50, 3)})
    assert "'bed'" in capsys.readouterr().out


def test_an_export_s_card_has_the_facts_of_its_merge(the_hub, tmp_path):
    folder = ewa3d.save_pretrained(tiny("part_segmentation", num_classes=3, num_categories=1), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "parts": {"Cup": ["body", "handle", "lid"]}}))
    report = {
        "split": "val",
        "before": {"instance_miou": 70.094, "per_category": {"Cup": 70.0}},
        "after": {"instance_miou": 70.081, "per_category": {"Cup": 70.0}},
        "max_logit_difference": 3.1e-6,
        "layers": {f"blocks.{i}.mlp": {"num_experts": 4, "relative": 0.001 * i} for i in (0, 1)},
    }
    (folder / "merge_report.json").write_text(json.dumps(report))
    ewa3d.push_to_hub(folder, "user/cups", private=True)
    text = ModelCard.load(the_hub.root / "user" / "cups" / "README.md").text
    assert "4 experts in each of 2 layers" in text and "0.001 of their mean's norm" in text and "3.1e-06" in text
    assert "| instance_miou | 70.09 | 70.08 |" in text and "per_category" not in text
    assert 'predict(model, points, "Cup")' in text
    assert type(PartSegmenter.from_pretrained("user/cups")) is PartSegmenter
    with pytest.raises(ewa3d.Ewa3dError, match="user/cups: is a PartSegmenter, and no PointClassifier"):
        PointClassifier.from_pretrained("user/cups")

    (folder / "merge_report.json").write_text("{")
    with pytest.raises(ewa3d.Ewa3dError, match=r"merge_report\.json: no readable report"):
        ewa3d.push_to_hub(folder, "user/cups")


def test_the_library_s_save_pretrained_writes_an_export(tmp_path):
    model = tiny(num_classes=3)
    model.save_pretrained(tmp_path / "export")
    assert same_state(ewa3d.from_pretrained(tmp_path / "export"), model)
    assert (tmp_path / "export" / "README.md").read_text().startswith("---\nlibrary_name: ewa3d\n")


def test_experts_are_refused_before_a_repository_is_made(the_hub):
    model = ewa3d.upcycle(tiny())
    with pytest.raises(ValueError, match=r"save ewa3d\.merge\(model\) instead"):
        model.push_to_hub("user/experts")
    assert not the_hub.root.exists()
    ewa3d.merge(model).push_to_hub("user/merged")
    routed = ewa3d.upcycle(tiny(), 3, routing="topk")
    routed.push_to_hub("user/routed")
    assert same_state(ewa3d.from_pretrained("user/routed"), routed)


def test_a_folder_comes_before_the_hub_and_a_path_never_goes_there(the_hub, tmp_path):
    model = tiny(num_classes=3)
    ewa3d.save_pretrained(model, tmp_path / "user" / "beds")
    assert same_state(ewa3d.from_pretrained("user/beds"), model)
    with pytest.raises(ewa3d.Ewa3dError, match="is no export"):
        ewa3d.from_pretrained(Path("user/chairs"))
    assert not the_hub.asked


def test_a_name_that_is_neither_path_nor_model_is_said_without_asking_the_hub(tmp_path):
    for name in ("runs/NAME/export", str(tmp_path / "absent"), "../export", "user/beds.git"):
        with pytest.raises(ewa3d.Ewa3dError, match="no such folder here, and no name of a model on the Hub") as error:
            ewa3d.from_pretrained(name)
        assert name in str(error.value)


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch):
    with pytest.raises(ewa3d.Ewa3dError, match="no such folder here, and the Hub cannot be asked") as error:
        ewa3d.from_pretrained("user/beds", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)  # nobody listens there
    assert "\n" not in str(error.value) and "check the name and the connection" in str(error.value)
    with pytest.raises(ewa3d.Ewa3dError, match="the Hub cannot be asked"):
        ewa3d.from_pretrained("user/beds", local_files_only=True, cache_dir=tmp_path)

    def refuse(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(hub_mixin.HfApi, "create_repo", refuse)
    with pytest.raises(ewa3d.Ewa3dError, match=r"user/beds: not uploaded: .*\(no route to host\)"):
        tiny().push_to_hub("user/beds")
    with pytest.raises(ewa3d.Ewa3dError, match="no/name/at/all: not uploaded: no name of a model on the Hub"):
        tiny().push_to_hub("no/name/at/all")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "user/beds: no such folder here, and no model on the Hub that is yours to see"),
        (GatedRepoError, "no model on the Hub that is yours to see"),
        (RevisionNotFoundError, "user/beds: the Hub has no such revision of it"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_one_line(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error.__new__(error)

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ewa3d.Ewa3dError, match=message):
        ewa3d.from_pretrained("user/beds", revision="v9")


def test_a_downloaded_config_can_name_no_other_weights(the_hub, tmp_path):
    folder = ewa3d.save_pretrained(tiny(), tmp_path / "hub" / "user" / "trap")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["pretrained"] = str(tmp_path / "secret.pth")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ewa3d.Ewa3dError, match="does not describe a model"):
        ewa3d.from_pretrained("user/trap")


def test_the_mixin_changes_nothing_about_a_model():
    model = tiny(num_classes=3).eval()
    points = torch.rand(2, 40, 3)
    assert torch.equal(copy.deepcopy(model)(points), model(points))
    assert "_hub" not in " ".join(model.state_dict())
