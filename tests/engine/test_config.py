"""Configurations: recipes, overrides, and mistakes that are named."""

from dataclasses import fields
from pathlib import Path

import pytest

from ewa3d import Ewa3dError
from ewa3d.engine.config import describe_keys, load_config, to_yaml
from ewa3d.engine.schema import GROUPS, Config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    assert load_config(path).recipe == path.stem


def test_the_dense_recipe_is_the_other_without_experts():
    folder = RECIPES[0].parent
    dense, ewa = (load_config(folder / f"modelnet40_scratch{end}.yaml") for end in ("_dense", ""))
    assert dense.ewa is None and ewa.ewa is not None
    ewa.ewa, ewa.recipe = None, dense.recipe
    assert dense == ewa


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7, seed: 3}\newa: {num_experts: 8}\n")
    config = load_config(file, ["train.epochs=9", "model.depth=2"])
    assert (config.train.epochs, config.train.seed, config.model.depth) == (9, 3, 2)
    assert config.ewa.num_experts == 8 and config.ewa.every == 2
    assert config.recipe == "mine"


def test_ewa_null_is_dense():
    assert load_config(overrides=["ewa=null"]).ewa is None


def test_a_configuration_round_trips(tmp_path):
    overrides = ["train.epochs=9", "ewa.schedule=cosine", "data.root=/data", "recipe=mine", f"run.dir={tmp_path}"]
    config = load_config(overrides=overrides)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "checkpoints").mkdir()  # what tells a run's own file from a recipe
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key train\.epoch: did you mean train\.epochs\?"),
        ("trian.epochs=3", r"unknown key trian: did you mean train\?"),
        ("ewa.share_rat=0.1", r"unknown key ewa\.share_rat: did you mean ewa\.share_rate\?"),
        ("train.epochs=many", r"train\.epochs: Value 'many'"),
        ("train.epochs=0", r"train\.epochs=0: must be 1 or more"),
        ("optim.lr=-1", r"optim\.lr=-1\.0: must be 0 or more"),
        ("train.batch_size=1", r"train\.batch_size=1: must be 2 or more"),
        ("ewa.num_experts=1", r"ewa\.num_experts=1: must be 2 or more"),
        ("ewa.share_rate=0.8", r"ewa\.share_rate=0\.8: with 4 experts it is at most 0\.75"),
        ("ewa.schedule=sine", r"ewa\.schedule=sine: no such choice: did you mean cosine\?|choose one of"),
        ("model.name=point_mae", r"model\.name=point_mae: no such choice: did you mean point_mae_"),
        ("data.name=modelnet", r"data\.name=modelnet: no such choice: did you mean modelnet40\?"),
        ("data.name=shapenetpart", "data.name=shapenetpart: not for task=classification: take shapes or modelnet40"),
        ("data.fraction=0", r"data\.fraction=0\.0: must be above 0 and at most 1"),
        ("data.fraction=1.5", r"data\.fraction=1\.5: must be above 0 and at most 1"),
        ("data.name=modelnet40_fewshot", r"train\.select=val: a few-shot episode has no validation split: take last"),
        ("data.name=scanobjectnn_obj", r"did you mean scanobjectnn_obj_bg\?"),
        ("task=segmentation", r"task=segmentation: no such choice: did you mean part_segmentation\?"),
        ("train.precision=fp16", r"train\.precision=fp16: no such choice: did you mean bf16\?|fp32"),
        ("data.num_points=20", r"model\.group_size=32: a group has no more points than the cloud, data\.num_points=20"),
        ("train.select=test", "the test split chooses nothing unless the recipe is called official"),
        ("optim.layer_decay=1.5", r"optim\.layer_decay=1\.5: must be above 0 and at most 1"),
        ("optim.layer_decay=0", r"optim\.layer_decay=0\.0: must be above 0 and at most 1"),
        ("ewa.expert_lr=0", r"ewa\.expert_lr=0: must be above 0"),
        ("ema.decay=1", r"ema\.decay=1\.0: must be below 1"),
        ("ema.deca=0.9", r"unknown key ema\.deca: did you mean ema\.decay\?"),
        ("data.train_split=trainval", "would choose on training data"),
        ("epochs", r"'epochs' is no key=value"),
        ("train.epochs=[1", "cannot be read as YAML"),
        ("train=5", "train"),
    ],
)
def test_mistakes_are_named_in_one_line(override, message):
    with pytest.raises(Ewa3dError, match=message) as caught:
        load_config(overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["modelnet40", "scanobjectnn_obj_bg"])
def test_choosing_on_val_needs_a_val_split(name):
    with pytest.raises(Ewa3dError, match=r"set data\.val_fraction above 0, or take last"):
        load_config(overrides=[f"data.name={name}", "data.val_fraction=0"])


def test_part_segmentation_has_its_own_augmentation():
    with pytest.raises(Ewa3dError, match=r"data\.augmentation=rotate: is for classification"):
        load_config(overrides=["task=part_segmentation", "data.augmentation=rotate"])


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {epochs: 3}")
    with pytest.raises(Ewa3dError, match=r"no such recipe: did you mean .*recipe\.yaml\?"):
        load_config(tmp_path / "recpe.yaml")
    (tmp_path / "broken.yaml").write_text("train: [3")
    with pytest.raises(Ewa3dError, match=r"broken\.yaml is no readable YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 3")
    with pytest.raises(Ewa3dError, match="not a table of keys"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: {epochs: &a [*a, *a]}", "its aliases make more than 100000 values of it"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 9)), "its aliases"),
        ("train: {epochs: 1} " + "#" * (1 << 20), "it has 1048595 bytes"),
        ("[" * 5000, "is no readable YAML"),
        ("train: {epochs: '${train.batch_size'}", "is no readable YAML|: "),
        ("train: {epochs: '${nothing}'}", "Interpolation key 'nothing' not found"),
        ("train: {epochs: '${train.epochs}'}", ": "),
        ("!!python/object/apply:os.system ['touch run']", "is no readable YAML: could not determine a constructor"),
        ("train:\n  ? " + "x" * 10_000 + "\n  : 1", r"unknown key train\.xxx"),
        ("task: " + "x" * 10_000, "task=xxx"),
    ],
    ids=range(10),
)
def test_files_that_are_made_to_do_harm_are_one_line(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(Ewa3dError, match=message) as error:
        load_config(tmp_path / "mine.yaml")
    assert len(str(error.value)) < 600 and len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_aliases_and_references_that_are_meant_well_are_followed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: &few 7, seed: *few}\noptim: {warmup_epochs: '${train.epochs}'}\n")
    config = load_config(file)
    assert (config.train.epochs, config.train.seed, config.optim.warmup_epochs) == (7, 7, 7)


def test_a_test_split_may_choose_in_a_recipe_called_official(tmp_path):
    (tmp_path / "my_official.yaml").write_text("train: {select: test}\ndata: {train_split: trainval}")
    assert load_config(tmp_path / "my_official.yaml").train.select == "test"


def test_help_lists_every_key():
    text = describe_keys()
    for group, cls in GROUPS.items():
        for name in (field.name for field in fields(cls) if "help" in field.metadata):
            assert f"{group}.{name} = " in text
    groups = {group for group in GROUPS if "." not in group}
    assert groups | {"recipe", "task"} == set(Config.__dataclass_fields__)
    assert set(GROUPS) - groups == {"ewa.router"}
