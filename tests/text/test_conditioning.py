"""Weights, chunks, schedules and AND: what the U-Net is told, and what is made of its answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError
from ldm.guidance import ClassifierFree
from ldm.pipeline import Pipeline
from ldm.scheduler import CLEAN, Level
from ldm.text.chunks import BACKTRACK, MAX_CHUNKS, Chunk, cut
from ldm.text.conditioning import Conditioning, Prompted, Script, encode_prompts
from ldm.text.tokenizer import CLIPTokenizer
from tests.helpers.networks import difference
from tests.helpers.pictures import draw


@pytest.fixture(scope="module")
def sd(models: Any) -> tuple[Pipeline, Any]:
    return models("sd")


@pytest.fixture(scope="module")
def sdxl(models: Any) -> tuple[Pipeline, Any]:
    return models("sdxl")


@pytest.fixture(scope="module")
def tokenizer(sd: tuple[Pipeline, Any]) -> CLIPTokenizer:
    return sd[0].tokenizer


def encode(
    pipe: Pipeline, *prompts: str, negatives: list[str] | None = None, **arguments: Any
) -> list[Prompted]:
    negatives = [""] * len(prompts) if negatives is None else negatives
    return encode_prompts(pipe.text_models, prompts, negatives, 10, xl=pipe.xl, **arguments)


def told(pipe: Pipeline, prompt: str, **arguments: Any) -> Conditioning:
    """What a prompt says that neither changes nor joins others."""
    (prompted,) = encode(pipe, prompt, **arguments)
    (script,) = prompted.scripts
    ((_, conditioning),) = script.lines
    return conditioning


# Chunks


def text_of(tokenizer: CLIPTokenizer, chunk: Chunk) -> str:
    return tokenizer.decode(chunk.ids)


@pytest.mark.parametrize(
    ("count", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)]
)
def test_chunks_of_75_tokens(tokenizer: CLIPTokenizer, count: int, chunks: int) -> None:
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = tokenizer.encode("cat " * count)
    got = cut(tokenizer, "cat " * count)
    assert len(ids) == count and len(got) == chunks
    for i, chunk in enumerate(got):
        mine = ids[75 * i : 75 * i + 75]
        assert chunk.ids == (start, *mine, end, *[pad] * (75 - len(mine)))
        assert chunk.weights == (1.0,) * 77


def test_padding_is_the_tokenizers(sdxl: tuple[Pipeline, Any]) -> None:
    first, second = (cut(model.tokenizer, "a cat")[0].ids for model in sdxl[0].text_models)
    assert first[:4] == second[:4]
    assert (set(first[4:]), set(second[4:])) == ({first[3]}, {0})


@pytest.mark.parametrize(
    ("before", "after", "second"),
    [
        (55, 19, "dog " * 19 + "red car"),  # the comma is one of the last 20 tokens
        (54, 20, "red car"),  # it is not
        (74, 0, "red car"),  # it is the very last
        (75, 0, ", red car"),  # and where it does not fit at all
    ],
)
def test_a_chunk_ends_after_a_comma(
    tokenizer: CLIPTokenizer, before: int, after: int, second: str
) -> None:
    assert BACKTRACK == 20
    text = "cat " * before + ", " + "dog " * after + "(red:1.5) car"
    chunks = cut(tokenizer, text)
    assert [text_of(tokenizer, chunk) for chunk in chunks][1] == second
    assert "".join(text_of(tokenizer, chunk) for chunk in chunks).count("dog") == after
    red = tokenizer.encode("red")[0]
    assert [w for i, w in zip(chunks[1].ids, chunks[1].weights, strict=True) if i == red] == [1.5]
    assert sum(w != 1 for chunk in chunks for w in chunk.weights) == 1


def test_break_ends_a_chunk(tokenizer: CLIPTokenizer) -> None:
    def texts(prompt: str) -> list[str]:
        return [text_of(tokenizer, chunk) for chunk in cut(tokenizer, prompt)]

    assert texts("a cat BREAK a dog") == ["a cat", "a dog"]
    assert texts("a cat BREAK") == ["a cat"]
    assert texts("BREAK") == [""]
    assert texts("BREAK BREAK a") == ["", "", "a"]
    assert texts("cat " * 75 + "BREAK dog") == [("cat " * 75).strip(), "dog"]


def test_words_of_many_tokens_are_not_torn(sd: tuple[Pipeline, Any]) -> None:
    tokenizer = sd[0].tokenizer.with_words({"zzlong": 10, "zzhuge": 100})
    first = tokenizer.units("zzlong")[0]
    for before, fits in ((65, True), (66, False)):
        chunks = cut(tokenizer, "cat " * before + "zzlong end")
        assert (chunks[0].ids[1 + before : 1 + before + 10] == first) is fits
        assert (chunks[1].ids[1:11] == first) is not fits
    whole = cut(tokenizer, "(zzhuge:1.2)")  # no chunk holds it
    assert [sum(w == 1.2 for w in chunk.weights) for chunk in whole] == [75, 25]


# States


def states(theirs: Any, skip: int, text: str) -> list[tuple[Tensor, Tensor]]:
    """Of each of transformers' encoders: a text's states (77, D), and its pooled one."""
    found = []
    pairs = [(theirs.tokenizer, theirs.text_encoder)]
    if xl := hasattr(theirs, "text_encoder_2"):
        pairs.append((theirs.tokenizer_2, theirs.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids = torch.tensor(tokenizer([text], padding="max_length").input_ids)
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
        hidden = output.hidden_states[-skip - xl]
        if not xl:
            hidden = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
        found.append((hidden[0], output[0][0]))
    return found


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("skip", [1, 2])
def test_weighted_states(models: Any, family: str, skip: int) -> None:
    """A1111's way, written out: times the weights, then as a whole back to the old mean."""
    ours, theirs = models(family)
    got = told(ours, r"a (red:1.5) \(car\) BREAK [house] ((tree)), sky", clip_skip=skip - 1)
    tokens = ["a", "red", "(", "car", ")"], ["house", "tree", ",", "sky"]
    weights = [1, 1.5, 1, 1, 1], [1 / 1.1, 1.1 * 1.1, 1, 1]
    contexts = []
    for words, ws in zip(tokens, weights, strict=True):
        parts = []
        for hidden, _ in states(theirs, skip, " ".join(words)):
            # each word is one token, or else the weights below stand at the wrong places
            row = torch.ones(77)
            row[1 : 1 + len(ws)] = torch.tensor(ws)
            z = hidden * row[:, None]
            parts.append(z * (hidden.mean() / z.mean()))
            assert difference(parts[-1], hidden) > 0.05
        contexts.append(torch.cat(parts, dim=-1))
    want = torch.cat(contexts)
    assert all(len(ours.tokenizer.encode(word)) == 1 for words in tokens for word in words)
    assert difference(got.context, want) < 2e-5
    if family == "sd":
        assert got.pooled is None
    else:
        pooled = states(theirs, skip, " ".join(tokens[0]))[-1][1]
        assert difference(got.pooled, pooled) < 2e-5


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_plain_prompts_are_what_they_were(models: Any, family: str) -> None:
    """To the bit: one call of each encoder for all prompts, and no weights."""
    ours, _ = models(family)
    prompts = ["a red car", "Two cats, one café; 3 dogs!", "", "cat " * 75]
    rows = encode(ours, *prompts)
    with torch.no_grad():
        want = [
            model.encoder(torch.tensor(model.tokenizer(prompts)), skip=ours.xl, norm=not ours.xl)
            for model in ours.text_models
        ]
    for i, row in enumerate(rows):
        got = row.scripts[0].at(1)
        assert torch.equal(got.context, torch.cat([one.context[i] for one in want], dim=-1))
        assert got.pooled is None or torch.equal(got.pooled, want[-1].pooled[i])
        assert not row.combined


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_lengths_of_a_prompt_and_its_negative(models: Any, family: str) -> None:
    """They are alike, by empty chunks; another prompt in the batch has no influence."""
    ours, _ = models(family)
    long, short = "cat " * 76, "a dog"
    batch = encode(ours, long, short, short, negatives=["", "", long])
    lengths = [
        (len(one.scripts[0].at(1).context), len(one.negative.at(1).context)) for one in batch
    ]
    assert lengths == [(154, 154), (77, 77), (154, 154)]
    context = batch[2].scripts[0].at(1).context
    assert difference(context[:77], told(ours, short).context) < 1e-5
    assert difference(context[77:], told(ours, "").context) < 1e-5
    (changing,) = encode(ours, f"[a:{long}:3] AND b")
    assert {len(s.at(i).context) for s in changing.scripts for i in (1, 10)} == {154}
    assert len(changing.negative.at(1).context) == 154


def test_an_absent_negative_prompt(sdxl: tuple[Pipeline, Any]) -> None:
    """SDXL's are zeros, also for many chunks; sizes are told all the same."""
    sizes = torch.tensor([1.0, 2]), torch.tensor([3.0, 4])
    models, prompts = sdxl[0].text_models, ["cat " * 76]
    (one,) = encode_prompts(models, prompts, None, 10, xl=True, sizes=sizes)
    shown, negative = one.scripts[0].at(1), one.negative.at(7)
    assert negative.context.shape == shown.context.shape == (154, 80)
    assert not negative.context.any() and not negative.pooled.any() and shown.pooled.any()
    assert torch.equal(shown.time_ids, sizes[0]) and torch.equal(negative.time_ids, sizes[1])


def test_each_chunk_is_encoded_once(
    sd: tuple[Pipeline, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, rows = sd[0], []
    encoder = ours.text_encoder
    forward = encoder.forward

    def spy(ids: Tensor, *args: Any) -> Any:
        rows.append(len(ids))
        return forward(ids, *args)

    monkeypatch.setattr(encoder, "forward", spy)
    one, _ = encode(ours, "[a|b] car", "a car BREAK (b:1.2) car BREAK a car")
    assert rows == [2, 1]  # "a car" and "b car", weighted or not; then the negative one, ""
    lines = one.scripts[0].lines
    assert [end for end, _ in lines] == list(range(1, 11))
    assert len({id(told) for _, told in lines}) == 2
    assert lines[0][1] is lines[2][1] is not lines[1][1]


def test_and(sd: tuple[Pipeline, Any]) -> None:
    ours = sd[0]
    (one,) = encode(ours, "[a:b:3] AND a dog:0.8 AND a cat:-1", negatives=["a AND b"])
    assert [script.weight for script in one.scripts] == [1, 0.8, -1]
    assert one.combined
    assert [end for end, _ in one.scripts[0].lines] == [3, 10]
    assert [end for end, _ in one.scripts[1].lines] == [10]
    assert difference(one.scripts[1].at(1).context, told(ours, "a dog").context) < 1e-5
    assert difference(one.negative.at(1).context, told(ours, "a and b").context) < 1e-5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("cat " * 75 * MAX_CHUNKS + "cat", "more than 100 chunks of 75 tokens; shorten it"),
        ("a" * 100_001, "a prompt has 100001 characters; at most 100000 are read"),
        ("(" * 10_000, "more than 100 brackets open at once"),
        ("[" * 10_000 + "a:b:3" + "]" * 10_000, "more than 100 brackets open at once"),
        ("(a\ud800:1.2)", "valid Unicode"),
        ("(a:1000000)", "is 1e.06; it must be at most 10000"),
    ],
)
def test_refused(sd: tuple[Pipeline, Any], prompt: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        sd[0].stream(prompt)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=message):
        sd[0].stream("a", negative_prompt=prompt)


# The denoiser


class Unet(nn.Module):
    """Says the mean of what it is told, and of x; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.like = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(time_cond_proj_dim=None)
        self.asked: list[tuple[int, int]] = []  # rows, tokens

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.asked.append(context.shape[:2])
        return x + context.mean((1, 2))[:, None, None, None] ** 2


class Scheduler:
    def to_x0(self, prediction: Tensor, x: Tensor, level: Level) -> Tensor:
        return prediction


def saying(value: float, tokens: int = 77) -> Conditioning:
    return Conditioning(torch.full((tokens, 2), float(value)))


def script(*lines: tuple[int, Conditioning], weight: float = 1.0) -> Script:
    return Script(lines, weight)


LEVEL = Level(t=5, alpha=0.6, sigma=0.8)
X = torch.arange(12.0).reshape(3, 1, 2, 2)


def test_and_is_the_weighted_sum_of_guidances() -> None:
    prompted = [
        Prompted((script((9, saying(2))),), script((9, saying(1)))),
        Prompted(
            (script((9, saying(3)), weight=0.5), script((9, saying(5)), weight=-2)),
            script((9, saying(2))),
        ),
        Prompted((script((9, saying(3)), weight=0.25),), script((9, saying(0)))),
    ]
    for scale in (4.0, 1.0, 0.0):
        s = max(scale, 1)
        unet = Unet()
        got = Denoiser(unet, Scheduler(), prompted, ClassifierFree(scale))(X, LEVEL).x0 - X
        want = [1 + s * (4 - 1), 4 + s * (0.5 * (9 - 4) - 2 * (25 - 4)), 0 + s * 0.25 * 9]
        assert difference(got, torch.tensor(want)[:, None, None, None].expand_as(got)) < 1e-4
        assert unet.asked == [(3 + 4, 77)]


def test_contexts_of_many_lengths() -> None:
    """Those of one length go together; every answer comes to its own picture."""
    prompted = [
        Prompted((script((9, saying(2, 154))),), script((9, saying(1, 154)))),
        Prompted((script((9, saying(3))),), script((9, saying(2)))),
        Prompted((script((9, saying(5, 154))),), script((9, saying(0, 154)))),
    ]
    unet = Unet()
    got = Denoiser(unet, Scheduler(), prompted, ClassifierFree(2.0))(X, LEVEL).x0 - X
    want = [1 + 2 * 3, 4 + 2 * 5, 2 * 25.0]
    assert difference(got, torch.tensor(want)[:, None, None, None].expand_as(got)) < 1e-4
    assert sorted(unet.asked) == [(2, 77), (4, 154)]
    unet = Unet()
    Denoiser(unet, Scheduler(), prompted, ClassifierFree(1.0))(X, LEVEL)
    assert sorted(unet.asked) == [(1, 77), (2, 154)]  # unguided: uncond is not asked for


def test_the_step_chooses_the_text() -> None:
    lines = (2, saying(1)), (3, saying(2)), (6, saying(3))
    prompted = [Prompted((script(*lines),), script((6, saying(0))))]
    denoise = Denoiser(Unet(), Scheduler(), prompted, ClassifierFree(1.0))
    said = []
    for step in range(1, 9):
        said.append((denoise(X[:1], CLEAN, step).x0 - X[:1]).mean().item() ** 0.5)
    assert said == pytest.approx([1, 1, 2, 3, 3, 3, 3, 3])


# The pipeline


def heard(pipe: Pipeline, prompt: str, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> str:
    """Which of "x" and "y" the U-Net was told at every call, after a run of 4 steps."""
    known = {word: told(pipe, word).context for word in "xy"}
    calls = []
    forward = pipe.unet.forward

    def spy(x: Tensor, t: Tensor, context: Tensor, **options: Any) -> Tensor:
        gaps = {word: (context[-1] - states).abs().max() for word, states in known.items()}
        calls.append(min(gaps, key=gaps.get))
        assert min(gaps.values()) < 1e-5
        return forward(x, t, context, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", spy)
        draw(pipe, prompt, seed=1, num_inference_steps=4, **arguments)
    return "".join(calls)


def test_steps_of_a_run(
    sd: tuple[Pipeline, Any], monkeypatch: pytest.MonkeyPatch, picture: Any
) -> None:
    def run(prompt: str, **arguments: Any) -> str:
        return heard(sd[0], prompt, monkeypatch, **arguments)

    assert run("[x:y:1]") == "xyyy"
    assert run("[x:y:0.75]") == "xxxy"
    assert run("[x|y]") == "xyxy"
    assert run("[x|y|y]", sampler="dpmpp_2m") == "xyyx"
    # PLMS asks twice in its first step.
    assert run("[x:y:1]", sampler="pndm") == "xxyyy"
    # Image-to-image counts from the first step that it runs, but fractions are of all four.
    assert run("[x:y:1]", image=picture, strength=0.5) == "xy"
    assert run("[x:y:0.5]", image=picture, strength=0.75) == "xxy"
    assert run("y", negative_prompt="[x:y:1]") == "yyyy"


def test_each_picture_is_the_one_drawn_alone(sd: tuple[Pipeline, Any]) -> None:
    prompts = ["a (red:1.4) car", "cat " * 80, "[a:b:1] AND a dog:0.5"]
    arguments: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    batch = draw(sd[0], prompts, seed=4, negative_prompt="[blue|red]", **arguments)[0]
    alone = [
        draw(sd[0], prompt, seed=4 + i, negative_prompt="[blue|red]", **arguments)[0]
        for i, prompt in enumerate(prompts)
    ]
    assert difference(batch, torch.cat(alone)) < 1e-5 * batch.abs().max()
    plain = draw(sd[0], ["a red car", "cat " * 75, "a"], seed=4, **arguments)[0]
    assert (batch - plain).abs().amax((1, 2, 3)).min() > 1e-2


def test_and_where_guidance_is_built_in(models: Any) -> None:
    lcm = models("lcm")[0]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
    plain = draw(lcm, "a cat", **arguments)[0]
    assert difference(draw(lcm, "a cat AND a dog:0", **arguments)[0], plain) < 1e-4
    assert difference(draw(lcm, "a cat AND a dog", **arguments)[0], plain) > 1e-2


def test_words_of_different_length_for_each_encoder(
    sdxl: tuple[Pipeline, Any], tmp_path: Path
) -> None:
    ours = sdxl[0]
    vectors = {"clip_l": torch.randn(40, 32), "clip_g": torch.randn(2, 48)}
    save_file(vectors, tmp_path / "toy.safetensors")
    ours.load_textual_inversion(tmp_path / "toy.safetensors", token="zztoy")
    try:
        assert told(ours, "zztoy zztoy").context.shape == (154, 80)
    finally:
        ours.unload_textual_inversion()
