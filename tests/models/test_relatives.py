"""Files that share Point-MAE's names and are of another architecture, or of other sizes, are refused by name."""

import re

import pytest
import torch

import ewa3d

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def official_state(tmp_path, prefix=""):
    """A tiny classifier's state dict under the official names."""
    written = ewa3d.save_pretrained(ewa3d.create_model("point_mae_tiny", **TINY), tmp_path / "own.pth", "official")
    state = torch.load(written, weights_only=True)["base_model"]
    return {f"{prefix}{key}": value for key, value in state.items() if "cls_" not in key}


def without_blocks(state):
    return {key: value for key, value in state.items() if "blocks." not in key}


# what each of these models has of its own: a few of its keys, as its public code makes them
RELATIVES = {
    "PointGPT": ["{}blocks.sos", "{}blocks.layers.0.ln_1.weight", "{}blocks.layers.0.attn.in_proj_weight", "{}sos_pos"],
    "PointMamba": ["{}blocks.layers.0.mixer.A_log", "{}blocks.layers.0.norm.weight", "{}blocks.norm_f.weight"],
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize(
    ("name", "prefix"),
    [("PointGPT", "GPT_Transformer."), ("PointGPT", ""), ("PointMamba", "MAE_encoder."), ("PointMamba", "")],
)
def test_a_relative_with_other_blocks_is_named_and_refused(tmp_path, name, prefix, wrapper):
    state = without_blocks(official_state(tmp_path, prefix))
    state |= {key.format(prefix): torch.zeros(24) for key in RELATIVES[name]}
    file = tmp_path / "relative.pth"
    torch.save({"base_model": {f"{wrapper}{key}": value for key, value in state.items()}}, file)
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ewa3d.Ewa3dError, match=rf"relative\.pth: it seems to be a file of {name}, ") as caught:
        ewa3d.load_pretrained(model, file)
    assert "\n" not in str(caught.value) and "take weights of Point-MAE" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["MAE_encoder.", ""])
def test_recon_has_every_block_of_point_mae_and_a_second_branch_and_is_refused(tmp_path, prefix):
    state = official_state(tmp_path, prefix)
    for block in (0, 1):
        state[f"{prefix}blocks.blocks.{block}.attn_contrast.q.weight"] = torch.zeros(24, 24)
        state[f"{prefix}blocks.blocks.{block}.norm1_contrast.weight"] = torch.zeros(24)
    state[f"{prefix}img_token"] = torch.zeros(1, 1, 24)
    torch.save({"base_model": state}, tmp_path / "recon.pth")
    with pytest.raises(ewa3d.Ewa3dError, match=r"recon\.pth: it seems to be a file of ReCon, .*second branch"):
        ewa3d.create_model("point_mae_tiny", **TINY, pretrained=tmp_path / "recon.pth")


def test_what_truly_fits_is_loaded_whoever_wrote_it(tmp_path):
    torch.save({"base_model": official_state(tmp_path, "module.MAE_encoder.")}, tmp_path / "someone.pth")
    report = ewa3d.load_pretrained(ewa3d.create_model("point_mae_tiny", **TINY), tmp_path / "someone.pth")
    assert {key.split(".")[0] for key in report.missing} == {"head", "cls_token", "cls_pos"}
    assert report.unexpected == report.mismatched == []


def test_a_relative_that_nobody_knows_is_told_by_its_blocks(tmp_path):
    state = without_blocks(official_state(tmp_path, "MAE_encoder."))
    state["MAE_encoder.blocks.stages.0.conv.weight"] = torch.zeros(24)
    torch.save({"base_model": state}, tmp_path / "unknown.pth")
    with pytest.raises(ewa3d.Ewa3dError, match="none of its transformer blocks: it is of another architecture"):
        ewa3d.load_pretrained(ewa3d.create_model("point_mae_tiny", **TINY), tmp_path / "unknown.pth")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("point_mae_tiny", {**TINY, "embed_dim": 48}, "Point-MAE, 24 channels, 2 blocks, this model's Point-MAE, 48 "),
        ("point_bert_tiny", TINY, "Point-MAE, 24 channels, 2 blocks, this model's Point-BERT, 24 channels, 2 blocks"),
    ],
)
def test_a_backbone_of_other_sizes_is_refused_and_both_are_said(tmp_path, name, options, message):
    model = ewa3d.create_model(name, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    official_state(tmp_path)
    with pytest.raises(ewa3d.Ewa3dError, match=re.escape(message)):
        ewa3d.load_pretrained(model, tmp_path / "own.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(ewa3d.Ewa3dError, match=r"does not fit PointClassifier exactly: matched .*shape of "):
        ewa3d.load_pretrained(model, tmp_path / "own.pth", strict=True)
