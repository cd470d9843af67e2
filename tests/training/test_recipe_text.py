"""The text recipe's reader: it learns whose colour is whose from texts that tell it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ldm.training.binding_head import UNKNOWN, Reader, reading_figures, reading_loss
from ldm.training.checkpoint import checkpoints
from ldm.training.config import TrainConfig
from ldm.training.data import EmbeddedTexts
from ldm.training.loop import train_steps
from ldm.training.recipes import text
from ldm.training.recipes.text import TextRecipe, draw_chances

THINGS = [(c, n) for c in ("red", "blue", "green", "") for n in ("car", "cat", "tree", "house")]
PLAIN = [f"a {kind} of {noun}" for kind in ("photo", "drawing") for noun in ("fish", "dog", "milk")]
FIELDS = ["noun 1", "colour 1", "noun 2", "colour 2"]


def told_rows() -> list[dict]:
    """Every text of one thing or two, some without colours: 16 + 16 · 16."""
    rows = []
    for one, two in itertools.product(THINGS, [("none", "none"), *THINGS]):
        names = [one, two][: 1 if two[1] == "none" else 2]
        text = " and ".join(f"a {colour} {noun}".replace("  ", " ") for colour, noun in names)
        values = (one[1], one[0] or "none", two[1], two[0] or "none")
        rows.append({"text": text, "says": dict(zip(FIELDS, values, strict=True))})
    return rows


def write_set(folder: Path, rows: list[dict]) -> Path:
    """Embeddings are random: they tell nothing of what is read."""
    folder.mkdir()
    embeddings = np.random.default_rng(0).standard_normal((len(rows), 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.save(folder / "embeddings.npy", embeddings.astype(np.float16))
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(data: Path, output: Path, steps: int = 3, **options: float) -> TrainConfig:
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return TrainConfig(
        "text",
        str(data),
        str(output),
        steps,
        32,
        3e-3,
        warmup=10,
        ema_decay=0.9,
        mixed_precision="no",
        log_every=1,
        sample_every=steps,
        checkpoint_minutes=1e9,
        model=model | {"num_attention_heads": 4},
        options={"temperature": 0.1, "max_tokens": 20, "held_out": 64} | options,
    )


def run(config: TrainConfig) -> list[dict[str, float]]:
    torch.manual_seed(config.seed)
    return [state.metrics for state in train_steps(config, TextRecipe(config))]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = told_rows() + [{"text": text} for text in PLAIN]
    return write_set(tmp_path_factory.mktemp("sets") / "mixed", rows)


def test_the_reader_learns_whose_colour_is_whose(mixed: Path, tmp_path: Path) -> None:
    """On pairs it has not seen; chance is 1/5 a field."""
    options = {"caption_share": 0.9, "reading_weight": 5.0, "temperature": 1.0}
    found = run(settings(mixed, tmp_path / "run", steps=100, **options))
    assert found[0]["reading"] > 1.2
    assert found[-1]["reading"] < 0.1
    assert found[-1]["read"] > 0.97 and found[-1]["read_two"] > 0.9
    loss = found[-1]["distillation"] + 5 * found[-1]["reading"]
    assert found[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_reader_is_trained_but_not_saved(mixed: Path, tmp_path: Path) -> None:
    recipe = TextRecipe(settings(mixed, tmp_path / "run", steps=2))
    before = recipe.model.reader.queries.detach().clone()
    run(recipe.config)
    kept = load_file(checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    assert "reader.queries" in kept and not torch.equal(kept["reader.queries"], before)
    saved = load_file(tmp_path / "run" / "text_encoder" / "model.safetensors")
    assert not any("reader" in name or name.startswith("head") for name in saved)


@pytest.mark.parametrize("told", [False, True])
def test_a_set_of_one_kind_of_texts_trains(told: bool, tmp_path: Path) -> None:
    rows = [row if told else {"text": row["text"]} for row in told_rows()]
    config = settings(write_set(tmp_path / "data", rows), tmp_path / "run")
    found = run(config)
    assert len(found) == 3
    assert ("reading" in found[-1]) == ("read_two" in found[-1]) == told
    assert (TextRecipe(config).model.reader is not None) == told


def test_a_batch_has_its_share_of_texts_with_readings(mixed: Path, tmp_path: Path) -> None:
    for share in (0.0, 0.25):
        recipe = TextRecipe(settings(mixed, tmp_path, caption_share=share, held_out=1))
        recipe.config.batch_size = 4000
        batch = recipe.batch(0, torch.Generator().manual_seed(0))
        known = (batch["readings"] != UNKNOWN).any(dim=1)
        assert abs(float(known.float().mean()) - share) < 0.03
        assert (recipe.model.reader is None) == (share == 0)


def test_mix_draws_each_kind_evenly() -> None:
    share, chances = draw_chances(torch.tensor([True, False, False, False, True]), 0.4)
    assert share == 0.4
    assert torch.allclose(chances, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2]))
    assert draw_chances(torch.tensor([True, True]), 0.3)[0] == 1.0
    share, chances = draw_chances(torch.tensor([False, False]), 0.3)
    assert share == 0.0 and torch.allclose(chances, torch.tensor([0.5, 0.5]))


def test_readings_share_the_values_of_their_kind(tmp_path: Path) -> None:
    rows = [
        {"text": "a cat", "says": {"noun 1": "cat", "noun 2": "none", "background": "red"}},
        {"text": "a dog"},
        {"text": "an ox, a cat", "says": {"noun 1": "ox", "noun 2": "cat"}},
    ]
    data = EmbeddedTexts(write_set(tmp_path / "data", rows))
    assert data.fields == ["noun 1", "noun 2", "background"]
    assert data.values == {"noun": ["cat", "none", "ox"], "background": ["red"]}
    assert data.readings.tolist() == [[0, 1, 0], [UNKNOWN] * 3, [2, 0, UNKNOWN]]


def test_texts_without_readings_do_not_matter_to_the_loss() -> None:
    logits = [torch.randn(6, values, requires_grad=True) for values in (3, 4)]
    readings = torch.tensor([[0, 1], [UNKNOWN] * 2, [2, 3], [UNKNOWN] * 2, [1, 0], [UNKNOWN] * 2])
    loss = reading_loss(logits, readings, share=0.5)
    known = [0, 2, 4]
    expected = [
        torch.nn.functional.cross_entropy(x[known], readings[known, i])
        for i, x in enumerate(logits)
    ]
    assert loss.item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)
    loss.backward()
    for x in logits:
        assert (x.grad[1::2] == 0).all() and (x.grad[0::2] != 0).any(dim=1).all()


def test_parts_of_a_batch_have_the_loss_of_the_whole() -> None:
    """Though one part has more texts with readings than the other."""
    logits = [torch.randn(4, 3)]
    readings = torch.tensor([[0], [1], [2], [UNKNOWN]])
    parts = [reading_loss([logits[0][i : i + 2]], readings[i : i + 2], 0.6) for i in (0, 2)]
    assert torch.stack(parts).mean().item() == pytest.approx(
        reading_loss(logits, readings, 0.6).item()
    )


def test_what_stands_behind_the_end_is_not_read() -> None:
    torch.manual_seed(0)
    reader = Reader(["noun 1", "noun 2"], {"noun": ["a", "b", "c"]}, width=16, heads=2)
    context, length = torch.randn(2, 7, 16), torch.tensor([4, 7])
    other = context.clone()
    other[0, 4:] += 9
    ours, theirs = (torch.stack(reader(x, length)) for x in (context, other))
    assert ours.shape == (2, 2, 3) and torch.equal(ours, theirs)
    other[0, 3] += 9  # the end itself is read
    assert not torch.equal(torch.stack(reader(other, length))[:, 0], ours[:, 0])


def test_texts_are_read_as_each_alone(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are grouped, in the batch's order."""
    monkeypatch.setattr(text, "GROUP", 3)
    recipe = TextRecipe(settings(mixed, tmp_path, caption_share=0.7))
    rows = recipe.example(10)
    assert rows["length"].unique().numel() > 2
    with torch.no_grad():
        vectors, read = recipe.model(rows["ids"], rows["length"])
        for i, n in enumerate(rows["length"]):
            alone, answers = recipe.model(rows["ids"][i : i + 1, :n], n[None])
            torch.testing.assert_close(vectors[i], alone[0], atol=1e-5, rtol=0)
            for ours, theirs in zip(read, answers, strict=True):
                torch.testing.assert_close(ours[i], theirs[0], atol=1e-5, rtol=0)


def test_figures_of_known_guesses() -> None:
    values = {"noun": ["cat", "none", "ox"], "colour": ["none", "red"], "count": ["1", "2"]}
    fields = [*FIELDS, "count 1"]
    readings = torch.tensor([[0, 1, 2, 0, 0], [0, 1, 2, 1, 1], [2, 1, 1, 0, 0]])
    guesses = readings.clone()
    guesses[0, 4] = 1  # of two things, but no noun or colour
    guesses[1, 3] = 0  # of two things
    guesses[2, 0] = 0  # of one thing
    assert reading_figures(guesses, readings, fields, values) == pytest.approx(
        {"read": 12 / 15, "read_two": 1 / 2}
    )
    assert reading_figures(guesses[2:], readings[2:], fields, values) == pytest.approx(
        {"read": 4 / 5}
    )
