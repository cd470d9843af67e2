"""Measure a model of icons: what survives its VAE, and whether it draws what one asks for.

    python -m tools.builtin_model.evaluate --data data/icons --output runs/evaluation

A classifier, trained once on the real icons of the data set and of five more sets (an hour on one
core) and kept in the output folder, names the things in every picture drawn; colours are measured
from the pixels, the things that stand apart are counted, and a second network, kept there too,
tells the style. The same figures for scenes of real icons that neither they nor the model have seen
are the ceiling. Writes `report.json`, `report.md` and a contact sheet of each kind of prompt over
those of an earlier run.

`--kinds two style` draws only the prompts of these kinds, each from the seed that it has in the
whole list; `--judge` names the folder of an earlier run's networks where the report is to lie
elsewhere.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.folder import load_component
from ldm.checkpoints.source import find_model
from ldm.cli.common import EXIT_CODES, check_counts, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import save_image
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from ldm.vae import AutoencoderKL
from tools.builtin_model.evaluation import (
    copies,
    examples,
    figures,
    fit,
    judge,
    prompts,
    reconstruction,
    report,
    sheet,
    styles,
)
from tools.builtin_model.evaluation.classifier import ABOUT, Classifier
from tools.builtin_model.evaluation.frechet import DIRECTIONS, distance, principal
from tools.builtin_model.evaluation.judge import Judged
from tools.builtin_model.evaluation.prompts import Prompt
from tools.builtin_model.evaluation.real import real
from tools.builtin_model.icons.nouns import read_everyday

SAMPLE = 1000  # icons that say which directions of the features matter, see ``distances``


def log(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def read_data(folder: Path) -> CaptionedImages:
    """Open the data set. Raises ArgumentError where it is missing or has nothing held out."""
    if not (folder / "images.npy").is_file():
        raise ArgumentError(
            f"--data {folder} has no images.npy; "
            "python -m tools.builtin_model.build_icons makes one"
        )
    data = CaptionedImages(folder)
    if not len(data.held_out):
        raise ArgumentError(f"--data {folder} holds no icon out of training; build it again")
    return data


def draw(
    pipe: Pipeline, wanted: list[Prompt], seeds: list[int], arguments: argparse.Namespace
) -> tuple[list[Image.Image], float]:
    """Draw a picture of each prompt, each from its seed; returns the seconds for one, too."""
    pictures: list[Image.Image] = []
    started = time.monotonic()
    for start in range(0, len(wanted), arguments.batch_size):
        some = slice(start, start + arguments.batch_size)
        pictures += pipe(
            [prompt.text for prompt in wanted[some]],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            sampler=arguments.sampler,
        ).images
        log(f"{len(pictures)}/{len(wanted)} pictures, {time.monotonic() - started:.0f} s")
    return pictures, (time.monotonic() - started) / len(wanted)


def accuracy(classifier: Classifier, data: CaptionedImages) -> dict[str, Any]:
    """How often the classifier names the held-out icons, as they are, of all nouns it knows."""
    indices = measured(classifier, data)
    nouns = [data.rows[i]["noun"] for i in indices]
    opinions = classifier.opinions(np.asarray(data.images[indices]), prompts.FORTY)
    pairs = list(zip(opinions, nouns, strict=True))
    return {
        "classes": len(classifier.labels.nouns),
        "held_out": len(pairs),
        "top1": sum(o.nouns[0] == noun for o, noun in pairs) / len(pairs),
        "top5": sum(noun in o.nouns for o, noun in pairs) / len(pairs),
    }


def measured(classifier: Classifier, data: CaptionedImages) -> list[int]:
    """Rows of the held-out icons whose noun the classifier knows."""
    known = set(classifier.labels.nouns)
    return [i for i in data.held_out.tolist() if data.rows[i]["noun"] in known]


def distances(
    classifier: Classifier, data: CaptionedImages, judged: list[Judged], pictures: list[Any]
) -> dict[str, float | None]:
    """Fréchet distances of single objects, drawn and of training, to the held-out icons.

    In the DIRECTIONS in which training's plain icons differ most: 61 % of their variance. In all of
    the features, two samples as small as these are far apart whatever they show (6.2 for real
    icons, where these directions have 0.6). Of training, as many pictures of the same nouns, each
    the first that is plain.
    """
    held_out = measured(classifier, data)
    single = [np.asarray(p) for j, p in zip(judged, pictures, strict=True) if is_single(j)]
    if min(len(held_out), len(single)) < 2:
        return {"drawn": None, "real": None}
    rows = [(i, data.rows[i]) for i in examples.single_rows(data)]
    plain = [(i, row["noun"]) for i, row in rows if not row["colour"] and not row["background"]]
    wanted = {data.rows[i]["noun"] for i in held_out}
    first = {noun: i for i, noun in reversed(plain) if noun in wanted}

    def features(rows: Iterable[int]) -> np.ndarray:
        return classifier.features(np.asarray(data.images[sorted(rows)]))

    some = [i for i, _ in plain[:: max(1, len(plain) // SAMPLE)]]
    directions = principal(features(some), DIRECTIONS)
    target = features(held_out) @ directions
    drawn = classifier.features(np.stack(single)) @ directions
    known = features(first.values()) @ directions
    return {"drawn": distance(drawn, target), "real": distance(known, target)}


def is_single(item: Judged) -> bool:
    """Whether the prompt asks for one object and no more."""
    return item.prompt.kind == "single"


def near_copies(pictures: list[Any], judged: list[Judged], icons: Tensor) -> float | None:
    """Return the share of near-copies, among prompts with a colour or a composition."""
    composed = [np.asarray(p) for j, p in zip(judged, pictures, strict=True) if j.prompt.composed]
    if not composed:
        return None
    return float((copies.nearest(composed, icons) < copies.NEAR).mean())


def settings(pipe: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the pictures were drawn with."""
    choice = pipe.choose_sampler(arguments.sampler)
    steps, scale = arguments.num_inference_steps, arguments.guidance_scale
    return {
        "model": str(arguments.model or "the built-in model"),
        "lora": arguments.lora,
        "data": str(arguments.data),
        "sampler": choice.name + f"_{choice.schedule}" * (choice.schedule != "normal"),
        "num_inference_steps": steps or pipe.defaults.num_inference_steps,
        "guidance_scale": pipe.defaults.guidance_scale if scale is None else scale,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "dtype": str(next(pipe.unet.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def described(item: Judged, seed: int) -> dict[str, Any]:
    """One picture in `report.json`."""
    return {"seed": seed, "right": item.right, **dataclasses.asdict(item)}


def chosen_prompts(
    data: CaptionedImages, arguments: argparse.Namespace
) -> tuple[list[int], list[Prompt]]:
    """Return the seeds and the prompts. Raises ArgumentError for a number of them out of range."""
    known = set(examples.known_nouns(data))
    held_out = [row for i in data.held_out.tolist() if (row := data.rows[i])["noun"] in known]
    every = prompts.prompts(
        [row["noun"] for row in held_out], [(row["noun"], row["set"]) for row in held_out]
    )
    chosen = prompts.choose(every, arguments.kinds, arguments.prompts)
    return [arguments.seed + number for number, _ in chosen], [prompt for _, prompt in chosen]


def evaluate(arguments: argparse.Namespace) -> None:
    """Everything that the command does; raises LDMError for whatever cannot work."""
    check_counts(arguments, "batch_size", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    kept = arguments.judge or arguments.output
    if arguments.judge and not (kept / ABOUT).is_file():
        raise ArgumentError(f"--judge {kept} has no {ABOUT}; the --output of an earlier run has")
    data = read_data(arguments.data)
    seeds, wanted = chosen_prompts(data, arguments)
    folder = find_model(arguments.model)
    vae = adapt_to_cpu(load_component(AutoencoderKL, folder / "vae", torch.float32))
    log(f"reconstructing {len(data.held_out)} held-out icons")
    psnr = dataclasses.asdict(reconstruction.reconstruct(vae, data))
    print(report.vae_line(psnr))
    if arguments.vae_only:
        return

    pipe = Pipeline.from_pretrained(folder, dtype=arguments.dtype)
    if arguments.lora:
        pipe.load_lora_weights(arguments.lora)
    arguments.output.mkdir(parents=True, exist_ok=True)
    classifier = fit.trained(data, kept, arguments.archives, log)
    certainty = accuracy(classifier, data)
    log(f"classifier: {certainty['top1']:.1%} of {certainty['held_out']} held-out icons right")

    blue_aside = frozenset(noun.noun for noun in read_everyday() if noun.blue_aside)
    styled = any(prompt.style for prompt in wanted)
    style_judge = styles.trained(data, kept, log) if styled else None
    answered, icons = real(data, wanted, blue_aside)
    ceiling = judge.judge(classifier, answered, icons, prompts.FORTY, blue_aside, style_judge)
    pictures, seconds = draw(pipe, wanted, seeds, arguments)
    judged = judge.judge(classifier, wanted, pictures, prompts.FORTY, blue_aside, style_judge)
    log("comparing with the icons of training")
    plain = copies.plain_icons(data)
    frechet = distances(classifier, data, judged, pictures)
    drawn, best = figures.shares(judged), figures.shares(ceiling)
    drawn |= {"frechet": frechet["drawn"], "near_copies": near_copies(pictures, judged, plain)}
    best |= {"frechet": frechet["real"], "near_copies": near_copies(icons, ceiling, plain)}
    result = {
        "settings": settings(pipe, arguments),
        "vae": psnr,
        "classifier": certainty,
        "seconds_per_picture": seconds,
        "bars": report.bars(drawn, best),
        "kinds": figures.by_kind(judged),
        "real_kinds": figures.by_kind(ceiling),
        "objects": figures.by_object(judged),
        "real_objects": figures.by_object(ceiling),
        "pictures": [described(*pair) for pair in zip(judged, seeds, strict=True)],
    }
    page = report.markdown(result)
    (arguments.output / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "report.md").write_text(page)
    for kind in result["kinds"]:
        pairs = [(j, p) for j, p in zip(judged, pictures, strict=True) if j.prompt.kind == kind]
        path = arguments.output / f"contact-{kind.replace(' ', '-')}.png"
        save_image(sheet.contact_sheet(*zip(*pairs, strict=True)), path, None, True)
    print(page)
    log(f"written to {arguments.output}: report.json, report.md, contact-*.png")


def shared_parser(description: str) -> Parser:
    """Build a parser with the options that ``evaluate_modes.py`` has, too."""
    parser = Parser(description=description, epilog=EXIT_CODES)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/icons"), help="data set (default: data/icons)")
    add("--model", help="a diffusers folder or a hub id (default: the built-in model)")
    add(
        "--output",
        type=Path,
        default=Path("runs/evaluation"),
        help="folder of the report and of the judges (default: runs/evaluation)",
    )
    add(
        "--archives",
        type=Path,
        default=Path("data/npm"),
        help="folder of npm .tgz files, for the classifier's training (default: data/npm)",
    )
    add("--prompts", type=int, metavar="N", help="only so many, the first (default: all)")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_drawing(parser: Parser) -> None:
    """Add the options that say how ``draw`` draws."""
    add = parser.add_argument
    add(
        "--num-inference-steps",
        "--steps",
        type=int,
        metavar="N",
        help="denoising steps (default: as the model advises)",
    )
    add("--guidance-scale", type=float, metavar="S", help="(default: as the model advises)")
    add("--sampler", metavar="NAME", help="as of ldm-generate (default: the model's own)")
    add("--seed", type=int, default=0, help="of the first picture; the next count up (default: 0)")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: 16)")
    add("--dtype", help="of the model, as of ldm-generate (default: by the device)")


def parser() -> Parser:
    """Build the parser of the command line."""
    parser = shared_parser(__doc__.splitlines()[0])
    add_drawing(parser)
    add = parser.add_argument
    add("--judge", type=Path, metavar="DIR", help="folder of the judges (default: --output)")
    add(
        "--kinds",
        nargs="+",
        default=prompts.KINDS,
        choices=prompts.KINDS,
        metavar="KIND",
        help=f"only prompts of these: {', '.join(prompts.KINDS)} (default: all)",
    )
    add("--lora", metavar="PATH", help="a LoRA to draw with: a file or the folder of a run")
    add("--vae-only", action="store_true", help="only the PSNR; --model may hold only a vae/")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
