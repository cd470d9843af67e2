"""Values of wrong types and sizes, in every argument of every method: only ldm's own errors."""

from __future__ import annotations

import dataclasses
import decimal
import fractions
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import LDMError
from ldm.pipeline import Pipeline
from ldm.request import ALL_FIELDS, CallRequest


class Broken:
    """Whose every use is an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no items")


class Text(str):
    """A text of another class."""


def recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


ODD: dict[str, Callable[[], Any]] = {
    "5": lambda: 5,
    "-1": lambda: -1,
    "0": lambda: 0,
    "2.5": lambda: 2.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "1e30": lambda: 1e30,
    "10^400": lambda: 10**400,
    "10^5000": lambda: 10**5000,
    "2^63": lambda: 2**63,
    "1j": lambda: 1j,
    "True": lambda: True,
    "x": lambda: "x",
    "empty text": lambda: "",
    "text of a class": lambda: Text("a cat"),
    "surrogate": lambda: "\ud800",
    "zero byte": lambda: "a\0b",
    "long name": lambda: "a" * 5000,
    "bytes": lambda: b"x",
    "list": lambda: [],
    "[1]": lambda: [1],
    "[None]": lambda: [None],
    "[[1.5]]": lambda: [[1.5]],
    "['x']": lambda: ["x"],
    "('x', 5)": lambda: ("x", 5),
    "recursive": recursive,
    "dict": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "set": lambda: {1},
    "range": lambda: range(3),
    "iterator": lambda: iter([1]),
    "object": object,
    "class": lambda: int,
    "function": lambda: len,
    "broken": Broken,
    "Decimal": lambda: decimal.Decimal("0.5"),
    "Decimal NaN": lambda: decimal.Decimal("sNaN"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "numpy number": lambda: np.float64(0.5),
    "numpy whole number": lambda: np.int64(1),
    "array": lambda: np.zeros(3),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "array of texts": lambda: np.array(["a", "b"]),
    "picture's array": lambda: np.zeros((8, 8, 3), np.uint8),
    "array with NaN": lambda: np.full((8, 8, 3), math.nan, np.float32),
    "complex array": lambda: np.zeros((8, 8, 3), np.complex64),
    "scalar tensor": lambda: torch.tensor(1.0),
    "tensor": lambda: torch.zeros(2, 3),
    "picture's tensor": lambda: torch.zeros(3, 8, 8),
    "latents": lambda: torch.zeros(1, 4, 8, 8),
    "whole latents": lambda: torch.zeros(1, 4, 8, 8, dtype=torch.int64),
    "complex latents": lambda: torch.zeros(1, 4, 8, 8, dtype=torch.complex64),
    "double latents": lambda: torch.zeros(1, 4, 8, 8, dtype=torch.float64),
    "NaN latents": lambda: torch.full((1, 4, 8, 8), math.nan),
    "meta latents": lambda: torch.zeros(1, 4, 8, 8, device="meta"),
    "sparse latents": lambda: torch.zeros(1, 4, 8, 8).to_sparse(),
    "embeddings": lambda: torch.zeros(1, 77, 32),
    "meta tensor": lambda: torch.zeros(1, 77, 32, device="meta"),
    "whole embeddings": lambda: torch.zeros(1, 77, 32, dtype=torch.int32),
    "many axes": lambda: torch.zeros(1, 1, 1, 1, 1, 1),
    "no elements": lambda: torch.zeros(0, 4, 8, 8),
    "dtype": lambda: torch.float32,
    "device": lambda: torch.device("cpu"),
    "generator": lambda: torch.Generator(),
    "generators": lambda: [torch.Generator()] * 3,
    "generator and text": lambda: [torch.Generator(), "x"],
    "picture": lambda: Image.new("RGB", (8, 8)),
    "grey picture": lambda: Image.new("I;16", (8, 8)),
    "empty picture": lambda: Image.new("RGB", (0, 0)),
    "thin picture": lambda: Image.new("RGB", (1, 60000)),
    "closed picture": lambda: closed_picture(),
    "folder": lambda: Path("/tmp"),
    "device file": lambda: Path("/dev/zero"),
    "no file": lambda: Path("/nowhere/at/all"),
    "module": lambda: torch.nn.Linear(1, 1),
}
FIELDS = [field.name for field in dataclasses.fields(CallRequest)]


def closed_picture() -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.close()
    return image


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def escapes(action: Callable[[Any], object], values: dict[str, Callable[[], Any]]) -> list[str]:
    """Do it with every value; return what came out but results and ldm's errors."""
    found = []
    for name, make in values.items():
        value = make()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                action(value)
        except LDMError as error:
            if len(str(error)) > 2000 or "\n" in str(error):
                found.append(f"{name}: a message of {len(str(error))} letters or several lines")
        except Exception as error:
            place = inspect.trace()[-1]
            found.append(
                f"{name}: {type(error).__name__} {error!s:.80} ({place.filename}:{place.lineno})"
            )
    return found


@pytest.mark.parametrize("field", FIELDS)
def test_arguments_of_a_call(pipe: Pipeline, field: str) -> None:
    def draw(value: Any) -> object:
        arguments = {"num_inference_steps": 1, "height": 16, "width": 16, "progress_bar": False}
        if field in ("mask_image", "mask_blur", "strength", "depth_map", "paste_back"):
            arguments["image"] = Image.new("RGB", (16, 16))
        if field in ("latents", "denoising_start"):
            arguments |= {"height": 64, "width": 64}
        if field == "prompt_embeds":
            return pipe(**arguments | {field: value})
        return pipe(**{"prompt": "a cat"} | arguments | {field: value})

    # What a callback itself raises is its own.
    kept = {name: make for name, make in ODD.items() if "callback" not in field or name != "class"}
    for name in ("function", "module") if "callback" in field else ():
        del kept[name]
    assert not (found := escapes(draw, kept)), "\n".join(found)


METHODS = {
    "stream": ["prompt"],
    "schedule": ["num_inference_steps", "strength", "sampler", "schedule", "masked"],
    "choose_sampler": ["sampler", "schedule"],
    "load_lora_weights": ["path", "adapter_name", "scale", "partial", "weight_name"],
    "set_adapters": ["adapter_names", "scales", "adapter_weights"],
    "delete_adapters": ["adapter_names"],
    "fuse_lora": ["components", "lora_scale", "adapter_names"],
    "load_textual_inversion": ["path", "token"],
    "load_controlnet": ["path", "name"],
    "unload_controlnet": ["name"],
    "load_t2i_adapter": ["path", "name"],
    "unload_t2i_adapter": ["name"],
    "load_ip_adapter": [
        *("path", "subfolder", "weight_name", "image_encoder_folder", "image_encoder", "name"),
    ],
    "unload_ip_adapter": ["name"],
    "set_ip_adapter_scale": ["scale"],
    "encode_ip_adapter_image": ["image", "name"],
    "load_preview_vae": ["path"],
    "memory_needed": [
        *("height", "width", "num_images", "guidance_scale", "image", "controlnets"),
    ],
    "optimize": ["on", "compile", "offload", "int8", "fp8", "int8_weights", "engine"],
    "use_few_steps": ["on"],
    "to": ["device", "dtype"],
    "enable_model_cpu_offload": ["gpu_id", "device"],
    "enable_sequential_cpu_offload": ["gpu_id", "device"],
    "preview": ["x"],
    "decode": ["x"],
    "save_pretrained": ["folder", "dtype"],
    "save_single_file": ["path", "dtype"],
    "from_pretrained": [
        *("model", "device", "dtype", "variant", "vae", "preview_vae", "text_encoder", "ema"),
        *("prediction_type", "cache_dir", "revision", "token", "local_files_only", "int8"),
        *("controlnet", "adapter", "few_steps", "offload", "fp8", "int8_weights"),
    ],
}
USUAL: dict[str, dict[str, Any]] = {
    "load_lora_weights": {"path": "/nowhere.safetensors"},
    "set_adapters": {"adapter_names": "x"},
    "load_textual_inversion": {"path": "/nowhere.safetensors"},
    "load_controlnet": {"path": "/nowhere.safetensors"},
    "load_t2i_adapter": {"path": "/nowhere.safetensors"},
    "load_ip_adapter": {"path": "/nowhere.safetensors"},
    "encode_ip_adapter_image": {"image": "/nowhere.png"},
    "save_pretrained": {"folder": "/proc/nowhere"},
    "save_single_file": {"path": "/proc/nowhere.safetensors"},
    "from_pretrained": {"model": "/nowhere"},
    "choose_sampler": {"sampler": "ddim"},
}


@pytest.mark.parametrize(
    ("method", "argument"), [(name, each) for name, names in METHODS.items() for each in names]
)
def test_arguments_of_methods(
    pipe: Pipeline, method: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    works = argument in ("folder", "path", "model") and method.startswith(("save", "from"))
    # What is written under odd names, and the built-in model, are no errors.
    values = {
        name: make for name, make in ODD.items() if not works or isinstance(make(), int | list)
    }
    call = getattr(pipe, method)
    usual = USUAL.get(method, {})
    if method in ("preview", "decode"):
        values = {n: make for n, make in values.items() if "latents" not in n}

    def act(value: Any) -> object:
        return call(**usual | {argument: value})

    try:
        assert not (found := escapes(act, values)), "\n".join(found)
    finally:
        pipe.optimize(False)
        pipe.to("cpu", torch.float32)


def test_every_method_is_tried(pipe: Pipeline) -> None:
    known = {
        name
        for name, value in inspect.getmembers(type(pipe), callable)
        if name[0] != "_" and value.__module__.startswith("ldm.")
    }
    without = {
        *("explain", "plain", "default_size", "used_controlnets", "image_networks", "need_text"),
        *("need_encoder", "load_own_controlnet", "make_ip_adapter", "unfuse_lora"),
        *("unload_lora_weights", "unload_textual_inversion", "get_active_adapters"),
        *("get_list_adapters", "set_progress_bar_config", "from_single_file"),
        *("drawing", "load_own_adapters", "fast_by_default", "optimize_as", "send_home"),
    }
    assert known - without == set(METHODS)


@pytest.mark.parametrize("field", [name for name in ALL_FIELDS if name not in FIELDS])
def test_arguments_of_two_passes_and_two_models(pipe: Pipeline, field: str) -> None:
    from ldm.hires import hires_fix
    from ldm.refiner import Ensemble

    draw = (
        Ensemble(pipe, pipe).stream
        if field == "refiner_start"
        else lambda *a, **k: hires_fix(pipe, *a, **k)
    )
    found = escapes(lambda value: draw("a", num_inference_steps=2, **{field: value}), ODD)
    assert not found, "\n".join(found)
