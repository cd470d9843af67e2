"""Textual inversion: the forms of file, diffusers' pictures, gone when unloaded."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.tensors import read_embedding
from ldm.errors import ArgumentError, CheckpointError
from ldm.text.conditioning import encode_prompts
from tests.helpers.families import for_task
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 40, "width": 64}
PROMPT = "a photo of <toy> in a <toy>-shaped box"


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def a1111(path: Path) -> Path:
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(3, 32)}}
    content |= {"name": "<toy>", "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save(content, path / "toy.pt")
    return path / "toy.pt"


def a1111_safetensors(path: Path) -> Path:
    save_file({"emb_params": vectors(3, 32)}, path / "<toy>.safetensors")
    return path / "<toy>.safetensors"


def diffusers_form(path: Path) -> Path:
    save_file({"<toy>": vectors(3, 32)}, path / "learned_embeds.safetensors")
    return path / "learned_embeds.safetensors"


def diffusers_bin(path: Path) -> Path:
    torch.save({"<toy>": vectors(3, 32)}, path / "learned_embeds.bin")
    return path / "learned_embeds.bin"


def first_tools(path: Path) -> Path:
    """A pickle with a ParameterDict, whose word is the file's name."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(3, 32))})
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}
    torch.save(content, path / "<toy>.pt")
    return path / "<toy>.pt"


def onetrainer(path: Path) -> Path:
    save_file({"emp_params": vectors(3, 32)}, path / "<toy>.safetensors")
    return path / "<toy>.safetensors"


FORMS = [a1111, a1111_safetensors, diffusers_form, diffusers_bin, onetrainer, first_tools]


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_same_picture_as_diffusers(models: Any, tmp_path: Path, form: Any) -> None:
    ours, theirs = models("sd")
    theirs = for_task(copy.deepcopy(theirs), "text")  # its config keeps the size with the words
    plain = draw(ours, PROMPT, seed=3, **ARGUMENTS)
    assert ours.load_textual_inversion(form(tmp_path)) == "<toy>"
    theirs.load_textual_inversion(vectors(3, 32), token="<toy>")
    try:
        want = draw_theirs(theirs, PROMPT, generator=generator(3), **ARGUMENTS)
        got = draw(ours, PROMPT, seed=3, **ARGUMENTS)
        assert_same(got, want)
        assert (got[0] - plain[0]).abs().max() > 0.05
        with pytest.raises(ArgumentError, match="is loaded already"):
            ours.load_textual_inversion(form(tmp_path))
    finally:
        ours.unload_textual_inversion()
    assert torch.equal(draw(ours, PROMPT, seed=3, **ARGUMENTS)[0], plain[0])


@pytest.mark.parity
def test_of_sdxl(models: Any, tmp_path: Path) -> None:
    ours, theirs = models("sdxl")
    theirs = for_task(copy.deepcopy(theirs), "text")  # it keeps the word
    file = tmp_path / "toy.safetensors"
    save_file({"clip_l": vectors(2, 32), "clip_g": vectors(2, 48, 1)}, file)
    assert ours.load_textual_inversion(file, token="<toy>") == "<toy>"
    try:
        for part, end in ((vectors(2, 32), ""), (vectors(2, 48, 1), "_2")):
            theirs.load_textual_inversion(
                part,
                token="<toy>",
                text_encoder=getattr(theirs, f"text_encoder{end}"),
                tokenizer=getattr(theirs, f"tokenizer{end}"),
            )
        want = draw_theirs(theirs, PROMPT, generator=generator(3), **ARGUMENTS)
        assert_same(draw(ours, PROMPT, seed=3, **ARGUMENTS), want)
    finally:
        ours.unload_textual_inversion()


@pytest.mark.parity
@pytest.mark.parametrize("form", ["safetensors", "bin", "ParameterDict"])
def test_two_words_in_one_file(models: Any, tmp_path: Path, form: str) -> None:
    """The second has one vector, without a dimension for their number where the form allows."""
    ours, theirs = models("sd")
    theirs = for_task(copy.deepcopy(theirs), "text")  # its config keeps the size with the words
    found = {"<toy>": vectors(3, 32), "<box>": vectors(1, 32, 1)[0]}
    file = tmp_path / f"words.{form}"
    if form == "safetensors":
        save_file(found, file)
    elif form == "bin":
        torch.save(found, file)
    else:
        torch.save({"string_to_param": torch.nn.ParameterDict(found), "name": "both"}, file)
    assert sorted(ours.load_textual_inversion(file).split(", ")) == ["<box>", "<toy>"]
    theirs.load_textual_inversion([found["<toy>"], found["<box>"]], token=["<toy>", "<box>"])
    try:
        prompt = f"{PROMPT} and a <box>"
        want = draw_theirs(theirs, prompt, generator=generator(3), **ARGUMENTS)
        assert_same(draw(ours, prompt, seed=3, **ARGUMENTS), want)
        with pytest.raises(ArgumentError, match="is loaded already"):
            ours.load_textual_inversion(file)
        with pytest.raises(
            ArgumentError, match=r"has 2 words \(<\w+>, <\w+>\); give one token for"
        ):
            ours.load_textual_inversion(file, token="<other>")
        named = ours.load_textual_inversion(file, token=["zzone", "zztwo"])
        assert named == "zzone, zztwo" and len(ours.inversions.loaded) == 4
    finally:
        ours.unload_textual_inversion()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_states_that_replace_those_of_the_encoder(models: Any, tmp_path: Path, family: str) -> None:
    """OneTrainer's output embeddings: the encoder reads zeros, and its states are replaced."""
    ours, _ = models(family)
    widths = [32] if family == "sd" else [32, 48]
    keys = ["emp_params"] if family == "sd" else ["clip_l", "clip_g"]
    states = [vectors(2, width, seed) for seed, width in enumerate(widths)]
    zeros = {key: torch.zeros_like(value) for key, value in zip(keys, states, strict=True)}
    outputs = {f"{key}_out": value for key, value in zip(keys, states, strict=True)}
    contexts = []
    for content in (zeros, outputs, zeros | outputs):
        save_file(content, tmp_path / "zztoy.safetensors")
        save_file({key: value + 1 for key, value in zeros.items()}, tmp_path / "zza.safetensors")
        ours.load_textual_inversion(tmp_path / "zza.safetensors")
        ours.load_textual_inversion(tmp_path / "zztoy.safetensors")
        try:
            models_now = ours.text_models
            (one,) = encode_prompts(models_now, ["a zza b zztoy c"], [""], 1, xl=family == "sdxl")
            conditioning = one.scripts[0].at(1)
            contexts.append(conditioning.context)
        finally:
            ours.unload_textual_inversion()
    plain, replaced, with_zeros = contexts
    assert torch.equal(replaced, with_zeros)
    at = len(ours.tokenizer.encode("a b")) + 1 + 2  # start, a, two vectors of zza, b
    assert torch.equal(replaced[at : at + 2], torch.cat(states, dim=-1))
    same = torch.ones(len(plain), dtype=torch.bool)
    same[at : at + 2] = False
    assert torch.equal(replaced[same], plain[same])
    assert not torch.equal(replaced[~same], plain[~same])
    text_model = ours.text_models[0].encoder.text_model
    assert text_model.embeddings.extra is None and text_model.embeddings.outputs is None


def test_several_words_and_case(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    for i, name in enumerate(("one", "two")):
        save_file({"emb_params": vectors(i + 1, 32, i)}, tmp_path / f"zz{name}.safetensors")
        ours.load_textual_inversion(tmp_path / f"zz{name}.safetensors")
    try:
        tokenizer = ours.text_models[0].tokenizer
        base = len(ours.tokenizer.encode("a b"))
        ids = tokenizer.encode("a zztwo b ZZONE")
        assert ids == [*tokenizer.encode("a"), 49409, 49410, *tokenizer.encode("b"), 49408]
        assert len(ids) == base + 3
        assert 49408 not in tokenizer.encode("zzoneness")
        assert tokenizer.units("zztwo end")[0] == (49409, 49410)
    finally:
        ours.unload_textual_inversion()
    assert ours.text_models[0].tokenizer is ours.tokenizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"emb_params": torch.zeros(2, 40)}, "vectors of width 40, this model's text encoders 32"),
        ({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)}, "another family"),
        ({"a": torch.zeros(2, 32), "b": torch.zeros(2, 32), "c": torch.zeros(1)}, "no textual"),
        ({"a": torch.zeros(2, 2, 32)}, "no textual inversion"),
        ({"<a>": torch.zeros(2, 32), "<b>": torch.zeros(2, 40)}, "no textual inversion"),
        ({"a.lora_A.weight": torch.zeros(2, 32), "b.weight": torch.zeros(3, 32)}, "no textual inv"),
        ({f"w{i}": torch.zeros(1, 32) for i in range(257)}, "at most 256 words"),
        (
            {"emp_params": torch.zeros(2, 32), "emp_params_out": torch.zeros(3, 32)},
            "2 vectors and 3",
        ),
        ({"clip_l_out": torch.zeros(2, 48)}, "another family"),
        ({"<a>": torch.zeros(2, 40), "<b>": torch.zeros(2, 40)}, "vectors of width 40"),
    ],
)
def test_files_that_do_not_fit(
    models: Any,
    tmp_path: Path,
    content: Any,
    message: str,
) -> None:
    ours, _ = models("sd")
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        ours.load_textual_inversion(tmp_path / "x.safetensors")
    assert not ours.inversions.loaded
    with pytest.raises(CheckpointError, match="does not exist"):
        ours.load_textual_inversion(tmp_path / "y.safetensors")


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of odd pickles
def test_damaged_pickles_of_the_first_tools(tmp_path: Path) -> None:
    """Changed bytes, in the pickle itself: an embedding or one clear error."""
    with zipfile.ZipFile(first_tools(tmp_path)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickle,) = (name for name in members if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    refused, path = 0, tmp_path / "changed.pt"
    for _ in range(500):
        changed = bytearray(members[pickle])
        for place in rng.integers(0, len(changed), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(changed) if name == pickle else content)
        try:
            found, _ = read_embedding(path)
            assert all(value.ndim == 2 for value in found.values())
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_parameter_dict_runs_nothing(tmp_path: Path) -> None:
    """What its module's attributes name is not called."""

    class Call:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    parameters = torch.nn.ParameterDict({"*": torch.zeros(2, 32)})
    parameters.__dict__["other"] = Call()
    torch.save({"string_to_param": parameters}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"would run builtins\.print"):
        read_embedding(tmp_path / "x.pt")
