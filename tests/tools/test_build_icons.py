"""The icon set of `build_icons`: colours, captions, choice of icons, a tiny build."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools.builtin_model import build_icons, compose
from tools.builtin_model.icons import nouns, scenes, sources, split, variants, wording
from tools.builtin_model.icons.captions import article, takes_no_article, without_colour
from tools.builtin_model.icons.colour import (
    TONES,
    hue_distance,
    lch_to_rgb,
    main_colour,
    name_tone,
    recolour,
    rgb_to_lch,
)
from tools.builtin_model.icons.sources import BuildError, Icon, Label, Package


def car(body: str, windows: str = "#bbddee") -> np.ndarray:
    """A flat car, uint8 RGBA (64, 64, 4): a body, light windows, two black tyres."""
    picture = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 14, 60, 46), fill=body)
    draw.rectangle((14, 18, 50, 26), fill=windows)
    for x in (10, 42):
        draw.ellipse((x, 40, x + 12, 52), fill="#222222")
    return np.asarray(picture)


# Colours


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ("#dd2e44", "red"), ("#ff0000", "red"), ("#f4900c", "orange"), ("#ffcc4d", "yellow"),
        ("#ffff00", "yellow"), ("#5c913b", "green"), ("#00a000", "green"), ("#55acee", "blue"),
        ("#0000ff", "blue"), ("#aa8ed6", "purple"), ("#800080", "purple"), ("#ffb6c8", "pink"),
        ("#f472b6", "pink"), ("#8b4513", "brown"), ("#662113", "brown"), ("#000000", "black"),
        ("#292f33", "black"), ("#ffffff", "white"), ("#99aab5", "gray"), ("#808080", "gray"),
        ("#008080", None), ("#d2b48c", None), ("#808000", None),  # teal, tan, olive
    ],
)  # fmt: skip
def test_tones_have_the_names_that_people_give_them(rgb, name):
    value = np.array([int(rgb[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    assert name_tone(*rgb_to_lch(value).tolist()) == name


def test_every_target_tone_and_its_jitter_are_called_by_their_word():
    rng = np.random.default_rng(0)
    for name in TONES:
        for _ in range(50):
            rgb = np.array(variants.background_tone(name, rng), np.uint8)
            assert name_tone(*rgb_to_lch(rgb).tolist()) == name, (name, rgb)


def test_oklch_round_trip_is_exact_in_eight_bits():
    rgb = np.random.default_rng(0).integers(0, 256, (4000, 3), dtype=np.uint8)
    back = lch_to_rgb(rgb_to_lch(rgb))
    assert np.abs(back.astype(int) - rgb.astype(int)).max() <= 1


def test_oklch_of_pure_red_is_the_published_value():
    lightness, chroma, hue = rgb_to_lch(np.array([255, 0, 0], np.uint8)).tolist()
    assert (lightness, chroma, hue) == pytest.approx((0.628, 0.2577, 29.23), abs=2e-3, rel=1e-3)


def test_hue_distance_goes_the_short_way_round():
    assert hue_distance(350.0, 10.0) == 20
    assert hue_distance(10.0, 350.0) == 20
    assert hue_distance(0.0, 180.0) == 180


def test_tyres_and_windows_do_not_change_the_name_of_a_car():
    for rgb, name in (("#dd2e44", "red"), ("#5c913b", "green"), ("#f5f5f5", "white")):
        assert main_colour(car(rgb, windows="#888888")).name == name


def test_two_large_hues_have_no_name():
    halves = np.zeros((20, 20, 4), np.uint8)
    halves[:, :10], halves[:, 10:] = (221, 46, 68, 255), (85, 172, 238, 255)
    assert main_colour(halves).name is None


def test_transparent_pixels_do_not_count():
    picture = np.zeros((20, 20, 4), np.uint8)
    picture[..., :3] = (0, 0, 255)
    picture[5:12, 5:12] = (221, 46, 68, 255)
    assert main_colour(picture).name == "red"
    assert main_colour(np.zeros((8, 8, 4), np.uint8)).name is None


def test_blue_windows_are_set_aside_but_a_blue_body_is_not():
    bus = np.zeros((20, 20, 4), np.uint8)
    bus[:12] = (0, 166, 237, 255)  # windows
    bus[12:] = (255, 176, 46, 255)  # body
    assert main_colour(bus).name != "yellow"
    assert hue_distance(main_colour(bus, blue_aside=True).hue, 75) < 15
    assert main_colour(car("#3b88c3"), blue_aside=True).name == "blue"


@pytest.mark.parametrize("target", sorted(set(TONES) - {"red"}))
def test_recolouring_moves_the_body_and_leaves_the_rest(target):
    before = car("#dd2e44", windows="#ffffff")
    after = recolour(before, main_colour(before), TONES[target])
    body, window, tyre = (36, 30), (20, 30), (46, 16)
    assert name_tone(*rgb_to_lch(after[body][:3]).tolist()) == target
    np.testing.assert_array_equal(after[window], before[window])
    assert np.abs(after[tyre].astype(int) - before[tyre].astype(int)).max() <= 2
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    assert before[body].tolist() == [221, 46, 68, 255], "the input is not changed"


def test_recolouring_keeps_the_order_of_shades():
    ramp = np.zeros((8, 64, 4), np.uint8)
    ramp[..., 0], ramp[..., 3] = np.linspace(90, 255, 64), 255
    blue = recolour(ramp, main_colour(ramp), TONES["blue"])
    lightness = rgb_to_lch(blue[0, :, :3])[:, 0]
    assert np.diff(lightness).min() >= -2e-3
    assert lightness[-1] - lightness[0] > 0.2


@pytest.mark.parametrize("shade", ["#ffffff", "#e1e8ed", "#99aab5"])
def test_a_gray_animal_takes_a_colour_and_keeps_black_eyes(shade):
    before = car(shade, windows=shade)
    after = recolour(before, main_colour(before), TONES["purple"])
    assert name_tone(*rgb_to_lch(after[36, 30, :3]).tolist()) == "purple"
    assert np.abs(after[46, 16].astype(int) - before[46, 16].astype(int)).max() <= 2


# Captions


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("car", "a"), ("apple", "an"), ("orange car", "an"), ("unicorn", "a"), ("ufo", "a"),
        ("umbrella", "an"), ("hourglass", "an"), ("x-ray", "an"), ("t-shirt", "a"),
        ("Elephant", "an"), ("eye", "an"), ("yo-yo", "a"),
    ],
)  # fmt: skip
def test_article(phrase, expected):
    assert article(phrase) == expected


def test_plurals_and_stuff_take_no_article():
    assert takes_no_article("folded hands")
    assert takes_no_article("fog")
    assert not takes_no_article("octopus")
    assert not takes_no_article("face with crossed-out eyes")
    assert not takes_no_article("hearing glass")


def captions(count: int, *things: tuple[wording.Thing, str, bool], **said) -> list[tuple]:
    rng = np.random.default_rng(0)
    said = {"relation": None, "background": None, "style": "flat"} | said
    return [wording.caption(rng, things, **said) for _ in range(count)]


def test_caption_has_all_parts_and_mostly_the_plain_form():
    thing = wording.Thing("car", "orange")
    made = [text for text, _ in captions(2000, (thing, "car", False), background="yellow")]
    assert all("orange" in text and "car" in text and "yellow" in text for text in made)
    assert 0.45 < np.mean([text.endswith(", flat") for text in made]) < 0.55
    plain = [text.removesuffix(", flat") == "an orange car on a yellow background" for text in made]
    assert 0.4 < np.mean(plain) < 0.6
    assert {text for text in made if text.startswith("a picture of ")}


def test_caption_of_bare_words():
    made = {text for text, _ in captions(300, (wording.Thing("grapes"), "grapes", True))}
    assert made >= {"grapes", "a picture of grapes"}
    assert not any("a grapes" in text for text in made)


def test_numbers_sizes_and_places_are_said_in_many_words():
    thing = wording.Thing("coffee", "red", count=3, size="small", place="top left")
    made = captions(200, (thing, "cup of coffee", False))
    for text, said in made:
        assert said == (thing,)
        assert "cups of coffee" in text
        assert any(word in text for word in wording.NUMBERS[3]), text
        assert any(word in text for word in wording.SIZES["small"]), text
        assert any(words in text for words in wording.PLACES["top left"][1]), text
    assert len({text for text, _ in made}) > 20


@pytest.mark.parametrize("relation", ["left", "right", "top", "bottom"])
def test_a_relation_is_true_whichever_thing_is_named_first(relation):
    cat, dog = wording.Thing("cat", "blue"), wording.Thing("dog")
    for text, said in captions(80, (cat, "cat", False), (dog, "dog", False), relation=relation):
        swapped = text.index("dog") < text.index("cat")
        assert [t.noun for t in said] == (["dog", "cat"] if swapped else ["cat", "dog"])
        assert said[swapped].place == relation
        assert said[swapped].colour == "blue"
        assert said[not swapped].place == wording.OPPOSITE[relation]
        first = said[0].place
        ways = [way.format(a="", b="").split()[0] for way in wording.RELATIONS[first]]
        assert any(way in text for way in ways), text


def test_colour_words_leave_a_recoloured_label():
    assert without_colour("red envelope") == "envelope"
    assert without_colour("red") == "red"


# The tables


def test_everyday_table_is_sound():
    table = nouns.read_everyday()
    assert len({row.noun for row in table}) == len(table) > 350
    for row in table:
        assert row.words, row.noun
        assert row.icons, row.noun
        assert row.bare <= set(row.words), row.noun
        assert len(set(row.words)) == len(row.words), row.noun
        assert set(row.keep) <= set(row.icons), row.noun


def test_everyday_table_refuses_an_icon_of_two_nouns(tmp_path):
    path = tmp_path / "table.json"
    rows = [{"noun": n, "words": [n], "icons": ["moon"]} for n in ("moon", "cheese")]
    path.write_text(json.dumps(rows))
    with pytest.raises(BuildError, match="icon moon is in moon and in cheese"):
        nouns.read_everyday(path)


def test_forty_measured_objects_and_all_held_out_pairs_are_everyday_nouns():
    table = {row.noun: row for row in nouns.read_everyday()}
    measured = split.read_eval_objects()
    assert len({row["noun"] for row in measured}) == len(measured) == 40
    assert all(row["word"] in table[row["noun"]].words for row in measured)
    assert all(noun in table and colour in TONES for noun, colour in split.HELD_OUT_PAIRS)
    assert all(len(pair) == 2 and pair <= table.keys() for pair in split.HELD_OUT_TOGETHER)


def drawing(set_name: str, name: str, code: str | None = None) -> Icon:
    return Icon(set_name, name, code, '<path d="M0 0h9v9z"/>', (0, 0, 9, 9))


def test_choice_follows_names_codes_and_subgroups():
    icons = [
        drawing("noto", "lion", "1F981"),
        drawing("emojione", "lion-face", "1F981"),
        drawing("twemoji", "big-cat", "1F981"),
        drawing("noto", "thing", "1F4AB"),
        drawing("noto", "up-arrow", "2B06"),
        drawing("noto", "unknown"),
    ]
    labels = {
        "1F981": Label("lion", "animal-mammal"),
        "1F4AB": Label("moon cake", "food-asian"),
        "2B06": Label("up arrow", "arrow"),
    }
    lion = nouns.Noun("lion", ("lion",), ("lion",))
    chosen = nouns.choose(icons, labels, [lion])
    assert [(s.icon.name, s.label, s.noun) for s in chosen] == [
        ("lion", "lion", lion),
        ("lion-face", "lion", lion),
        ("big-cat", "lion", lion),
        ("thing", "moon cake", None),
    ]


def everyday_subjects() -> list[nouns.Subject]:
    """Every icon name of the table in all five sets."""
    return [
        nouns.Subject(drawing(name, icon, icon), noun.words[0], noun)
        for name in sources.SETS
        for noun in nouns.read_everyday()
        for icon in noun.icons
    ]


def test_one_icon_of_each_measured_object_is_held_out_and_nothing_vanishes():
    subjects = everyday_subjects()
    out = split.held_out_icons(subjects, seed=0)
    assert out == split.held_out_icons(subjects, seed=0)
    assert out != split.held_out_icons(subjects, seed=1)
    measured = {row["noun"] for row in split.read_eval_objects()}
    gone = [s for s in subjects if (s.icon.set, s.icon.name) in out]
    of_measured = [s for s in gone if s.noun.noun in measured]
    assert sorted(s.noun.noun for s in of_measured) == sorted(measured)
    assert {s.icon.set for s in of_measured} <= {"noto", "emojione"}
    kept = {s.icon.name for s in subjects} - {s.icon.name for s in gone}
    assert all(sum(s.icon.name == g.icon.name for s in gone) == 1 for g in gone)
    assert kept | {s.icon.name for s in gone} == {s.icon.name for s in subjects}


# Variants


CAR = nouns.Noun("car", ("car", "automobile"), ("automobile",), common=True)
CUP = nouns.Noun("cup", ("cup",), ("cup",))


@pytest.fixture
def drawn(monkeypatch):
    """Every icon is a red car or, named "cup", a green square, without the SVG renderer."""
    square = np.zeros((64, 64, 4), np.uint8)
    square[8:56, 8:56] = (0, 160, 0, 255)

    def render(icon: Icon, size: int) -> Image.Image:
        pixels = square if icon.name == "cup" else car("#dd2e44")
        return Image.fromarray(pixels).resize((size, size))

    for module in (variants, scenes):
        monkeypatch.setattr(module, "render", render)
    scenes.master_of.cache_clear()


def subject(noun: nouns.Noun | None = CAR, name: str = "automobile") -> nouns.Subject:
    return nouns.Subject(drawing("noto", name), "car" if noun else "red envelope", noun)


def pictures(what: nouns.Subject, count: int, seed: int = 0, size: int = 64):
    stock = scenes.Stock([subject(), subject(CUP, "cup")])
    return scenes.pictures(what, count, size, seed, stock)


def test_pictures_are_the_same_for_a_seed_only(drawn):
    one, rows = pictures(subject(), 12)
    two, again = pictures(subject(), 12)
    np.testing.assert_array_equal(one, two)
    assert rows == again
    other, others = pictures(subject(), 12, seed=1)
    assert rows != others
    assert (one != other).any()


def test_captions_are_true_of_the_pictures(drawn, monkeypatch):
    monkeypatch.setattr(variants, "HELD_OUT_PAIRS", frozenset({("car", "pink")}))
    images, rows = pictures(subject(), 400)
    assert images.dtype == np.uint8
    assert images.shape == (400, 64, 64, 3)
    for image, row in zip(images, rows, strict=True):
        corner = name_tone(*rgb_to_lch(image[0, 0]).tolist())
        assert corner == (row.background or "white"), row
        for thing in row.things:
            assert thing.colour is None or thing.colour in row.caption, row
            assert thing.colour is None or thing.colour != row.background, row
            assert ("car" in row.caption or "auto" in row.caption) or thing.noun == "cup"
        assert (row.background or "") in row.caption
    names = [row.colour for row in rows]
    assert "pink" not in names
    assert set(names) == set(TONES) - {"pink"} | {None}
    # 35% keep their red, half of these without the word.
    assert 0.1 < np.mean([n is None for n in names]) < 0.27
    assert 0.5 < np.mean([row.background in (None, "white") for row in rows]) < 0.68
    kinds = [row.kind for row in rows]
    for kind, share in zip(scenes.KINDS, scenes.COMMON, strict=True):
        assert abs(kinds.count(kind) / 400 - share) < 0.08, kind


def middle(inside: np.ndarray) -> tuple[float, float]:
    """Mean place (x, y) of the pixels that are True, in [0, 1]."""
    y, x = np.nonzero(inside)
    return x.mean() / inside.shape[1], y.mean() / inside.shape[0]


def test_places_and_sizes_are_where_and_what_the_caption_says(drawn):
    images, rows = pictures(subject(), 500)
    seen = set()
    for image, row in zip(images, rows, strict=True):
        if row.kind != "placed":
            continue
        (thing,) = row.things
        assert thing.place or thing.size == "small"
        x, y = middle((image != image[0, 0]).any(-1))
        for place in (thing.place or "").split():
            seen.add(place)
            there = {"left": x < 0.42, "right": x > 0.58, "top": y < 0.45, "bottom": y > 0.55}
            assert there.get(place, abs(x - 0.5) < 0.15 and abs(y - 0.5) < 0.15), (row, x, y)
    assert seen == {"left", "right", "top", "bottom", "middle"}


def test_as_many_things_are_drawn_as_the_caption_says(drawn):
    ndimage = pytest.importorskip("scipy.ndimage")
    images, rows = pictures(subject(CUP, "cup"), 300)
    counts = set()
    for image, row in zip(images, rows, strict=True):
        away = np.abs(image.astype(int) - image[0, 0]).sum(-1)  # reducing rings faintly at edges
        found = ndimage.label(away > 40)[1]
        if row.kind != "two":
            counts.add((found, row.things[0].count))
    assert counts == {(1, 1), (2, 2), (3, 3), (4, 4)}


def test_two_things_are_where_the_caption_says(drawn):
    images, rows = pictures(subject(CUP, "cup"), 600)
    told = 0
    for image, row in zip(images, rows, strict=True):
        if row.kind != "two":
            continue
        assert {thing.noun for thing in row.things} == {"cup", "car"}
        first = row.things[0]
        # Only the cup is a square without holes: its row of pixels is of one colour.
        halves = {"left": np.s_[:, :32], "right": np.s_[:, 32:], "top": np.s_[:32]}
        halves["bottom"] = np.s_[32:]
        if first.place is None:
            continue
        told += 1
        part = image[halves[first.place]].reshape(-1, 3)
        colours = len(np.unique(part, axis=0))
        other = image[halves[wording.OPPOSITE[first.place]]].reshape(-1, 3)
        assert (colours < len(np.unique(other, axis=0))) == (first.noun == "cup"), row
    assert told > 20


def test_what_is_held_out_together_is_never_drawn_together(drawn, monkeypatch):
    dog = nouns.Noun("dog", ("dog",), ("dog",))
    stock = scenes.Stock([subject(), subject(CUP, "cup"), subject(dog, "dog")])
    monkeypatch.setattr(scenes, "HELD_OUT_TOGETHER", frozenset({frozenset({"car", "cup"})}))
    _, rows = scenes.pictures(subject(), 100, 32, 0, stock)
    assert {thing.noun for row in rows for thing in row.things} == {"car", "dog"}


def test_two_things_are_from_one_set_whose_style_is_named():
    dog = nouns.Noun("dog", ("dog",), ("dog",))
    many = [nouns.Subject(drawing(s, "dog"), "dog", dog) for s in ("noto", "twemoji", "emojione")]
    stock = scenes.Stock([subject(), subject(CUP, "cup"), *many])
    rng = np.random.default_rng(0)
    assert {stock.draw(subject(), rng).icon.set for _ in range(50)} == {"noto"}


@pytest.mark.parametrize("how", [{"fixed": True}, {"keep": ("man",)}])
def test_people_keep_their_colours_and_no_colour_is_named(drawn, how):
    fixed = nouns.Noun("man", ("man",), ("man",), **how)
    _, rows = pictures(subject(fixed, "man"), 60, size=32)
    assert {row.colour for row in rows} == {None}


def test_colour_of_a_label_is_replaced_not_doubled(drawn):
    _, rows = pictures(subject(None), 100, size=32)
    for row in rows:
        assert row.noun is None
        assert ("red envelope" in row.caption) == (row.colour is None), row.caption


def test_what_has_no_number_is_not_counted(drawn):
    bread = nouns.Noun("bread", ("bread",), ("bread",), bare=frozenset({"bread"}), common=True)
    _, rows = pictures(subject(bread, "bread"), 100, size=32)
    assert {row.kind for row in rows} == {"one", "placed", "two"}


def test_a_green_bus_with_blue_windows_can_become_blue(drawn, monkeypatch):
    picture = Image.fromarray(car("#5c913b", windows="#55acee"))
    monkeypatch.setattr(scenes, "render", lambda icon, size: picture.resize((size, size)))
    bus = nouns.Noun("bus", ("bus",), ("bus",), blue_aside=True)
    _, rows = pictures(subject(bus), 150, size=32)
    assert "blue" in {row.colour for row in rows}


def test_held_out_picture_is_plain(drawn):
    image, row = variants.held_out(subject(), 64)
    assert row == variants.Row(
        "a car", "held_out", "one", "automobile", "noto", "car", None, None, (wording.Thing("car"),)
    )
    assert (image[0] == 255).all()
    assert main_colour(np.dstack([image, (image != 255).any(-1) * np.uint8(255)])).name == "red"


# Sources and the whole build


def pack(folder: Path, package: Package, files: dict[str, object]) -> None:
    with tarfile.open(folder / package.archive, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """Tiny sets: the measured objects, a skin-tone copy and a letter; in one, a silhouette."""
    folder = tmp_path / "npm"
    folder.mkdir()
    table = {row.noun: row for row in nouns.read_everyday()}
    first = [table[row["noun"]].icons[0] for row in split.read_eval_objects()]
    names = [*first, "raised-hand-dark", "a-button"]
    codes = {f"1F{i:03X}": name for i, name in enumerate(names)}
    body = '<path fill="#dd2e44" d="M2 8h28v16H2z"/>'
    about = {"name": "Tiny", "author": {"name": "A. Uthor", "url": "u"}}
    about["license"] = {"spdx": "MIT", "url": "l"}
    for name, package in (sources.SETS | sources.MORE_SETS).items():
        own = ["anvil"] if name == "game-icons" else names
        icons = {"icons": {n: {"body": body} for n in own}, "width": 32, "height": 32}
        chars = {} if name in ("emojione", "game-icons") else codes
        pack(folder, package, {"icons.json": icons, "chars.json": chars, "info.json": about})
    emoji = [
        {"label": name, "hexcode": code, "subgroup": 1 if name == "a-button" else 0}
        for code, name in codes.items()
        if name != "raised-hand-dark"
    ]
    groups = {"subgroups": {"0": "animal-mammal", "1": "alphanum"}}
    pack(folder, sources.EMOJIBASE, {"en/data.json": emoji, "meta/groups.json": groups})
    return folder


def test_a_missing_archive_without_npm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"npm is not installed; .*iconify-json-noto-1.2.9.tgz"):
        sources.fetch(sources.SETS["noto"], tmp_path)


def test_a_broken_archive_is_named(tmp_path):
    path = tmp_path / "broken.tgz"
    path.write_bytes(b"no archive")
    with pytest.raises(BuildError, match=r"broken.tgz: cannot read info.json"):
        sources.read_licence(path)


def test_render_keeps_proportions_and_transparency():
    pytest.importorskip("resvg_py")
    body = '<path fill="#f00" d="M0 0h40v20H0z"/>'
    picture = np.asarray(sources.render(Icon("noto", "wide", None, body, (0, 0, 40, 20)), 40))
    assert picture.shape == (40, 40, 4)
    assert (picture[10:30] == (255, 0, 0, 255)).all()
    assert not picture[:9, :, 3].any()
    assert not picture[31:, :, 3].any()


def test_whole_build_is_the_same_with_one_process_or_two(archives, tmp_path, capsys):
    pytest.importorskip("resvg_py")
    folders = []
    for processes in ("1", "2"):
        folder = tmp_path / f"set-{processes}"
        options = ["--size", "32", "--variants", "2", "--archives", str(archives)]
        arguments = ["--output", str(folder), "--processes", processes, *options]
        assert build_icons.main(arguments) == 0
        folders.append(folder)
    one, two = folders
    for name in ("images.npy", "metadata.jsonl", "config.json", "LICENSES.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    images = np.load(one / "images.npy", mmap_mode="r")
    rows = [json.loads(line) for line in (one / "metadata.jsonl").read_text().splitlines()]
    assert images.shape == (len(rows), 32, 32, 3)
    assert images.min() < 255
    assert [row["split"] for row in rows].count("held_out") == 40
    out = {(row["set"], row["icon"]) for row in rows if row["split"] == "held_out"}
    assert not out & {(row["set"], row["icon"]) for row in rows if row["split"] == "train"}
    assert not {"raised-hand-dark", "a-button"} & {row["icon"] for row in rows}
    pairs = {(row["noun"], row["colour"]) for row in rows}
    assert not pairs & split.HELD_OUT_PAIRS
    things = [row["things"] for row in rows]
    assert not {(t["noun"], t["colour"]) for row in things for t in row} & split.HELD_OUT_PAIRS
    assert not {frozenset(t["noun"] for t in row) for row in things} & split.HELD_OUT_TOGETHER
    licences = (one / "LICENSES.md").read_text()
    assert all(f"{p.name}@{p.version}" in licences for p in sources.SETS.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["npm", "set-1", "set-2"]
    capsys.readouterr()
    assert build_icons.main(["--output", str(one)]) == 2
    assert "pass --force" in capsys.readouterr().err


def test_styles_are_named_where_they_show_and_rare_ones_drawn_more_often(archives):
    plan = build_icons.plan_everyday(build_icons.parse(["--archives", str(archives)]))
    cars = {t.subject.icon.set: t for t in plan.tasks if t.subject.icon.name == "automobile"}
    assert cars["twemoji"].subject.styled == compose.STYLED["twemoji"]
    assert cars["fluent-emoji"].subject.styled == compose.OTHERS_STYLED
    ratio = cars["twemoji"].weight / cars["fluent-emoji"].weight
    assert ratio == pytest.approx(compose.DRAWN["twemoji"])


def test_other_pictures_of_the_same_icons_leave_the_same_held_out(archives, tmp_path):
    pytest.importorskip("resvg_py")
    options = ["--size", "32", "--variants", "2", "--processes", "1", "--archives", str(archives)]
    found = {}
    for name, seeds in {
        "first": ["--seed", "0"],
        "other": ["--seed", "1", "--held-out-seed", "0"],
        "all other": ["--seed", "1"],
    }.items():
        folder = tmp_path / name
        assert build_icons.main(["--output", str(folder), *seeds, *options]) == 0
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        out = {(row["set"], row["icon"]) for row in rows if row["split"] == "held_out"}
        found[name] = out, [row["caption"] for row in rows if row["split"] == "train"]
    assert found["first"][0] == found["other"][0] != found["all other"][0]
    assert found["first"][1] != found["other"][1]


def test_the_whole_vocabulary_is_drawn_as_often_as_it_weighs(archives, tmp_path):
    pytest.importorskip("resvg_py")
    options = ["--size", "16", "--variants", "2", "--processes", "1", "--archives", str(archives)]
    rows = {}
    for vocabulary in ("everyday", "whole"):
        arguments = ["--output", str(tmp_path / vocabulary), "--vocabulary", vocabulary, *options]
        assert build_icons.main(arguments) == 0
        lines = (tmp_path / vocabulary / "metadata.jsonl").read_text().splitlines()
        rows[vocabulary] = [json.loads(line) for line in lines]
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["vocabulary"] == "whole"
    assert config["packages"].keys() >= {p.name for p in sources.MORE_SETS.values()}
    out = {
        name: {(r["set"], r["icon"]) for r in of if r["split"] == "held_out"}
        for name, of in rows.items()
    }
    assert out["everyday"] == out["whole"]
    train = [row for row in rows["whole"] if row["split"] == "train"]
    assert {"a-button", "anvil"} <= {row["icon"] for row in train}
    weight = dict.fromkeys(("automobile", "anvil", "a-button"), 0.0)
    for row in train:
        if row["icon"] in weight:
            weight[row["icon"]] += row["weight"] / build_icons.OF_KIND[row["kind"]]
    each = 2 * build_icons.TYPICAL_ICONS / compose.COMMON
    assert weight["automobile"] == pytest.approx(each * compose.COMMON, rel=0.01)
    assert weight["anvil"] == pytest.approx(each * compose.RARE["game-icons"], rel=0.01)
    assert weight["a-button"] == pytest.approx(each * compose.RARE["alphanum"], rel=0.02)


def test_a_build_that_fails_leaves_nothing(archives, tmp_path, capsys):
    (archives / sources.SETS["noto"].archive).write_bytes(b"cut short")
    assert build_icons.main(["--output", str(tmp_path / "set"), "--archives", str(archives)]) == 1
    assert "iconify-json-noto" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["npm"]


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--size", 8, 16), ("--held-out-seed", -1, 0)]
)
def test_options_out_of_range_are_refused(capsys, option, value, least):
    with pytest.raises(SystemExit) as error:
        build_icons.parse([option, str(value)])
    assert error.value.code == 2
    assert f"{option} is {value}; it must be at least {least}" in capsys.readouterr().err
