"""``--dry-run``: what a command would draw, and the memory that it needs; nothing is drawn."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ldm.checkpoints.assets import asset_path
from ldm.cli.common import importing_torch
from ldm.cli.controlnets import all_controls, original
from ldm.cli.guidance_options import given_pictures
from ldm.cli.printed import put_text
from ldm.cli.rows import put_json
from ldm.cli.sizes import image_size
from ldm.cli.ways import offloading
from ldm.config import read_json
from ldm.config.generation import FILE, own_few_steps
from ldm.config.speed import PYTORCH, is_optimized

if TYPE_CHECKING:
    from ldm.cli.jobs import Job
    from ldm.cli.session import Work
    from ldm.memory.estimate import Drawing, MemoryNeeded, Networks

JOINED = re.compile(r"\bAND\b")  # between texts of one prompt
# Of a ControlNet's file, the share of its weights that are in none of its blocks.
BESIDE_BLOCKS = 0.1
SCALE = 7.5  # of guidance, where a model's folder has none


def dry_run(arguments: argparse.Namespace, work: Work) -> None:
    """Print a line for each picture, and the memory of each kind of batch.

    Raises NotEnoughMemoryError if one of them cannot fit, after all lines.
    """
    with importing_torch():
        from ldm.fast.memory import available_memory
        from ldm.loading.devices import choose_device
    from ldm.memory.estimate import estimate
    from ldm.memory.refusal import check_fits

    device = choose_device(arguments.device)
    model, guidance = outline(arguments, device)
    available = available_memory(device)
    kinds: dict[Drawing, int] = {}
    for batch in work.batches:
        passes = list(drawings(arguments, model, guidance, batch))
        for each in passes:
            kinds[each] = kinds.get(each, 0) + 1
        for job in batch:
            put_job(job, passes[-1], arguments.json)
    for drawing, count in kinds.items():
        needed = estimate(model, drawing, available)
        put_needed(drawing, needed, count, arguments.json)
    if arguments.processes > 1 and not arguments.json:
        put_text(f"memory: of each of {arguments.processes} processes\n")
    for drawing in kinds:
        check_fits(model, drawing, lambda: available)


def outline(arguments: argparse.Namespace, device: Any) -> tuple[Networks, float]:
    """Read the networks that the options name, without their weights, and the guidance scale."""
    from ldm.checkpoints.source import find_model
    from ldm.fast import onednn
    from ldm.loading.devices import DTYPE_BY_NAME, choose_dtype
    from ldm.loading.outline import read_outline

    path = asset_path("weights")
    if arguments.model is not None:
        path = find_model(arguments.model, variant=arguments.variant)
    dtype = choose_dtype(arguments.dtype, device)
    found = read_outline(path, dtype, device.type, arguments.variant)
    files = [arguments.refiner, arguments.vae, *arguments.text_encoder]
    files += [one.path if hasattr(one, "path") else one for one in arguments.controlnet]
    more = {
        f"{name}": size
        for name in filter(None, files)
        if (size := size_on_disk(Path(str(name)).expanduser()))
    }
    engine = arguments.engine not in (None, PYTORCH)
    direct = is_optimized(device.type, arguments.optimize) and not (arguments.compile or engine)
    if device.type == "cpu":
        direct = direct and onednn.packs(DTYPE_BY_NAME[str(dtype).removeprefix("torch.")])
    defaults: dict[str, Any] = {}
    if path.is_dir():
        defaults = read_json(path / FILE, optional=True) or {}
        few = own_few_steps(path) if arguments.few_steps else None
        defaults |= vars(few) if few else {}
    scale = arguments.guidance_scale
    scale = defaults.get("guidance_scale", SCALE) if scale is None else scale
    return replace(
        found,
        weights={**found.weights, **more},
        optimized=direct,
        int8=bool(arguments.int8),
        fp8=arguments.fp8,
        offload=offloading(arguments) or arguments.int8_weights,
        int8_weights=arguments.int8_weights,
        by_blocks=found.by_blocks + int(BESIDE_BLOCKS * sum(more.values())),
        engine=engine,
    ), scale


def size_on_disk(path: Path) -> int:
    """Count the bytes of a file, or of the weights in a folder; 0 if there is none."""
    if path.is_file():
        return path.stat().st_size
    files = [file for end in ("safetensors", "bin") for file in path.rglob(f"*.{end}")]
    return sum(file.stat().st_size for file in files)


def drawings(
    arguments: argparse.Namespace, model: Networks, guidance: float, batch: list[Job]
) -> Iterator[Drawing]:
    """Yield the passes that draw a batch."""
    from ldm.images.inputs import check_size
    from ldm.memory.estimate import Drawing, in_one_call

    own = batch[0].line.arguments
    image, _ = given_pictures(own)
    controls = [one for every in all_controls(own).values() for one in every or ()]
    side = (model.unet.sample_size or 64) * model.scale
    sizes: Any = SimpleNamespace(
        default_size=lambda: (side, side),
        vae=SimpleNamespace(config=SimpleNamespace(scale=model.scale)),
    )
    width, height = own.width or side, own.height or side
    seen = image if image is not None else original(controls[0]) if controls else None
    if seen is not None:
        width, height = image_size(sizes, seen, own)
    check_size(height, width, model.scale)
    texts = max(len(JOINED.split(job.text)) for job in batch)
    rows = texts + (guidance > 1 or texts > 1)
    steering = len(own.controlnet) or bool(own.control_image)
    first = Drawing(
        height,
        width,
        len(batch) * own.replay[0],
        rows,
        image is not None,
        steering,
        own.reference_image is not None,
        together=in_one_call(own.style_aligned, own.deep_cache),
    )
    yield first
    if own.hires_scale is not None:
        sides = (
            int(side * own.hires_scale / model.scale + 0.5) * model.scale
            for side in (height, width)
        )
        large, wide = sides
        check_size(large, wide, model.scale)
        yield replace(first, height=large, width=wide, image=True)


def put_job(job: Job, drawing: Drawing, in_json: bool) -> None:
    """Print a picture."""
    if in_json:
        size = {"width": drawing.width, "height": drawing.height}
        put_json({"path": str(job.path), "seed": job.seed, "prompt": job.prompt, **size})
        return
    shown = " ".join(job.prompt.split())
    put_text(f"{job.path}  {drawing.width}x{drawing.height}  seed {job.seed}  {shown}\n")


def put_needed(drawing: Drawing, needed: MemoryNeeded, count: int, in_json: bool) -> None:
    """Print the memory of a kind of batch."""
    if in_json:
        row: Mapping[str, Any] = {
            "memory": {
                "width": drawing.width, "height": drawing.height, "pictures": drawing.count,
                "batches": count, "peak": needed.peak, "weights": needed.weights,
                "text": needed.text, "encoding": needed.encoding, "denoising": needed.denoising,
                "decoding": needed.decoding, "available": needed.available,
            }
        }  # fmt: skip
        put_json(row)
        return
    what = f"{drawing.count} at once of {drawing.width}x{drawing.height}"
    put_text(f"memory: {what}: {needed}\n")
