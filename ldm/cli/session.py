"""One call of ``ldm-generate``: its model, its messages, its plot and the files it writes."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.adapters.lora_scale import Scale, TagScale
from ldm.checkpoints.source import find_model
from ldm.cli import observe
from ldm.cli.common import FAILED
from ldm.cli.controlnets import all_controls, labels, original
from ldm.cli.fields import request_arguments
from ldm.cli.grids import grid_columns, lay_out
from ldm.cli.guidance_options import (
    given_depth,
    given_pictures,
    hires_upscaler,
    masked,
    pass_strength,
)
from ldm.cli.ip_adapters import given_image_prompts, load_ip_adapters
from ldm.cli.jobs import Job, group_jobs, rank_and_world_size
from ldm.cli.loras import LoraUse
from ldm.cli.metadata import picture_texts
from ldm.cli.observe import Watch
from ldm.cli.options import model_arguments
from ldm.cli.plots import Plot
from ldm.cli.printed import fail, notify
from ldm.cli.progress import showing
from ldm.cli.prompts_file import Line, file_label
from ldm.cli.rows import put_error, put_picture
from ldm.cli.save_control import ControlFiles, file_names, save_control, seen
from ldm.cli.saving import save_beside, save_picture
from ldm.cli.sharing import claimed, is_done, wait_for
from ldm.cli.sizes import image_size, size_advice
from ldm.cli.style_options import given_reference
from ldm.cli.ways import ways_of
from ldm.config.speed import away, is_optimized
from ldm.errors import LDMError
from ldm.request import default_strength

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.pipeline import Pipeline, Progress
    from ldm.refiner import Ensemble


@dataclass
class Work:
    """The work of a command.

    Attributes:
        jobs: all pictures. batches: those that this process draws, as one run can draw them.
        bad: what is wrong with lines of ``--prompts``, which are left out.
        controls: the files of ``--save-control``.
    """

    jobs: list[Job]
    batches: list[list[Job]]
    bad: list[str]
    plot: Plot | None = None
    controls: ControlFiles = field(default_factory=dict)

    def lacks_controls(self) -> bool:
        """Whether a file of ``--save-control`` is missing."""
        return not all(os.path.lexists(path) for paths in self.controls.values() for path in paths)


class Session:
    """Draws the work of a command with one model; see ``run``."""

    def __init__(self, arguments: argparse.Namespace, work: Work) -> None:
        self.arguments, self.work, self.plot = arguments, work, work.plot
        self.began = self.loaded = time.monotonic()
        self.pipe: Pipeline
        self.refiner: Ensemble | None = None  # the model with its --refiner
        self.inform: Callable[[str], None] = (lambda line: None) if arguments.quiet else notify
        self.advise = cache(self.inform)  # the same advice for many batches is given once
        self.pictures: list[Image] = []  # for the one file that shows all
        self.shown: set[Path] = set()  # files of --save-control
        self.names = {job.path for job in work.jobs}
        self.steps = self.done = 0
        self.each = 0.0  # seconds to draw a picture of the last batch

    @property
    def one_file(self) -> bool:
        """Whether all pictures go into one file."""
        return bool(self.arguments.grid or self.plot)

    def run(self, pipe: Pipeline) -> None:
        """Draw in batches; save each picture when it is done, or all of them on one."""
        self.pipe = pipe
        self.prepare()
        self.loaded = time.monotonic()
        self.drop_bad_lines()
        if not self.one_file:
            self.draw_and_save()
        elif not (self.arguments.skip_existing and is_done(self.work.jobs[0])):
            with claimed(self.work.jobs[:1]):
                self.draw_and_save()
                self.save_sheet()
        self.report()

    def draw_and_save(self) -> None:
        """Draw all batches; save the pictures of each, or keep them for the sheet."""
        began = self.loaded
        with contextlib.closing(self.draw_all()) as batches:  # which gives claims up
            for batch, drawn, watch in batches:
                self.each, began = (time.monotonic() - began) / len(batch), time.monotonic()
                self.steps += watch.steps
                self.done += len(batch)
                if self.one_file:
                    self.pictures += drawn
                else:
                    self.save_batch(batch, drawn, watch)

    # The model

    def prepare(self) -> None:
        """Optimize the model, load its refiner, and the adapters that options and prompts name."""
        arguments, pipe = self.arguments, self.pipe
        faster = is_optimized(pipe.device.type, arguments.optimize)
        ways = ways_of(arguments) | {"compile": arguments.compile}
        if arguments.int8 is None:  # of --fast
            ways["int8"] = int8_gains(pipe)
        if arguments.few_steps:
            pipe.use_few_steps()
            self.inform("few steps, by the LoRA in the model's folder")
        if arguments.refiner is not None:
            from ldm.refiner import Ensemble

            refiner = load_refiner(arguments)
            self.refiner = Ensemble(pipe, refiner)
            refiner.optimize(faster or any(ways.values()), **ways)
        for path in arguments.controlnet:
            pipe.load_controlnet(path)
        for path in arguments.t2i_adapter:
            pipe.load_t2i_adapter(path)
        steered = any(job.line.arguments.control_image for job in self.work.jobs)
        if steered and not arguments.controlnet:
            pipe.load_own_controlnet()
        load_ip_adapters(pipe, arguments)
        pipe.optimize(faster or any(ways.values()), **ways)
        for embedding in arguments.embedding:
            self.inform(f"{embedding}: use it as {pipe.load_textual_inversion(embedding)}")
        for path in sorted({path for job in self.work.jobs for path, _ in job.loras}):
            # Each picture puts its own into use; two may have a word in common.
            name, partial = str(path), arguments.partial_lora
            self.inform(pipe.load_lora_weights(path, name, 0.0, partial).summary)
        for line in dict.fromkeys(job.line for job in self.work.jobs):
            own = line.arguments
            image, _ = given_pictures(own)
            controls = [each for every in all_controls(own).values() for each in every or ()]
            if image is None and controls:
                own.width, own.height = image_size(pipe, original(controls[0]), own)
            if image is not None:
                own.width, own.height = image_size(pipe, image, own)
                if own.strength is None:
                    own.strength = default_strength(masked(own), pipe.edits)
            self.show_controls(line)

    def show_controls(self, line: Line) -> None:
        """Report what preprocessors noticed, and save what ControlNets see, if it is asked for."""
        own, paths = line.arguments, self.work.controls.get(line, [])
        if not paths and not labels(own):
            return
        for picture, path in zip_longest(seen(self.pipe, own), paths):
            if note := picture.info.get("note"):
                self.advise(note)
            if path is not None and path not in self.shown and rank_and_world_size()[0] == 0:
                saved = save_control(picture, path, self.arguments)
                self.shown |= {path, saved}
                for each in self.work.controls.values():
                    each[:] = [saved if one == path else one for one in each]

    def use_only(self, loras: Sequence[LoraUse]) -> None:
        """Use the LoRAs of a batch, and no others; one that is named twice counts twice."""
        scales: dict[str, TagScale] = {}
        for path, scale in loras:
            scales[str(path)] = scales.get(str(path), TagScale(0.0, 0.0)).plus(scale)
        if self.pipe.loras.loaded:
            each: list[Scale] = [scale._asdict() for scale in scales.values()]
            self.pipe.set_adapters(list(scales), each)

    # Before anything is drawn

    def drop_bad_lines(self) -> None:
        """Leave out the lines of ``--prompts`` that this model could not draw.

        Raises ArgumentError for arguments of the command line.
        """
        count = sum(map(len, self.work.batches))
        good: list[list[Job]] = []
        for batch in self.work.batches:
            jobs: list[Job] = []
            for line, own in groupby(batch, key=lambda job: job.line):
                mine = list(own)
                try:
                    self.check_sizes(mine, count)
                    jobs += mine
                except LDMError as error:
                    self.note(line, error)
            good += group_jobs(jobs, len(batch))
        self.work.batches = good

    def check_sizes(self, jobs: list[Job], count: int) -> None:
        """Raise ArgumentError for what some of a line's jobs could not do; ``count``: of all."""
        height, width = self.pipe.default_size()
        own = jobs[0].line.arguments
        steps, first = run_levels(self.pipe, own)
        size, run = (own.width or width, own.height or height), steps - first
        if own.hires_scale is not None:
            from ldm.hires import hires_size

            height, width = hires_size(self.pipe, own.height, own.width, own.hires_scale)
            size, run = (width, height), run + steps
        observe.check_sizes(own, *size, run, [job.text for job in jobs])
        if self.one_file:
            from ldm.images.sheets import check_sheet_size, sheet_size

            columns = self.plot.columns if self.plot else grid_columns(own, count)
            check_sheet_size(*sheet_size(count, columns, *size), "the sheet", jobs[0].path)
        if self.plot:
            open_stream(self.pipe, jobs, own, self.refiner)

    def note(self, line: Line, error: LDMError) -> None:
        """Report an error in a line of ``--prompts``, and continue; raise any other error."""
        if not line.number:
            raise error
        self.work.bad.append(f"{file_label(self.arguments.prompts)}:{line.number}: {error}")
        complain(self.work.bad[-1], self.arguments.json)

    # Drawing

    def draw_all(self) -> Generator[tuple[list[Job], list[Image], Watch]]:
        """Yield batches with their pictures and observers, without bad lines.

        With --skip-existing, those that other processes draw come last, if they are still missing.
        """
        left, others = deque(self.work.batches), deque[list[Job]]()
        while left or others:
            batch = left.popleft() if left else self.wait_for(others)
            try:
                with self.claimed(batch) as mine:
                    if not mine:
                        others.append(batch)
                    elif not (self.arguments.skip_existing and all(map(is_done, batch))):
                        self.use_only(batch[0].loras)
                        yield batch, *self.draw(batch)
            except LDMError as error:
                lines = [list(jobs) for _, jobs in groupby(batch, key=lambda job: job.line)]
                if len(lines) > 1:  # to find which of them is wrong
                    left.extendleft(reversed(lines))
                else:
                    self.note(batch[0].line, error)

    def claimed(self, batch: list[Job]) -> contextlib.AbstractContextManager[bool]:
        """Claim the names of a batch; a sheet's is claimed for all of them."""
        return contextlib.nullcontext(True) if self.one_file else claimed(batch)

    def wait_for(self, others: deque[list[Job]]) -> list[Job]:
        """Return the next batch of ``others`` when no other process draws it any more."""
        count = sum(map(len, others))
        self.advise(f"other processes draw the last {count}; waiting for them")
        wait_for(others[0])
        return others.popleft()

    def draw(self, batch: list[Job]) -> tuple[list[Image], Watch]:
        """Draw a batch, with progress on stderr; return its pictures and their observer."""
        own = batch[0].line.arguments
        # Raises an error for what cannot be drawn.
        stream = open_stream(self.pipe, batch, own, self.refiner)
        if advice := size_advice(self.pipe, own):
            self.advise(advice)
        total = self.announce(batch, own)
        with observe.watching(self.pipe, own) as watch, showing(total, own.quiet) as show:
            for progress in stream:
                show(progress.step)
                watch(progress)
        assert progress.output is not None and isinstance(progress.output.images, list)
        drawn = progress.output.images
        size, index = own.replay
        return [drawn[index]] if size > 1 else drawn, watch

    def announce(self, batch: list[Job], own: argparse.Namespace) -> int:
        """Print what is drawn; return how many steps it takes."""
        first, last = batch[0].seed, batch[-1].seed
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        steps, start = run_levels(self.pipe, own)
        total = steps - start
        run = f"{steps} step{'s' * (steps > 1)}"
        if own.image is not None:
            strength = f"strength {own.strength:g}"
            run = f"{own.width}x{own.height}, {strength}: {total} of {steps} steps"
        if own.hires_scale is not None:
            run += f", then {own.hires_steps or total} at {own.hires_scale:g} times the size"
            total = steps + (own.hires_steps or total)
        if own.refiner is not None:
            run += f", from {own.refiner_start:g} on by the refiner"
        self.inform(f"{seeds}, {run}")
        return total

    # Saving

    def save_batch(self, batch: list[Job], drawn: list[Image], watch: Watch) -> None:
        """Save each picture of a batch, and the files beside it."""
        arguments = self.arguments
        for index, (job, picture) in enumerate(zip(batch, drawn, strict=True)):
            if arguments.skip_existing and is_done(job):
                continue  # of a batch in which another is missing
            texts = picture_texts(self.pipe, job, picture, batch)
            job = save_picture(job, picture, texts, arguments, self.names)
            paths = observe.beside(job.path, arguments)
            for name, shown, options in watch.files(index + arguments.replay[1], picture):
                save_beside(shown, paths[name], texts, arguments, **options)
            if arguments.json:
                paths |= file_names(self.work.controls.get(job.line, []))
                put_picture(job, paths, self.each, texts[1])

    def save_sheet(self) -> None:
        """Save all pictures on one."""
        jobs, pictures = self.work.jobs, self.pictures
        whole, columns = lay_out(pictures, jobs, self.arguments, self.plot)
        shape = f"{columns}x{math.ceil(len(pictures) / columns)}"
        texts = picture_texts(self.pipe, jobs[0], pictures[0], grid=shape, plot=self.plot)
        job = save_picture(jobs[0], whole, texts, self.arguments, self.names)
        if self.arguments.json:
            paths = file_names(self.work.controls.get(job.line, []))
            put_picture(job, paths, time.monotonic() - self.loaded, texts[1])

    def report(self) -> None:
        """Print how long it took. Raises LDMError if lines were not drawn."""
        ended = time.monotonic()
        drawing = ended - self.loaded
        self.inform(
            f"{self.done} picture{'s' * (self.done != 1)} in {ended - self.began:.1f} s: "
            f"{self.loaded - self.began:.1f} to load, {drawing:.1f} to draw"
            f" ({drawing / max(self.steps, 1):.2g} s/step)"
        )
        if bad := self.work.bad:
            file = file_label(self.arguments.prompts)
            raise LDMError(f"{len(bad)} of the lines of {file} were not drawn")


def complain(message: str, in_json: bool) -> None:
    """Report what is wrong with one of many lines."""
    fail(message, FAILED)
    if in_json:
        put_error(message, FAILED)


def load_model(arguments: argparse.Namespace) -> Pipeline:
    """Load the model that the options name."""
    from ldm.pipeline import Pipeline

    if arguments.refiner is not None:  # a missing one is an error before the model is loaded
        find_model(arguments.refiner, variant=arguments.variant)
    return Pipeline.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        preview_vae=arguments.preview_vae,
        **away(ways_of(arguments)),
        **model_arguments(arguments),
    )


def load_refiner(arguments: argparse.Namespace) -> Pipeline:
    """Load the model of ``--refiner``, whose VAE and text encoders are its own."""
    from ldm.pipeline import Pipeline

    return Pipeline.from_pretrained(
        arguments.refiner,
        device=arguments.device,
        dtype=arguments.dtype,
        variant=arguments.variant,
        **away(ways_of(arguments)),
    )


def int8_gains(pipe: Pipeline) -> bool:
    """Whether 8 bits are faster here."""
    from ldm.fast.int8 import gains

    return pipe.device.type == "cpu" and gains(next(pipe.unet.parameters()).dtype)


def open_stream(
    pipe: Pipeline,
    batch: list[Job],
    arguments: argparse.Namespace,
    refiner: Ensemble | None = None,
) -> Iterator[Progress]:
    """Return the steps of a batch, computed when iterated over."""
    options = request_arguments(arguments)
    size, index = arguments.replay  # of --from: 1 and 0 except for a picture from a batch
    options["seed"] = batch[0].seed
    if batch[0].variation_seed is None:
        options["seed"] -= index
    else:
        options["variation_seed"] = batch[0].variation_seed - index
    texts = [job.text for job in batch for _ in range(size)]
    texts = list(arguments.batch_prompts) or texts
    options |= {"reference_image": given_reference(arguments), **all_controls(arguments)}
    options |= given_image_prompts(arguments)
    if arguments.hires_upscaler is not None:
        options["hires_upscaler"] = hires_upscaler(arguments)
    if arguments.hires_scale is not None:
        from ldm.hires import hires_fix

        return hires_fix(pipe, texts, **options)
    image, mask = given_pictures(arguments)
    depth = given_depth(arguments)
    drawer = pipe if refiner is None else refiner
    options |= {"image": image, "mask_image": mask, "depth_map": depth}
    return drawer.stream(texts, **options)


def run_levels(pipe: Pipeline, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return how many steps a schedule has, and the first that is run over a picture."""
    levels, start = pipe.schedule(
        arguments.num_inference_steps,
        pass_strength(arguments),
        arguments.sampler,
        arguments.schedule,
        masked=masked(arguments),
    )
    return len(levels), start
