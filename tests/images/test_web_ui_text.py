"""The web UI's text as many programs write it: where the settings stand, and how their values look.

Each kind of issue 23, item 4, with neighbours that no case names.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import ImageError
from ldm.images.generation_info import from_text, read_generation_info
from ldm.images.metadata import format_parameters, parse_parameters
from tests.images.pictures import exif, png

S = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
READ = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "num_inference_steps": 20,
    "guidance_scale": 7.0,
    "seed": 1,
    "width": 512,
    "height": 512,
    "sampler": "euler_a",
    "schedule": "normal",
}
HEAD = "a cat\nNegative prompt: dog\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}{S}",
        f"{HEAD}{S}\nTime taken: 3.2 sec.",
        f"{HEAD}{S}\n\nTorch active/reserved: 3/4 MiB, Sys VRAM: 5/8 MiB (60%)",
        f"{HEAD}{S}\nTemplate: a {{cat|fox}}\nNegative Template: dog",
        f"{HEAD}{S}\nTemplate: a {{cat|fox}}\nof two lines\nNegative Template: dog",
        f"{HEAD}Template: a {{cat|fox}}\n{S}",
        f"{HEAD}Template: a {{cat|fox}}\nof two lines\nNegative template: dog\n{S}",
        HEAD + S.replace(", ", "\n"),
        HEAD + S.replace(", ", ",\n"),
        HEAD + "\n" + S.replace(", ", "\n\n") + "\nSteps taken: 3",
        HEAD + "\n".join(reversed(S.split(", "))),
        HEAD.replace("prompt", "Prompt") + S,
        f"{HEAD}{S}\nSteps: 99, Seed: 4, Size: 8x8, Sampler: Heun",
        f"{HEAD}{S}\n\nUpscale: 2\nSteps: 99\nSeed: 4\nSize: 8x8",
        HEAD + S.replace(", Seed", "\nSeed"),
        HEAD.replace("\n", " ") + S,
        f"{HEAD.strip()} {S}",
        f"{HEAD.strip()} {S}\nTime taken: 3.2 sec.",
        (HEAD + S).replace("\n", "\r\n"),
        f"{HEAD}{S.lower()}",
        f"{HEAD}{S.replace('512x512', '512 X 512')}",
        f"{HEAD}{S}, ",
        f"{HEAD}Seed: 1, Size: 512x512, Steps: 20, CFG scale: 7.0, Sampler: Euler a",
    ],
)
def test_where_the_settings_stand(text: str) -> None:
    assert from_text(text).arguments == READ


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (
            "Face model: f.pt, Face confidence: 0.3, Face strength: 0.4",
            ("Face model f.pt", "Face confidence 0.3", "Face strength 0.4"),
        ),
        ("ADetailer model: face_yolov8n.pt", ("ADetailer model face_yolov8n.pt",)),
    ],
)
def test_lines_of_extensions_are_named(line: str, note: tuple[str, ...]) -> None:
    info = from_text(f"{HEAD}{S}, RNG: CPU\n{line}")
    assert info.arguments == READ
    assert info.notes == note


@pytest.mark.parametrize(
    "line",
    [
        "lighting: soft, mood: calm, style: oil",
        "Style: oil, Model: Kate, Version: two, Size: large",
        "Sampler: on the wall, Seed: of doubt, Steps: many",
        "Model: Kate Moss",
        "ratio 16:9, quality: 8k",
        "a sign, text: {open}",
    ],
)
def test_a_line_of_the_prompt_with_colons(line: str) -> None:
    assert from_text(f"a cat\n{line}").arguments == {"prompt": f"a cat\n{line}"}
    assert from_text(f"a cat\n{line}\n{S}").arguments["prompt"] == f"a cat\n{line}"
    info = from_text(f"a cat\nNegative prompt: dog\n{line}\n{S}")
    assert info.arguments["negative_prompt"] == f"dog\n{line}"


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        (
            'Hashes: {"model": "abc", "lora:x": "d, e"}',
            "Hashes",
            '{"model": "abc", "lora:x": "d, e"}',
        ),
        (
            'Civitai resources: [{"type":"lora","weight":0.8,"name":"a, b: c"}]',
            "Civitai resources",
            '[{"type":"lora","weight":0.8,"name":"a, b: c"}]',
        ),
        ("Skip layers: [7, 8, ]", "Skip layers", "[7, 8, ]"),
        ("Hashes: {'model': 'abc', 'vae': 'd'}", "Hashes", "{'model': 'abc', 'vae': 'd'}"),
        ("Open: {a, Next: 1", "Open", "{a"),
        ("ADetailer prompt: a dog, best quality", "ADetailer prompt", "a dog, best quality"),
        (r"Path: C:\models\a.ckpt", "Path", r"C:\models\a.ckpt"),
        ("Created Date: 2024-05-01T10:00:00.1Z", "Created Date", "2024-05-01T10:00:00.1Z"),
        (r'Wildcard: "a \"b\", c: d"', "Wildcard", 'a "b", c: d'),
        ('Said: "hi" she said', "Said", '"hi" she said'),
        ("Model: ", "Model", ""),
        ('Model: ""', "Model", ""),
        ("Eta: inf", "Eta", "inf"),
        ("Größe: 3", "Größe", "3"),
    ],
)
@pytest.mark.parametrize("place", ["middle", "end", "begin"])
def test_values(written: str, name: str, value: str, place: str) -> None:
    text = {
        "middle": f"Steps: 20, {written}, Seed: 1, Size: 8x8",
        "end": f"Steps: 20, Seed: 1, Size: 8x8, {written}",
        "begin": f"{written}, Steps: 20, Seed: 1, Size: 8x8",
    }[place]
    read = parse_parameters(f"a\n{text}")
    assert read[name] == value
    assert [read[key] for key in ("Prompt", "Steps", "Seed", "Size")] == ["a", "20", "1", "8x8"]


@pytest.mark.parametrize("value", ["{a: 1}", "[1", '{"a": "b"}', "[x], y"])
def test_values_in_brackets_are_read_back(value: str) -> None:
    text = format_parameters({"Steps": 1, "Seed": 2, "Size": "8x8", "Model": value, "RNG": "CPU"})
    assert parse_parameters(text)["Model"] == value


# stable-diffusion.cpp, as its common.cpp writes it.
CPP = (
    "a cat\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: inf, Seed: 42, "
    "Size: 512x768, Model: , RNG: cpu, Sampler: euler discrete, TE: a.gguf, TE: b.gguf, "
    "Unet: u.gguf, VAE: ae.sft, Version: stable-diffusion.cpp, "
    'SDCPP: {"models":{"vae":"ae.sft"},"prompt":{"negative":"","positive":"Seed: 7, x"}}'
)


def test_stable_diffusion_cpp() -> None:
    info = from_text(CPP)
    assert info.arguments == {
        "prompt": "a cat",
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "seed": 42,
        "width": 512,
        "height": 768,
        "sampler": "euler",
        "schedule": "normal",
    }
    assert (info.model, info.vae, info.notes) == ("u", "ae", ())


def test_sd_next() -> None:
    text = (
        "a cat\nNegative prompt: \nTemplate: a {cat}\nSteps: 30, Size: 1024x1024, Scheduler: "
        "EulerAncestralDiscreteScheduler, Seed: 3, CFG scale: 6, App: SD.Next, Version: 12ab, "
        "Pipeline: StableDiffusionXLPipeline, Operations: txt2img, Model: xl_base, Model hash: 31e3"
    )
    info = from_text(text)
    assert info.arguments["sampler"] == "euler_a"
    assert "negative_prompt" not in info.arguments
    assert (info.model, info.notes) == ("xl_base", ("RNG GPU (our noise is drawn on the CPU)",))


def test_fooocus_in_the_web_uis_form() -> None:
    text = f"a cat, sharp\n{S}, Scheduler: karras, Sharpness: 2, Raw prompt: a cat, RNG: CPU"
    info = from_text(text)
    assert (info.arguments["sampler"], info.arguments["schedule"]) == ("euler_a", "karras")
    assert info.notes == ("Sharpness 2",)


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ("Model: sub/dir/a.v2.safetensors", "a.v2"),
        (r"Model: sub\a.ckpt", "a"),
        ("Model: v1.5", "v1.5"),
        ("Model: None", None),
    ],
)
def test_names_of_models(settings: str, model: str | None) -> None:
    assert from_text(f"a\n{S}, {settings}").model == model


@pytest.mark.parametrize(
    "comment",
    [
        b"ASCII\0\0\0Screenshot",
        b"ASCII\0\0\0Made by a paint program",
        b"ASCII\0\0\0" + b" " * 40,
        bytes(48),
        b"UNICODE\0" + "Lens: 50mm, ISO: 100, Camera: X".encode("utf-16-be"),
        b'ASCII\0\0\0{"device": "phone", "hdr": true}',
        b"\0\0\0\0\0\0\0\0Processed with an app, Seed: none",
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_a_comment_is_no_prompt(tmp_path: Path, comment: bytes, name: str) -> None:
    with pytest.raises(ImageError, match="it does not say how it was made"):
        read_generation_info(exif(tmp_path, comment, name))


def test_comments_of_paint_programs(tmp_path: Path) -> None:
    for chunks in ({"Comment": "Created with GIMP"}, {"Description": "a cat"}, {"Title": "Cat"}):
        with pytest.raises(ImageError, match="it does not say how it was made"):
            read_generation_info(png(tmp_path, **chunks))


@pytest.mark.parametrize(
    "comment",
    [
        pytest.param(b"UNICODE\0" + f"猫, é\n{S}".encode("utf-16-be"), id="big"),
        pytest.param(b"UNICODE\0" + f"猫, é\n{S}".encode("utf-16-le"), id="little"),
        pytest.param(b"UNICODE\0\xfe\xff" + f"猫, é\n{S}".encode("utf-16-be"), id="big, mark"),
        pytest.param(b"UNICODE\0\xff\xfe" + f"猫, é\n{S}".encode("utf-16-le"), id="little, mark"),
        pytest.param(b"UNICODE\0" + f"猫, é\n{S}".encode(), id="UTF-8 that says UTF-16"),
        pytest.param(b"ASCII\0\0\0" + f"猫, é\n{S}".encode(), id="UTF-8 that says ASCII"),
        pytest.param(bytes(8) + f"猫, é\n{S}".encode() + bytes(5), id="UTF-8, padded"),
        pytest.param(bytes(8) + f"猫, é\n{S}".encode("utf-16-le"), id="no name, little"),
        pytest.param(b"ASCII\0\0\0\xef\xbb\xbf" + f"猫, é\n{S}".encode(), id="UTF-8, mark"),
        pytest.param(f"猫, é\n{S}".encode(), id="no header"),
        pytest.param(b"\xff\xfe" + f"猫, é\n{S}".encode("utf-16-le"), id="no header, mark"),
    ],
)
def test_encodings(tmp_path: Path, comment: bytes) -> None:
    info = read_generation_info(exif(tmp_path, comment))
    assert (info.arguments["prompt"], info.arguments["seed"]) == ("猫, é", 1)


def test_other_encodings(tmp_path: Path) -> None:
    mostly = "一只穿着标志的中国美女正拿着黑色的马克笔面对镜头微笑" * 9
    for order in ("le", "be"):
        path = exif(tmp_path, b"UNICODE\0" + f"{mostly}\n{S}".encode(f"utf-16-{order}"))
        assert read_generation_info(path).arguments["prompt"] == mostly
    path = exif(tmp_path, b"ASCII\0\0\0" + f"café\n{S}".encode("latin-1"))
    assert read_generation_info(path).arguments["prompt"] == "café"
    path = exif(tmp_path, b"JIS\0\0\0\0\0" + f"車\n{S}".encode("iso2022_jp"))
    assert read_generation_info(path).arguments["prompt"] == "車"


def test_utf8_in_a_latin1_chunk(tmp_path: Path) -> None:
    """As stable-diffusion.cpp writes it; what is Latin-1 stays."""
    for written, read in ((f"猫\n{S}".encode().decode("latin-1"), "猫"), (f"café\n{S}", "café")):
        info = read_generation_info(png(tmp_path, parameters=written))
        assert info.arguments["prompt"] == read


def test_a_prompt_alone_in_the_chunk_of_its_own(tmp_path: Path) -> None:
    for prompt in ("a cat", "[[[a]]], cat", "{a|b} cat", "[a:b:0.5]"):
        info = read_generation_info(png(tmp_path, parameters=prompt))
        assert info.arguments == {"prompt": prompt}
