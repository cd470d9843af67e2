"""Choices and wildcards: what is drawn, what is refused, and no text that takes long."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from ldm.errors import ArgumentError
from ldm.text.grammar import weigh
from ldm.text.wildcards import Wildcards, combinations, expand

WILDCARDS = {
    "animals": ["cat", "3::dog", "{big|small} bird"],
    "nature/trees": ["oak", "fir"],
    "nature/water/lakes": ["blue lake"],
    "loop": ["a __loop 2__"],
    "loop 2": ["b", "__loop__"],
    "none": [],
    "long": ["x" * 20_000],
}
PINNED = [
    "green cat a and c dog",
    "red cat a and c dog",
    "green cat a and d dog",
    "red car d and c big bird",
]


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("", [""]),
        ("a red car", ["a red car"]),
        ("{red|blue} {car|cat}", ["red car", "red cat", "blue car", "blue cat"]),
        ("{a|{b|c{d|e}}}", ["a", "b", "cd", "ce"]),
        ("{a|a|b}", ["a", "b"]),
        ("{|big }car {}", ["car ", "big car "]),
        ("{2::a|0.5:: b|.5::c|0::d}", ["a", "b", "c"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, a", "b, c", "c, a", "c, b"]),
        ("{ 1-2 $$ and $$a | b}", ["a", "b", "a and b", "b and a"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{-2$$ $$a|b}", ["a", "b", "a b", "b a"]),
        ("{2-$$|$$a|b}", ["a|b", "b|a"]),
        ("{1-9$$a|b}", ["a", "b", "a, b", "b, a"]),
        ("{2$$a|{b|c}}", ["a, b", "a, c", "b, a", "c, a"]),
        ("__nature/trees__", ["oak", "fir"]),
        ("__trees__ __water/lakes__", ["oak blue lake", "fir blue lake"]),
        ("__nature/*__", ["oak", "fir", "blue lake"]),
        ("__n*/tree?__s", ["oaks", "firs"]),
        ("{1$$__trees__}{|__trees__}", ["oak", "oakoak", "oakfir", "fir", "firoak", "firfir"]),
        ("{2$$ __trees__ }", ["oak, fir", "fir, oak"]),
        ("{a|__animals__}", ["a", "cat", "dog", "big bird", "small bird"]),
        # A1111's grammar, and what is no choice:
        ("{[a|b]|(c|d:1.2)|e}", ["[a|b]", "(c", "d:1.2)", "e"]),
        ("{[{a|b}:c:0.5]|d}", ["[a:c:0.5]", "[b:c:0.5]", "d"]),
        ("[a|b] (c:1.2) a | b AND c :0.8", ["[a|b] (c:1.2) a | b AND c :0.8"]),
        (r"\{a|b\} \__x__ {\||\\}", [r"\{a|b\} \__x__ \|", r"\{a|b\} \__x__ \\"]),
        ("100% of $5 # 2$$a a__b 1::a", ["100% of $5 # 2$$a a__b 1::a"]),
        ("<lora:my__best__one:0.8> {a|b}", [f"<lora:my__best__one:0.8> {x}" for x in "ab"]),
        ("<lora:x:{0.5|0.8}>", ["<lora:x:0.5>", "<lora:x:0.8>"]),
    ],
)
def test_combinations_and_draws(template: str, want: list[str]) -> None:
    known = Wildcards.of(WILDCARDS)
    assert combinations(template, known) == want
    drawn = {expand(template, seed, known) for seed in range(200)}
    assert drawn == set(want)
    assert known.parse(template).count >= len(want)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {b", r"'a {b': a { is never closed; close it, or write \{ for text"),
        ("a} b", r"'a} b': a } closes no choice; write \} for text"),
        ("{[a|b}", r"'{[a|b}': a [ is never closed in a choice; close it, or write \[ for text"),
        ("{3$$a|b}", "'{3$$a|b}': 3$$ picks from 2 options; write 1$$ to 2$$, or 1-2$$"),
        ("{2-1$$a|b}", "2-1$$ picks from 2 options"),
        ("{$$a|b}", "'{$$a|b}': $$ picks"),
        ("{0::a|0::b}", "only options of weight 0"),
        (
            "${a=b} c",
            "${ of sd-dynamic-prompts is not supported",
        ),
        ("{@a|b}", "{@ of sd-dynamic-prompts is not supported"),
        ("__animal__", "the wildcard __animal__ is unknown; did you mean 'animals'?"),
        ("__qqq__", r"the wildcard __qqq__ is unknown; write \__ for text"),
        ("__../animals__", "the wildcard __../animals__ is unknown"),
        ("__none__", "the wildcard __none__ has no options"),
        ("__loop__", "a wildcard contains itself: __loop__ in __loop 2__ in __loop__"),
        ("{a|b|__loop*__}", "a wildcard contains itself"),
        ("{" * 51 + "}" * 51, "choices nest deeper than 50"),
        ("{a|b}" * 17, "more than 100,000 combinations"),
        ("{1-10$$a|b|c|d|e|f|g|h|i|j}", "more than 100,000 combinations"),
        ("{a|b}" * 10 + "x" * 90_000, "more than 50,000,000 characters"),
        ("x" * 100_001, "a prompt has 100001 characters; at most 100000 are read"),
        ("{" + "__long__" * 6 + "}", "longer than 100,000 characters"),
    ],
)
def test_refused(template: str, message: str) -> None:
    known = Wildcards.of(WILDCARDS)
    for _ in range(2):  # an error leaves nothing behind
        with pytest.raises(ArgumentError) as error:
            combinations(template, known)
        assert message in str(error.value)


def test_a_line_that_is_wrong_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^'a {', a line of __x__: a { is never closed"):
        expand("{b|__x__}", 0, {"x": ["fine", "a {"]})
    with pytest.raises(ArgumentError, match="is unknown; give a folder of wildcards"):
        expand("__animals__", 0)


def test_the_same_seed_draws_the_same_text() -> None:
    """These stand in metadata and names of files: they may never change."""
    template = "{red|blue|green} {2::car|cat} {2$$ and $$a|b|c|d} __animals__"
    assert [expand(template, seed, WILDCARDS) for seed in range(4)] == PINNED
    texts = {seed: expand(template, seed, WILDCARDS) for seed in range(50)}
    assert len(set(texts.values())) > 25
    assert all(expand(template, seed, WILDCARDS) == text for seed, text in texts.items())
    assert set(texts.values()) < set(combinations(template, WILDCARDS))
    assert expand("{a|b|c}", 2**63 - 1) in "abc"


def test_weights() -> None:
    """Within four standard deviations of what is expected."""
    n = 4000
    drawn = Counter(expand("{3::a|b}", seed) for seed in range(n))
    assert abs(drawn["a"] - 0.75 * n) < 4 * (n * 0.75 * 0.25) ** 0.5
    drawn = Counter(expand("__animals__", seed, WILDCARDS).split()[-1] for seed in range(n))
    assert abs(drawn["dog"] - 0.6 * n) < 4 * (n * 0.6 * 0.4) ** 0.5
    # Of pairs: first by weight, then by weight among the others.
    drawn = Counter(expand("{2$$-$$2::a|b|c}", seed) for seed in range(n))
    for pair, chance in {"a-b": 1 / 4, "b-a": 1 / 6, "b-c": 1 / 12}.items():
        assert abs(drawn[pair] - chance * n) < 4 * (n * chance * (1 - chance)) ** 0.5
    drawn = Counter(expand("{1-3$$a|b|c}", seed).count(",") for seed in range(n))
    assert all(abs(drawn[k] - n / 3) < 4 * (n * 2 / 9) ** 0.5 for k in range(3))


def test_escapes_are_a1111s() -> None:
    text = expand(r"a \{b\|c\} \__d__", 0)
    assert weigh(text)[0][0].text == "a {b|c} __d__"


def test_mutated_texts_take_bounded_time() -> None:
    """Each is drawn or refused, and every text that is drawn is a combination."""
    pieces = [*"{}|[]()_$-:\\\n ab12<>*#%", "__", "$$", "::", "{a|b}", "{2$$a|b|c}", "__animals__"]
    pieces += ["{1-2$$ and $$", "2::", "<lora:a:1>", "__nature/*__", "{{", "}}", "\\{"]
    rng = random.Random(0)
    known = Wildcards.of(WILDCARDS)
    began, drawn, refused = time.process_time(), 0, 0
    for seed in range(6000):
        template = "".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        try:
            text = expand(template, seed, known)
        except ArgumentError:
            refused += 1
            continue
        drawn += 1
        assert "\0" not in text
        if known.parse(template).count <= 1000:
            assert text in combinations(template, known), template
    assert time.process_time() - began < 20
    assert drawn > 500 and refused > 500


UNITS = [
    "{",
    "}",
    "|",
    "[",
    "__",
    "_",
    "{1",
    "{ ",
    "{1-",
    "$",
    "${",
    "\\",
    "<lora",
    "<lora:",
    "__a",
]
UNITS += ["{a|", "{2$$", "{$$ ", "1::", "{a|b}", "__a!", "{[", "{{|}}", "{2::a|}", "{-", "{9$$a|"]


@pytest.mark.parametrize("unit", UNITS)
def test_long_texts_take_bounded_time(unit: str) -> None:
    many = unit * (30_000 // len(unit))
    began = time.process_time()
    for text in (many, "{" + many, "{1$$" + many + "}"):
        for call in (lambda text=text: expand(text, 0), lambda text=text: combinations(text)):
            with contextlib.suppress(ArgumentError):
                call()
    assert time.process_time() - began < 5


def test_wildcards_that_grow_are_refused() -> None:
    laughs = {f"a{i}": [f"__a{i + 1}____a{i + 1}__"] for i in range(40)} | {"a40": [""]}
    chain = {f"a{i}": [f"__a{i + 1}__"] for i in range(60)} | {"a60": ["x"]}
    many = {"a0": [str(i) for i in range(200_001)]}
    for wildcards in (laughs, chain, many):
        began = time.process_time()
        with pytest.raises(ArgumentError, match=r"deeper than 50|longer than|more than 200,000"):
            expand("__a0__", 0, wildcards)
        assert time.process_time() - began < 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    (folder / "nature" / "deep").mkdir(parents=True)
    (folder / "animals.txt").write_bytes(
        b"\xef\xbb\xbf# pets\r\n\r\n  cat \r\n2::dog # the best\r\n#mouse\r\ncolour #1\r\n"
    )
    (folder / "nature" / "deep" / "hair colour.TXT").write_text("{light|dark} brown\n", "utf-8")
    (folder / "notes.md").write_text("no wildcard")
    (tmp_path / "secret.txt").write_text("secret\n")
    return folder


def test_folder(folder: Path) -> None:
    assert combinations("__animals__", folder) == ["cat", "dog", "colour #1"]
    for name in ("nature/deep/hair colour", "hair colour", "nature/*", "**/hair*"):
        assert combinations(f"__{name}__", str(folder)) == ["light brown", "dark brown"]
    for name in ("notes", "notes.md", "animals.txt", "nature"):
        with pytest.raises(ArgumentError, match="is unknown"):
            expand(f"__{name}__", 0, folder)


def test_no_file_outside_the_folder_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: (opened.append(Path(path)), real(path, *rest))[1]
    )
    (folder / "out.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "in.txt").symlink_to("animals.txt")
    (folder / "up").symlink_to(folder.parent)
    (folder / "self.txt").symlink_to("self.txt")
    assert combinations("__in__", folder) == ["cat", "dog", "colour #1"]
    with pytest.raises(ArgumentError, match=r"out\.txt is a link out of its folder"):
        expand("__out__", 0, folder)
    with pytest.raises(ArgumentError, match=r"self\.txt cannot be read"):
        expand("__self__", 0, folder)
    secret = folder.parent / "secret"
    for name in ("../secret", str(secret), "up/secret", "./../secret", "nature/../../secret"):
        with pytest.raises(ArgumentError, match="is unknown"):
            expand(f"__{name}__", 0, folder)
    assert {path.name for path in opened} == {"animals.txt"}


def test_bad_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.txt")
    (folder / "dir.txt").mkdir()
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "large.txt").write_bytes(b"a\n" * (1 << 21) + b"b")
    for name, message in {
        "pipe": "pipe.txt is a pipe; give an ordinary file",
        "dir": "is unknown",
        "latin": "latin.txt is not UTF-8 text",
        "empty": "has no options",
        "large": "large.txt is longer than 4 MB",
    }.items():
        with pytest.raises(ArgumentError, match=message):
            expand(f"__{name}__", 0, folder)
    for wrong in (folder / "none", folder / "animals.txt", "a\0b"):
        with pytest.raises(ArgumentError, match="cannot be read"):
            expand("a", 0, wrong)


def test_files_are_read_once_each(folder: Path) -> None:
    known = Wildcards.of(folder)
    texts = [expand("__animals__ {__animals__|a}", seed, known) for seed in range(5)]
    (folder / "animals.txt").write_text("other\n")
    assert [expand("__animals__ {__animals__|a}", seed, known) for seed in range(5)] == texts
    assert known.count == 3  # options
