"""Parity with the official models, and their files in and out."""

import numpy as np
import pytest
import torch
from torch import nn

import ewa3d
from ewa3d.ewa import expert_distances
from ewa3d.models.official import from_official, to_official
from ewa3d.ops import farthest_point_sample

OFFICIAL_NORM = 1e-3**0.5


def write_official(path, state, container="base_model"):
    """A file as the official code writes it, its score a NumPy scalar."""
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({container: wrapped, "epoch": 300, "metrics": {"acc": np.float64(92.9)}, "best_metrics": {}}, path)
    return path


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
def test_logits_are_those_of_the_official_model(official, family):
    fixture = official(f"{family}_cls")
    model = ewa3d.create_model(f"{family}_small", num_classes=40, fps_min_norm=OFFICIAL_NORM)
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    ours, left_over = from_official(fixture.state)
    assert left_over == []
    model.load_state_dict(ours, strict=True)
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(fixture.arrays["points"]))
    torch.testing.assert_close(logits, torch.from_numpy(fixture.arrays["logits"]), rtol=0, atol=1e-4)


def official_partseg():
    return ewa3d.create_model(
        "point_mae_small", task="part_segmentation", num_groups=128, fps_min_norm=OFFICIAL_NORM
    ).eval()


def test_part_log_probabilities_are_those_of_the_official_model(official):
    fixture = official("point_mae_partseg")
    model = official_partseg()
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters
    ours, left_over = from_official(fixture.state)
    assert left_over == []
    model.load_state_dict(ours, strict=True)
    points, category = (torch.from_numpy(fixture.arrays[name]) for name in ("points", "category"))
    with torch.inference_mode():
        log_probs = model(points, category.long()).log_softmax(dim=-1)
    torch.testing.assert_close(log_probs, torch.from_numpy(fixture.arrays["log_probs"]), rtol=0, atol=1e-4)


def test_a_part_segmentation_file_goes_in_and_out_key_by_key(official, tmp_path):
    fixture = official("point_mae_partseg")
    model = official_partseg()
    file = write_official(tmp_path / "partseg.pth", fixture.state, container="model_state_dict")
    assert len(ewa3d.load_pretrained(model, file, strict=True).matched) == len(fixture.manifest) == 192
    written = torch.load(ewa3d.save_pretrained(model, tmp_path / "out.pth", format="official"), weights_only=True)
    theirs = written["model_state_dict"]
    assert theirs.keys() == fixture.state.keys()
    assert all(torch.equal(theirs[key], fixture.state[key]) for key in theirs)


def official_pretraining():
    return ewa3d.create_model("point_mae_small", task="pretraining", fps_min_norm=OFFICIAL_NORM).eval()


def test_loss_and_visible_tokens_are_those_of_the_official_model(official):
    fixture = official("point_mae_pretrain")
    model = official_pretraining()
    assert sum(p.numel() for p in model.parameters()) == fixture.parameters == 29_006_432
    ours, left_over = from_official(fixture.state)
    assert left_over == []
    model.load_state_dict(ours, strict=True)
    points, mask = (torch.from_numpy(fixture.arrays[name]) for name in ("points", "mask"))
    with torch.inference_mode():
        loss, tokens = model(points, mask)["loss"], model.forward_features(points, mask)
    torch.testing.assert_close(loss, torch.from_numpy(fixture.arrays["loss"]), rtol=1e-4, atol=0)
    expected = torch.from_numpy(fixture.arrays["visible_tokens"])
    torch.testing.assert_close(tokens[..., :16], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_pretraining_file_goes_in_and_out_key_by_key(official, tmp_path):
    fixture = official("point_mae_pretrain")
    model = official_pretraining()
    file = write_official(tmp_path / "pretrain.pth", fixture.state)
    assert len(ewa3d.load_pretrained(model, file, strict=True).matched) == len(fixture.manifest) == 209
    dense = ewa3d.merge(ewa3d.upcycle(model, 4))
    written = torch.load(ewa3d.save_pretrained(dense, tmp_path / "out.pth", format="official"), weights_only=True)
    theirs = written["base_model"]
    assert {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in theirs.items()} == fixture.manifest
    assert all(torch.equal(theirs[key], fixture.state[key]) for key in theirs)
    classifier = ewa3d.create_model("point_mae_small")
    assert len(ewa3d.load_pretrained(classifier, tmp_path / "out.pth").matched) == 156


def test_centers_are_those_of_the_official_operator(official):
    arrays = official("point_mae_cls").arrays
    picks = farthest_point_sample(torch.from_numpy(arrays["points"]), 64, min_norm=OFFICIAL_NORM)
    assert np.array_equal(picks.numpy(), arrays["fps_index"])
    plain = farthest_point_sample(torch.from_numpy(arrays["points"]), 64)
    assert not torch.equal(plain, picks), "these clouds have points near the origin on purpose"


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
def test_translation_there_and_back_is_the_identity(official, family):
    state = official(f"{family}_cls").state
    ours, _ = from_official(state)
    back = to_official(ours)
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)
    model = ewa3d.create_model(f"{family}_small")
    model.load_state_dict(ours)
    exported = to_official(model.state_dict())
    assert set(exported) == set(state)
    assert all(torch.equal(exported[key], state[key]) for key in state)


@pytest.mark.parametrize("family", ["point_mae", "point_bert"])
def test_an_official_classifier_file_matches_every_key(official, tmp_path, family):
    fixture = official(f"{family}_cls")
    model = ewa3d.create_model(f"{family}_small")
    report = ewa3d.load_pretrained(model, write_official(tmp_path / "cls.pth", fixture.state), strict=True)
    assert len(report.matched) == len(fixture.manifest)
    assert report.missing == report.unexpected == report.mismatched == []


def test_a_pretraining_file_fills_the_classifier_s_backbone(official, tmp_path):
    """As the official transfer does: 156 keys match, head and class tokens are missing, the decoder is left over."""
    fixture = official("point_mae_pretrain")
    model = ewa3d.create_model("point_mae_small")
    report = ewa3d.load_pretrained(model, write_official(tmp_path / "pretrain.pth", fixture.state))
    assert len(report.matched) == 156
    assert {key.split(".")[0] for key in report.missing} == {"head", "cls_token", "cls_pos"}
    assert len(report.missing) == 18
    parts = {key.removeprefix("module.").split(".")[0] for key in report.unexpected}
    assert parts == {"MAE_decoder", "decoder_pos_embed", "increase_dim", "mask_token"}
    assert len(report.unexpected) == len(fixture.manifest) - 156
    assert report.mismatched == []
    torch.testing.assert_close(model.norm.weight.data, fixture.state["MAE_encoder.norm.weight"])


def test_a_point_bert_pretraining_file_fills_the_backbone(official, tmp_path):
    fixture = official("point_bert_cls")
    state = {f"transformer_q.{k}": v for k, v in fixture.state.items() if not k.startswith("cls_head_finetune")}
    state["transformer_q.mask_token"] = torch.zeros(1, 1, 384)
    state["transformer_q.cls_head.0.weight"] = torch.zeros(384, 768)
    state["transformer_q.lm_head.weight"] = torch.zeros(8192, 384)
    model = ewa3d.create_model("point_bert_small")
    report = ewa3d.load_pretrained(model, write_official(tmp_path / "bert.pth", state))
    assert len(report.matched) == 160
    assert {key.split(".")[0] for key in report.missing} == {"head"}
    assert sorted(key.removeprefix("module.transformer_q.") for key in report.unexpected) == [
        "cls_head.0.weight",
        "lm_head.weight",
        "mask_token",
    ]


def test_a_head_for_other_classes_is_reported_and_left(official, tmp_path):
    fixture = official("point_mae_cls")
    model = ewa3d.create_model("point_mae_small", num_classes=15)
    before = model.head[8].weight.clone()
    report = ewa3d.load_pretrained(model, write_official(tmp_path / "cls.pth", fixture.state))
    assert [key for key, _, _ in report.mismatched] == ["head.8.weight", "head.8.bias"]
    assert report.mismatched[0][1:] == ((40, 256), (15, 256))
    assert torch.equal(model.head[8].weight, before)
    assert "shape of head.8.weight: (40, 256) in the file, (15, 256) in the model" in str(report)


def test_upcycled_merged_and_written_back_is_the_official_layout(official, tmp_path):
    fixture = official("point_mae_cls")
    model = ewa3d.create_model("point_mae_small")
    ewa3d.load_pretrained(model, write_official(tmp_path / "in.pth", fixture.state), strict=True)
    dense = ewa3d.merge(ewa3d.upcycle(model, 4))
    written = ewa3d.save_pretrained(dense, tmp_path / "out.pth", format="official")
    state = torch.load(written, weights_only=True)["base_model"]
    assert {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in state.items()} == fixture.manifest
    assert all(torch.equal(state[key], fixture.state[key]) for key in state)


def official_module(manifest):
    """A module with the official model's state dict and nothing else, to load into strictly."""
    root = nn.Module()
    for key, (shape, dtype) in manifest.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(name, torch.zeros(shape, dtype=getattr(torch, dtype)))
    return root


def test_from_an_official_file_through_a_training_step_with_experts_to_an_official_file(official, tmp_path):
    """Point-MAE's classifier at full size: what the official code loads goes in, is trained, and comes out."""
    fixture = official("point_mae_cls")
    file = write_official(tmp_path / "modelnet.pth", fixture.state)
    model = ewa3d.create_model("point_mae_small", fps_min_norm=OFFICIAL_NORM, pretrained=file)
    ewa3d.upcycle(model, num_experts=4, every=2, init="copy")
    averager = ewa3d.ExpertAverager(model, share_rate=0.3, schedule="constant")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    points = torch.from_numpy(fixture.arrays["points"][:2])
    torch.nn.functional.cross_entropy(model.train()(points), torch.tensor([3, 17])).backward()
    optimizer.step()
    averager.step()
    assert all(min(distances) > 0 for distances in expert_distances(model).values()), "the experts went their own ways"

    dense = ewa3d.merge(model).eval()
    written = ewa3d.save_pretrained(dense, tmp_path / "out.pth", format="official")
    state = torch.load(written, weights_only=True)["base_model"]
    loaded = official_module(fixture.manifest).load_state_dict(state, strict=True)
    assert loaded.missing_keys == loaded.unexpected_keys == []
    assert {key: [list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in state.items()} == fixture.manifest
    assert not torch.equal(state["blocks.blocks.1.mlp.fc1.weight"], fixture.state["blocks.blocks.1.mlp.fc1.weight"])
    again = ewa3d.create_model("point_mae_small", fps_min_norm=OFFICIAL_NORM)
    ewa3d.load_pretrained(again, written, strict=True)
    with torch.inference_mode():
        assert torch.equal(again.eval()(points), dense(points))


def test_experts_have_no_official_layout():
    model = ewa3d.upcycle(ewa3d.create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2))
    with pytest.raises(ValueError, match="merge the experts first"):
        to_official(model.state_dict())
