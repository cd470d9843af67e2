"""The work of ``ldm-generate``: one job for each picture."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.adapters.lora_scale import TagScale
from ldm.cli.choices import drawn_text
from ldm.cli.common import random_seed
from ldm.cli.controlnets import all_controls
from ldm.cli.guidance_options import given_depth, given_pictures
from ldm.cli.ip_adapters import given_image_prompts
from ldm.cli.loras import LoraUse, find_lora, lora_option, lora_tag
from ldm.cli.observe import beside
from ldm.cli.options import MAX_PICTURES
from ldm.cli.output_names import file_name, free_name, is_made, make_folder
from ldm.cli.prompts_file import Line, file_label, read_lines
from ldm.cli.streams import STREAM
from ldm.cli.style_options import check_aligned, given_reference
from ldm.errors import ArgumentError, ImageError, LDMError
from ldm.text.lora_tags import refuse_tags, split_tags
from ldm.text.wildcards import MOST_CHARACTERS

# Arguments that may differ within a batch.
OWN = {"prompt", "seed", "num_images", "output", "choices", "all", "templates"}


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    prompt: str  # as it was typed or drawn, and a tag for every --lora
    seed: int
    path: Path
    text: str  # the prompt without the LoRAs that it names
    loras: tuple[LoraUse, ...]
    line: Line  # with its arguments
    variation_seed: int | None = None
    template: str | None = None  # with choices, from which the prompt was drawn
    base: Path | None = None  # of a name that may get another number if it is taken

    def follows(self, other: Job) -> bool:
        """Whether one run may draw both: the next seed, and all else alike."""
        next_one: tuple[int, int | None] = (other.seed + 1, None)
        if other.variation_seed is not None:
            next_one = (other.seed, other.variation_seed + 1)
        if (self.seed, self.variation_seed) != next_one or self.loras != other.loras:
            return False
        if self.line.arguments.style_aligned and self.line is not other.line:
            return False
        mine, its = vars(self.line.arguments), vars(other.line.arguments)
        return mine is its or all(mine[key] == its[key] for key in mine.keys() - OWN)


def plan_jobs(arguments: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """Plan the pictures in the order of drawing; also return the errors in lines of ``--prompts``.

    Seeds count up over all pictures, except for lines with a seed of their own.
    Raises ImageError for a file that could not be written or exists already, LDMError for a file
    of prompts that cannot be read or has no good line.
    """
    from ldm.images import check_output

    if arguments.output not in (None, STREAM) and not is_made(arguments.output):
        check_output(arguments.output, overwrite=True)
    first = random_seed() if arguments.seed == -1 else arguments.seed
    if arguments.prompts is not None:
        jobs, bad = plan_lines(checked_lines(arguments), first, arguments)
    else:
        numbered = len(arguments.prompt) * arguments.num_images > 1 and not arguments.grid
        jobs, bad = plan_line(Line(0, arguments), first, 0, 1 if numbered else None), []
        shown = settle(jobs[:1] if arguments.grid else jobs, {})
        jobs = [*shown, *jobs[len(shown) :]]
    if len(jobs) > 1 and not arguments.grid and any(job.path == Path(STREAM) for job in jobs):
        raise ArgumentError(
            f"--output - writes one picture to stdout, not {len(jobs)}; add --grid, or give a "
            "folder"
        )
    return jobs, bad


def checked_lines(arguments: argparse.Namespace) -> list[Line]:
    """Read the lines of ``--prompts``. Raises ArgumentError for too many pictures."""
    lines, pictures, letters = [], 0, 0
    for line in read_lines(arguments.prompts, arguments):
        lines.append(line)
        pictures += count(line)
        letters += sum(map(len, line.arguments.prompt))
        if pictures > MAX_PICTURES or letters > MOST_CHARACTERS:
            path = file_label(arguments.prompts)
            raise ArgumentError(
                f"{path} asks for more than {MAX_PICTURES} pictures, or has prompts of more than "
                f"{MOST_CHARACTERS:,} characters; split it"
            )
    return lines


def plan_lines(
    lines: list[Line], first: int, arguments: argparse.Namespace
) -> tuple[list[Job], list[str]]:
    """Plan as ``plan_jobs``. A bad line has a seed, too: correcting it changes no other picture."""
    path = file_label(arguments.prompts)
    jobs: list[Job] = []
    bad: list[str] = []
    taken: dict[Path, int] = {}  # which line a file is of
    done = 0
    for line in lines:
        own, seed, before = line.arguments, first, done
        number: int | None = done + 1
        if "seed" in line.given:
            seed, before = random_seed() if own.seed == -1 else own.seed, 0
        elif own.variation_strength and "variation_seed" in line.given:
            before = 0
        if "output" in line.given:
            number = 1 if count(line) > 1 else None
        try:
            if line.error is not None:
                raise line.error
            given_pictures(own)  # a wrong file is an error before PyTorch is imported
            given_depth(own)
            all_controls(own)
            given_reference(own)
            given_image_prompts(own)
            mine = settle(plan_line(line, seed, before, number, done + 1), taken)
        except LDMError as error:
            bad.append(f"{path}:{line.number}: {error}")
        else:
            taken |= {job.path: line.number for job in mine}
            jobs += mine
        done += count(line)
    if not jobs:
        raise LDMError("; ".join([f"{path} has no line to draw", *bad]))
    return jobs, bad


def count(line: Line) -> int:
    """Count the pictures of a line."""
    return len(line.arguments.prompt) * line.arguments.num_images


def plan_line(line: Line, first: int, before: int, number: int | None, place: int = 1) -> list[Job]:
    """Plan the pictures of a line; seeds count up, and so do the numbers in their files' names.

    first: the seed; before: how many pictures have counted it up; place: of the first among all.
    """
    arguments = line.arguments
    always = [lora_option(text) for text in arguments.lora]
    tags_of_all = [lora_tag(path, scale) for path, scale in always]
    refuse_tags(arguments.negative_prompt or "", "negative prompt")
    jobs = []
    for i, prompt in enumerate(p for p in arguments.prompt for _ in range(arguments.num_images)):
        seed, variation_seed = first + before + i, None
        if arguments.variation_strength:  # as in A1111, that seed counts up
            seed, variation_seed = first, arguments.variation_seed + before + i
        name = seed if variation_seed is None else f"{seed}-{variation_seed}"
        counts = seed if variation_seed is None else variation_seed
        drawn, template = drawn_text(arguments, prompt, counts)
        text, tags = split_tags(drawn)
        own_number = None if number is None else number + i
        path = file_name(arguments, text, name, own_number, place + i)
        named = [(find_lora(tag.name, arguments.lora_dir), TagScale(*tag[1:])) for tag in tags]
        whole = " ".join([drawn, *tags_of_all])
        loras = (*always, *named)
        jobs.append(Job(whole, seed, path, text, loras, line, variation_seed, template))
    check_aligned(jobs, arguments.batch_size)
    return jobs


def settle(jobs: list[Job], taken: Mapping[Path, int]) -> list[Job]:
    """Return jobs with the names of files that they can write, and make the folders for them.

    Where a name that was made from the prompt or a template is taken, by a file or another job,
    the job gets another. Raises ImageError for a file that could not be written, exists, or is
    another line's.
    """
    from ldm.images import check_output

    settled: list[Job] = []
    alone = rank_and_world_size()[1] == 1  # otherwise another process may have drawn it already
    names = set(taken)
    for job in jobs:
        own = job.line.arguments
        if own.output == STREAM:
            settled.append(job)
            continue
        planned = own.dry_run and is_made(own.output) and not job.path.parent.exists()
        if is_made(own.output):
            if not own.dry_run:
                make_folder(job.path.parent)
            fixed = own.force or own.skip_existing or not alone or own.processes > 1
            there = functools.partial(all_files, arguments=own)
            path = free_name(job.path, (lambda path: []) if fixed else there, names)
            job = replace(job, path=path, base=None if fixed else job.path)
        if job.path in taken:
            raise ImageError(
                f"{job.path} is what line {taken[job.path]} is saved as; give this line an output"
            )
        if alone:
            check_new(job)
        for path in () if planned else files(job):
            check_output(path, overwrite=True, animated=path != job.path)
        names.add(job.path)
        settled.append(job)
    return settled


def group_jobs(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """Yield batches of up to ``size`` successive jobs that one run can draw."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (len(batch) == size or not job.follows(batch[-1])):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def check_new(job: Job) -> None:
    """Raise ImageError for a file that exists and may neither be overwritten nor skipped."""
    own = job.line.arguments
    for path in () if own.force or own.skip_existing else files(job):
        if os.path.lexists(path):
            raise ImageError(f"{path} already exists; choose another --output, or add --force")


def files(job: Job) -> list[Path]:
    """Return the paths of a job's picture and of the files beside it."""
    return all_files(job.path, job.line.arguments)


def all_files(path: Path, arguments: argparse.Namespace) -> list[Path]:
    """Return the paths of a picture and of the files beside it."""
    return [path, *beside(path, arguments).values()]


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and how many there are, as ``accelerate launch`` sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
