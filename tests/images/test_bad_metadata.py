"""Texts that are huge, nested or broken, and mutated files: one clear error, in bounded time."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from ldm.errors import ImageError
from ldm.images.generation_info import GenerationInfo, read_generation_info
from ldm.images.metadata import parse_parameters
from ldm.images.programs import READERS, read_labels
from tests.images.pictures import exif, png
from tests.images.test_programs import DREAM, FOOOCUS, graph, invoke

MEGABYTE = 2**20
SECONDS = 20  # a machine that does much else; each takes less than one on a free one
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
UNITS = [
    *("a", " ", ",", ":", '"', "\\", "{", "[", "\n", "a:", "a: b, ", "ab: [", "ab: {, ", 'ab: "x'),
    *('ab: "\\", ', "ab: [1,", "Steps: 1\n", "Steps: 1, ", "Steps: 1, Seed: 1, Size: 8x8\n"),
    *("Negative prompt: ", "Negative prompt:\n", "a" * 99 + ": ", "Steps:  ", " Steps: 1,"),
    *("ab: c\n", "Template: a\n", '{"', '{"a":', "[[", "[" * 999 + "]" * 999, "ab: [[[[]]], "),
    *("é", "a, ", 'ab: "x" y, ', "ab:\t", "Steps: 11111111", '"class_type"'),
]


@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_of_anything(tmp_path: Path, unit: str) -> None:
    content = (unit * (MEGABYTE // len(unit) + 1))[:MEGABYTE]
    for text in (content, f"{content}\n{SETTINGS}", f"a\n{SETTINGS}\n{content}"):
        start = time.monotonic()
        parsed = parse_parameters(text)  # far beyond the limit of a file's text, and linear
        assert time.monotonic() - start < SECONDS
        assert {"Prompt", "Negative prompt"} <= set(parsed)
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"a\.png: its|a\.png: it does not"):
        read_generation_info(png(tmp_path, parameters=content, Dream=content, prompt=content))
    assert time.monotonic() - start < SECONDS


def test_memory(tmp_path: Path) -> None:
    path = png(tmp_path, parameters="ab: c, " * (MEGABYTE // 14) + "\n" + SETTINGS)
    tracemalloc.start()
    with pytest.raises(ImageError, match="its field parameters has"):
        read_generation_info(path)
    parse_parameters("ab: c, " * (MEGABYTE // 14))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * MEGABYTE


@pytest.mark.parametrize("length", [100_001, 300_000])
def test_prompts_that_are_too_long(tmp_path: Path, length: int) -> None:
    prompt = "a" * length
    for path in (
        png(tmp_path, parameters=f"{prompt}\n{SETTINGS}"),
        png(tmp_path, parameters={"prompt": prompt, "steps": 3}),
    ):
        with pytest.raises(ImageError, match=f"its prompt has {length} characters; at most 100000"):
            read_generation_info(path)
    info = read_generation_info(png(tmp_path, parameters=f"{'a' * 100_000}\n{SETTINGS}"))
    assert len(info.arguments["prompt"]) == 100_000


FIELDS = ("parameters", "prompt", "invokeai_metadata", "sd_dash_metadata", "Comment")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("depth", [90, 900, 990, 100_000])
@pytest.mark.parametrize(
    "shape", ["[", '{"a":', '{"class_type":', '{"fooocus":', '{"uc":[', '{"x":[{"inputs":']
)
def test_nested_json(tmp_path: Path, field: str, depth: int, shape: str) -> None:
    close = "".join({"[": "]", "{": "}"}.get(c, "") for c in reversed(shape))
    text = shape * depth + ("1" if shape[-1] == ":" else "") + close * depth
    path = png(tmp_path, **{field: text, "Software": "NovelAI" if field == "Comment" else "x"})
    try:
        assert isinstance(read_generation_info(path), GenerationInfo)
    except ImageError as error:
        assert "a.png: it" in str(error) and len(str(error)) < 700 + len(str(path))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 4000, "9" * 5000, '"x"', "[]"])
@pytest.mark.parametrize("key", ["seed", "steps", "width", "cfg_scale", "prompt"])
def test_numbers_that_are_none(tmp_path: Path, key: str, value: str) -> None:
    text = f'{{"prompt": "a", "sampler": "euler", "{key}": {value}}}'
    for path in (
        png(tmp_path, parameters=text),
        png(tmp_path, invokeai_metadata=text.replace('"prompt"', '"positive_prompt"')),
    ):
        try:
            assert isinstance(read_generation_info(path), GenerationInfo)
        except ImageError as error:
            assert "a.png: it" in str(error) and len(str(error)) < 700 + len(str(path))


def test_graphs_that_loop(tmp_path: Path) -> None:
    loops = graph(
        n6={"text": ["7", 0], "clip": ["6", 0]},
        n7={"text": ["6", 0]},
        n5={"width": ["5", 0], "samples": ["3", 0]},
        n3={"latent_image": ["8", 0], "seed": ["3", 0], "model": ["3", 0]},
    )
    assert read_generation_info(png(tmp_path, prompt=loops)).arguments["prompt"] == ""
    chain = graph()
    for index in range(9000):
        inputs = {"samples": [str(100 + index + 1), 0], "conditioning": [str(101 + index), 0]}
        chain[str(100 + index)] = {"class_type": "Reroute", "inputs": inputs}
    chain["9100"] = chain["5"]
    chain["3"]["inputs"] |= {"latent_image": ["100", 0], "positive": ["100", 0]}
    start = time.monotonic()
    with pytest.raises(ImageError, match="by ComfyUI, has no text that leads to the sampler"):
        read_generation_info(png(tmp_path, prompt=chain))
    samplers = graph()
    for index in range(3000):
        inputs = graph()["3"]["inputs"] | {"latent_image": [str(101 + index), 0]}
        samplers[str(100 + index)] = {"class_type": "KSampler", "inputs": inputs}
    samplers["3100"] = samplers["5"]
    samplers["8"]["inputs"]["samples"] = ["100", 0]
    try:
        read_generation_info(png(tmp_path, prompt=samplers))
    except ImageError as error:
        assert "by ComfyUI" in str(error)
    assert time.monotonic() - start < SECONDS


def test_many_notes(tmp_path: Path) -> None:
    text = f"a\n{SETTINGS}, RNG: CPU, " + ", ".join(f"Name {i}: {'x' * 99}" for i in range(999))
    notes = read_generation_info(png(tmp_path, parameters=text)).notes
    assert len(notes) == 21 and notes[-1] == "and 979 more"
    assert all(len(note) <= 60 for note in notes)


SWARM = {"sui_image_params": {"prompt": "a", "seed": 1, "loras": "x", "initimage": "y"}}
NOVEL = {"Software": "NovelAI", "Comment": {"prompt": "a", "uc": "b", "scale": 5, "seed": 1}}
SOURCES: list[dict[str, object]] = [
    {"parameters": f"a cat\nNegative prompt: dog\n{SETTINGS}, Hashes: {{}}\nTime taken: 3 sec."},
    {"parameters": FOOOCUS},
    {"parameters": SWARM},
    {"invokeai_metadata": invoke()},
    {"Dream": DREAM},
    {"sd-metadata": {"image": {"prompt": [{"prompt": "a"}], "seed": 1}, "model_weights": "x"}},
    NOVEL,
    {"prompt": graph()},
    {"UserComment": {"c": "a", "uc": "b", "size": "8x8", "strength": 0.5}},
    {"prompt": "a", "num_inference_steps": "3", "seed": "1"},
]


@pytest.mark.parametrize("source", range(len(SOURCES)))
def test_mutated_texts(source: int) -> None:
    """Readers see values of any type, cut and repeated texts: a ValueError, or labels as text."""
    rng = random.Random(source)
    start = time.monotonic()
    for _ in range(600):
        fields = {
            name: mutated(value if isinstance(value, str) else json.dumps(changed(value, rng)), rng)
            for name, value in SOURCES[source].items()
        }
        try:
            labels = read_labels(fields)
        except ValueError as error:
            assert len(str(error)) < 1000
        else:
            for name, value in (labels or {}).items():
                assert isinstance(name, str) and isinstance(value, str)
    assert time.monotonic() - start < 3 * SECONDS


def changed(value: object, rng: random.Random) -> object:
    """Replace some values of JSON by ones of other types."""
    if rng.random() < 0.04:
        odd = [None, True, -1, 1e400, float("nan"), "", "x" * 300, [], {}, [[]], ["3", 0], "9" * 50]
        return rng.choice(odd)
    if isinstance(value, dict):
        return {key: changed(each, rng) for key, each in value.items() if rng.random() > 0.02}
    if isinstance(value, list):
        return [changed(each, rng) for each in value]
    return value


def mutated(text: str, rng: random.Random) -> str:
    """Change, cut or repeat a few letters, in one text of two."""
    for _ in range(rng.choice([0, 0, 1, 5])):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        kind = rng.random()
        if kind < 0.6:
            text = (
                text[:at] + rng.choice(['"', "{", "[", ",", ":", "\n", "\0", "9", "é"]) + text[at:]
            )
        elif kind < 0.8:
            text = text[:at] + text[min(end, at + 9) :]
        else:
            text = text[:at]
    return text


@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "a.webp"])
def test_mutated_pictures(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    text = f"a 猫\nNegative prompt: dog\n{SETTINGS}, Hashes: {{}}"
    if kind == "a.png":
        path = png(tmp_path, parameters=text, prompt=graph(), Software="x")
    else:
        path = exif(tmp_path, text, kind, tag271="workflow:{}", tag272="prompt:{}")
    whole = path.read_bytes()
    start = time.monotonic()
    read = 0
    for _ in range(1500):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.randrange(len(content))
            content[at] = rng.choice(
                [0, 255, rng.randrange(256), content[at] ^ 1 << rng.randrange(8)]
            )
        path.write_bytes(content[: rng.choice([len(content)] * 3 + [rng.randrange(len(content))])])
        try:
            read += isinstance(read_generation_info(path), GenerationInfo)
        except ImageError as error:
            assert path.name in str(error) and "\n" not in str(error)
            assert len(str(error)) < 1000
    assert (3 if kind == "a.png" else 50) < read < 1500  # a PNG has checksums
    assert time.monotonic() - start < 6 * SECONDS


def test_the_readers_are_all_tried() -> None:
    assert read_labels({}) is None
    assert len(READERS) == 10
