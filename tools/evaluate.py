"""Measure a model of icons: what survives its VAE, and whether it draws what one asks for.

    python tools/evaluate.py --data data/icons --output runs/evaluation

A classifier, trained once on the real icons of the data set (minutes on one core) and kept in the
output folder, names the object of every picture drawn; the colour is measured from the pixels. The
same figures for real icons that neither it nor the model has seen are the ceiling. Writes
`report.json`, `report.md` and `contact.png` over those of an earlier run.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation import fit, judge, prompts, reconstruction, report, sheet
from evaluation.classifier import Classifier
from evaluation.colours import repainted
from evaluation.judge import Judged
from evaluation.prompts import Prompt
from icons.nouns import read_everyday
from icons.split import read_eval_objects
from ldm.checkpoints.folder import load_component
from ldm.checkpoints.source import find_model
from ldm.cli.common import EXIT_CODES, Parser, check_counts, run
from ldm.errors import ArgumentError
from ldm.images import save_image
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from ldm.vae import AutoencoderKL

FORTY = [row["noun"] for row in read_eval_objects()]


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def read_data(folder: Path) -> CaptionedImages:
    """The data set. Raises ArgumentError where it is missing or has nothing held out."""
    if not (folder / "images.npy").is_file():
        raise ArgumentError(f"--data {folder} has no images.npy; tools/build_icons.py makes one")
    data = CaptionedImages(folder)
    if not len(data.held_out):
        raise ArgumentError(f"--data {folder} holds no icon out of training; build it again")
    return data


def draw(
    pipe: Pipeline, asked: list[Prompt], arguments: argparse.Namespace
) -> tuple[list[Image.Image], float]:
    """A picture of each prompt, the i-th from seed + i, and the seconds for one."""
    pictures: list[Image.Image] = []
    started = time.monotonic()
    for start in range(0, len(asked), arguments.batch_size):
        texts = [p.text for p in asked[start : start + arguments.batch_size]]
        pictures += pipe(
            texts,
            seed=arguments.seed + start,
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            sampler=arguments.sampler,
        ).images
        say(f"{len(pictures)}/{len(asked)} pictures, {time.monotonic() - started:.0f} s")
    return pictures, (time.monotonic() - started) / len(asked)


def real(
    data: CaptionedImages, asked: list[Prompt], blue_aside: frozenset[str]
) -> tuple[list[Prompt], list[Image.Image]]:
    """The held-out icon of each prompt's object, in the colour asked for.

    Prompts that no repainting answers (icons of many colours) are left out.
    """
    icon_of = {data.rows[i]["noun"]: i for i in reversed(data.held_out.tolist())}
    kept, pictures = [], []
    for prompt in asked:
        if prompt.noun not in icon_of:
            raise ArgumentError(f"{data.folder} holds no icon of {prompt.noun} out of training")
        pixels = np.asarray(data.images[icon_of[prompt.noun]])
        if prompt.colour:
            pixels = repainted(pixels, prompt.colour, prompt.noun in blue_aside)
        if pixels is not None:
            kept.append(prompt)
            pictures.append(Image.fromarray(pixels))
    return kept, pictures


def accuracy(classifier: Classifier, data: CaptionedImages) -> dict[str, Any]:
    """How often the classifier names the held-out icons, as they are, of all nouns it knows."""
    known = set(classifier.labels.nouns)
    indices = [i for i in data.held_out.tolist() if data.rows[i]["noun"] in known]
    nouns = [data.rows[i]["noun"] for i in indices]
    opinions = classifier.opinions(np.asarray(data.images[indices]), FORTY)
    pairs = list(zip(opinions, nouns, strict=True))
    return {
        "classes": len(known),
        "held_out": len(pairs),
        "top1": sum(o.nouns[0] == noun for o, noun in pairs) / len(pairs),
        "top5": sum(noun in o.nouns for o, noun in pairs) / len(pairs),
    }


def settings(pipe: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the pictures were drawn with."""
    choice = pipe.choose_sampler(arguments.sampler)
    steps, scale = arguments.num_inference_steps, arguments.guidance_scale
    return {
        "model": str(arguments.model or "the built-in model"),
        "data": str(arguments.data),
        "sampler": choice.name + f"_{choice.schedule}" * (choice.schedule != "normal"),
        "num_inference_steps": steps or pipe.defaults.num_inference_steps,
        "guidance_scale": pipe.defaults.guidance_scale if scale is None else scale,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
    }


def described(item: Judged, seed: int) -> dict[str, Any]:
    """One picture in `report.json`."""
    asked, seen = dataclasses.asdict(item.prompt), dataclasses.asdict(item.opinion)
    return {"seed": seed, **asked, "seen": seen, "measured_colour": item.measured}


def evaluate(arguments: argparse.Namespace) -> None:
    """Everything that the command does; raises LDMError for whatever cannot work."""
    check_counts(arguments, "batch_size", "num_inference_steps", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    asked = prompts.prompts(arguments.prompts)
    data = read_data(arguments.data)
    folder = find_model(arguments.model)
    vae = load_component(AutoencoderKL, folder / "vae", torch.float32)
    say(f"reconstructing {len(data.held_out)} held-out icons")
    psnr = dataclasses.asdict(reconstruction.reconstruct(vae, data))
    print(report.vae_line(psnr))
    if arguments.vae_only:
        return

    pipe = Pipeline.from_pretrained(folder, dtype="float32")
    arguments.output.mkdir(parents=True, exist_ok=True)
    classifier = fit.trained(data, arguments.output, say)
    certainty = accuracy(classifier, data)
    say(f"classifier: {certainty['top1']:.1%} of {certainty['held_out']} held-out icons right")

    blue_aside = frozenset(noun.noun for noun in read_everyday() if noun.blue_aside)
    ceiling = judge.judge(classifier, *real(data, asked, blue_aside), FORTY, blue_aside)
    pictures, seconds = draw(pipe, asked, arguments)
    judged = judge.judge(classifier, asked, pictures, FORTY, blue_aside)
    captioned = {(row["noun"], row["colour"]) for row in data.rows if row["split"] == "train"}
    paired = [j for j in judged if j.prompt.colour]
    known = [j for j in paired if (j.prompt.noun, j.prompt.colour) in captioned]
    new = [j for j in paired if (j.prompt.noun, j.prompt.colour) not in captioned]
    result = {
        "settings": settings(pipe, arguments),
        "vae": psnr,
        "classifier": certainty,
        "seconds_per_picture": seconds,
        "drawn": judge.summary(judged),
        "drawn_captioned": judge.summary(known),
        "drawn_never_captioned": judge.summary(new),
        "real": judge.summary(ceiling),
        "objects": judge.by_object(judged),
        "real_objects": judge.by_object(ceiling),
        "pictures": [described(item, arguments.seed + i) for i, item in enumerate(judged)],
    }
    page = report.markdown(result)
    (arguments.output / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "report.md").write_text(page)
    save_image(sheet.contact_sheet(judged, pictures), arguments.output / "contact.png", None, True)
    print(page)
    say(f"written to {arguments.output}: report.json, report.md, contact.png")


def shared_parser(description: str) -> Parser:
    """The options that ``evaluate_modes.py`` has, too."""
    parser = Parser(description=description, epilog=EXIT_CODES, allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/icons"), help="data set (default: data/icons)")
    add("--model", help="a diffusers folder or a hub id (default: the built-in model)")
    add(
        "--output",
        type=Path,
        default=Path("runs/evaluation"),
        help="folder of the report and of the classifier (default: runs/evaluation)",
    )
    add("--prompts", type=int, default=240, metavar="N", help="how many, 1 to 480 (default: 240)")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parser() -> Parser:
    """The command line."""
    parser = shared_parser(__doc__.splitlines()[0])
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
    add("--vae-only", action="store_true", help="only the PSNR; --model may hold only a vae/")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure; returns the exit code: 0, 1 for a bad model, 2 for a bad argument."""
    arguments = parser().parse_args(argv)
    return run(lambda: evaluate(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
