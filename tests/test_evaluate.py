"""`tools/evaluate.py`: prompts, colours, figures and classifier, on pictures drawn here."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

import evaluate
from evaluation import classifier, fit, judge, report, sheet
from evaluation.classifier import Classifier, Labels, Opinion
from evaluation.colours import joined_to_edge, object_colour, object_mask, repainted
from evaluation.judge import Judged
from evaluation.prompts import Prompt, colour_order, prompts
from evaluation.reconstruction import psnr, reconstruct
from icons.colour import TONES
from icons.split import HELD_OUT_PAIRS
from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages

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


def row(split: str, noun: str, colour: str | None, icon: str = "a") -> dict:
    common = {"caption": f"a {noun}", "set": "s", "background": None}
    return {**common, "split": split, "noun": noun, "colour": colour, "icon": icon}


# Prompts


def test_the_first_forty_prompts_name_no_colour():
    rows = prompts(41)
    assert [p.colour for p in rows[:40]] == [None] * 40
    assert len({p.noun for p in rows[:40]}) == 40
    assert (rows[0].text, rows[5].text) == ("a car", "an airplane")
    assert rows[40].noun == "car" and rows[40].colour == "pink"  # kept apart in training
    assert rows[40].text == "a pink car"


def test_prompts_are_a_fixed_list_without_repeats():
    rows = prompts(480)
    assert rows[:240] == prompts(240)
    assert len(set(rows)) == 480
    assert {(p.noun, p.colour) for p in rows[:240]} >= HELD_OUT_PAIRS
    counts = Counter(p.colour for p in rows[:240] if p.colour)
    assert set(counts) == set(TONES) and max(counts.values()) <= 2 * min(counts.values())


def test_every_object_is_asked_for_in_every_colour():
    for index in range(40):
        assert sorted(colour_order(index, "car")) == sorted(TONES)


@pytest.mark.parametrize("count", [0, -3, 481])
def test_a_wrong_number_of_prompts_is_refused(count):
    with pytest.raises(ArgumentError, match=f"--prompts is {count}; it must be in 1..480"):
        prompts(count)


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


def judged(noun, colour, seen, measured=None, among=None, head="red") -> Judged:
    opinion = Opinion((seen, "w", "x", "y", "cat"), among or seen, head)
    return Judged(Prompt(f"a {noun}", noun, colour), opinion, measured)


def test_shares_count_colours_only_where_one_is_asked_for():
    items = [
        judged("cat", None, "cat", measured="gray"),
        judged("cat", "red", "dog", measured="red", among="cat"),
        judged("dog", "blue", "dog", measured=None, head="blue"),
        judged("dog", "red", "dog", measured="red"),
    ]
    found = judge.summary(items)
    assert found == {
        "pictures": 4,
        "object_top1": 0.75,
        "object_top5": 1.0,
        "object_top1_of_forty": 1.0,
        "coloured_pictures": 3,
        "colour": 1.0,
        "colour_by_pixels": pytest.approx(2 / 3),
        "colour_by_classifier": 1.0,
        "object_and_colour": pytest.approx(2 / 3),
    }
    assert [item.right for item in items] == [True, False, True, True]


def test_nothing_has_no_share():
    assert judge.summary([])["object_top1"] is None


def test_an_object_is_recognised_in_more_than_half_of_its_pictures():
    items = [judged("cat", None, seen) for seen in ("cat", "cat", "dog", "dog")]
    assert not judge.by_object(items)["cat"]["majority"]
    found = judge.by_object([*items, judged("cat", None, "cat"), judged("dog", None, "dog")])
    assert found["cat"] == {
        "pictures": 5,
        "recognised": 3,
        "recognised_of_forty": 3,
        "majority": True,
    }
    assert found["dog"]["majority"]


def test_report_shows_shares_and_objects():
    items = [judged("cat", "red", "cat", measured="red"), judged("dog", None, "cat")]
    figures = judge.summary(items)
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
            },
            "vae": {"images": 255, "psnr_mean": 26.5, "psnr_of_mean_error": 25.25},
            "classifier": {"classes": 600, "held_out": 200, "top1": 0.875, "top5": 1.0},
            "seconds_per_picture": 1.5,
            "drawn": figures,
            "drawn_captioned": figures,
            "drawn_never_captioned": judge.summary([]),
            "real": figures,
            "objects": judge.by_object(items),
        }
    )
    assert "| object recognised (top 1 of all things) | 50.0% | 50.0% | – | 50.0% |" in text
    assert "**1 of 2 objects are recognised**" in text
    assert "| dog | 0/1 | no |" in text
    assert "26.50 dB" in text and "87.5%" in text


def test_contact_sheet_frames_tell_right_from_wrong():
    picture = Image.new("RGB", (64, 64), "white")
    items = [judged("cat", "red", "cat", measured="red"), judged("dog", None, "cat")]
    found = sheet.contact_sheet(items, [picture] * 2, columns=2)
    tile = sheet.tile(picture, "", lines=3)
    assert found.size == (2 * tile.width, tile.height)
    edge = sheet.GAP - 2
    assert found.getpixel((edge, edge)) == (0x2C, 0x9C, 0x3E)
    assert found.getpixel((tile.width + edge, edge)) == (0xD2, 0x3B, 0x2F)


# Classifier


def test_turned_hues_keep_grays_and_go_all_the_way_round():
    x = torch.rand(4, 3, 8, 8) - 0.5
    x[0] = x[0, :1]
    turned = fit.turn_hues(x, torch.tensor([2.0, 2 * math.pi, 2.0, 1.0]))
    # The rounded matrix of YIQ leaves gray off by a thousandth.
    assert (turned[0] - x[0]).abs().max() < 3e-3
    assert (turned[1] - x[1]).abs().max() < 1e-5
    assert (turned[2] - x[2]).abs().max() > 0.1


def test_rare_nouns_and_those_of_too_few_icons_are_not_learnt(tmp_path):
    rows = [row("train", "car", None, icon) for icon in "aabbc"]
    rows += [row("train", "bus", None, icon) for icon in "aabb"]
    rows += [row("held_out", "bus", None, "c")]
    rows += [row("train", "mammoth", None, icon) for icon in "abc"]  # not a common thing
    data = write_data(tmp_path, rows, [np.zeros((8, 8, 3), np.uint8)] * 13)
    assert fit.known_nouns(data) == ["car"]


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
        model = fit.fit(data, labels, 120, lambda text: None, batch=16)
        torch.set_num_threads(threads)
        yield data, model


def test_classifier_learns_shape_and_colour(learnt):
    data, model = learnt
    opinions = model.opinions(np.array(data.images), ["box", "ball"])
    assert [o.nouns[0] for o in opinions] == [r["noun"] for r in data.rows]
    assert [o.among for o in opinions] == [r["noun"] for r in data.rows]
    assert [o.colour for o in opinions] == [r["colour"] for r in data.rows]
    assert all(len(set(o.nouns)) == 5 for o in opinions)


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
    classifier.save(model, {"data": "other"}, tmp_path)
    with pytest.raises(ArgumentError, match="of another data set than"):
        fit.trained(data, tmp_path, lambda text: None)
    classifier.save(model, {"data": fit.fingerprint(data)}, tmp_path)
    assert isinstance(fit.trained(data, tmp_path, lambda text: None), Classifier)


# The ceiling and the command


def test_real_icons_are_repainted_as_the_prompts_ask(tmp_path):
    rows = [row("train", "box", "red"), row("held_out", "box", None), row("held_out", "ball", None)]
    many = Image.new("RGB", (128, 128), "white")
    for x, colour in zip((20, 50, 80), ("#d02020", "#20a030", "#2050d0"), strict=True):
        ImageDraw.Draw(many).rectangle((x, 20, x + 29, 100), fill=colour)
    first = shape("box", "#d02020")
    data = write_data(tmp_path, rows, [first, first, np.asarray(many)])
    asked = [
        Prompt("a box", "box", None),
        Prompt("a blue box", "box", "blue"),
        Prompt("a ball", "ball", None),
        Prompt("a blue ball", "ball", "blue"),
    ]
    kept, pictures = evaluate.real(data, asked, frozenset())
    assert kept == asked[:3]
    assert [object_colour(np.asarray(p)) for p in pictures[:2]] == ["red", "blue"]
    with pytest.raises(ArgumentError, match="no icon of cone out of training"):
        evaluate.real(data, [Prompt("a cone", "cone", None)], frozenset())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "nowhere"], 2, "error: --data nowhere has no images.npy; tools/build_icons"),
        (["--prompts", "0"], 2, "error: --prompts is 0; it must be in 1..480"),
        (["--steps", "0"], 2, "error: --num-inference-steps is 0; it must be at least 1"),
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
