"""The noise-aware classifier: each half against an independent one, and its gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoints.folder import load_component, save_component
from ldm.classes.classifier import AttentionPool, Classifier
from ldm.config import ClassifierConfig, read_json
from ldm.errors import ArgumentError, CheckpointError
from tests.helpers.networks import difference, randomize

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "num_classes": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "norm_num_groups": 4,
    "attn_norm_num_groups": 4,
    "attention_head_dim": 8,
}


def small(seed: int = 0, **changes: Any) -> Classifier:
    return randomize(Classifier(ClassifierConfig(**SMALL | changes)), seed)


def pooled(pool: AttentionPool, x: Tensor) -> Tensor:
    """CLIP's attention pooling of one picture (C,S,S), from its description, head by head."""
    pixels = x.reshape(len(x), -1).T
    tokens = torch.cat([pixels.mean(0)[None], pixels]) + pool.positions
    q = pool.to_q.weight @ tokens[0] + pool.to_q.bias
    k = tokens @ pool.to_k.weight.T + pool.to_k.bias
    v = tokens @ pool.to_v.weight.T + pool.to_v.bias
    size, out = len(q) // pool.heads, []
    for i in range(0, len(q), size):
        scores = (k[:, i : i + size] @ q[i : i + size]) / size**0.5
        weights = scores.exp() / scores.exp().sum()
        out.append(weights @ v[:, i : i + size])
    return pool.to_out[0].weight @ torch.cat(out) + pool.to_out[0].bias


def test_attention_pool() -> None:
    pool = randomize(AttentionPool(12, 5, heads=3, out_dim=7))
    x = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    want = torch.stack([pooled(pool, each) for each in x])
    assert difference(pool(x), want) <= 1e-5


@pytest.mark.parity
def test_the_way_down_is_the_unets() -> None:
    """diffusers' UNet2DModel on the same weights, read out at the middle."""
    diffusers = pytest.importorskip("diffusers")
    config = ClassifierConfig(**SMALL)
    shared = {k: v for k, v in config.to_dict().items() if k not in ("num_classes", "_class_name")}
    theirs = randomize(
        diffusers.UNet2DModel(
            **shared, up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), out_channels=1
        )
    )
    ours, found = small(), []
    common = {k: v for k, v in theirs.state_dict().items() if not k.startswith(("up_", "conv_"))}
    common |= {k: v for k, v in theirs.state_dict().items() if k.startswith("conv_in")}
    missing, unexpected = ours.load_state_dict(common, strict=False)
    assert {key.partition(".")[0] for key in missing} == {"conv_norm_out", "pool"}
    assert not unexpected
    theirs.mid_block.register_forward_hook(lambda module, arguments, out: found.append(out))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 10, 999])
    theirs(x, t)
    middle = F.silu(ours.conv_norm_out(found[0]))
    want = torch.stack([pooled(ours.pool, each) for each in middle])
    assert difference(ours(x, t), want) <= 1e-5


def test_gradient_is_that_of_finite_differences() -> None:
    model = small(attention_head_dim=None).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t, y, step = torch.tensor([30, 600]), torch.tensor([2, 0]), 1e-5

    def chosen(x: Tensor) -> Tensor:  # log p(y | x_t), what algorithm 1 differentiates
        times, classes = t.repeat(len(x) // 2), y.repeat(len(x) // 2)
        return F.log_softmax(model(x, times), dim=1)[range(len(x)), classes]

    (gradient,) = torch.autograd.grad(chosen(x.requires_grad_()).sum(), x)
    moved = step * torch.eye(64, dtype=torch.float64).view(64, 1, 1, 8, 8)  # one pixel at a time
    with torch.no_grad():
        above, below = (chosen((x + sign * moved).flatten(0, 1)) for sign in (1, -1))
    numbers = ((above - below) / (2 * step)).view(64, 2).T.reshape(2, 1, 8, 8)
    assert difference(gradient, numbers) <= 1e-8


def test_it_learns() -> None:
    """Bright top, bright bottom, neither, under noise that hides little."""
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(**SMALL))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        y = torch.randint(3, (24,))
        x = 0.3 * torch.randn(24, 1, 8, 8)
        x[y == 0, :, :4] += 1
        x[y == 1, :, 4:] += 1
        loss = F.cross_entropy(model(x, torch.randint(200, (24,))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[:3]) / 3 > 0.8
    assert sum(losses[-3:]) / 3 < 0.2


def test_every_input_counts() -> None:
    model, t = small(), torch.tensor([100, 900])
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    out = model(x, t)
    assert out.shape == (2, 3)
    assert difference(model(x[1:], t[1:]), out[1:]) <= 1e-5  # pictures do not see each other
    assert difference(model(x, t.flip(0)), out) > 1e-3
    assert difference(model(x.flip(2), t), out) > 1e-3  # where things are counts


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small()
    save_component(model, tmp_path)
    assert read_json(tmp_path / "config.json")["_class_name"] == "Classifier"
    again = load_component(Classifier, tmp_path, None)
    assert again.config == model.config
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 500])
    assert torch.equal(again(x, t), model(x, t))
    save_component(small(num_classes=4), tmp_path / "other")
    (tmp_path / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"other shapes: pool.to_out.0.weight \(3, 16\)"):
        load_component(Classifier, tmp_path, None)


def test_another_size_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"x is of 6×8 pixels; .* 8×8"):
        small()(torch.zeros(1, 1, 8, 6), torch.tensor([0]))


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_memory_format_and_bf16(kind: str) -> None:
    model: nn.Module = Classifier(replace(ClassifierConfig(**SMALL), downsample_type=kind))
    randomize(model).requires_grad_(True)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([1, 500])
    want = model(x, t)
    model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x.contiguous(memory_format=torch.channels_last), t)
    F.cross_entropy(got.float(), torch.tensor([0, 2])).backward()
    assert 0 < difference(got.float(), want) <= 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
