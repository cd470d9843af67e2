"""LoRA tags: the forms of the web UI and its extensions; any other is refused, never words."""

from __future__ import annotations

import random
import time

import pytest

from ldm.errors import ArgumentError
from ldm.text.lora_tags import BEGIN, refuse_tags, split_tags

Tags = list[tuple[str, float, float]]  # name, text encoder, U-Net


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a <lora:x:0.8> cat", "a cat", [("x", 0.8, 0.8)]),
        (
            "<lora:x> <lora:y.safetensors:-1>a cat",
            "a cat",
            [("x", 1, 1), ("y.safetensors", -1, -1)],
        ),
        ("a  cat < 3 > 2", "a  cat < 3 > 2", []),
        ("a <lora:x:0.8:0.6>", "a", [("x", 0.8, 0.6)]),
        ("a <lora:x:te=0.5:unet=0.7>", "a", [("x", 0.5, 0.7)]),
        ("a <lora:x:unet=0.7:te=0.5>", "a", [("x", 0.5, 0.7)]),
        ("a <lora:x:unet=0.7>", "a", [("x", 1, 0.7)]),
        ("a <lora:x:te=0.5>", "a", [("x", 0.5, 0.5)]),  # as in the web UI
        ("a <lora:x:0.5:unet=0>", "a", [("x", 0.5, 0)]),
        ("a <lyco:x:0.8>", "a", [("x", 0.8, 0.8)]),
        ("a <LoRA:X y:.8> b", "a b", [("X y", 0.8, 0.8)]),
        ("a <LYCO : x : 1 : UNET = 2 >", "a", [("x", 1, 2)]),
        ("(a <lora:x:1>:1.2)", "(a :1.2)", [("x", 1, 1)]),
        # Words of textual inversions.
        ("<toy> <lora-trained> <lorax:1> <s1>", "<toy> <lora-trained> <lorax:1> <s1>", []),
    ],
)
def test_tags(prompt: str, text: str, tags: Tags) -> None:
    assert split_tags(prompt) == (text, tags)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:x:1:lbw=1,0,0,0,1,1,1,1,1,1,1,1>", r"lbw= \(block weights\) is not supported; te="),
        ("<lora:x:1:1:LBW=OUTALL>", r"lbw= \(block weights\) is not supported"),
        (
            "<lora:x:1:0,0,1,0>",
            "is '0,0,1,0'; it must be a number.*block weights",
        ),
        ("<lora:x:1:IN02>", "block weights are not supported"),
        ("<lyco:x:1:1:13>", "has 3 scales; expected at most two"),
        ("<lyco:x:dyn=13>", r"dyn= \(the rank of a DyLoRA\) is not supported"),
        ("<lora:x:start=3>", r"start= \(steps\) is not supported"),
        ("<lora:x:step=2-5>", r"step= \(steps\) is not supported"),
        ("<lora:x:hr=0.5>", "hr= is not supported"),
        ("<lora:x:te=1:te=2>", "te is given twice"),
        ("<lora:x:>", "is ''; it must be a number"),
        ("<lora:x:one>", "is 'one'; it must be a number"),
        ("<lora:x:nan>", "is 'nan'"),
        ("<lora:x:te=inf>", "is 'inf'"),
        ("<lora:>", "names no LoRA; write <lora:name:0.8>"),
        ("<lora>", "names no LoRA"),
        ("<lora x:0.8>", "names no LoRA"),
        ("<lora=x>", "names no LoRA"),
        ("<lora：x：0.8>", "names no LoRA"),
        ("a <lora:x:0.8", "'<lora:x:0.8' does not end"),
        ("a <lora:x:0.8 <lora:y:1>", "does not end"),
        ("<hypernet:x:1>", "hypernetworks are not supported"),
        ("<HyperNet:x>", "hypernetworks are not supported"),
        ("<lora:" + "x" * 2000 + ">", "does not end"),
    ],
)
def test_other_forms_are_refused_by_name(prompt: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as error:
        split_tags(prompt)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    with pytest.raises(ArgumentError, match=r"the prompt has .* drawn as words"):
        refuse_tags(prompt, "prompt")


def test_nothing_that_begins_like_a_tag_is_left_in_the_text() -> None:
    rng = random.Random(0)
    pieces = ("<", "lora", "lyco", ":", ">", "x", "=", "0.5", "te", "unet", " ", "-", "LORA", "(")
    read = 0
    for _ in range(5000):
        prompt = "".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        prompt += "<lora:x:" * rng.randrange(2) + "".join(rng.choices(pieces, k=3))
        try:
            text, tags = split_tags(prompt)
        except ArgumentError:
            continue
        read += bool(tags)
        assert tags or text == prompt
        assert not BEGIN.search(prompt) or tags
    assert read > 15


def test_long_prompts_take_no_time() -> None:
    begin = time.perf_counter()
    for prompt in ("<lora:x:1> " * 20_000, "<" * 200_000, "<lorax" * 50_000, "< " * 200_000):
        split_tags(prompt)
    assert time.perf_counter() - begin < 3
