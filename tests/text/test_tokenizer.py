"""Ids equal to transformers' on odd text and odd folders; broken folders say what is wrong."""

import json
import random
import shutil
from pathlib import Path

import pytest
import transformers

from ldm.checkpoints.assets import asset_path
from ldm.errors import ArgumentError, CheckpointError
from ldm.text.tokenizer import CLIPTokenizer

FOLDER = asset_path("weights") / "tokenizer"

WRITTEN = [
    "",
    " ",
    "\n\t \r\n",
    "a red car",
    "A RED CAR",
    "a  red\n\ncar\t",
    "hello, world! how's it going? I'll, we've, they're, I'm, he'd, don't, o'clock, 'S 'T 'RE",
    "don’t use “smart” quotes — or dashes – or ellipses…",
    "3 cats and 12345 dogs, 3.14159, 1e-5, v1.5, ½ ² Ⅷ ٣",
    "naïve café, crème brûlée, Ångström, Żółć, ñandú, straße STRASSE, İstanbul ıI",
    "cafe\u0301 e\u0301\u0302 A\u030a \u1e9b\u0323",  # combining marks
    "красный автомобиль, КРАСНЫЙ, ΣΊΣΥΦΟΣ Ελλάδα, שלום, مرحبا, हिन्दी, ไทย, 한국어 조선글",
    "一辆红色的汽车,赤い車、カタカナ ﾊﾝｶｸ ＦＵＬＬ　ＷＩＤＴＨ",
    "🚗 🚗🚗 🏳️‍🌈 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ☕️ 1️⃣ 🫠",
    "\u200b \u200d \u2060 \ufeff \u00a0 \u3000 \u2028 \u2029 \x85 \x1c \x0b\x0c \x00 \x01 \x7f",
    "<|endoftext|>",
    "a <|startoftext|>b<|endoftext|> c <|ENDOFTEXT|> <|StartOfText|> <|endoftext| > </w> a</w>",
    "!!! hello!world !!",
    "((masterpiece:1.2)), [sketch], {x|y}, a\\(b\\), <lora:name:0.8>, #tag @you 50% $5 a_b a-b a/b",
    "https://example.org/a?b=c&d=%20#e  me@example.org C:\\dir\\file.txt",
    "x" * 2000,
    "antidisestablishmentarianism " * 30,
    "a red car " * 300,
    "🚗" * 300,
    "赤" * 500,
    "1" * 200,
    "." * 200,
    "\U0010ffff \U000e0001 \ufffd \ufffe",
    "ﬁ ﬂ ǅ ŉ ẞ ﷺ K Å Ω",
]


def generated(count: int) -> list[str]:
    """Mixtures of words, marks, spaces and characters from all of Unicode, the same every time."""
    rng = random.Random(0)
    words = [word for text in WRITTEN[:20] for word in text.split(" ")]
    marks = [" ", "  ", "\n", "", "", ",", "'", "!", "-", "\u00a0", "\u0301", "\u200d"]

    def piece() -> str:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(words)
        if kind < 0.8:
            return rng.choice(marks)
        code = rng.randrange(rng.choice([0x80, 0x800, 0x10000, 0x110000]))
        return "" if 0xD800 <= code < 0xE000 else chr(code)

    def text() -> str:
        return "".join(piece() + rng.choice(marks) for _ in range(rng.randrange(60)))

    return [text() for _ in range(count)]


TEXTS = WRITTEN + generated(400)


def assert_same_ids(ours: CLIPTokenizer, theirs: transformers.CLIPTokenizer) -> None:
    wanted = theirs(TEXTS, padding="max_length", truncation=True, max_length=77).input_ids
    for text, row, want in zip(TEXTS, ours(TEXTS), wanted, strict=True):
        assert row == want, repr(text)
    long = theirs(TEXTS, add_special_tokens=False).input_ids
    for text, want in zip(TEXTS, long, strict=True):
        assert ours.encode(text) == want, repr(text)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(FOLDER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in tokenizer, to change."""
    return Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parity
def test_ids_equal_transformers(tokenizer: CLIPTokenizer) -> None:
    assert_same_ids(tokenizer, transformers.CLIPTokenizer.from_pretrained(FOLDER))


def test_known_ids(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer(["a red car", ""]) == [
        [49406, 320, 736, 1615] + [49407] * 73,
        [49406] + [49407] * 76,
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        49406,
        49407,
        49407,
    )
    assert tokenizer.model_max_length == 77


@pytest.mark.parity
def test_stable_diffusion_2_pads_with_id_0(folder: Path) -> None:
    """Its two files disagree; special_tokens_map.json has the last word, as in transformers."""
    edit(folder / "special_tokens_map.json", pad_token="!")
    ours = CLIPTokenizer.from_pretrained(folder)
    assert ours.pad_token_id == 0
    assert ours(["a red car"]) == [[49406, 320, 736, 1615, 49407] + [0] * 72]
    assert_same_ids(ours, transformers.CLIPTokenizer.from_pretrained(folder))


@pytest.mark.parity
def test_bare_vocabulary_is_clip(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    ours = CLIPTokenizer.from_pretrained(folder)
    assert ours.model_max_length == 77
    assert_same_ids(ours, transformers.CLIPTokenizer.from_pretrained(folder))


def test_length_that_was_never_given(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=10**30)  # as transformers writes it
    assert CLIPTokenizer.from_pretrained(folder).model_max_length == 77


@pytest.mark.parity
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_folder_saved_by_transformers(folder: Path, tmp_path: Path, pad: str) -> None:
    """transformers 5 writes tokenizer.json alone, with the tokens that were added."""
    theirs = transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad)
    theirs.add_tokens(["<my-cat>", "dog-ish"])
    theirs.save_pretrained(tmp_path / "saved")
    ours = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    assert ours.encode("a <my-cat> or DOG-ISH") == [320, 49408, 541, 49409]
    assert_same_ids(ours, transformers.CLIPTokenizer.from_pretrained(tmp_path / "saved"))


@pytest.mark.parity
def test_older_form_of_added_tokens(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<my-cat>": 49408}')
    ours = CLIPTokenizer.from_pretrained(folder)
    assert ours.encode("a <my-cat>") == [320, 49408]
    assert_same_ids(ours, transformers.CLIPTokenizer.from_pretrained(folder))


@pytest.mark.parity
def test_older_form_of_merges(folder: Path, tmp_path: Path) -> None:
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content))
    ours = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    assert ours(TEXTS) == CLIPTokenizer.from_pretrained(FOLDER)(TEXTS)


@pytest.mark.parity
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_saved_folder_reads_back_here_and_in_transformers(
    folder: Path, tmp_path: Path, pad: str
) -> None:
    edit(folder / "special_tokens_map.json", pad_token=pad)
    (folder / "added_tokens.json").write_text('{"<my-cat>": 49408}')
    before = CLIPTokenizer.from_pretrained(folder)
    before.save_pretrained(tmp_path / "new" / "saved")
    after = CLIPTokenizer.from_pretrained(tmp_path / "new" / "saved")
    assert after(TEXTS) == before(TEXTS)
    assert after.encode("a <my-cat>") == [320, 49408]
    assert_same_ids(after, transformers.CLIPTokenizer.from_pretrained(tmp_path / "new" / "saved"))


def test_save_onto_a_file(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write the tokenizer to .*file"):
        tokenizer.save_pretrained(tmp_path / "file")


def test_decode(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.decode(tokenizer(["A Red CAR, 🚗 café"])[0]) == "a red car , 🚗 café"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("text", ["a\ud800b", None, 3, b"bytes", ["a", "b"]])
def test_text_that_is_not_unicode(tokenizer: CLIPTokenizer, text: object) -> None:
    with pytest.raises(ArgumentError, match="valid Unicode"):
        tokenizer([text])
    with pytest.raises(ArgumentError, match="valid Unicode"):
        tokenizer.units(text)


def test_one_string_is_not_a_list_of_texts(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ArgumentError, match="list of strings"):
        tokenizer("a red car")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} does not exist"):
        CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", '{"a": 0', "not a CLIP tokenizer"),
        ("vocab.json", "[]", "not a CLIP tokenizer"),
        ("merges.txt", "i n\nt\n", "not a CLIP tokenizer"),
        ("merges.txt", "#version: 0.2\nnosuch token</w>\n", "not a CLIP tokenizer"),
        ("tokenizer_config.json", "{", "cannot read .*tokenizer_config.json"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json holds a list"),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "holds a T5Tokenizer"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "not a CLIP tokenizer"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "pad_token '<pad>' is not in"),
        ("special_tokens_map.json", '{"pad_token": 3}', "not a CLIP tokenizer"),
        ("special_tokens_map.json", b"\xff\xfe", "cannot read .*special_tokens_map.json"),
        ("added_tokens.json", "7", "added_tokens.json holds a int"),
        ("tokenizer.json", "{}", "not a CLIP tokenizer"),
        ("tokenizer.json", '{"model": {"vocab": [], "merges": 1}}', "not a CLIP tokenizer"),
    ],
)
def test_broken_file(folder: Path, name: str, content: str | bytes, message: str) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        CLIPTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_truncated_file(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError):
        CLIPTokenizer.from_pretrained(folder)
