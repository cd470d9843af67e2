"""Readers of texts: tokenizers, prompts, files of prompts and wildcards, settings, options."""

from __future__ import annotations

import argparse
import contextlib
import json
from functools import cache
from pathlib import Path

from ldm.checkpoints.assets import asset_path
from ldm.cli.configuration import read_file
from ldm.cli.options import check_arguments, parser
from ldm.cli.output_names import file_name
from ldm.cli.plots import read_plot
from ldm.cli.prompts_file import read_lines
from ldm.errors import ArgumentError
from ldm.text.chunks import cut
from ldm.text.editing import schedule
from ldm.text.grammar import split
from ldm.text.lora_tags import split_tags
from ldm.text.tokenizer import CLIPTokenizer
from ldm.text.wildcard_files import WildcardFolder
from ldm.text.wildcards import combinations, expand
from tests.fuzz.reader import Reader

LETTERS = [chr(i) for i in range(33, 127)]
VOCAB = [*LETTERS, *(f"{a}</w>" for a in LETTERS), "ca", "cat</w>", "re", "red</w>"]
MERGES = ["c a", "ca t</w>", "r e", "re d</w>"]
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "bos_token": {"content": SPECIAL[0], "lstrip": False, "normalized": True, "special": True},
    "eos_token": SPECIAL[1],
    "pad_token": "!",
    "unk_token": SPECIAL[1],
    "added_tokens_decoder": {"0": {"content": "!", "special": True, "rstrip": False}},
}
NEW_FORM = {
    "model": {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate([*VOCAB, *SPECIAL])},
        "merges": MERGES,
    },
    "added_tokens": [{"id": len(VOCAB), "content": SPECIAL[0], "special": True}],
}
TEXTS = ["a red cat, 2 dogs!", "", "ほ é \u0301 \U0001f600", "<|endoftext|> cat", "a" * 300]
TOKENIZER_FILES: dict[str, bytes] = {
    "vocab.json": json.dumps(NEW_FORM["model"]["vocab"]).encode(),
    "merges.txt": "\n".join(["#version: 0.2", *MERGES]).encode(),
    "tokenizer_config.json": json.dumps(CONFIG).encode(),
    "special_tokens_map.json": json.dumps({"pad_token": "!", "eos_token": SPECIAL[1]}).encode(),
    "added_tokens.json": json.dumps({"<new>": len(VOCAB) + 2}).encode(),
    "tokenizer.json": json.dumps(NEW_FORM).encode(),
}
TOKENIZER_TOKENS = (
    *(b"</w>", b"\\u0000", b"\\ud800", b"<|endoftext|>", b" ", b"\n", b"a b", b"#version", b"-1"),
    *(b'"content"', b'"id"', b"1e30", b"99999999999999999999", b"\xff", b"\xef\xbb\xbf"),
)
PROMPTS = [
    b"a (red:1.3) cat, [a dog:a bird:0.5] AND [x|y|z] tree:0.8 BREAK blue \\(sky\\)",
    b"{red|2::blue} {2$$ and $$a|b|c} __animals__ <lora:style:0.8> cat",
    "ein rotes Häuschen, ((very [small])) <lyco:a:te=0.5:unet=1>".encode(),
]
PROMPT_TOKENS = (
    *(b"(", b")", b"[", b"]", b":", b"|", b":1.1)", b":0.5]", b" AND ", b" BREAK ", b"\\", b"{"),
    *(b"}", b"$$", b"2$$", b"::", b"__", b"__animals__", b"<lora:", b">", b"<", b"=", b",", b"\n"),
    *(b"1e400", b"99999999999", b"nan", b"inf", b"-", b".", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80"),
)
WILDCARDS = [b"cat\ndog # a comment\n{2::big|small} bird\n__colours__ fish\n", b"# none\n\nx\n"]
PROMPTS_FILES = [
    b"# comment\na red car\na {blue|green} dog\n\nlast <lora:a:1>\n",
    b'{"prompt": "a cat", "seed": 3, "steps": 5, "width": 64, "output": "x.png"}\n'
    b'{"prompt": "b", "no_paste_back": true, "control_image": ["a.png"], "eta": 0.5}\n'
    b'{"prompt": "{a|b}", "choices": true, "cfg_scale": 7.5, "guidance_interval": [0.1, 5]}\n',
]
TOML = [
    b'model_dir = "~/models"\nsteps = 25\nlora = ["a:0.5", "b"]\nguidance-interval = [0.1, 5]\n'
    b'tiling = true\nnegative_prompt = """blurry"""\n',
    b"# defaults\nwidth = 512\noptimize = false\ncontrol_scale = [0.5, 1.0]\nmask_blur = 4.0\n",
]
OPTIONS = [
    b"seed=1\x00width=512\x00image=a.png\x00strength=0.5\x00outpaint=64,0,64,0\x00guidance-interval=0.1,5",
    b"control=canny:a.png\x00controlnet=x:0.5\x00lora=a:0.8\x00control-scale=0.5,1\x00x=eta=0,1",
    b'y=sampler=ddim,"euler a"\x00sampler=DPM++ 2M Karras\x00output={seed:04}-{prompt}.png',
    b"ip-adapter=a:0.5\x00ip-adapter-image=c.png\x00t2i-adapter=b:1\x00adapter-image=b.png\x00control-mode=canny\x00controlnet=a\x00control-image=a.png\x00hires-scale=2",
]
OPTION_TOKENS = (
    *(b"=", b",", b":", b"\x00", b"nan", b"inf", b"1e400", b"9" * 5000, b"-1", b"{", b"}", b'"'),
    *(b"{seed:999999999}", b"{prompt}", b"{{", b"x=", b"y=", b"seed=", b"control=", b"\xff", b"%s"),
)


@cache
def tokenizer() -> CLIPTokenizer:
    """Return the built-in model's tokenizer."""
    return CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")


def tokenizer_reader(name: str) -> Reader:
    """Return the reader of a file of a tokenizer, beside good others."""

    def surround(folder: Path) -> None:
        for other, content in TOKENIZER_FILES.items():
            if other != name and (other != "tokenizer.json" or name == "tokenizer_config.json"):
                (folder / other).write_bytes(content)
        if name == "special_tokens_map.json":  # which is read where the config says less
            config = {k: v for k, v in CONFIG.items() if k != "added_tokens_decoder"}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def read(path: Path) -> object:
        found = CLIPTokenizer.from_pretrained(path.parent)
        rows = found(TEXTS)
        new = found.with_words({"neu": 3})
        return [found.decode(row) for row in rows], [new.words(row) for row in new(["neu cat"])]

    seeds = [TOKENIZER_FILES[name]]
    return Reader(name, lambda: seeds, read, name, TOKENIZER_TOKENS, surround)


def text_of(path: Path) -> str:
    """Return the text in a file of any bytes, also one that is not valid Unicode."""
    return path.read_bytes().decode("utf-8", errors="surrogateescape")


def read_prompt(path: Path) -> object:
    """Read a prompt as it is drawn: tags, AND, editing, weights, chunks."""
    text, tags = split_tags(text_of(path))
    found = []
    for part in split(text):
        for _, each in schedule(part.text, 12, 3)[:20]:
            found.append(cut(tokenizer(), each))
    return tags, found


def read_choices(path: Path) -> object:
    """Draw from a prompt with choices, and list its texts."""
    wildcards = WildcardFolder(path.parent / "wildcards")
    drawn = expand(text_of(path), 3, wildcards)
    with contextlib.suppress(ArgumentError):
        combinations(text_of(path), wildcards)
    return drawn


def with_wildcards(folder: Path) -> None:
    """Put a folder of wildcards beside it."""
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "animals.txt").write_bytes(WILDCARDS[0])
    (folder / "wildcards" / "colours.txt").write_bytes(b"red\nblue\n")
    (folder / "colours.txt").write_bytes(b"red\nblue\n")


def read_wildcards(path: Path) -> object:
    """Read a file of wildcards, and draw from it."""
    return expand("a __animals__ and {1-2$$__animals__}", 1, path.parent)


def read_prompts(path: Path) -> object:
    """Read a file of prompts; of each wrong line, the error is raised."""
    lines = list(read_lines(str(path), parser().parse_args([])))
    for line in lines:
        if line.error is not None:
            raise line.error
    return lines


def read_options(path: Path) -> object:
    """Read values of options as the command line, plots and names of files do."""
    arguments = []
    for text in text_of(path).split("\0"):
        name, equals, _ = text.partition("=")
        if name and equals and name.replace("-", "").isalnum():
            arguments.append(f"--{text}")
    found = parser().parse_args(arguments[:50])
    check_arguments(found)
    read_plot(argparse.Namespace(**{**vars(found), "prompt": ["a cat"]}))
    return found, file_name(found, "a cat", 3, 1, 2)


TEXT_READERS = [
    *map(tokenizer_reader, TOKENIZER_FILES),
    Reader("prompt", lambda: PROMPTS[:1] + PROMPTS[2:], read_prompt, "p.txt", PROMPT_TOKENS),
    Reader("choices", lambda: PROMPTS[1:2], read_choices, "p.txt", PROMPT_TOKENS, with_wildcards),
    Reader(
        "wildcards",
        lambda: WILDCARDS,
        read_wildcards,
        "animals.txt",
        PROMPT_TOKENS,
        with_wildcards,
    ),
    Reader("prompts file", lambda: PROMPTS_FILES, read_prompts, "p.txt", PROMPT_TOKENS),
    Reader("prompts in JSON", lambda: PROMPTS_FILES[1:], read_prompts, "p.jsonl", PROMPT_TOKENS),
    Reader("ldm.toml", lambda: TOML, lambda path: list(read_file(path)), "ldm.toml"),
    Reader("options", lambda: OPTIONS, read_options, "options.txt", OPTION_TOKENS),
]
