"""Attention by blocks: the fused kernel's results, and where it is used."""

import pytest
import torch
import torch.nn.functional as F

from ldm.fast import attention_by_blocks as module
from ldm.fast import onednn, slow_down, speed_up
from ldm.fast.attention_by_blocks import BlockwiseAttention, attention_by_blocks, fits
from ldm.layers import Attention

SHAPES = [  # (B, H, N, M, d, width of v)
    (2, 3, 40, 40, 8, 8),
    (1, 2, 37, 301, 40, 24),  # fewer queries than a block has rows, another width of values
    (1, 1, 600, 257, 5, 5),  # a last block that is smaller
]


def drawn(b: int, h: int, n: int, m: int, d: int, e: int, dtype: torch.dtype):
    """Draw q, k, v as the projections make them: heads side by side in memory."""
    generator = torch.Generator().manual_seed(n)
    sizes = [(b, n, h, d), (b, m, h, d), (b, m, h, e)]
    return [torch.randn(s, generator=generator).to(dtype).transpose(1, 2) for s in sizes]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_result_is_the_fused_kernels(shape) -> None:
    q, k, v = drawn(*shape, torch.float32)
    y, expected = attention_by_blocks(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert (y - expected).abs().max() < 1e-6
    assert y.transpose(1, 2).is_contiguous()
    q, k, v = drawn(*shape, torch.bfloat16)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    error = (attention_by_blocks(q, k, v).float() - expected).norm() / expected.norm()
    assert error < 0.008  # bfloat16's spacing is 2⁻⁷ of a value


@torch.no_grad()
def test_small_blocks_are_the_same(monkeypatch) -> None:
    q, k, v = drawn(1, 2, 50, 70, 8, 8, torch.float32)
    whole = attention_by_blocks(q, k, v)
    monkeypatch.setattr(module, "BLOCK", 3 * 70)
    assert (attention_by_blocks(q, k, v) - whole).abs().max() < 1e-6
    monkeypatch.setattr(module, "BLOCK", 1)  # more keys than a block has scores
    assert (attention_by_blocks(q, k, v) - whole).abs().max() < 1e-6


def test_large_scores_do_not_overflow() -> None:
    with torch.no_grad():
        q, k, v = (1e3 * x for x in drawn(1, 1, 8, 300, 16, 16, torch.float32))
        expected = F.scaled_dot_product_attention(q, k, v)
        assert (attention_by_blocks(q, k, v) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_where_it_is_used(monkeypatch) -> None:
    monkeypatch.setattr(module, "slow_kernel", lambda dtype: True)
    q, k, _ = drawn(1, 1, 8, 300, 16, 16, torch.float32)
    assert not fits(q, k), "gradients are wanted"
    with torch.no_grad():
        assert fits(q, k)
        assert not fits(q, k[:, :, :77]), "there are few keys"
        assert not fits(q.to("meta"), k)
        with torch.autocast("cpu", torch.bfloat16):
            assert not fits(q, k)


def test_fused_kernels_with_amx_stay(monkeypatch) -> None:
    module.slow_kernel.cache_clear()
    monkeypatch.setattr(onednn, "packs", lambda dtype: True)
    monkeypatch.setattr(onednn, "has_amx", lambda: True)
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    try:
        assert not module.slow_kernel(torch.bfloat16)
        assert not module.slow_kernel(torch.float32)
        assert not module.slow_kernel(torch.float16)
        module.slow_kernel.cache_clear()
        monkeypatch.setattr(onednn, "has_amx", lambda: False)
        monkeypatch.setattr(onednn, "is_amd", lambda: True)
        assert module.slow_kernel(torch.bfloat16)
        assert module.slow_kernel(torch.float32)
    finally:
        module.slow_kernel.cache_clear()


@torch.no_grad()
def test_installed_and_taken_off(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(module, "slow_kernel", lambda dtype: True)
    monkeypatch.setattr(
        module, "attention_by_blocks", lambda *a: calls.append(1) or attention_by_blocks(*a)
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(Attention(32, heads=2))
    x = torch.randn(1, 300, 32)
    expected = model(x)
    assert not calls
    speed_up(model)
    assert isinstance(model[0].attend, BlockwiseAttention)
    assert (model(x) - expected).abs().max() < 1e-5
    assert calls
    slow_down(model)
    assert not isinstance(model[0].attend, BlockwiseAttention)
    assert torch.equal(model(x), expected)
