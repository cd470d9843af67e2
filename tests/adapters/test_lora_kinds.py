"""Every kind of LoRA: the weights are those of LyCORIS' and peft's own layers, and off exactly.

LyCORIS' ``merge_to`` multiplies LoHa and LoKr by α/rank twice (4.1.3); what it trains, its
``forward``, does so once, which is what is compared here: the weight that reaches the layer's
operation.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.adapters.lora import Loras
from ldm.adapters.lora_checks import check_factor_values
from ldm.checkpoints.original import Place
from ldm.errors import CheckpointError, LDMError
from tests.helpers.networks import difference
from tests.helpers.pictures import draw

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


class Layers(nn.Module):
    """Layers of all shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 48)
        self.square = nn.Linear(32, 32, bias=False)
        self.conv = nn.Conv2d(16, 24, 3, padding=1)
        self.point = nn.Conv2d(16, 32, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.layer_norm = nn.LayerNorm(24)
        self.requires_grad_(False)


PATHS = ("linear", "square", "conv", "point")


def layers() -> Layers:
    torch.manual_seed(0)
    module = Layers()
    for parameter in module.parameters():
        parameter.normal_(std=0.3)
    return module


def loras_on(module: nn.Module) -> Loras:
    return Loras({"unet": module}, Place)


def randomise(module: nn.Module, seed: int, std: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dora_scale" in name or "magnitude" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=rng) + 0.5)
            elif "rescale" in name or "boft_s" in name or "ia3_l" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=rng) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * std)


def lycoris_weight(module: Any, like: nn.Module, scale: float) -> Tensor:
    """The weight that LyCORIS' forward pass uses."""
    seen = []

    def operation(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(weight)
        return torch.zeros(1)

    module.op, module.multiplier = operation, scale
    module.org_forward = lambda x: torch.zeros(1)
    with torch.no_grad():
        module(torch.zeros(1))
    return like.weight + seen[0]


LYCORIS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoCon": ("LoConModule", {"lora_dim": 3, "alpha": 2}),
    "LoCon, Tucker": ("LoConModule", {"lora_dim": 3, "use_tucker": True}),
    "DoRA": ("LoConModule", {"lora_dim": 3, "weight_decompose": True}),
    "DoRA by input": (
        "LoConModule", {"lora_dim": 3, "weight_decompose": True, "wd_on_out": False}
    ),
    "rsLoRA": ("LoConModule", {"lora_dim": 4, "alpha": 3, "rs_lora": True}),
    "LoHa": ("LohaModule", {"lora_dim": 3, "alpha": 2}),
    "LoHa, Tucker": ("LohaModule", {"lora_dim": 3, "alpha": 2, "use_tucker": True}),
    "LoHa with DoRA": ("LohaModule", {"lora_dim": 3, "weight_decompose": True}),
    "LoHa with DoRA by input": (
        "LohaModule", {"lora_dim": 3, "weight_decompose": True, "wd_on_out": False}
    ),
    "LoKr": ("LokrModule", {"lora_dim": 2, "alpha": 3}),
    "LoKr, both in parts": ("LokrModule", {"lora_dim": 1, "decompose_both": True, "factor": 4}),
    "LoKr, Tucker": ("LokrModule", {"lora_dim": 2, "factor": 2, "use_tucker": True}),
    "LoKr, whole": ("LokrModule", {"lora_dim": 2, "alpha": 7, "full_matrix": True}),
    "LoKr, unbalanced": (
        "LokrModule", {"lora_dim": 2, "factor": 2, "unbalanced_factorization": True}
    ),
    "LoKr with DoRA": ("LokrModule", {"lora_dim": 2, "weight_decompose": True}),
    "LoKr with DoRA by input": (
        "LokrModule", {"lora_dim": 2, "weight_decompose": True, "wd_on_out": False}
    ),
    "GLoRA": ("GLoRAModule", {"lora_dim": 3, "alpha": 2}),
    "OFT": ("DiagOFTModule", {"lora_dim": 4}),
    "OFT, constrained": ("DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "OFT, rescaled": ("DiagOFTModule", {"lora_dim": 4, "rescaled": True}),
    "BOFT": ("ButterflyOFTModule", {"lora_dim": 8}),
    "BOFT, rescaled": ("ButterflyOFTModule", {"lora_dim": 8, "rescaled": True}),
    "IA3": ("IA3Module", {}),
    "IA3 by input": ("IA3Module", {"train_on_input": True}),
    "DyLoRA": ("DyLoraModule", {"lora_dim": 4, "alpha": 4}),
}  # fmt: skip
# At other scales LyCORIS keeps a DoRA's direction, and a rotation's lengths, at full strength, as
# peft does not; a DyLoRA it draws at random.
AT_ONE = ("DoRA", "rescaled", "DyLoRA")


@pytest.mark.parametrize("kind", LYCORIS)
def test_same_weights_as_lycoris(tmp_path: Path, kind: str) -> None:
    lycoris = pytest.importorskip("lycoris.modules")
    ours, theirs = layers(), layers()
    name, settings = LYCORIS[kind]
    modules, tensors = {}, {}
    for i, path in enumerate(PATHS):
        layer = theirs.get_submodule(path)
        module = getattr(lycoris, name)(path, layer, **settings)
        randomise(module, i, 0.2 if "OFT" in name else 0.4)
        modules[path] = module.eval()
        tensors |= {f"lora_unet_{path}.{key}": v for key, v in module.state_dict().items()}
    file = tmp_path / "x.safetensors"
    save_file({key: v.detach().clone().contiguous() for key, v in tensors.items()}, file)
    loras = loras_on(ours)
    before = {path: ours.get_submodule(path).weight for path in PATHS}
    worst = 0.0
    for scale in (1.0,) if any(word in kind for word in AT_ONE) else (1.0, 0.6, -0.5):
        lora = loras.load(file, scale=scale)
        assert lora.applied == lora.total == len(tensors)
        assert len(lora.updates) == len(modules)
        for path, module in modules.items():
            layer = theirs.get_submodule(path)
            if kind == "DyLoRA":
                down, up = (torch.cat(list(module.down_list)), torch.cat(list(module.up_list), 1))
                want = layer.weight + (up @ down).reshape(layer.weight.shape)
            elif name == "ButterflyOFTModule":
                want = module.get_merged_weight(scale, layer.weight.shape)[0].detach()
            else:
                want = lycoris_weight(module, layer, scale)
            found = ours.get_submodule(path).weight
            assert difference(found, layer.weight) > 0.01
            worst = max(worst, difference(found, want))
        loras.unload()
        assert all(ours.get_submodule(path).weight is before[path] for path in PATHS)
    print(f"{kind}: {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parametrize("names", [("diff", "diff_b"), ("w_norm", "b_norm")])
def test_full_differences(tmp_path: Path, names: tuple[str, str]) -> None:
    """Of weights and biases; LyCORIS' ``NormModule`` has other names for the same."""
    lycoris = pytest.importorskip("lycoris.modules")
    ours, theirs = layers(), layers()
    norms = names[0] == "w_norm"
    paths = ("norm", "layer_norm") if norms else ("linear", "square", "conv")
    tensors, want = {}, {}
    for i, path in enumerate(paths):
        layer = theirs.get_submodule(path)
        kind = lycoris.NormModule if norms else lycoris.FullModule
        module = kind(path, layer)
        randomise(module, i, 0.4)
        tensors |= (
            {f"lora_unet_{path}.{k}": v for k, v in module.custom_state_dict().items()}
            if (not norms)
            else {f"lora_unet_{path}.{k}": v for k, v in module.state_dict().items()}
        )
        want[path] = {
            scale: [None if v is None else v.detach() for v in module.get_merged_weight(scale)]
            for scale in (1.0, 0.5)
        }
        if not norms:
            for key, value in (("diff", module.weight), ("diff_b", module.bias)):
                if value is not None:
                    tensors[f"lora_unet_{path}.{key}"] = value
    assert {key.rsplit(".", 1)[1] for key in tensors} == set(names)
    file = tmp_path / "x.safetensors"
    save_file({key: v.detach().clone() for key, v in tensors.items()}, file)
    loras = loras_on(ours)
    before = dict(ours.named_parameters())
    for scale in (1.0, 0.5):
        lora = loras.load(file, scale=scale)
        assert lora.applied == lora.total
        for path in paths:
            layer = ours.get_submodule(path)
            weight, bias = want[path][scale]
            assert difference(layer.weight, weight) < 1e-6
            if bias is not None:
                assert difference(layer.bias, bias) < 1e-6
                assert layer.bias is not before[f"{path}.bias"]
        loras.unload()
        assert all(value is before[name] for name, value in ours.named_parameters())


def test_a_bias_beside_a_lora(tmp_path: Path) -> None:
    """As ComfyUI extracts them: low-rank weights, whole biases."""
    ours = layers()
    weight, bias = ours.linear.weight.clone(), ours.linear.bias.clone()
    tensors = {
        "diffusion_model.linear.lora_down.weight": torch.randn(2, 24),
        "diffusion_model.linear.lora_up.weight": torch.randn(48, 2),
        "diffusion_model.linear.diff_b": torch.randn(48),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    loras = loras_on(ours)
    loras.load(tmp_path / "x.safetensors", scale=0.5)
    down, up, added = tensors.values()
    assert difference(ours.linear.weight, weight + 0.5 * up @ down) < 1e-6
    assert difference(ours.linear.bias, bias + 0.5 * added) < 1e-6
    tensors["diffusion_model.square.diff_b"] = torch.randn(32)
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"a weight \(32, 32\) without a bias"):
        loras.load(tmp_path / "y.safetensors")


def peft_model(config: Any) -> tuple[Any, Layers]:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(layers(), config)
    randomise_peft(model)
    return model.eval(), layers()


def randomise_peft(model: nn.Module) -> None:
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "base_layer" in name or not any(f".{path}." in name for path in PATHS):
            continue
        randomise(nn.ParameterDict({name.replace(".", "_"): parameter}), i, 0.2)


def configs() -> dict[str, Callable[[], Any]]:
    peft = pytest.importorskip("peft")
    every = list(PATHS)
    linear = ["linear", "square"]
    return {
        "LoRA": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=every),
        "LoRA with bias": lambda: peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=["linear", "conv"], lora_bias=True
        ),
        "rsLoRA": lambda: peft.LoraConfig(
            r=4, lora_alpha=5, use_rslora=True, alpha_pattern={"conv": 3}, target_modules=every
        ),
        "DoRA": lambda: peft.LoraConfig(r=3, use_dora=True, target_modules=every),
        "LoHa": lambda: peft.LoHaConfig(r=3, alpha=4, target_modules=every, init_weights=False),
        "LoHa, Tucker": lambda: peft.LoHaConfig(
            r=3, alpha=4, target_modules=every, use_effective_conv2d=True, init_weights=False
        ),
        "LoKr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=every, init_weights=False),
        "LoKr, both in parts": lambda: peft.LoKrConfig(
            r=1, decompose_both=True, decompose_factor=4, target_modules=every, init_weights=False
        ),
        "LoKr, Tucker": lambda: peft.LoKrConfig(
            r=2, decompose_factor=2, use_effective_conv2d=True, target_modules=every,
            init_weights=False,
        ),
        "OFT": lambda: peft.OFTConfig(
            r=0, oft_block_size=4, target_modules=every, use_cayley_neumann=True
        ),
        "OFT, shared": lambda: peft.OFTConfig(
            r=0, oft_block_size=4, target_modules=every, use_cayley_neumann=True, block_share=True
        ),
        "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=every),
        "IA3": lambda: peft.IA3Config(target_modules=every, feedforward_modules=["linear"]),
        "IA3 of inputs": lambda: peft.IA3Config(target_modules=linear, feedforward_modules=linear),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "LoRA", "LoRA with bias", "rsLoRA", "DoRA", "LoHa", "LoHa, Tucker", "LoKr",
        "LoKr, both in parts", "LoKr, Tucker", "OFT", "OFT, shared", "BOFT", "IA3", "IA3 of inputs",
    ],
)  # fmt: skip
def test_same_weights_as_peft(tmp_path: Path, kind: str) -> None:
    """In the folder that peft writes: α is in the settings beside the tensors."""
    theirs, ours = peft_model(configs()[kind]())
    theirs.save_pretrained(tmp_path)
    loras = loras_on(ours)
    plain = dict(layers().named_parameters())
    before = dict(ours.named_parameters())
    lora = loras.load(tmp_path / "adapter_model.safetensors")
    assert lora.applied == lora.total
    merged = theirs.merge_and_unload()
    worst = 0.0
    for _, path in lora.updates:
        for name in ("weight", "bias"):
            want = getattr(merged.get_submodule(path), name)
            if want is not None:
                found = getattr(ours.get_submodule(path), name)
                worst = max(worst, difference(found, want))
        assert difference(ours.get_submodule(path).weight, plain[f"{path}.weight"]) > 5e-3
    print(f"{kind}: {worst:.1e}")
    assert worst < 1e-6
    loras.unload()
    assert all(value is before[name] for name, value in ours.named_parameters())


def test_settings_of_peft_that_cannot_be_read(tmp_path: Path) -> None:
    theirs, ours = peft_model(configs()["LoRA"]())
    theirs.save_pretrained(tmp_path)
    for text in ("{", "[1]", json.dumps({"lora_alpha": "x"}), "[" * 10_000, " " * (2 << 20)):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"its adapter_config\.json"):
            loras_on(ours).load(tmp_path / "adapter_model.safetensors")


def test_a_convolutions_ia3_must_tell_its_side(tmp_path: Path) -> None:
    """peft's vector of a convolution has the same shape for inputs and outputs."""
    module = nn.Module()
    module.conv = nn.Conv2d(8, 8, 3)
    save_file({"unet.conv.ia3_l": torch.ones(1, 8, 1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has factors"):
        loras_on(module).load(tmp_path / "x.safetensors")


def onetrainer_oft(weight: Tensor, vectors: Tensor, size: int, scaled: bool) -> Tensor:
    """OneTrainer's rule in loops over blocks: linear layers as peft, convolutions turned back."""
    if scaled:
        vectors = vectors / (2 * math.sqrt(size - 1))
    flat = weight.flatten(1).clone()
    for i, vector in enumerate(vectors):
        q = torch.zeros(size, size)
        q[tuple(torch.triu_indices(size, size, 1))] = vector
        q = q - q.T
        r = torch.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        part = flat[:, i * size : (i + 1) * size]
        flat[:, i * size : (i + 1) * size] = part @ (r.T if weight.ndim == 2 else r)
    return flat.reshape(weight.shape)


@pytest.mark.parametrize("scaled", [False, True])
def test_oft_of_onetrainer(tmp_path: Path, scaled: bool) -> None:
    ours = layers()
    tensors, want = {}, {}
    for path in ("linear", "conv"):
        weight = ours.get_submodule(path).weight
        vectors = torch.randn(weight[0].numel() // 4, 6) * 0.2
        tensors[f"lora_unet_{path}.oft_R.weight"] = vectors
        if scaled:
            tensors[f"lora_unet_{path}.oft_R.scaled_oft"] = torch.tensor(True)
        want[path] = onetrainer_oft(weight, vectors, 4, scaled)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = loras_on(ours).load(tmp_path / "x.safetensors")
    assert lora.applied == lora.total == len(tensors)
    for path, weight in want.items():
        assert difference(ours.get_submodule(path).weight, weight) < 1e-6


def test_boft_of_peft_in_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stages need peft's CUDA extension, whose one function is put in its place here."""
    layer = pytest.importorskip("peft.tuners.boft.layer")

    class BlockDiagonals:
        @staticmethod
        def apply(blocks: Tensor) -> Tensor:
            return torch.stack([torch.block_diag(*each) for each in blocks])

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(layer, "FastBlockDiag", BlockDiagonals)
    peft = pytest.importorskip("peft")
    config = peft.BOFTConfig(
        boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["square", "conv"]
    )
    theirs, ours = peft_model(config)
    theirs.save_pretrained(tmp_path)
    loras = loras_on(ours)
    loras.load(tmp_path / "adapter_model.safetensors")
    merged = theirs.merge_and_unload()
    for path in ("square", "conv"):
        found, want = ours.get_submodule(path).weight, merged.get_submodule(path).weight
        assert difference(found, want) < 1e-6
        assert difference(found, layers().get_submodule(path).weight) > 0.05


def test_norms_and_biases_of_an_optimized_model(models: Any, tmp_path: Path) -> None:
    """Layers that were put in place for speed see the changes, and their end."""
    ours, _ = models("sd")
    tensors = {
        "unet.conv_norm_out.w_norm": torch.randn(32) * 0.3,
        "unet.conv_norm_out.b_norm": torch.randn(32) * 0.3,
        "unet.mid_block.attentions.0.transformer_blocks.0.norm1.w_norm": torch.randn(64) * 0.3,
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.diff_b": torch.randn(64),
        "unet.mid_block.resnets.0.conv1.diff_b": torch.randn(64),
        "text_encoder.text_model.final_layer_norm.b_norm": torch.randn(32) * 0.3,
    }
    for name in tensors:  # as wide as the layers of this model
        part, _, path = name.rpartition(".")[0].partition(".")
        layer = ours.loras.layers[part, path]
        tensors[name] = torch.randn(len(layer.weight)) * 0.3
    save_file(tensors, tmp_path / "x.safetensors")
    arguments = {"num_inference_steps": 2, "height": 40, "width": 64}
    plain = draw(ours, seed=3, **arguments)[0]
    ours.load_lora_weights(tmp_path / "x.safetensors")
    want = draw(ours, seed=3, **arguments)[0]
    ours.unload_lora_weights()
    ours.optimize()
    try:
        assert (draw(ours, seed=3, **arguments)[0] - plain).abs().max() < 1e-3
        lora = ours.load_lora_weights(tmp_path / "x.safetensors")
        assert lora.applied == lora.total == len(tensors)
        assert (draw(ours, seed=3, **arguments)[0] - want).abs().max() < 1e-3
        assert (want - plain).abs().max() > 0.05
        ours.unload_lora_weights()
        assert (draw(ours, seed=3, **arguments)[0] - plain).abs().max() < 1e-3
    finally:
        ours.unload_lora_weights()
        ours.optimize(False)


def mutated(value: Tensor, rng: random.Random) -> Tensor:
    """A tensor of another shape, type or values."""
    sizes = (0, 1, 2, 3, 4, 8, 24, 32, 48, 600)
    return rng.choice(
        (
            lambda: value[None],
            lambda: value.flatten()[: rng.choice(sizes)],
            lambda: value.transpose(0, -1) if value.ndim > 1 else value,
            lambda: torch.randn([rng.choice(sizes[:9]) for _ in range(rng.randrange(6))]),
            lambda: torch.full_like(
                value.float(), rng.choice((math.nan, math.inf, 1e38, 0.0, -1e30))
            ),
            lambda: value.to(rng.choice((torch.int32, torch.float16, torch.bool))),
            lambda: torch.zeros(()),
        )
    )()


@pytest.mark.parametrize("kind", LYCORIS)
def test_mutated_files_are_finite_or_refused(kind: str) -> None:
    """Of each kind some hundreds, alone and beside tensors of others."""
    lycoris = pytest.importorskip("lycoris.modules")
    ours, rng = layers(), random.Random(kind)
    torch.manual_seed(0)
    name, settings = LYCORIS[kind]
    valid = {}
    for i, path in enumerate(PATHS):
        module = getattr(lycoris, name)(path, ours.get_submodule(path), **settings)
        randomise(module, i, 0.2)
        valid |= {f"lora_unet_{path}.{key}": v.detach() for key, v in module.state_dict().items()}
    loras, outcomes = loras_on(ours), {"loaded": 0, "refused": 0}
    before = dict(ours.named_parameters())
    ends = [
        ".oft_blocks",
        ".diff",
        ".alpha",
        ".ia3_l",
        ".lokr_w1",
        ".lora_up.bias",
        ".lokr_t2",
        ".hada_t1",
        ".dora_scale",
        ".rescale",
    ]
    for _ in range(150):
        tensors = dict(valid)
        for _ in range(rng.randint(1, 3)):
            key = rng.choice(sorted(tensors))
            if rng.random() < 0.2:
                del tensors[key]
            elif rng.random() < 0.2:
                tensors[key.split(".")[0] + rng.choice(ends)] = tensors.pop(key)
            else:
                tensors[key] = mutated(tensors[key], rng)
        try:
            lora = loras.match(Path("x"), tensors, {}, partial=rng.random() < 0.7)
            for factors in lora.updates.values():
                check_factor_values(Path("x"), factors)
            loras.use({"x": lora})
        except LDMError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
        else:
            outcomes["loaded"] += 1
            assert all(value.isfinite().all() for value in ours.parameters())
        loras.unload()
        assert all(value is before[name] for name, value in ours.named_parameters())
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.parametrize("channels", [4, 8, 9])
@pytest.mark.parametrize("form", ["LoRA", "full difference"])
def test_the_first_layer_of_a_model_with_more_inputs(
    tmp_path: Path, channels: int, form: str
) -> None:
    """The mask and the picture of an inpainting model keep their weights, as in A1111."""
    module = nn.Module()
    module.conv_in = nn.Conv2d(channels, 8, 3)
    before = module.conv_in.weight.clone()
    down, up = torch.randn(2, 4, 3, 3), torch.randn(8, 2, 1, 1)
    change = (up.flatten(1) @ down.flatten(1)).reshape(8, 4, 3, 3)
    stem = "lora_unet_conv_in"
    pair = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file(pair if form == "LoRA" else {f"{stem}.diff": change}, tmp_path / "x.safetensors")
    loras_on(module).load(tmp_path / "x.safetensors")
    found = module.conv_in.weight - before
    assert difference(found[:, :4], change) < 1e-5
    assert not found[:, 4:].any()
