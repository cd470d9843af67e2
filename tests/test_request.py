"""Every argument of a picture is defined once, and every place that names arguments has it."""

from __future__ import annotations

import ast
import inspect
import json
import math
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ldm
from ldm.cli import fields as cli
from ldm.cli import plots, prompts_file
from ldm.cli.options import defaults, parser, read
from ldm.cli.replay import AROUND, IN_ANOTHER_FORM, as_options, given_settings
from ldm.config.arguments import about
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER
from ldm.errors import ArgumentError
from ldm.hires import hires_fix
from ldm.images.generation_info import NUMBERS, GenerationInfo, from_settings
from ldm.images.generation_text import common_settings, special_settings
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from ldm.request import (
    ADAPTER,
    ALL_FIELDS,
    ARGUMENTS,
    CONTROL,
    REFERENCE,
    CallRequest,
    LargeRequest,
    RefinedRequest,
    Request,
    default_strength,
)

ALL = ALL_FIELDS
# Arguments that some places have no use for, and why. Whoever adds an argument to Request either
# gives it an option, a group and, where A1111 knows it, a label, or says here why not.
PYTHON_ONLY = {
    "generator": "an object of PyTorch; the commands have seeds",
    "latents": "a tensor; the commands have seeds",
    "denoising_start": "the command has refiner_start, for both models at once",
    "denoising_end": "as denoising_start",
    "deep_cache_branch": "for experiments: 0 is the fastest and was measured best",
    "prompt_embeds": "a tensor; the commands have texts",
    "negative_prompt_embeds": "as prompt_embeds",
    "pooled_prompt_embeds": "as prompt_embeds",
    "negative_pooled_prompt_embeds": "as prompt_embeds",
    "ip_adapter_image_embeds": "a tensor; the commands take a file of it as ip_adapter_image",
    "steps_before": "the second pass of ldm.hires sets it",
    "output_type": "the commands write files",
}
NO_PLOT_AXIS = {
    "image": "its file may have another size than the next one",
    "mask_image": "as image",
    "depth_map": "as image",
    "control_image": "as image",
    "adapter_image": "as image",
    "reference_image": "as image",
    "ip_adapter_image": "as image",
    "ip_adapter_masks": "as image",
    "num_images_per_prompt": "a plot draws one picture for each pair",
}
NOT_IN_SETTINGS = {
    "prompt": "stands there with the LoRAs that the command line adds",
    "image": "its digest stands there",
    "mask_image": "as image",
    "depth_map": "as image",
    "control_image": "as image",
    "adapter_image": "as image",
    "reference_image": "as image",
    "ip_adapter_image": "as image",
    "ip_adapter_masks": "as image",
    "num_images_per_prompt": "each picture is told alone",
}
NO_LABEL = {  # A1111 writes nothing of the kind, or nothing that says all
    "image": "not in the file",
    "mask_image": "not in the file",
    "depth_map": "not in the file",
    "control_image": "not in the file",
    "adapter_image": "not in the file",
    **dict.fromkeys((*CONTROL[1:], *ADAPTER[1:]), "stands in ControlNet 0, …"),
    "reference_image": "not in the file",
    **dict.fromkeys(REFERENCE, "stands in ControlNet 0, …"),
    "style_aligned": "A1111 has no such setting",
    "ip_adapter_image": "not in the file",
    "ip_adapter_masks": "not in the file",
    "ip_adapter_scale": "stands in ControlNet 0, …, behind the ControlNets",
    "ip_adapter_blocks": "A1111 has no such setting",
    "paste_back": "A1111 always pastes",
    "height": "stands in Size",
    "width": "stands in Size",
    "guidance_interval": "A1111 has no such setting",
    "num_images_per_prompt": "each picture is told alone",
    "deep_cache": "A1111 has no such setting",
    "hires_strength": "is the Denoising strength there",
    "outpaint": "A1111 has no such setting",
}


def option_of(name: str) -> str:
    """Return the name on the command line."""
    return cli.option_name(ALL[name])


WITH_OPTION = [name for name in ALL if name not in PYTHON_ONLY]


def test_the_exceptions_name_arguments() -> None:
    for table in (PYTHON_ONLY, NO_PLOT_AXIS, NOT_IN_SETTINGS, NO_LABEL):
        assert set(table) <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_argument_is_defined_whole(name: str) -> None:
    field, said = ALL[name], about(ALL[name])
    assert field.default is not MISSING
    assert said.help and "\n" not in said.help
    assert bool(said.options) == (name not in PYTHON_ONLY)
    assert not said.options or said.group in cli.GROUPS
    documents = [cls.__doc__ or "" for cls in (Request, LargeRequest, RefinedRequest)]
    assert any(name in document for document in documents)


@pytest.mark.parametrize(
    ("function", "request_class"), [(Pipeline.stream, Request), (Pipeline.__call__, CallRequest)]
)
def test_the_signature_is_the_requests(function: Any, request_class: Any) -> None:
    signature = inspect.signature(function)
    model, *parameters = signature.parameters.values()
    assert model.name == "self"
    assert [(p.name, p.default, p.annotation) for p in parameters] == [
        (field.name, field.default, field.type) for field in fields(request_class)
    ]
    assert parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {p.kind for p in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert signature.return_annotation in ("Output", "Iterator[Progress]")
    assert all(f"    {name}: {about(ALL[name]).help}" in function.__doc__ for name in ARGUMENTS)


def test_two_passes_take_all_arguments() -> None:
    names = [field.name for field in fields(LargeRequest)]
    assert list(inspect.signature(hires_fix).parameters) == ["pipe", *names]


def test_two_models_take_all_arguments() -> None:
    names = [field.name for field in fields(RefinedRequest)]
    for function in (Ensemble.stream, Ensemble.__call__):
        assert list(inspect.signature(function).parameters) == ["self", *names]


@pytest.mark.parametrize("name", WITH_OPTION)
def test_every_argument_is_an_option(name: str) -> None:
    option, said = option_of(name), about(ALL[name])
    assert defaults()[option] == (cli.DEFAULTS[option] if name != "prompt" else [""])
    known = parser()._option_string_actions
    assert name == "prompt" or all(known[text].dest == option for text in said.options)
    if said.command_default is cli.SAME and name != "prompt":
        assert defaults()[option] == ALL[name].default


@pytest.mark.parametrize("name", WITH_OPTION)
def test_every_argument_is_a_key_of_a_file_of_prompts(name: str) -> None:
    option = option_of(name)
    assert option in prompts_file.KEYS
    assert name == option or cli.ALIASES[name] == option


@pytest.mark.parametrize("name", WITH_OPTION)
def test_every_argument_is_an_axis_of_a_plot(name: str) -> None:
    assert (option_of(name) in plots.AXIS_NAMES) == (name not in NO_PLOT_AXIS)


OTHER = {  # a value that is not the default, as it is typed
    "int": "7",
    "int | list[int] | tuple[int, ...]": "7",
    "float": "0.25",
    "str": "x",
    "str | Path": "x",
    "str | Sequence[str]": "x",
    "tuple[float, float]": "0.25,5.0",
    "float | list[float] | tuple[float, ...]": "0.25,0.75",
    "int | str | list[Any] | tuple[Any, ...]": "canny,6",
    "tuple[int, int, int, int]": "8,0,8,0",
}


@pytest.mark.parametrize("name", WITH_OPTION)
def test_every_argument_is_replayed(name: str) -> None:
    option = option_of(name)
    kept = option not in AROUND | IN_ANOTHER_FORM
    assert kept == (name not in NOT_IN_SETTINGS)
    if not kept:
        return
    typed = about(ALL[name]).options[0]
    if option not in cli.SWITCHES:
        typed = f"--{option.replace('_', '-')}={OTHER[cli.kind(ALL[name])]}"
    arguments = read(["a", "--seed=3", "--image=x.png", typed])
    value = getattr(arguments, option)
    assert value != defaults()[option]
    settings = GenerationInfo(given_settings(arguments)).settings("1", {})
    info = from_settings(json.loads(json.dumps(settings)))
    again = read(["a", *as_options(option, info.arguments[option])])
    assert getattr(again, option) == value


@pytest.mark.parametrize("name", WITH_OPTION)
def test_every_argument_is_labelled_for_other_programs(name: str) -> None:
    assert bool(about(ALL[name]).label) == (name not in NO_LABEL)


def test_every_label_is_written() -> None:
    """What is read back by its label, and what is written, is what the fields say."""
    source = inspect.getsource(common_settings) + inspect.getsource(special_settings)
    for name, field in cli.FIELDS.items():
        assert (f'label("{name}")' in source) == bool(about(field).label), name
    assert {name for name, _ in NUMBERS.values()} <= {*ARGUMENTS, "refiner_start"}
    assert len(NUMBERS) == 7


@pytest.mark.parametrize("name", ALL)
def test_every_argument_does_something(name: str) -> None:
    """A field that nothing reads is an argument that is taken and forgotten."""
    package = Path(ldm.__file__).parent
    read = {
        node.attr
        for file in (
            *("preparation.py", "run.py", "hires.py", "refiner.py", "request.py"),
            *("control/hints.py", "control/features.py", "cli/guidance_options.py"),
            *("control/image_prompts.py", "control/image_sources.py"),
        )
        for node in ast.walk(ast.parse((package / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    read |= {kind.image for kind in (CONTROLNET, T2I_ADAPTER)}  # by hints.py, whatever the kind
    assert name in read


# What a request refuses, without a model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; it must be at least 1"),
        ({"prompt": ()}, "num_images_per_prompt is 1 for 0 prompts; both must be at least 1"),
        ({"prompt": 3}, "prompt is 3; expected a text or a list of texts"),
        ({"negative_prompt": 3}, "negative_prompt is 3; it must be a text or a list of texts"),
        ({"sampler": 3}, "sampler is 3; it must be a string"),
        ({"tiling": "no"}, "tiling is 'no'; it must be true or false"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be at least 1"),
        ({"strength": 2}, "strength is 2; it must be in [0, 1]: 0 keeps the image, 1 redraws it"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan; it must be a number, 1 to 15 as"),
        ({"guidance_interval": (1,)}, "guidance_interval is (1,); it must be two numbers"),
        ({"guidance_rescale": 2}, "guidance_rescale is 2; it must be in [0, 1]: 0 is off, 0.7 is"),
        ({"mask_blur": 257}, "mask_blur is 257; it must be in [0, 256] pixels"),
        ({"eta": -1}, "eta is -1; it must be in [0, 1]: 0 adds no noise"),
        ({"variation_strength": 2}, "variation_strength is 2; it must be in [0, 1]: 0 is the"),
        ({"classifier_scale": math.inf}, "classifier_scale is inf; it must be a number, 0 (off)"),
        ({"deep_cache": 0}, "deep_cache is 0; it must be at least 1, which is off"),
        ({"steps_before": -1}, "steps_before is -1; it must be at least 0"),
        ({"output_type": "jpg"}, "output_type is 'jpg'; expected 'pil', 'pt', 'np' or 'latent'"),
        (
            {"clip_skip": -1},
            "clip_skip is -1; it must be at least 0: the text encoder's last layer",
        ),
        ({"seed": []}, "seed has 0 seeds for 1 prompts and 1 pictures of each; give one seed for"),
        ({"seed": ["x"]}, "seed is ['x']; it must be a whole number, or a list of them"),
        ({"seed": [1, 2], "prompt": list("abc")}, "seed has 2 seeds for 3 prompts"),
        ({"seed": [1, 2], "num_images_per_prompt": 3}, "seed has 2 seeds for 1 prompts and 3"),
        ({"prompt_embeds": 3}, "prompt_embeds is int; it must be a tensor (b, n, D)"),
        ({"pooled_prompt_embeds": torch.ones(3)}, "pooled_prompt_embeds is (3,); it must be a"),
        (
            {"prompt": "a", "prompt_embeds": torch.ones(1, 2, 3)},
            "prompt and prompt_embeds are both",
        ),
        ({"denoising_end": 1.0}, "denoising_end is 1.0; it must be in (0, 1), such as 0.8"),
        ({"denoising_start": 0}, "denoising_start is 0; it must be in (0, 1)"),
        ({"denoising_end": "0.5"}, "denoising_end is '0.5'; it must be a number"),
        (
            {"denoising_start": 0.5, "denoising_end": 0.5},
            "denoising_start is 0.5 and denoising_end 0.5; the start must be less",
        ),
        ({"hires_scale": 9}, "hires_scale is 9; it must be in [1, 8]"),
        (
            {"hires_upscaler": 3},
            "hires_upscaler is 3; it must be the name of an upscaler, or a path",
        ),
        ({"outpaint": (1, 2)}, "outpaint is (1, 2); it must be"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        LargeRequest(**arguments)
    assert str(caught.value).startswith(message)


def test_defaults_work() -> None:
    request = LargeRequest()
    assert request.prompts == [""] and request.count == 1
    assert set(request.arguments) == {field.name for field in fields(Request)}
    assert replace(request, prompt=["a", "b"], num_images_per_prompt=3).count == 6


def test_strength() -> None:
    assert Request().image_strength is None
    assert Request(image="a.png").image_strength == default_strength(False) == 0.8
    assert Request(image="a.png", mask_image="b.png").image_strength == 1
    assert Request(image="a.png", strength=0.0).image_strength == 0


def test_objects_pass_through() -> None:
    latents = torch.zeros(1)
    assert Request(latents=latents).arguments["latents"] is latents
    with pytest.raises(TypeError, match="sed"):
        Request(sed=1)


def test_one_parser_reads_many_command_lines() -> None:
    """Also after one that it refused, and it gives every command line its own values."""
    for argv in (["--magic"], ["a", "--seed", "x"], ["a", "--steps"]):
        with pytest.raises(ArgumentError):
            read(argv)
    first, second = read(["a", "--lora", "x", "b"]), read([])
    assert parser() is parser()
    assert (first.prompt, first.lora, second.prompt, second.lora) == (["a", "b"], ["x"], [""], [])
    assert vars(second) == defaults()
    given = {name for name, value in vars(read(["--seed", "1"], unset=True)).items() if value}
    assert given == {"seed"}
