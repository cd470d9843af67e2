"""Gradient checkpointing: the same gradients, less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig, UNetConfig
from ldm.fast import cpu, recompute
from ldm.fast.cpu import adapt_to_cpu
from ldm.fast.frozen import freeze
from ldm.training import checkpointing
from ldm.training.checkpointing import (
    BLOCKS,
    checkpoint_blocks,
    checkpoint_partly,
    is_checkpointed,
)
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.training.memory import counted
from ldm.unet import UNet
from tests.helpers.networks import randomize

SMALL = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
    dropout=0.3,
)


def gradients(unet: nn.Module, trained: nn.Module, bf16: bool = False) -> list[Tensor]:
    """Of a loss, with dropout's masks by a seed."""
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    context = torch.randn(2, 7, 24, generator=generator)
    trained.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = unet(x, torch.tensor([5, 400]), context)
    y.float().square().mean().backward()
    return [parameter.grad.clone() for parameter in trained.parameters()]


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_of_a_unet_are_bit_identical(bf16: bool) -> None:
    unet = randomize(UNet(SMALL), 1).train()
    unet.requires_grad_(True)
    plain = gradients(unet, unet, bf16)
    checkpoint_blocks(unet)
    found = gradients(unet, unet, bf16)
    assert all(map(torch.equal, found, plain)) and any(grad.any() for grad in plain)
    torch.manual_seed(4)
    assert not torch.equal(plain[0], gradients_without_dropout(unet)[0])  # it was there


def gradients_without_dropout(unet: UNet) -> list[Tensor]:
    other = copy.deepcopy(unet).eval()
    return gradients(other, other)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("options", [{}, {"dora": True, "conv_rank": 2}])
def test_gradients_of_adapters_are_bit_identical(bf16: bool, options: dict[str, Any]) -> None:
    """Their base is frozen and has no dropout, but they have."""
    unet = randomize(UNet(SMALL), 1).eval().requires_grad_(False)
    adapters = Adapters(unet, AdapterOptions(rank=2, dropout=0.5, **options))
    with torch.no_grad():
        for value in adapters.parameters():
            value += 0.1 * torch.randn(value.shape)
    adapters.attach(unet)
    plain = gradients(unet, adapters, bf16)
    checkpoint_blocks(unet)
    found = gradients(unet, adapters, bf16)
    assert all(map(torch.equal, found, plain)) and all(grad.any() for grad in plain)


def frozen(conv: bool = True) -> tuple[UNet, Adapters]:
    """A U-Net as `ldm train lora` has it on a CPU."""
    unet = randomize(adapt_to_cpu(UNet(SMALL)), 1).eval().requires_grad_(False)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adapters = Adapters(unet, AdapterOptions(rank=2, conv_rank=2 if conv else None))
    with torch.no_grad():
        for value in adapters.parameters():
            value += 0.1 * torch.randn(value.shape)
    adapters.attach(unet)
    freeze(unet)
    return unet, adapters


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("pairs", [1, 1 << 16])
def test_partly_computed_again_gradients_are_bit_identical(
    bf16: bool, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attention head by head, which is kept, and without."""
    monkeypatch.setattr(cpu, "MANY_PAIRS", pairs)
    monkeypatch.setattr(checkpointing, "MANY", 1)
    unet, adapters = frozen()
    plain = gradients(unet, adapters, bf16)
    checkpoint_partly(unet)
    found = gradients(unet, adapters, bf16)
    assert all(map(torch.equal, found, plain)) and all(grad.any() for grad in plain)
    assert any(map(is_checkpointed, unet.modules()))


def bytes_kept(unet: UNet, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of what autograd and ``recompute`` hold after a forward pass, without the weights."""
    runs: list[recompute.Run] = []
    saved: list[Tensor] = []

    class Recorded(recompute.Run):
        def first(self, inputs: tuple[Any, ...]) -> Tensor:
            runs.append(self)
            return super().first(inputs)

    monkeypatch.setattr(recompute, "Run", Recorded)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: None):
        unet(torch.zeros(1, 4, 32, 32), torch.tensor([5]), torch.zeros(1, 77, 24))
    saved += [one for run in runs for one in (*run.inputs, *run.kept) if torch.is_tensor(one)]
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in saved}
    return sum(size for place, size in storages.items() if place not in own)


def test_partly_computed_again_a_network_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, adapters = frozen(conv=False)
    plain = bytes_kept(unet, monkeypatch)
    checkpoint_partly(unet)
    few = bytes_kept(unet, monkeypatch)
    assert few < 0.4 * plain
    monkeypatch.setattr(checkpointing, "MANY", 1)  # a large network keeps less of each level
    large, _ = frozen(conv=False)
    checkpoint_partly(large)
    assert bytes_kept(large, monkeypatch) < 0.95 * few
    with counted(unet, adapters) as count:  # with the largest block
        unet(torch.zeros(1, 4, 32, 32), torch.tensor([5]), torch.zeros(1, 77, 24))
    assert few < count.total < plain


def test_gradients_of_a_text_encoder_are_bit_identical() -> None:
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, eos_token_id=49,
    )  # fmt: skip
    encoder = randomize(CLIPTextEncoder(config), 1).requires_grad_(True)
    ids = torch.tensor([[48, 3, 4, 49, 49]])
    found = []
    for _ in range(2):
        encoder.zero_grad()
        encoder(ids).context.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in encoder.parameters()])
        checkpoint_blocks(encoder)
    assert all(map(torch.equal, *found)) and sum(map(is_checkpointed, encoder.modules())) == 3


def test_a_copy_computes_with_its_own_weights_and_drawing_is_unchanged() -> None:
    """As the average of the weights is one."""
    unet = randomize(UNet(SMALL), 1).eval()
    inputs = torch.ones(1, 4, 16, 16), torch.tensor([5]), torch.ones(1, 7, 24)
    before = unet(*inputs)
    checkpoint_blocks(unet)
    checkpoint_blocks(unet)  # twice
    other = copy.deepcopy(unet)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(unet(*inputs), before)
        assert not torch.equal(other(*inputs), before)


def kept(unet: UNet, size: int = 32) -> int:
    unet.requires_grad_(True)
    with counted(unet) as count:
        unet(torch.zeros(1, 4, size, size), torch.tensor([5]), torch.zeros(1, 77, 24))
    return count.total


def test_the_memory_counted_is_that_of_the_inputs_and_of_the_largest_block() -> None:
    """Each block's inputs are x and temb or the text; of one block, all is kept."""
    torch.manual_seed(0)
    unet = UNet(SMALL).train()
    plain = kept(unet)
    checkpoint_blocks(unet)
    few = kept(unet)
    assert few < 0.4 * plain
    sizes = []
    for block in unet.modules():
        if isinstance(block, BLOCKS):
            block.register_forward_pre_hook(lambda block, inputs: sizes.append(inputs[0].nbytes))
    kept(unet)
    assert sum(sizes) < few < sum(sizes) + 0.3 * plain


def test_what_autograd_keeps_is_what_is_counted() -> None:
    """Beside the largest block, which it keeps in the backward pass."""
    unet = UNet(SMALL).train().requires_grad_(True)
    checkpoint_blocks(unet)
    inputs = torch.zeros(1, 4, 16, 16), torch.tensor([5]), torch.zeros(1, 7, 24)
    seen: dict[int, int] = {}
    alive = []
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def enter(block: nn.Module, given: tuple[Tensor, ...]) -> None:
        for tensor in given:
            if torch.is_tensor(tensor):
                see(tensor)

    with counted(unet) as count:
        unet(*inputs)
    for block in unet.modules():
        if is_checkpointed(block):
            block.register_forward_pre_hook(enter)
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        unet(*inputs)
    assert sum(seen.values()) == sum(count.kept.values()) < count.total
