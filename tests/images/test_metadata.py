"""The web UI's text form: known examples both ways, and round trips of arbitrary text."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ldm.errors import ArgumentError
from ldm.images.metadata import format_parameters, parse_parameters

WRITTEN = """a red car,
on a road
Negative prompt: ugly, blurry
and grey
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, \
Model hash: 6ce0161689, Model: "a, b: c", Denoising strength: 0.75, Clip skip: 2, RNG: CPU"""
PARAMETERS = {
    "Prompt": "a red car,\non a road",
    "Negative prompt": "ugly, blurry\nand grey",
    "Steps": "20",
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": "7",
    "Seed": "1",
    "Size": "512x512",
    "Model hash": "6ce0161689",
    "Model": "a, b: c",
    "Denoising strength": "0.75",
    "Clip skip": "2",
    "RNG": "CPU",
}
SETTINGS = {"Steps": 1, "Seed": 2, "Size": "8x8"}


def test_text_as_the_web_ui_writes_it() -> None:
    assert format_parameters(PARAMETERS) == WRITTEN
    assert parse_parameters(WRITTEN) == PARAMETERS


def test_values_are_any_type_and_none_is_left_out() -> None:
    values = {"Negative prompt": None, "Steps": 20, "CFG scale": 7.5, "Eta": None, "Hi": True}
    text = format_parameters({"Prompt": "x"} | values)
    assert text == "x\nSteps: 20, CFG scale: 7.5, Hi: True"


def test_empty_prompt_and_no_negative_prompt() -> None:
    text = format_parameters({"Prompt": "", "Negative prompt": " \n"} | SETTINGS)
    assert text == "\nSteps: 1, Seed: 2, Size: 8x8"
    assert parse_parameters(text) == {
        "Prompt": "",
        "Negative prompt": "",
        "Steps": "1",
        "Seed": "2",
        "Size": "8x8",
    }
    text = format_parameters({"Negative prompt": "grey"} | SETTINGS)
    assert parse_parameters(text)["Negative prompt"] == "grey"
    assert parse_parameters(text)["Prompt"] == ""


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("DPM++ 2M", "DPM++ 2M"),
        ("a, b", '"a, b"'),
        ("a: b", '"a: b"'),
        ("a\nb", '"a\\nb"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("c:\\d", '"c:\\\\d"'),
        ("é, 車", '"é, 車"'),
        (" x ", '" x "'),
        ("", ""),
    ],
)
def test_quoting(value: str, written: str) -> None:
    text = format_parameters(SETTINGS | {"Model": value, "RNG": "CPU"})
    assert text.endswith(f"Model: {written}, RNG: CPU")
    assert parse_parameters(text)["Model"] == value


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", {"Prompt": "", "Negative prompt": ""}),
        ("just a prompt", {"Prompt": "just a prompt", "Negative prompt": ""}),
        (
            "a\nSteps: 20, Seed: 1",  # two settings are prompt text
            {"Prompt": "a\nSteps: 20, Seed: 1", "Negative prompt": ""},
        ),
        ("a\nNegative prompt: b\nc", {"Prompt": "a", "Negative prompt": "b\nc"}),
        ("Negative prompt:b", {"Prompt": "", "Negative prompt": "b"}),
        (
            "  a \r\n b\r\nNegative prompt:  c \r\nSteps: 1,Seed:2, Sampler: Euler a\r\n",
            {
                "Prompt": "a\nb",
                "Negative prompt": "c",
                "Steps": "1",
                "Seed": "2",
                "Sampler": "Euler a",
            },
        ),
        (
            'x\nSteps: 1, Seed: 2, Model: "unclosed, RNG: CPU',
            {
                "Prompt": "x",
                "Negative prompt": "",
                "Steps": "1",
                "Seed": "2",
                "Model": '"unclosed',
                "RNG": "CPU",
            },
        ),
        (
            'x\nSteps: 1, Seed: 2, Lora hashes: "a: 1, b: 2", Version: v1.10.1',
            {
                "Prompt": "x",
                "Negative prompt": "",
                "Steps": "1",
                "Seed": "2",
                "Lora hashes": "a: 1, b: 2",
                "Version": "v1.10.1",
            },
        ),
    ],
)
def test_text_of_other_programs(text: str, want: dict[str, str]) -> None:
    assert parse_parameters(text) == want


@pytest.mark.parametrize("name", ["", "a", "a:b", "a,b", 'a"b', "a\nb", " ab", "Größe!"])
def test_names_that_the_form_cannot_hold(name: str) -> None:
    with pytest.raises(ArgumentError, match="parameters has the name"):
        format_parameters(SETTINGS | {name: 1})


def test_too_few_settings() -> None:
    with pytest.raises(ArgumentError, match=r"parameters has 2 settings \(Steps, Seed\)"):
        format_parameters({"Prompt": "x", "Steps": 1, "Seed": 2, "Size": None})


def stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.split("\n")).strip()


unicode = st.text(st.characters(exclude_categories=["Cs"]))
names = st.from_regex(r"\A\w[\w \-/]{1,99}\Z").filter(
    lambda n: n not in ("Prompt", "Negative prompt")
)
prompts = st.one_of(unicode, st.text('ab:,"\\\n \t()'))


@settings(deadline=None)
@given(
    prompt=prompts,
    negative=prompts,
    named=st.dictionaries(names, prompts | st.integers() | st.floats()),
)
def test_round_trip(prompt: str, negative: str, named: dict[str, object]) -> None:
    lines = [line.strip() for line in f"{prompt}\n{negative}".split("\n")]
    assume(not any(line.startswith("Negative prompt:") for line in lines))
    named = SETTINGS | named | SETTINGS  # by which settings are told from a prompt
    text = format_parameters({"Prompt": prompt, "Negative prompt": negative} | named)
    assert parse_parameters(text) == {
        "Prompt": stripped(prompt),
        "Negative prompt": stripped(negative),
    } | {name: str(value) for name, value in named.items()}


@settings(deadline=None)
@given(text=st.text() | st.from_regex(r'(\w+: ?("[^\n]*"?|[^,]*),? ?){0,6}'))
def test_any_text_can_be_parsed(text: str) -> None:
    parsed = parse_parameters(text)
    assert {"Prompt", "Negative prompt"} <= set(parsed)
    assert all(isinstance(value, str) for value in parsed.values())
