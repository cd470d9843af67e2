"""The whole vocabulary of the icon sets: names, other wordings, silhouettes, how often each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli.vocabulary import known_words, read_words
from tools.builtin_model import compose, list_words
from tools.builtin_model.icons import (
    captions,
    nouns,
    scenes,
    sources,
    variants,
    vocabulary,
    wording,
)
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon, Label

CAR = Noun("car", ("car", "automobile"), ("automobile",), common=True)


def drawing(set_name: str, name: str, code: str | None = None) -> Icon:
    body = '<path d="M1 1h9v9z" fill="#c00"/>'
    return Icon(set_name, name, code, body, (0, 0, 12, 12))


@pytest.mark.parametrize(
    ("text", "subgroup", "name", "others"),
    [
        ("flag: japan", "country-flag", "flag of japan", ["japan flag"]),
        ("flag: united states", "country-flag", "flag of the united states", None),
        ("flag: myanmar (burma)", "country-flag", "flag of myanmar", None),
        ("flag: bouvet island", "country-flag", "", None),  # drawn as Norway's
        ("pirate flag", "flag", "pirate flag", ["jolly roger", "skull and crossbones flag"]),
        ("keycap: 3", "keycap", "number 3", ["digit 3"]),
        ("keycap: #", "keycap", "hash sign", []),
        ("ten o’clock", "time", "clock at ten o'clock", ["ten o'clock"]),
        ("nine-thirty", "time", "clock at nine thirty", ["half past nine"]),
        ("leo", "zodiac", "leo zodiac sign", ["leo"]),
        ("family: man, woman, boy", "family", "family", []),
        ("kiss: woman, man", "family", "kissing couple", []),
        ("man: red hair", "person", "man with red hair", []),
        ("woman: beard", "person", "woman with a beard", []),
        ("man: bald", "person", "bald man", []),
        ("piñata", "game", "pinata", ["donkey pinata"]),
        ("orca", "animal-marine", "orca", ["killer whale"]),
    ],
)
def test_names_are_what_people_type(
    text: str, subgroup: str, name: str, others: list[str] | None
) -> None:
    found, more = vocabulary.names_of(Label(text, subgroup))
    assert found == name
    assert others is None or list(more) == others


def test_other_wordings_are_plain_and_of_one_thing() -> None:
    """No keyword of everything, nor the same word for many things."""
    wordings = vocabulary.read_wordings()
    words = [word for row in wordings.values() for word in row]
    assert len(wordings) > 600
    assert all(word == vocabulary.plain(word) == word.lower().strip() for word in words)
    assert {"face", "animal", "food", "person", "flag", "hand", "building"}.isdisjoint(words)
    assert all(words.count(word) <= 2 for word in words)
    # A word of the everyday table names its own thing and no other.
    table = nouns.read_everyday()
    owner = {word: noun for noun in table for word in noun.words}
    own = {name.replace("-", " "): noun for noun in table for name in noun.icons}
    wrong = {
        (label, word)
        for label, row in wordings.items()
        for word in row
        if word in owner and label in own and owner[word] is not own[label]
    }
    assert not wrong


def test_an_icon_keeps_its_own_name_beside_its_noun() -> None:
    icon = drawing("noto", "bullet-train", "1F685")
    train = Subject(icon, "train", Noun("train", ("train",), ("bullet-train",)))
    named = vocabulary.with_names(train, Label("bullet train", "transport-ground"))
    assert named is not None and named.others == ("bullet train",) and named.noun is train.noun
    oncoming = vocabulary.with_names(train, Label("oncoming taxi", "transport-ground"))
    assert oncoming is not None and oncoming.others == ()
    button = Subject(drawing("noto", "here"), "x", None, keeps_colours=True)
    assert vocabulary.with_names(button, Label("japanese “here” button", "alphanum")) is None


def test_silhouettes_join_the_things_they_show() -> None:
    car = Subject(drawing("noto", "automobile"), "car", CAR)
    crow = Subject(drawing("noto", "crow"), "bird", Noun("bird", ("bird",), ()), others=("crow",))
    names = ("automobile", "crow", "anvil", "abstract-006")
    icons = [drawing(vocabulary.GLYPHS, name) for name in names]
    listed = vocabulary.read_glyphs()
    assert "anvil" in listed and "abstract-006" not in listed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "read_glyphs", lambda: {"automobile", "crow", "anvil"})
        found = vocabulary.glyphs(icons, [car, crow])
    assert [(compose.name(s), s.others) for s in found] == [
        ("car", ()),
        ("bird", ("crow",)),
        ("anvil", ()),
    ]
    assert found[2].subgroup == vocabulary.GLYPHS


def test_nothing_held_out_leaks_by_its_silhouette() -> None:
    """An icon that is held out, and single-colour drawings of the same emoji, are not drawn."""
    sets = ("noto", "twemoji", "fluent-emoji-high-contrast")
    subjects = [Subject(drawing(name, "owl", "1F989"), "owl", None) for name in sets]
    subjects += [Subject(drawing("game-icons", name), name, None) for name in ("owl", "oak")]
    kept = vocabulary.apart(subjects, [subjects[0]])
    assert [(s.icon.set, s.icon.name) for s in kept] == [("twemoji", "owl"), ("game-icons", "oak")]


def test_the_judge_knows_the_five_styles_alone() -> None:
    """New sets are of the supply; the fixed set and its held-out icons stay as they are."""
    assert set(captions.STYLES) == set(sources.SETS)
    assert set(captions.MORE_STYLES) == set(sources.MORE_SETS)
    assert not set(sources.SETS) & set(sources.MORE_SETS)
    assert len({*captions.STYLES.values(), *captions.NEW_STYLES.values(), "silhouette"}) == 7


# How often, and how it is said


def subjects_of_a_car() -> list[Subject]:
    sets = ("noto", "twemoji", "emojione", "game-icons")
    return [Subject(drawing(name, "automobile"), "car", CAR) for name in sets]


def test_rare_styles_are_drawn_more_often_and_named_where_they_show() -> None:
    only = Subject(drawing("game-icons", "anvil"), "anvil", None, subgroup=vocabulary.GLYPHS)
    found = compose.weigh([*subjects_of_a_car(), only])
    car = found.odds[:4] / found.odds[:4].sum()
    wanted = np.array([compose.DRAWN.get(s.icon.set, 1.0) for s in found.subjects[:4]])
    assert car == pytest.approx(wanted / wanted.sum())
    assert found.odds[:4].sum() / found.odds[4] == pytest.approx(
        compose.COMMON / compose.RARE[vocabulary.GLYPHS]
    )
    assert [s.styled for s in found.subjects[2:]] == [
        compose.STYLED["emojione"],
        compose.SILHOUETTE,
        compose.ONLY_SILHOUETTE,
    ]
    assert compose.STYLED["emojione"][0] > 0.5 > compose.STYLED["emojione"][1]


@pytest.mark.parametrize(
    ("subgroup", "keeps", "wanted"),
    [
        ("country-flag", True, compose.RARE["country-flag"]),
        ("keycap", True, compose.RARE["keycap"]),
        ("person-role", True, compose.PEOPLE),
        ("family", True, compose.PEOPLE),
        ("arrow", True, compose.OTHER),
        ("food-asian", False, compose.NAMED),
    ],
)
def test_what_is_seldom_asked_for_is_seldom_drawn(
    subgroup: str, keeps: bool, wanted: float
) -> None:
    subject = Subject(drawing("noto", "x"), "x", None, keeps, subgroup=subgroup)
    assert compose.weight(subject) == wanted < compose.EVERYDAY


def test_own_words_are_said_and_not_counted_where_they_have_no_plural(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    square = Image.fromarray(np.full((48, 48, 4), 255, np.uint8))
    monkeypatch.setattr(scenes, "render", lambda icon, size: square.resize((size, size)))
    subject = Subject(
        drawing("noto", "nest"), "nest", Noun("nest", ("nest",), ()), others=("nest with eggs",)
    )
    stock = scenes.Stock([subject])
    _, alone = scenes.pictures(subject, 40, 32, 0, stock, np.array([1.0, 0, 0, 0]))
    _, many = scenes.pictures(subject, 40, 32, 0, stock, np.array([0, 0, 0, 1.0]))
    share = sum("nest with eggs" in row.caption for row in alone) / 40
    assert share == pytest.approx(variants.OTHER_WORDS, abs=0.2)
    assert all("eggs" not in row.caption and "nests" in row.caption for row in many)


def test_the_style_is_said_as_often_as_it_shows() -> None:
    """By default as often as ever; else by whether the picture has the icon's own colours."""
    plain = Subject(drawing("noto", "x"), "x", None)
    assert variants.styled_of(plain) == variants.styled_of(plain, plain=True) == wording.STYLED
    seen = Subject(drawing("noto", "x"), "x", None, styled=(0.9, 0.1))
    assert (variants.styled_of(seen, plain=True), variants.styled_of(seen)) == (0.9, 0.1)


@pytest.mark.parametrize(
    ("name", "subgroup", "wanted"),
    [
        ("flag-japan", "country-flag", True),
        ("nine-thirty", "time", True),
        ("waning-crescent-moon", "sky-weather", True),
        ("automobile", "transport-ground", False),
        ("first-quarter-moon-face", "", False),  # as the fixed data set has it
        ("left-arrow", "", True),
    ],
)
def test_what_a_mirror_would_change_is_not_mirrored(name: str, subgroup: str, wanted: bool) -> None:
    subject = Subject(drawing("noto", name), name, None, subgroup=subgroup)
    assert variants.one_way(subject) is wanted


# The list of words


def test_the_list_has_all_that_is_drawn_and_all_words_for_it(tmp_path: Path) -> None:
    own = [Subject(drawing("noto", "suv"), "car", CAR, others=("suv",))]
    flag = Subject(drawing("noto", "flag-japan"), "flag of japan", None, others=("japan flag",))
    path = tmp_path / "run" / "words.json"
    list_words.write_words(compose.weigh([*own, flag]), path)
    found = json.loads(path.read_text())
    assert found["things"]["car"] == ["car", "automobile", "suv"]
    assert found["others"] == ["flag of japan", "japan flag"]
    assert "silhouette" in found["styles"]
    assert [file.name for file in path.parent.iterdir()] == ["words.json"]


def test_the_present_weights_claim_nothing_of_the_next_ones() -> None:
    """weights/words.json is of the weights beside it: it changes when they do."""
    assert "silhouette" not in read_words()["styles"]
    assert {"quokka", "xylophone", "lighthouses"}.isdisjoint(known_words())
