"""Draw the README's pictures with the built-in model, into `tools/pictures/`.

    python -m tools.readme_pictures

`grid.webp` (many prompts), `colours.webp` (one object, many colours), `styles.webp` (one object,
all styles), `sketch.png` with `image_to_image.webp` (what becomes of it), `mask.png` with
`techniques.webp` (inpainting, two passes, a tile), `drawing.png` with `control.webp` (what the
ControlNet makes of drawings), `image_prompts.webp` (colours of a picture, by the IP-Adapter),
`borrowed_style.webp` (a reference, pictures aligned in style) and `steps.webp` (the model's guess
of the picture while the noise is removed). The prompts and seeds are fixed, so the same model draws
the same pictures; `tests/tools/test_readme_pictures.py` compares them with the committed ones.
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.control.preprocessors import canny, scribble
from ldm.errors import ArgumentError
from ldm.hires import hires_fix
from ldm.images import image_grid, save_image, to_pil
from ldm.images.sheets import sheet
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluation.sheet import tile
from tools.builtin_model.icons.captions import STYLES, the_thing

FOLDER = Path(__file__).parent / "pictures"
LIMIT = 500_000  # bytes of all pictures: every clone carries them

REFERENCE, REFERENCE_SEED = "a blue fish", 11
REFERRING, REFERRING_SEED = "a tree", 4
REFERENCE_MODES: dict[str, dict[str, Any]] = {
    "without": {},
    "attention, 1": {"reference_fidelity": 1.0},
    "attention+adain": {"reference_mode": "attention+adain"},
}
ALIGNED, ALIGNED_SEED = ["a blue fish", "a car", "a cat", "a tree"], 3

DRAWN, DRAWN_SEED = ["an orange fish", "a purple fish, 3d", "a blue fish on a yellow background"], 4
CANNY, CANNY_SEED = "a blue house", 1
IMAGE_PROMPTS, IMAGE_PROMPT_SEED = ["a green apple", "a pizza", "an eggplant"], 1
PROMPTED, PROMPTED_SEED = ["a cat", "a car"], 4

GRID_COLUMNS = 6
GRID = [  # prompt, seed
    ("a red car", 1),
    ("a yellow bus", 2),
    ("a rocket", 3),
    ("an orange bicycle", 3),
    ("a green apple", 1),
    ("a pizza", 1),
    ("an owl", 1),
    ("a brown dog", 1),
    ("a blue fish", 9),
    ("a purple butterfly", 1),
    ("a red mushroom", 1),
    ("a pink flower", 1),
    ("a purple cat", 9),
    ("a house on a blue background", 5),
    ("a smiling face", 7),
    ("a guitar", 1),
    ("a green frog on a yellow background", 1),
    ("a cup of coffee", 2),
    ("a red car and a green tree", 1),
    ("a cat next to a house", 10),
    ("a yellow star above a red heart", 1),
    ("a blue fish and an orange umbrella", 5),
    ("a dog to the left of a pizza", 1),
    ("a banana and a strawberry", 8),
    ("two red apples", 1),
    ("three blue birds", 1),
    ("four yellow stars on purple", 1),
    ("three rockets", 1),
    ("a small tree on the left", 1),
    ("a tiny red balloon at the top right", 5),
]
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
COLOURED, COLOURED_SEED = "car", 1
STYLED, STYLED_SEED = "a cake", 2
SKETCHED, SKETCH_SEED, STRENGTHS = "a red house", 1, [0.5, 0.8]
INPAINTED, INPAINT_SEED = "a yellow house", 5
ENLARGED, ENLARGE_SEED, ENLARGE_SCALE = "a pizza", 1, 1.5
TILED, TILE_SEED = "flowers", 1
STEPPED, STEPS_SEED, STEPS_SHOWN = "a red apple", 1, 6


def sketch(side: int) -> Image.Image:
    """Draw a house of three flat shapes, RGB (side, side)."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    unit = side / 16
    draw.polygon([(x * unit, y * unit) for x, y in ((2, 8), (8, 2), (14, 8))], fill="#7a4a2b")
    draw.rectangle([n * unit for n in (3, 8, 13, 14)], fill="#d9362e")
    draw.rectangle([n * unit for n in (7, 10, 9, 14)], fill="#5a3420")
    return picture


def mask(side: int) -> Image.Image:
    """Draw the wall of the house in white on black, L (side, side)."""
    picture = Image.new("L", (side, side))
    unit = side / 16
    ImageDraw.Draw(picture).rectangle([n * unit for n in (3, 8, 13, 14)], fill="white")
    return picture


def drawing(side: int) -> Image.Image:
    """Draw a fish in black strokes, RGB (side, side)."""
    large = 4 * side  # strokes without steps
    picture = Image.new("RGB", (large, large), "white")
    draw = ImageDraw.Draw(picture)
    unit, width = large / 16, large // 48
    draw.ellipse([n * unit for n in (2, 4.5, 11, 11.5)], outline="black", width=width)
    tail = [(x * unit, y * unit) for x, y in ((10.6, 8), (14.3, 4.8), (13.6, 8), (14.3, 11.2))]
    draw.line([*tail, tail[0]], "black", width, joint="curve")
    draw.ellipse([n * unit for n in (4, 6.6, 5, 7.6)], outline="black", width=width)
    fin = [(x * unit, y * unit) for x, y in ((6.2, 4.6), (8.2, 2.6), (9.2, 5.2))]
    draw.line(fin, "black", width, joint="curve")
    draw.arc([n * unit for n in (6, 7, 8.4, 9.6)], 300, 100, "black", width)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def grid(pipe: Pipeline) -> Image.Image:
    """Every prompt of GRID from its own seed."""
    tiles = [tile(pipe(text, seed=seed).images[0], text) for text, seed in GRID]
    return image_grid(tiles, GRID_COLUMNS)


def side_by_side(pipe: Pipeline, texts: list[str], seed: int) -> Image.Image:
    """Every text from one seed."""
    tiles = [tile(pipe(text, seed=seed).images[0], text, lines=1) for text in texts]
    return image_grid(tiles, len(tiles))


def image_to_image(pipe: Pipeline, start: Image.Image) -> Image.Image:
    """Return the sketch, and what is drawn over it at each strength."""
    tiles = [tile(start, "sketch.png")]
    for strength in STRENGTHS:
        picture = pipe(SKETCHED, image=start, strength=strength, seed=SKETCH_SEED).images[0]
        tiles.append(tile(picture, f"{SKETCHED}\nstrength {strength}"))
    return image_grid(tiles, len(tiles))


def techniques(pipe: Pipeline, start: Image.Image, wall: Image.Image) -> Image.Image:
    """Return a picture with a part drawn anew, one of two passes, and a tile laid four times."""
    house = pipe(INPAINTED, image=start, mask_image=wall, seed=INPAINT_SEED).images[0]
    *_, last = hires_fix(pipe, ENLARGED, seed=ENLARGE_SEED, hires_scale=ENLARGE_SCALE)
    assert last.output is not None
    large = last.output.images[0]
    one = pipe(TILED, seed=TILE_SEED, tiling=True).images[0]
    tiles = Image.new("RGB", (2 * one.width, 2 * one.height))
    for x in (0, one.width):
        for y in (0, one.height):
            tiles.paste(one, (x, y))
    pictures = [house, large, tiles.resize(large.size, Image.Resampling.LANCZOS)]
    labels = [f"{INPAINTED}: --mask", f"{ENLARGED}: --hires-scale", f"{TILED}: --tiling"]
    return sheet(pictures, len(pictures), labels)


def control(pipe: Pipeline, drawn: Image.Image, start: Image.Image) -> Image.Image:
    """Return a drawing and pictures that follow it; the house's edges, and a picture after them."""
    tiles = [tile(drawn, "drawing.png")]
    strokes = scribble(drawn)
    for text in DRAWN:
        picture = pipe(text, control_image=strokes, seed=DRAWN_SEED).images[0]
        tiles.append(tile(picture, f"{text}\n--control scribble"))
    edges = canny(start)
    tiles.append(tile(edges, "canny of sketch.png"))
    picture = pipe(CANNY, control_image=edges, seed=CANNY_SEED).images[0]
    return image_grid([*tiles, tile(picture, f"{CANNY}\n--control canny")], len(tiles) + 1)


def image_prompts(pipe: Pipeline) -> Image.Image:
    """Return pictures in a row; below, what is drawn of each text beside each of them."""
    pictures = [pipe(text, seed=IMAGE_PROMPT_SEED).images[0] for text in IMAGE_PROMPTS]
    tiles = [tile(Image.new("RGB", pictures[0].size, "white"), "--ip-adapter-image:", lines=1)]
    tiles += [tile(one, text, lines=1) for one, text in zip(pictures, IMAGE_PROMPTS, strict=True)]
    for text in PROMPTED:
        found = [pipe(text, seed=PROMPTED_SEED).images[0]]
        found += [
            pipe(text, seed=PROMPTED_SEED, ip_adapter_image=one).images[0] for one in pictures
        ]
        tiles += [tile(picture, text, lines=1) for picture in found]
    return image_grid(tiles, len(pictures) + 1)


def borrowed_style(pipe: Pipeline) -> Image.Image:
    """Return pictures with a reference, then pictures drawn alone and style-aligned."""
    fish = pipe(REFERENCE, seed=REFERENCE_SEED).images[0]
    tiles = [tile(fish, "reference")]
    for label, given in REFERENCE_MODES.items():
        reference = {"reference_image": fish} if given else {}
        picture = pipe(REFERRING, seed=REFERRING_SEED, **reference, **given).images[0]
        tiles.append(tile(picture, f"{REFERRING}\n{label}"))
    for label, aligned in (("alone", False), ("--style-aligned", True)):
        found = pipe(ALIGNED, seed=ALIGNED_SEED, style_aligned=aligned).images
        tiles += [
            tile(picture, f"{text}\n{label}") for text, picture in zip(ALIGNED, found, strict=True)
        ]
    return image_grid(tiles, len(ALIGNED))


def steps(pipe: Pipeline) -> Image.Image:
    """Return the guess of the clean picture at STEPS_SHOWN of the steps, the result last."""
    guesses = list(pipe.stream(STEPPED, seed=STEPS_SEED, output_type="latent"))
    if len(guesses) < STEPS_SHOWN:
        raise ArgumentError(f"the model draws in {len(guesses)} steps; {STEPS_SHOWN} are shown")
    # More of the early ones, where the picture is decided.
    last = len(guesses) - 1
    shown = [round(last * (i / (STEPS_SHOWN - 1)) ** 1.5) for i in range(STEPS_SHOWN)]
    tiles = []
    for index in sorted(set(shown)):
        picture = to_pil(pipe.decode(guesses[index].x0))[0]
        tiles.append(tile(picture, f"step {index + 1} of {last + 1}", lines=1))
    return image_grid(tiles, len(tiles))


def draw(model: str | None) -> dict[str, Image.Image]:
    """Draw everything; return the pictures by the names of their files."""
    pipe = Pipeline.from_pretrained(model, dtype="float32")
    start, wall, drawn = sketch(128), mask(128), drawing(128)
    coloured = [the_thing(f"{colour} {COLOURED}", bare=False) for colour in COLOURS]
    styled = [f"{STYLED}, {style}" for style in STYLES.values()]
    return {
        "grid.webp": grid(pipe),
        "colours.webp": side_by_side(pipe, coloured, COLOURED_SEED),
        "styles.webp": side_by_side(pipe, styled, STYLED_SEED),
        "image_to_image.webp": image_to_image(pipe, start),
        "techniques.webp": techniques(pipe, start, wall),
        "control.webp": control(pipe, drawn, start),
        "image_prompts.webp": image_prompts(pipe),
        "borrowed_style.webp": borrowed_style(pipe),
        "steps.webp": steps(pipe),
        "sketch.png": start,
        "mask.png": wall,
        "drawing.png": drawn,
    }


def write(pictures: dict[str, Image.Image], folder: Path) -> None:
    """Write the files. Raises ArgumentError if they are too large for a clone."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, picture in pictures.items():
        save_image(picture, folder / name, overwrite=True)
        size = (folder / name).stat().st_size
        total += size
        print(f"{folder / name}  {picture.width}x{picture.height}  {size / 1000:.0f} kB")
    if total > LIMIT:
        raise ArgumentError(f"the pictures have {total:,} bytes; at most {LIMIT:,} may be")


def main(argv: list[str] | None = None) -> int:
    """Draw; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES)
    parser.add_argument("--model", help="a diffusers folder (default: the built-in model)")
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run(lambda: write(draw(arguments.model), arguments.output), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
