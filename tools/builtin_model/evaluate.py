"""Measure a model of icons: what survives its VAE, and whether it draws what one asks for.

    python -m tools.builtin_model.evaluate --data data/icons --output runs/evaluation

A classifier, trained once on the real icons of the data set and of five more sets (an hour on one
core) and kept in the output folder, names the things in every picture drawn; colours are measured
from the pixels, the things that stand apart are counted; two smaller networks, kept there too, say
which style it is, and whether a face or an animal has both eyes. The same figures for scenes of
real icons that neither they nor the model have seen are the ceiling. Writes `report.json`,
`report.md`, a contact sheet of each kind of prompt, and two small ones to show (`things.webp`,
`compositions.webp`) over those of an earlier run.

`--kinds two style` draws only the prompts of these kinds, each from the seed that it has in the
whole list; `--judge` names the folder of an earlier run's networks where the report is to lie
elsewhere; `--pictures` keeps what is drawn, so that a run that was ended goes on where it was.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoints.folder import load_component
from ldm.checkpoints.source import find_model
from ldm.cli.common import check_counts, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import save_image
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from ldm.vae import AutoencoderKL
from tools.builtin_model.evaluation import (
    alike,
    examples,
    eyes,
    figures,
    fit,
    judge,
    names,
    prompts,
    reconstruction,
    report,
    sheet,
    sheets,
    styles,
)
from tools.builtin_model.evaluation.classifier import ABOUT
from tools.builtin_model.evaluation.drawing import draw, draw_missing
from tools.builtin_model.evaluation.judge import Judged
from tools.builtin_model.evaluation.options import add_drawing, shared_parser
from tools.builtin_model.evaluation.prompts import Prompt
from tools.builtin_model.evaluation.real import real
from tools.builtin_model.icons.nouns import read_everyday


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


def settings(pipe: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that decide which pictures are drawn."""
    choice = pipe.choose_sampler(arguments.sampler)
    steps, scale = arguments.num_inference_steps, arguments.guidance_scale
    return {
        "model": str(arguments.model or "the built-in model"),
        "lora": arguments.lora,
        "sampler": choice.name + f"_{choice.schedule}" * (choice.schedule != "normal"),
        "num_inference_steps": steps or pipe.defaults.num_inference_steps,
        "guidance_scale": pipe.defaults.guidance_scale if scale is None else scale,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "dtype": str(next(pipe.unet.parameters()).dtype).removeprefix("torch."),
    }


def described(item: Judged, seed: int) -> dict[str, Any]:
    """One picture in `report.json`."""
    return {"seed": seed, "right": item.right, **dataclasses.asdict(item)}


def chosen_prompts(
    data: CaptionedImages, arguments: argparse.Namespace
) -> tuple[list[int], list[Prompt]]:
    """Return the seeds and the prompts. Raises ArgumentError for a number of them out of range."""
    nouns = examples.known_nouns(data)
    known = set(nouns)
    held_out = [row for i in data.held_out.tolist() if (row := data.rows[i])["noun"] in known]
    every = prompts.prompts(
        [row["noun"] for row in held_out],
        [(row["noun"], row["set"]) for row in held_out],
        nouns,
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
    kinds = {prompt.kind for prompt in wanted}
    classifier = fit.trained(data, kept, arguments.archives, log)
    certainty = alike.accuracy(classifier, data)
    log(f"classifier: {certainty['top1']:.1%} of {certainty['held_out']} held-out icons right")
    style_judge = styles.trained(data, kept, log) if "style" in kinds else None
    faces = eyes.trained(data, kept, arguments.archives, log) if kinds & set(eyes.KINDS) else None

    drawn_with = settings(pipe, arguments)
    if arguments.pictures:
        pictures, seconds = draw_missing(pipe, wanted, seeds, arguments, drawn_with, log)
    else:
        pictures, seconds = draw(pipe, wanted, seeds, arguments, log)
    log("judging")
    blue_aside = frozenset(noun.noun for noun in read_everyday() if noun.blue_aside)

    def judge_all(asked: Sequence[Prompt], shown: Sequence[Any]) -> list[Judged]:
        if not asked:
            return []
        return judge.judge(classifier, asked, shown, prompts.FORTY, blue_aside, style_judge)

    judged = judge_all(wanted, pictures)
    answered, icons = real(data, [p for p in wanted if p.kind != names.KIND], blue_aside)
    learnt: list[Judged] = []
    if names.KIND in kinds:
        known = set(classifier.labels.nouns)
        more, their_icons = names.held_out(data, known)
        answered, icons = [*answered, *more], [*icons, *their_icons]
        learnt = judge_all(*names.learnt(data, known))
    ceiling = judge_all(answered, icons)
    log("comparing with the icons of training")
    drawn, best = alike.measured(classifier, data, (judged, pictures), (ceiling, icons))
    best |= figures.with_intervals({"names_learnt": [item.recognised for item in learnt]})
    if faces:
        verdicts = faces.verdicts(judged, pictures)
        drawn |= figures.with_intervals({"eyes": verdicts})
        best |= figures.of_counts("eyes", faces.counts.real)
    result = {
        "settings": drawn_with | {"data": str(arguments.data), "threads": torch.get_num_threads()},
        "vae": psnr,
        "classifier": certainty,
        "eyes": faces and faces.counts._asdict() | {"nouns": sorted(faces.nouns)},
        "seconds_per_picture": seconds,
        "bars": report.bars(drawn, best),
        "kinds": figures.by_kind(judged),
        "real_kinds": figures.by_kind(ceiling),
        "names": names.by_name(judged),
        "objects": figures.by_object(judged),
        "real_objects": figures.by_object(ceiling),
        "pictures": [described(*pair) for pair in zip(judged, seeds, strict=True)],
    }
    write(result, judged, pictures, arguments.output)


def write(
    result: dict[str, Any], judged: list[Judged], pictures: list[Image.Image], folder: Path
) -> None:
    """Write the report and the contact sheets, and print the report."""
    page = report.markdown(result)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "report.md").write_text(page)
    for kind in result["kinds"]:
        pairs = [(j, p) for j, p in zip(judged, pictures, strict=True) if j.prompt.kind == kind]
        path = folder / f"contact-{kind.replace(' ', '-')}.png"
        save_image(sheet.contact_sheet(*zip(*pairs, strict=True)), path, None, True)
    sheets.write(judged, pictures, folder)
    print(page)
    log(f"written to {folder}: report.json, report.md, contact-*.png, *.webp")


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
    add(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="folder that keeps the pictures: those there are judged, only the others are drawn",
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
