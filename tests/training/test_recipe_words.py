"""Textual inversion: diffusers' loss and gradients, files that diffusers and we read alike."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.finetuning.word_templates import OBJECT, STYLE
from ldm.training.finetuning.words import spread
from ldm.training.loop import Trainer, train_steps
from ldm.training.recipes.textual_inversion import TextualInversionRecipe
from tests.helpers.networks import difference
from tests.training.test_recipe_lora import loss_of

diffusers = pytest.importorskip("diffusers")
SIZE = 64
WORDS = {"<dog>": {"initializer": "dog", "vectors": 2}, "zwilbo": {"initializer": "red car"}}


def config_for(base: Path, source: Path, output: Path, **options: Any) -> TrainConfig:
    own = {"base": str(base), "data": {"size": SIZE, "held_out": 0}, "words": WORDS}
    config = TrainConfig("textual_inversion", str(source), str(output), 1, 6, 1e-2)
    return replace(
        config, options=own | options, warmup=0, decay_from=1.0, mixed_precision="no",
        max_grad_norm=float("inf"), ema_decay=0.0, sample_every=10**6,
    )  # fmt: skip


def quietly(recipe: type, config: TrainConfig) -> Any:
    """Make a recipe without the warning of initializers with several tokens."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the initializer")
        return recipe(config)


def with_new_rows(theirs: Any, words: dict[str, dict[str, Tensor]]) -> dict[str, nn.Embedding]:
    """Resize the embedding matrices of diffusers' encoders, as their examples do; both by part."""
    matrices = {}
    for part, number in (("text_encoder", ""), ("text_encoder_2", "_2")):
        encoder = getattr(theirs, part, None)
        if encoder is None:
            continue
        encoder.requires_grad_(False)
        new = torch.cat([vectors[part] for vectors in words.values()])
        tokenizer = getattr(theirs, f"tokenizer{number}")
        encoder.resize_token_embeddings(len(tokenizer) + len(new), mean_resizing=False)
        matrices[part] = encoder.get_input_embeddings()
        matrices[part].weight.data[len(tokenizer) :] = new
        matrices[part].weight.requires_grad_(True)
    return matrices


@pytest.mark.parity
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_and_gradients_are_those_of_diffusers(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
    family: str,
    prediction: str,
    gamma: float | None,
) -> None:
    """Of textual_inversion.py and textual_inversion_sdxl.py, in float32, within 1e-5."""
    theirs = copy.deepcopy(bases(family)[1])
    theirs.scheduler = diffusers.DDIMScheduler.from_config(
        theirs.scheduler.config, prediction_type=prediction
    )
    folder = tmp_path / "base"
    theirs.save_pretrained(folder)
    config = config_for(folder, dogs, tmp_path / "run", min_snr_gamma=gamma)
    recipe = quietly(TextualInversionRecipe, config)
    trainer = Trainer(config, recipe)
    trainer.start()
    batch = recipe.batch(0, step_generator(config.seed, 0))
    assert (batch["ids"] > 49407).any()
    loss, _ = recipe.loss(recipe.model, batch)
    loss.backward()
    theirs.unet.requires_grad_(False)
    matrices = with_new_rows(theirs, recipe.words.values())
    expected = loss_of(theirs, batch, gamma)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert matrices.keys() == recipe.words.vectors.keys()
    for part, matrix in matrices.items():
        found = recipe.words.vectors[part].grad
        assert found is not None
        wanted = matrix.weight.grad[-len(found) :]
        assert wanted.abs().max() > 1e-3
        assert (found - wanted).abs().max() < 1e-5
    trainer.end()


def test_nothing_but_the_vectors_moves(bases: Any, dogs: Path, tmp_path: Path) -> None:
    base, _ = bases("sdxl")
    config = replace(config_for(base, dogs, tmp_path), steps=2)
    recipe = quietly(TextualInversionRecipe, config)
    pipe = recipe.pipe
    parts = {
        name: getattr(pipe, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    words = copy.deepcopy(recipe.words.values())
    for _ in train_steps(config, recipe):
        pass
    for name, part in parts.items():
        after = part.state_dict()
        assert after.keys() == before[name].keys()
        assert all(torch.equal(value, before[name][key]) for key, value in after.items()), name
    for word, vectors in recipe.words.values().items():
        for part, value in vectors.items():
            assert 1e-3 < difference(value, words[word][part]) < 0.1
    assert len(list(recipe.model.parameters())) == 2


def drawn(pipe: Any, prompt: str = "a <dog>, a zwilbo") -> np.ndarray:
    return pipe(prompt, num_inference_steps=3, seed=1, output_type="np").images[0]


def shaken(recipe: Any) -> Any:
    """Move what is trained, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in recipe.model.parameters():
            value += 0.3 * torch.randn(value.shape, generator=generator)
    return recipe


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_saved_words_draw_what_was_trained(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
    family: str,
) -> None:
    """A file for each word, by its name; what it was before draws something else."""
    base, _ = bases(family)
    recipe = quietly(TextualInversionRecipe, config_for(base, dogs, tmp_path))
    plain = drawn(recipe.pipe)
    shaken(recipe).save(recipe.model, tmp_path)
    pipe = Pipeline.from_pretrained(base, device="cpu")
    for word in WORDS:
        assert pipe.load_textual_inversion(tmp_path / f"{word}.safetensors") == word
    assert np.abs(drawn(pipe) - drawn(recipe.pipe)).max() < 1e-6
    assert np.abs(drawn(pipe) - plain).max() > 1e-3
    keys = {"clip_l", "clip_g"} if family == "sdxl" else {"emb_params"}
    assert load_file(tmp_path / "<dog>.safetensors").keys() == keys


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("layout", ["a1111", "diffusers"])
def test_diffusers_draws_the_same_with_the_file(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
    family: str,
    layout: str,
) -> None:
    """Latents after three steps within 1e-4."""
    base, theirs = bases(family)
    words = {"<dog>": WORDS["<dog>"]}
    config = config_for(base, dogs, tmp_path, words=words, save_as=layout)
    recipe = shaken(TextualInversionRecipe(config))
    recipe.save(recipe.model, tmp_path)
    theirs = copy.deepcopy(theirs)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, steps_offset=1
    )
    load_into(theirs, tmp_path, layout)
    pipe = recipe.pipe
    shape = (1, pipe.unet.config.in_channels, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    settings = {"num_inference_steps": 3, "latents": noise, "height": 64, "width": 64}
    found = pipe("a <dog>", sampler="ddim", output_type="latent", **settings).images
    expected = theirs("a <dog>", output_type="latent", **settings).images
    assert difference(torch.as_tensor(found), expected) < 1e-4


def load_into(theirs: Any, folder: Path, layout: str) -> None:
    """Load a word as diffusers' documentation has it."""
    one = {"text_encoder": theirs.text_encoder, "tokenizer": theirs.tokenizer}
    if layout == "diffusers":
        theirs.load_textual_inversion(str(folder / "learned_embeds.safetensors"), **one)
        if (folder / "learned_embeds_2.safetensors").exists():
            two = {"text_encoder": theirs.text_encoder_2, "tokenizer": theirs.tokenizer_2}
            theirs.load_textual_inversion(str(folder / "learned_embeds_2.safetensors"), **two)
        return
    vectors = load_file(folder / "<dog>.safetensors")
    if "emb_params" in vectors:
        theirs.load_textual_inversion(str(folder / "<dog>.safetensors"), token="<dog>")
        return
    theirs.load_textual_inversion(vectors["clip_l"], token="<dog>", **one)
    two = {"text_encoder": theirs.text_encoder_2, "tokenizer": theirs.tokenizer_2}
    theirs.load_textual_inversion(vectors["clip_g"], token="<dog>", **two)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_warm_start_goes_on_from_a_file(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
    family: str,
) -> None:
    base, _ = bases(family)
    words = {"<dog>": {"vectors": 3}}
    recipe = shaken(TextualInversionRecipe(config_for(base, dogs, tmp_path, words=words)))
    recipe.save(recipe.model, tmp_path)
    renamed = {"<cat>": {"vectors": 3, "initializer": "a"}}
    config = config_for(base, dogs, tmp_path / "new", words=renamed)
    start = str(tmp_path / "<dog>.safetensors")
    again = TextualInversionRecipe(replace(config, start=start))
    assert np.abs(drawn(again.pipe, "a <cat>") - drawn(recipe.pipe, "a <dog>")).max() < 1e-6
    with pytest.raises(ArgumentError, match="has 3 vectors; the options make 1: set"):
        TextualInversionRecipe(replace(config_for(base, dogs, tmp_path, words=["x1"]), start=start))
    with pytest.raises(ArgumentError, match="has the words <dog>, but not <cat>"):
        config = config_for(base, dogs, tmp_path, words=["<cat>", "<dog2>"], vectors=3)
        TextualInversionRecipe(replace(config, start=start))


def test_a_start_of_another_family_is_named(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    base, _ = bases("sd")
    file = tmp_path / "<dog>.safetensors"
    config = replace(config_for(base, dogs, tmp_path), start=str(file))
    save_file({"emb_params": torch.zeros(1, 1024)}, file)
    with pytest.raises(
        CheckpointError, match=r"1024 \(Stable Diffusion 2.x\), this .* encoders 32"
    ):
        quietly(TextualInversionRecipe, config)
    base, _ = bases("sdxl")
    save_file({"emb_params": torch.zeros(1, 32)}, file)
    config = replace(config_for(base, dogs, tmp_path, words=["<dog>"]), start=str(file))
    with pytest.raises(CheckpointError, match="no vectors of <dog> for text_encoder_2"):
        TextualInversionRecipe(config)


def test_words_begin_with_their_initializers(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    base, _ = bases("sd")
    with pytest.warns(UserWarning, match="'red car' of zwilbo has 2 tokens for 1 vector, which"):
        recipe = TextualInversionRecipe(config_for(base, dogs, tmp_path))
    known = recipe.pipe.text_encoder.text_model.embeddings.token_embedding.weight
    dog, red, car = (known[i] for i in recipe.pipe.tokenizer.encode("dog red car"))
    wanted = torch.stack([dog, dog, (red + car) / 2])
    assert torch.equal(recipe.words.vectors["text_encoder"], wanted)
    tokens = torch.arange(3.0)[:, None]
    assert spread(tokens, 5).flatten().tolist() == [0, 0, 1, 1, 2]  # A1111's create_embedding
    assert spread(tokens, 2).flatten().tolist() == [0.5, 2]
    recipe = TextualInversionRecipe(config_for(base, dogs, tmp_path, words=["x1"], vectors=8))
    values = recipe.words.vectors["text_encoder"]
    assert values.std() == pytest.approx(float(known.std()), rel=0.2)


def texts_of(recipe: Any, batch: dict[str, Tensor]) -> set[str]:
    """The words of each caption in a batch."""
    tokenizer = recipe.text_models[0].tokenizer
    rows = [tokenizer.words(row.tolist()) for row in batch["ids"][:, 0]]
    return {" ".join(word for word, _ in row) for row in rows}


def prepared(config: TrainConfig) -> Any:
    recipe = quietly(TextualInversionRecipe, config)
    recipe.prepare(Accelerator(cpu=True))
    return recipe


def test_captions_of_a_word_alone_are_drawn(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    """Anew in each batch, the same for the same step; other captions stay."""
    base, _ = bases("sd")
    own = {"a <dog>", "a zwilbo and a <dog> , <dog>", "a zwilbo", ""}
    for options, texts in (
        ({}, OBJECT),
        ({"learnable_property": "style"}, STYLE),
        ({"templates": ["an icon of {}!"]}, ("an icon of {}!",)),
        ({"templates": False}, ("{}",)),
    ):
        recipe = prepared(config_for(base, dogs, tmp_path, caption_dropout=0.2, **options))
        possible = {text.format(word) for text in texts for word in WORDS}
        possible = {text.replace("-", " - ").replace("!", " !") for text in possible}
        found: set[str] = set()
        for step in range(12):
            batch = recipe.batch(step, step_generator(0, step))
            again = recipe.batch(step, step_generator(0, step))
            assert torch.equal(batch["ids"], again["ids"])
            found |= texts_of(recipe, batch)
        assert found <= own | possible
        assert own <= found
        assert len(found & possible) >= min(len(texts), 6)


def test_captions_without_the_words_are_counted(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    base, _ = bases("sd")
    with pytest.warns(
        UserWarning, match=r"4 of 6 captions have no word .* zwilbo \(such as 'a <dog"
    ):
        prepared(config_for(base, dogs, tmp_path, words=["zwilbo", "x1"], templates=False))
    with pytest.warns(UserWarning, match="x1 is in no caption"):
        prepared(config_for(base, dogs, tmp_path, words=["<dog>", "x1"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = TextualInversionRecipe(
            config_for(base, dogs, tmp_path, words=["<dog>", "zwilbo"], initializer="dog")
        )
        recipe.prepare(Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": ["dog"]}, "holds 'dog', which is a token of the model's vocabulary"),
        ({"words": ["Dog"]}, "holds 'Dog', which is a token"),
        ({"words": ["<my dog>"]}, "with ' ', which prompts read"),
        ({"words": ["a,b", "c"]}, "holds 'a,b', with ','"),
        ({"words": ["(x1:2)"]}, r"with '\(', '\)', ':'"),
        ({"words": ["__x1__"]}, "with '__'"),
        ({"words": ["../x1"]}, "with '/'"),
        ({"words": ["x\n1"]}, r"with '\\n'"),
        ({"words": [""]}, "a word needs letters or digits"),
        ({"words": ["<>"]}, "a word needs letters or digits"),
        ({"words": ["AND"]}, "may not be AND"),
        ({"words": ["x1" * 80]}, "at most 100 characters"),
        ({"words": []}, "options.words is empty"),
        ({"words": ["<x1>", "<x1>"]}, "give each word once"),
        ({"words": ["<x1>", "<X1>"]}, "upper from lower case"),
        ({"words": "<x1>"}, "options.words is '<x1>'; expected a list or a table"),
        ({"words": {"<x1>": 2}}, "options.words.<x1> is 2; expected a table"),
        ({"words": {"<x1>": {"vector": 2}}}, "unknown setting options.words.<x1>.vector; did you"),
        ({"words": {"<x1>": {"vectors": 75}}}, r"options.words.<x1>.vectors is 75"),
        ({"vectors": 0}, "options.vectors is 0"),
        ({"templates": ["a dog"]}, "'a dog'; each needs one {}"),
        ({"keep_contexts": True}, "options.keep_contexts keeps"),
        ({"save_as": "diffusers"}, "whose files have one word, not 2"),
    ],
)
def test_words_that_cannot_work_are_refused(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    base, _ = bases("sd")
    with pytest.raises(ArgumentError, match=message):
        TextualInversionRecipe(config_for(base, dogs, tmp_path, **options))


@pytest.mark.filterwarnings("ignore:the run goes on with other settings")
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    """Bit for bit, with the average and the drawn captions."""
    base, _ = bases("sd")
    for name, stops in (("whole", []), ("stopped", [2, 3])):
        config = replace(
            config_for(base, dogs, tmp_path / name, num_inference_steps=1),
            steps=5, ema_decay=0.9, decay_from=0.5, batch_size=3,
        )  # fmt: skip
        for stop in [*stops, 5]:
            for state in train_steps(config, quietly(TextualInversionRecipe, config)):
                state.stop = state.step == stop
    for word in WORDS:
        files = [tmp_path / name / f"{word}.safetensors" for name in ("whole", "stopped")]
        assert torch.equal(*(load_file(file)["emb_params"] for file in files))


def test_pictures_of_the_run_are_those_of_the_average(
    bases: Any,
    dogs: Path,
    tmp_path: Path,
) -> None:
    base, _ = bases("sd")
    recipe = quietly(TextualInversionRecipe, config_for(base, dogs, tmp_path, prompts=["a <dog>"]))
    average = copy.deepcopy(recipe.model)
    before, _ = recipe.evaluate(recipe.model)
    shaken(recipe)
    same, _ = recipe.evaluate(average)
    after, _ = recipe.evaluate(recipe.model)
    assert np.array_equal(np.asarray(before), np.asarray(same))
    assert not np.array_equal(np.asarray(before), np.asarray(after))
