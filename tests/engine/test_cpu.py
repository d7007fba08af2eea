"""Settings of the process for CPUs: what they may and may not change."""

import pytest
import torch

from ewa3d.engine import cpu
from ewa3d.models import create_model


@pytest.fixture(autouse=True)
def precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("shape", [(128, 256, 512), (2080, 384, 1536), (64, 4096, 64), (1, 384, 40)])
def test_products_stay_fp32(shape):
    cpu.tune_process()
    m, k, n = shape
    a, b = torch.randn(m, k), torch.randn(k, n)
    exact = a.double() @ b.double()
    assert (a @ b - exact).abs().max() < 1e-5 * exact.abs().max()  # in bf16 some 1e-2


def test_a_processor_on_which_it_was_not_measured_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu, "_is_amd", lambda: False)
    assert not cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_product_that_would_be_rounded_takes_the_setting_back(monkeypatch):
    monkeypatch.setattr(cpu, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    exact = torch.Tensor.__matmul__

    def rounds(a, b):  # what a processor with AMX does
        medium = torch.get_float32_matmul_precision() == "medium" and a.dtype == torch.float32
        return exact(a.bfloat16().float(), b.bfloat16().float()) if medium else exact(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounds)
    assert not cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_choice_made_before_is_kept():
    torch.set_float32_matmul_precision("high")
    cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "high"


def test_plain_attention_computes_the_same():
    model = create_model("point_mae_tiny", embed_dim=24, depth=2, num_heads=2, num_groups=8, group_size=4).eval()
    points = torch.randn(2, 64, 3)
    with torch.inference_mode():
        fused = model(points)
        cpu.use_plain_attention(model)
        assert not any(block.attn.fused_attn for block in model.blocks)
        torch.testing.assert_close(model(points), fused, rtol=1e-5, atol=1e-6)
