"""Users of diffusers: harmless habits work, others are errors that name the way here."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.config.diffusers_habits import TABLE, find, markdown
from ldm.errors import ArgumentError, UnknownArgumentError, UnknownAttributeError
from ldm.pipeline import Pipeline
from tests.helpers.families import for_task
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator, pixels

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SHORT: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 40, "width": 64}
ROWS = [(place, habit) for place, habits in TABLE.items() for habit in habits]
NAMES = [(place, habit, name) for place, habit in ROWS for name in habit.names]
LOADING = set(inspect.signature(Pipeline.from_pretrained).parameters)
CALL = set(inspect.signature(Pipeline.__call__).parameters)


@pytest.fixture
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


# The table


def test_every_row_is_what_the_code_does(pipe: Pipeline) -> None:
    assert len({(place, name) for place, _, name in NAMES}) == len(NAMES)
    here = {"from_pretrained": LOADING, "call": CALL, "pipe": {*dir(pipe)}, "import": {*dir(ldm)}}
    for place, habit, name in NAMES:
        known = name in here[place] or (name in vars(pipe) and place == "pipe")
        if place == "pipe" and name == "scheduler":  # it can be read
            continue
        assert known == (habit.kind == "works"), name
        assert (habit.kind == "renamed") == (habit.to in here[place]), name


def test_every_name_is_accepted_or_refused(pipe: Pipeline) -> None:
    for place, habit, name in NAMES:
        if habit.kind == "works" or place not in ("call", "from_pretrained"):
            continue
        function = Pipeline.from_pretrained if place == "from_pretrained" else pipe.stream
        model = [pipe.origin] if place == "from_pretrained" else ["a car"]  # refused later
        with pytest.raises(ArgumentError) as caught:
            function(*model, num_inference_steps=0, **{name: 3}) if place == "call" else function(
                *model, **{name: 3}
            )
        refused = isinstance(caught.value, UnknownArgumentError)
        assert refused == (habit.kind in ("off", "error")), (name, caught.value)
        if refused:
            assert str(caught.value).startswith(f"{name} is of diffusers; here: ")


def test_every_attribute(pipe: Pipeline) -> None:
    for place, habit, name in NAMES:
        if place != "pipe" or habit.kind == "works" or name == "scheduler":
            continue
        if habit.kind == "error":
            assert not hasattr(pipe, name)
            with pytest.raises(UnknownAttributeError, match=f"{name} is of diffusers; here: "):
                getattr(pipe, name)
            with pytest.raises(UnknownAttributeError, match=name):
                setattr(pipe, name, True)
        elif habit.kind == "ignored":
            assert getattr(pipe, name)("auto", x=1) is None
        else:
            setattr(pipe, name, None)
            assert getattr(pipe, name) is None
            with pytest.raises(UnknownAttributeError):
                setattr(pipe, name, object())
    with pytest.raises(AttributeError, match="'Pipeline' object has no attribute 'magic'"):
        pipe.magic  # noqa: B018


def test_every_class() -> None:
    for habit in TABLE["import"]:
        for name in habit.names:
            assert hasattr(diffusers, name) or "Text" in name or name.endswith("Output"), name
            with pytest.raises(ImportError, match=f"{name} is of diffusers; here: "):
                getattr(ldm, name)
    code = "from ldm import StableDiffusionPipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "here: ldm.Pipeline draws" in done.stderr.splitlines()[-1]
    with pytest.raises(ImportError, match="cannot import name 'magic'"):
        exec("from ldm import magic")
    assert not hasattr(ldm, "magic")


def test_the_documentation_has_every_row() -> None:
    table = markdown()
    assert all(f"`{name}`" in table for _, _, name in NAMES)
    lines = table.splitlines()
    assert {line.count("|") for line in lines} == {3}
    assert len(lines) == 2 + len(TABLE) + len(ROWS)


# Loading


def test_from_pretrained(folder: Path) -> None:
    own = Pipeline.from_pretrained(
        folder, torch_dtype=torch.bfloat16, safety_checker=None, requires_safety_checker=False,
        use_safetensors=True, variant=None, low_cpu_mem_usage=True, feature_extractor=None,
    ).to("cpu")  # fmt: skip
    assert own.dtype == torch.bfloat16
    for bad, message in (
        ({"torch_dtype": torch.float32, "dtype": "float32"}, "torch_dtype and dtype are the same"),
        ({"scheduler": 3}, "scheduler is of diffusers; here: give sampler="),
        ({"devise": "cpu"}, "from_pretrained has no argument 'devise'; did you mean 'device'"),
        ({"vae": own.vae}, "vae is of the type AutoencoderKL; give the path"),
        ({"text_encoder": [own.text_encoder]}, "text_encoder is of the type CLIPTextEncoder"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Pipeline.from_pretrained(folder, **bad)
    with pytest.raises(ArgumentError, match=r"z\.safetensors', an address; download"):
        Pipeline.from_single_file("https://x.y/z.safetensors")
    with pytest.raises(ArgumentError, match="model is of the type int"):
        Pipeline.from_pretrained(3)


def test_a_hub_id() -> None:
    with pytest.raises(ldm.CheckpointError, match="the hub did not give it"):
        Pipeline.from_pretrained("runwayml/stable-diffusion-v1-5", torch_dtype=torch.float32)


def test_a_single_file() -> None:
    """It is found out by what lies at the path."""
    one, other = Pipeline.from_single_file, Pipeline.from_pretrained
    assert one.__func__ is other.__func__  # type: ignore[attr-defined]


# Drawing: the same pictures as diffusers


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("negative", [False, True])
def test_embeddings(models: Any, family: str, negative: bool) -> None:
    """Latents within 1e-4 (or 5e-6 of the largest), pixels within 1/255; two rows, each twice."""
    ours, theirs = models(family)
    theirs = for_task(theirs, "text")
    width = ours.unet.config.cross_attention_dim
    rng = generator(5)
    given = {"prompt_embeds": torch.randn(2, 77, width, generator=rng)}
    if negative:
        given["negative_prompt_embeds"] = torch.randn(2, 77, width, generator=rng)
    if ours.xl:
        pooled = {name.replace("prompt", "pooled_prompt"): name for name in given}
        size = ours.text_encoder_2.config.projection_dim
        given |= {name: torch.randn(2, size, generator=rng) for name in pooled}
    options = SHORT | {"num_images_per_prompt": 2, **given}
    want = draw_theirs(theirs, None, generator=generator(3), **options)
    got = draw(ours, None, generator=generator(3), **options)
    assert_same(got, want)
    other = draw(ours, "a red car", generator=generator(3), **SHORT | {"num_images_per_prompt": 4})
    assert difference(got[0], other[0]) > 0.1


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("sd", {"prompt_embeds": torch.ones(1, 77, 5)}, r"\(1, 77, 5\); this model reads a width"),
        ("sd", {"prompt_embeds": torch.ones(1, 77, 32).int()}, "must be a tensor of floating"),
        ("sd", {"prompt_embeds": torch.full((1, 77, 32), np.nan)}, "NaN or infinite"),
        ("sd", {"prompt": "a", "pooled_prompt_embeds": torch.ones(1, 5)}, "goes with prompt_emb"),
        (
            "sd",
            {"prompt_embeds": torch.ones(1, 77, 32), "pooled_prompt_embeds": torch.ones(1, 5)},
            "pooled_prompt_embeds is of SDXL",
        ),
        ("sdxl", {"prompt_embeds": torch.ones(1, 77, 80)}, "needs pooled_prompt_embeds"),
        (
            "sd",
            {"prompt": ["a", "b"], "negative_prompt_embeds": torch.ones(1, 77, 32)},
            "negative_prompt_embeds has 1 rows for 2 prompts",
        ),
        ("sd", {"prompt": None}, "prompt is None; give a text, or prompt_embeds"),
    ],
)
def test_embeddings_that_do_not_fit(models: Any, family: str, given: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        models(family)[0](**{"prompt": None, **SHORT, **given})


@pytest.mark.parity
def test_output_np(models: Any) -> None:
    """Within 1e-4 of [0, 1]."""
    ours, theirs = models("sd")
    theirs = for_task(theirs, "text")
    options = SHORT | {"output_type": "np"}
    got = ours("a car", seed=2, **options).images
    want = theirs("a car", generator=generator(2), **options).images
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape == (1, 40, 64, 3)
    assert np.abs(got - want).max() <= 1e-4


def test_seeds_and_images_as_lists(models: Any, picture: Any) -> None:
    ours, _ = models("sd")
    output = ours("a car", seed=[1, 5, 9], **SHORT)
    assert (output.seeds, output.prompts) == ([1, 5, 9], ["a car"] * 3)
    for seed, image in zip(output.seeds, output.images, strict=True):
        alone = ours("a car", seed=seed, **SHORT).images
        assert difference(pixels([image]), pixels(alone)) <= 1
    values = np.array(picture)
    tensor = torch.from_numpy(values).permute(2, 0, 1) / 255
    options = {**SHORT, "strength": 0.7, "seed": 1}
    want = ours("a car", image=picture, **options).images
    for image in (values, values / 255, tensor, tensor[None], [tensor], [picture]):
        assert difference(pixels(ours("a car", image=image, **options).images), pixels(want)) == 0


def test_return_dict(models: Any) -> None:
    for family, length in (("sd", 2), ("sdxl", 1)):
        found = models(family)[0]("a car", return_dict=False, seed=1, **SHORT)
        assert isinstance(found, tuple) and len(found) == length
        assert found[0][0].size == (64, 40)


def test_callback(models: Any) -> None:
    ours, _ = models("sd")
    seen: list[Any] = []

    def look(pipe: Any, step: int, t: float, values: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe is ours, step, t, {*values}))
        return values

    def change(pipe: Any, step: int, t: float, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * (0 if step == 0 else 1)} if step < 2 else {}

    options = SHORT | {"seed": 1}
    plain = ours("a car", **options).images
    assert difference(
        pixels(ours("a car", callback_on_step_end=look, **options).images), pixels(plain)
    ) == 0  # fmt: skip
    levels, _ = ours.schedule(3)
    assert seen == [(True, i, levels[i][0].t, {"latents"}) for i in range(3)]
    changed = ours("a car", callback_on_step_end=change, **options).images
    assert difference(pixels(changed), pixels(plain)) > 20
    for given, message in (
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3; it must be a function of (pipe"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "names 'prompt_embeds'"),
        ({"callback_on_step_end": lambda *_: {"prompt_embeds": 1}}, "returned 'prompt_embeds'"),
        ({"callback_on_step_end": lambda *_: 3}, "returned a int"),
        (
            {"callback_on_step_end": lambda p, i, t, v: {"latents": v["latents"] + 0}},
            "after step 3 of 3",
        ),
    ):
        with pytest.raises(ArgumentError) as caught:
            ours("a car", **options, **given)
        assert message in str(caught.value)


# Moving, parts and LoRAs


def test_to(pipe: Pipeline) -> None:
    want = draw(pipe, seed=1, **SHORT)[0]
    assert pipe.to("cpu").to(torch.float32) is pipe
    pipe.optimize()
    pipe.to(dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16 and pipe.optimized.on
    assert pipe.origin.loading == {"dtype": "bfloat16"}
    low = draw(pipe, seed=1, **SHORT)[0]
    assert 0 < difference(low, want) < 0.5 * want.abs().max()
    for targets, message in (
        (["meta"], "device is 'meta', which does not work"),
        ([torch.float16], "dtype is float16, which CPUs"),
        (["cpu", "cpu"], "given two devices"),
        ([torch.float32, "float32"], "given two dtypes"),
    ):
        with pytest.raises(ArgumentError, match=message):
            pipe.to(*targets)
    with pytest.raises(ArgumentError, match="device is 'cuda"):
        pipe.enable_model_cpu_offload(gpu_id=7)


def test_parts(pipe: Pipeline) -> None:
    again = Pipeline(**pipe.components)
    assert again.unet is pipe.unet and again.tokenizer is pipe.tokenizer
    pipe.unet = pipe.unet  # as after .to(memory_format=…)
    with pytest.raises(ArgumentError, match="unet cannot be exchanged"):
        pipe.unet = torch.nn.Linear(1, 1)
    solver = diffusers.DPMSolverMultistepScheduler
    for scheduler, message in (
        (solver(use_karras_sigmas=True), r"sampler='dpmpp_2m', schedule='karras'\)"),
        (solver(algorithm_type="sde-dpmsolver++"), r"sampler='dpmpp_2m_sde'\)"),
        (diffusers.EulerAncestralDiscreteScheduler(), r"sampler='euler_a'\)"),
        (diffusers.VQDiffusionScheduler(3), "give sampler= when you draw"),
    ):
        with pytest.raises(ArgumentError, match=message):
            pipe.scheduler = scheduler


def test_loras(pipe: Pipeline, tmp_path: Path) -> None:
    layer = "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    weight = pipe.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    plain, rng = weight.clone(), generator(0)
    for name in ("one", "pytorch_lora_weights"):
        save_file(
            {
                f"{layer}.lora_down.weight": torch.randn(2, len(weight), generator=rng),
                f"{layer}.lora_up.weight": torch.randn(len(weight), 2, generator=rng),
            },
            tmp_path / f"{name}.safetensors",
        )

    def now() -> torch.Tensor:
        return pipe.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight

    pipe.load_lora_weights(tmp_path, weight_name="one.safetensors", adapter_name="a")
    pipe.load_lora_weights(tmp_path, adapter_name="b")
    pipe.set_adapters(["a"], adapter_weights=[0.5])
    half = now() - plain
    assert pipe.get_active_adapters() == ["a"]
    assert pipe.get_list_adapters() == {"unet": ["a", "b"]}
    pipe.fuse_lora(lora_scale=2.0)
    torch.testing.assert_close(now() - plain, 2 * half)
    pipe.to(torch.bfloat16).to(torch.float32)  # the LoRA goes along
    assert difference(now() - plain.bfloat16(), 2 * half) < 0.05
    pipe.unload_lora_weights()
    assert list(pipe.loras.loaded) == ["a"]
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(now(), plain.bfloat16().float())
    for bad, message in (
        (lambda: pipe.fuse_lora(adapter_names=["c"]), "no LoRA named 'c' is loaded; there are: no"),
        (lambda: pipe.delete_adapters("c"), "no LoRA named 'c'"),
        (lambda: pipe.load_lora_weights({"x": 1}), "the LoRA is a dict; give the path"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bad()


def test_find() -> None:
    assert find("call", "magic") is None
    assert find("from_pretrained", "torch_dtype").to == "dtype"  # type: ignore[union-attr]


def test_the_documentation_has_the_table() -> None:
    """``python -c "from ldm.config.diffusers_habits import markdown; print(markdown())"``."""
    readme = Path(ldm.__file__).with_name("interface") / "README.md"
    assert markdown() in readme.read_text(encoding="utf-8")
