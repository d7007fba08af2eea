"""Upcycling and merging: our models, timm's, state dicts, and what is refused."""

import pytest
import timm
import torch
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import ewa3d
from ewa3d.ewa import (
    ExpertAverager,
    Experts,
    expert_distances,
    expert_layers,
    find_ffns,
    merge,
    merge_state_dict,
    upcycle,
    upcycle_state_dict,
)

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2, "num_groups": 8, "group_size": 4}

# small versions of timm's families: name, keyword arguments, FFN type
TIMM = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}, Mlp),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)},
        Mlp,
    ),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}, nn.Module),
    "glu": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_layer": GluMlp},
        GluMlp,
    ),
    "swiglu": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_layer": SwiGLU},
        SwiGLU,
    ),
}


def timm_model(which: str) -> tuple[nn.Module, torch.Tensor]:
    name, kwargs, _ = TIMM[which]
    return timm.create_model(name, num_classes=5, **kwargs), torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"])


@pytest.mark.parametrize("which", TIMM)
def test_any_timm_vit_upcycles_trains_and_merges(which):
    model, images = timm_model(which)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    reference = model.eval()(images)
    upcycle(model, 3, every=1)
    layers = expert_layers(model)
    assert len(layers) == len(find_ffns(merge(model))) > 0
    assert all(isinstance(layer.experts[0], TIMM[which][2]) for layer in layers.values())

    untouched = merge(model)
    assert list(untouched.state_dict()) == list(original)
    assert all(torch.equal(value, original[key]) for key, value in untouched.state_dict().items())
    assert torch.equal(untouched.eval()(images), reference)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    averager = ExpertAverager(model, 0.3, "constant")
    model.train()
    loss = model(images).square().mean()
    loss.backward()
    optimizer.step()
    averager.step()
    assert min(min(distances) for distances in expert_distances(model).values()) > 0, "experts learned different things"
    torch.testing.assert_close(model.eval()(images), merge(model).eval()(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", range(2, 10))
def test_upcycle_then_merge_is_the_identity_bit_for_bit(count):
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    merged = merge(upcycle(model, count, every=1))
    assert list(merged.state_dict()) == list(original)
    assert all(torch.equal(value, original[key]) for key, value in merged.state_dict().items())
    ewa3d.create_model("point_mae_tiny", **TINY).load_state_dict(merged.state_dict(), strict=True)


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3]), (None, [1, 3])])
def test_every_takes_blocks_k_minus_1_2k_minus_1(every, expected):
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), every=every)
    assert list(expert_layers(model)) == [f"blocks.{i}.mlp" for i in expected]


def test_upcycled_keys_name_the_experts():
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 2)
    assert {"blocks.1.mlp.experts.0.fc1.weight", "blocks.1.mlp.experts.1.fc1.weight"} <= set(model.state_dict())


def test_where_takes_names_or_a_predicate():
    named = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), where=["blocks.3.mlp", "blocks.0.mlp"])
    assert list(expert_layers(named)) == ["blocks.0.mlp", "blocks.3.mlp"]
    chosen = upcycle(
        ewa3d.create_model("point_mae_tiny", **TINY), where=lambda name, module: isinstance(module, Mlp), every=2
    )
    assert list(expert_layers(chosen)) == ["blocks.1.mlp", "blocks.3.mlp"]


def test_copies_start_equal_and_independent_experts_apart():
    copies = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3)
    assert all(max(d) == 0 for d in expert_distances(copies).values())
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    first = model.blocks[1].mlp.fc1.weight.clone()
    apart = upcycle(model, 3, init="independent")
    assert all(min(d) > 0 for d in expert_distances(apart).values())
    assert torch.equal(apart.blocks[1].mlp.experts[0].fc1.weight, first), "the first expert keeps the FFN's weights"


def test_independent_experts_are_initialised_as_the_model_initialises_itself():
    model, _ = timm_model("vit")  # timm's rule: truncated normal of std 0.02, zero biases
    upcycle(model, 4, every=1, init="independent")
    for expert in model.blocks[0].mlp.experts:
        assert 0.01 < expert.fc1.weight.std() < 0.03
        assert expert.fc1.bias.eq(0).all()
    assert all(min(d) > 0 for d in expert_distances(model).values())


def test_init_may_be_a_function():
    model = upcycle(
        ewa3d.create_model("point_mae_tiny", **TINY), 2, init=lambda ffn: nn.init.constant_(ffn.fc1.bias, 7.0)
    )
    assert model.blocks[1].mlp.experts[1].fc1.bias.eq(7).all()
    assert not model.blocks[1].mlp.experts[0].fc1.bias.eq(7).any()


def test_state_dicts_merge_and_upcycle_as_modules_do():
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY), 3, init="independent")
    on_module, on_state = merge(model).state_dict(), merge_state_dict(model.state_dict())
    assert list(on_module) == list(on_state)
    assert all(torch.equal(on_module[key], on_state[key]) for key in on_module)

    dense = ewa3d.create_model("point_mae_tiny", **TINY)
    upcycled = upcycle_state_dict(dense.state_dict(), ["blocks.1.mlp", "blocks.3.mlp"], 3)
    model.load_state_dict(upcycled, strict=True)
    assert all(torch.equal(v, dense.state_dict()[k]) for k, v in merge_state_dict(model.state_dict()).items())


def test_a_state_dict_that_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="no expert keys"):
        merge_state_dict({"fc.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"mlp\.w are incomplete"):
        merge_state_dict({"mlp.experts.0.w": torch.zeros(2), "mlp.experts.2.w": torch.zeros(2)})
    with pytest.raises(ValueError, match="differ in shape"):
        merge_state_dict({"mlp.experts.0.w": torch.zeros(2), "mlp.experts.1.w": torch.zeros(3)})


def test_a_layer_s_training_mode_is_kept():
    model = upcycle(ewa3d.create_model("point_mae_tiny", **TINY).eval())
    assert not any(layer.training for layer in expert_layers(model).values())
    assert not any(module.training for module in merge(model).modules())


def test_bad_arguments_are_refused():
    def fresh():
        return ewa3d.create_model("point_mae_tiny", **TINY)

    with pytest.raises(ValueError, match="num_experts must be 2 or more, got 1"):
        upcycle(fresh(), 1)
    with pytest.raises(ValueError, match="every must be 1 or more"):
        upcycle(fresh(), every=0)
    with pytest.raises(ValueError, match=r"upcycled already: blocks\.1\.mlp"):
        upcycle(upcycle(fresh()))
    with pytest.raises(ValueError, match="plain model already"):
        merge(fresh())
    with pytest.raises(ValueError, match=r"no module 'block.1.mlp': did you mean 'blocks.1.mlp'\?"):
        upcycle(fresh(), where=["block.1.mlp"])
    with pytest.raises(ValueError, match="unknown init 'zeros'"):
        upcycle(fresh(), init="zeros")
    with pytest.raises(ValueError, match=r"no FFN to upcycle in ResNet \(none found\)"):
        upcycle(timm.create_model("resnet18"))
    with pytest.raises(ValueError, match="4 found, but every=5 passes them over"):
        upcycle(fresh(), every=5)


def test_a_failed_upcycle_changes_nothing():
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="does not act on each token alone"):
        upcycle(model, where=["blocks.0.mlp", "patch_embed.mlp1"])
    assert list(model.state_dict()) == before


def test_ffns_that_mix_tokens_are_refused_by_name():
    mixer = MlpMixer(num_classes=3, img_size=32, num_blocks=2, embed_dim=24)
    with pytest.raises(ValueError, match=r"blocks.0.mlp_tokens \(Mlp\) does not act on each token alone"):
        upcycle(mixer, where=["blocks.0.mlp_tokens"])
    assert list(expert_layers(upcycle(mixer, 2, every=1))) == ["blocks.0.mlp_channels", "blocks.1.mlp_channels"]

    pvt = timm.create_model("pvt_v2_b0", num_classes=3)
    with pytest.raises(ValueError, match=r"stages.0.blocks.0.mlp \(MlpWithDepthwiseConv\) does not act on each token"):
        upcycle(pvt, every=1)


class Normalised(nn.Module):
    """Subtracts the tokens' mean: an FFN by its shapes, but every token's output depends on all."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x - x.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    ("ffn", "why"),
    [
        (Normalised(), "changes with the other tokens"),
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), "BatchNorm1d inside uses statistics over tokens"),
        (nn.Sequential(nn.Conv2d(6, 6, 1)), "convolutions"),
    ],
)
def test_whatever_mixes_tokens_is_refused(ffn, why):
    with pytest.raises(ValueError, match=why):
        upcycle(nn.ModuleDict({"ffn": ffn}), where=["ffn"])


def test_ffns_within_one_another_or_shared_are_refused():
    model = ewa3d.create_model("point_mae_tiny", **TINY)
    with pytest.raises(ValueError, match=r"names blocks\.0\.mlp and blocks\.0\.mlp\.fc1 within it"):
        upcycle(model, where=lambda name, _: name.startswith("blocks.0.mlp"))
    model.blocks[2].mlp = model.blocks[0].mlp
    with pytest.raises(ValueError, match=r"blocks\.\d\.mlp and blocks\.\d\.mlp are one module in two places"):
        upcycle(model, every=1)


def test_helper_mlps_are_no_ffns():
    model = timm.create_model(
        "swinv2_cr_tiny_224", img_size=64, window_size=4, embed_dim=24, depths=(2,), num_heads=(2,), num_classes=3
    )
    found = find_ffns(model)
    assert found and all(name.endswith(".mlp") and ".attn." not in name for name in found)
    assert any(".attn." in name and name.endswith("mlp") for name, _ in model.named_modules()), "the helper is there"


def test_experts_nest_under_any_name():
    model = upcycle(nn.Sequential(Mlp(6, 12), nn.Identity()), 2, where=["0"])
    assert isinstance(model[0], Experts)
    assert isinstance(merge(model)[0], Mlp)


def test_a_model_says_where_experts_have_no_business():
    class Autoencoder(nn.Module):
        no_experts = ("decoder",)

        def __init__(self):
            super().__init__()
            self.encoder, self.decoder, self.decoder2 = (
                nn.Sequential(*(timm.models.vision_transformer.Block(8, 2) for _ in range(2))) for _ in range(3)
            )

    model = Autoencoder()
    assert list(find_ffns(model)) == ["encoder.0.mlp", "encoder.1.mlp", "decoder2.0.mlp", "decoder2.1.mlp"]
    assert list(expert_layers(upcycle(model, 2, where=["decoder.0.mlp"]))) == ["decoder.0.mlp"], "named, it is taken"
