"""Write the CLIP tokenizer folder from the byte-pair list that `open_clip_torch` (MIT) carries.

    python -m tools.builtin_model.build_vocabulary --output weights/tokenizer

The files are those of Stable Diffusion 1.5's `tokenizer/` folder: 49,408 entries, from OpenAI's
`bpe_simple_vocab_16e6.txt.gz` (Radford et al. 2021, "Learning Transferable Visual Models From
Natural Language Supervision").
"""

import argparse
import gzip
import json
import tempfile
import zipfile
from pathlib import Path

from tools.packages import fetch_wheel

PACKAGE, VERSION = "open_clip_torch", "3.3.0"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
# The list holds 262,144 merges; CLIP's 49,408 entries are 256 bytes, the same 256 at a word's end,
# two special tokens, and the first merges that fill the rest.
MERGES = 49_408 - 2 * 256 - 2


def byte_symbols() -> list[str]:
    """Return the 256 printable characters that stand for bytes, in vocabulary order.

    GPT-2's table: printable Latin-1 bytes stand for themselves and come first; the other 68 bytes
    take the code points from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def read_merges(archive: Path) -> list[str]:
    """CLIP's merges in order of rank, as "left right" lines, from the wheel at ``archive``."""
    with zipfile.ZipFile(archive) as wheel:
        lines = gzip.decompress(wheel.read(MEMBER)).decode("utf-8").split("\n")
    return lines[1 : MERGES + 1]  # the first line is a version header


def tokenizer_files(merges: list[str]) -> dict[str, str]:
    """File name → text of the whole tokenizer folder for ``merges`` ("left right", by rank)."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    special = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles: dict[str, object] = {
        "bos_token": {"content": START, **special},
        "eos_token": {"content": END, **special},
        "pad_token": END,
        "unk_token": {"content": END, **special},
    }
    typed = {
        role: {"__type": "AddedToken", **token} if isinstance(token, dict) else token
        for role, token in roles.items()
    }
    config = {
        "add_prefix_space": False,
        **typed,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    return {
        "vocab.json": json.dumps(vocabulary, indent=2, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True) + "\n",
        "special_tokens_map.json": json.dumps(roles, indent=2, sort_keys=True) + "\n",
    }


def main() -> None:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("weights/tokenizer"))
    parser.add_argument("--open-clip-archive", type=Path, help="wheel; fetched if not given")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        archive = arguments.open_clip_archive or fetch_wheel(PACKAGE, VERSION, Path(folder))
        files = tokenizer_files(read_merges(archive))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        partial = arguments.output / f".{name}.partial"
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(arguments.output / name)
    print(f"{arguments.output}: {MERGES:,} merges, {MERGES + 514:,} tokens")


if __name__ == "__main__":
    main()
