"""CLIP's byte-pair tokenizer: text → token ids. A thin wrapper around `tokenizers`.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", 2.4:
a lower-cased byte-pair encoding (Sennrich et al. 2016) between a start and an end token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ldm.config import read_json, write_json
from ldm.config.files import check_file
from ldm.config.json import MOST_BYTES
from ldm.errors import ArgumentError, CheckpointError
from ldm.writing import as_os_error, part_folder

CONTEXT_LENGTH = 77  # CLIP's positions: start + 75 tokens + end
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own; Stable Diffusion 2 pads with "!" (id 0), and its folder says so.
SPECIAL_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
# A piece is a special token, an English contraction, a run of letters, one digit, or a run of
# anything else that is not space.
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class CLIPTokenizer:
    """Converts text to ids, equal to those of transformers' CLIPTokenizer on the same folder.

    Attributes:
        model_max_length: tokens per prompt, with start and end token (77).
        bos_token_id, eos_token_id, pad_token_id: start, end and padding.
        comma_token_id: a comma that stands alone; None if the vocabulary has none.
    """

    def __init__(self, bpe: BPE, added: Sequence[AddedToken], config: dict[str, Any]) -> None:
        """Set up the tokenizer.

        config: of tokenizer_config.json, with `SPECIAL_TOKENS` as strings.
        Raises CheckpointError for one of these that is not in the vocabulary.
        """
        self._config = config
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        self._tokenizer.add_tokens(list(added))
        self._words: dict[int, range] = {}
        self.model_max_length: int = config["model_max_length"]
        self.bos_token_id = self._id(config["bos_token"])
        self.eos_token_id = self._id(config["eos_token"])
        self.pad_token_id = self._id(config["pad_token"])
        self.comma_token_id: int | None = self._tokenizer.token_to_id(",</w>")

    @classmethod
    def from_pretrained(cls, folder: str | Path, pad_token: str | None = None) -> "CLIPTokenizer":
        """Read a `tokenizer/` folder: vocab.json and merges.txt, or transformers' tokenizer.json.

        `pad_token` overrides the folder's. Raises CheckpointError naming the file or token that is
        missing or broken.
        """
        try:
            bpe, added, config = _read_folder(Path(folder))
            return cls(bpe, added, config | ({"pad_token": pad_token} if pad_token else {}))
        except CheckpointError:
            raise
        except Exception as error:  # broken content; `tokenizers` raises bare Exception
            raise CheckpointError(
                f"{folder} is not a CLIP tokenizer ({error!r}); download the model again"
            ) from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

        Raises CheckpointError if the folder cannot be made, OSError for a full disk.
        """
        tokens = sorted(self._tokenizer.get_added_tokens_decoder().items())
        added = {str(index): _describe(token) for index, token in tokens}
        special = {name: self._config[name] for name in SPECIAL_TOKENS}
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write the tokenizer to {folder}: {error}") from error
        with part_folder(folder) as new:  # the library writes to the names themselves
            try:
                names = self._tokenizer.model.save(str(new))
            except Exception as error:  # `tokenizers` raises bare Exception
                raise as_os_error(error, folder) from error
            for name in names:
                Path(name).replace(folder / Path(name).name)
        write_json(folder / "tokenizer_config.json", self._config | {"added_tokens_decoder": added})
        write_json(folder / "special_tokens_map.json", special)

    def with_words(self, words: Mapping[str, int]) -> "CLIPTokenizer":
        """Return a tokenizer like this one that knows new words, each as so many ids in a row.

        The ids count up from the size of the vocabulary, in the order of `words`. A word is found
        in either case, but not inside of a longer one.
        """
        added = list(self._tokenizer.get_added_tokens_decoder().values())
        tokenizer = CLIPTokenizer(self._tokenizer.model, added, self._config)
        end = tokenizer._tokenizer.get_vocab_size()
        for word, count in words.items():
            tokenizer._tokenizer.add_tokens([AddedToken(word, single_word=True)])
            tokenizer._words[tokenizer._id(word)] = range(end, end + count)
            end += count
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Convert text to ids, without start, end, padding and limit.

        Raises ArgumentError if `text` is not valid Unicode text.
        """
        return [index for unit in self.units(text) for index in unit]

    def units(self, text: str) -> list[tuple[int, ...]]:
        """Return the ids of ``encode`` in groups that belong together: one id, or a new word's.

        Raises ArgumentError if `text` is not valid Unicode text.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):  # not a string, or half a surrogate pair in it
            raise ArgumentError(
                f"prompt is {text!r}; it must be text that is valid Unicode (UTF-8)"
            ) from None
        return [tuple(self._words.get(index, (index,))) for index in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to lower-cased text, without special tokens."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Convert texts to (B, 77) ids: start, at most 75 tokens of the text, end, padding.

        Longer texts are truncated; prompts are cut into chunks by ``ldm.text.chunks``.
        """
        if isinstance(texts, str):
            raise ArgumentError(f"texts is {texts!r}; it must be a list of strings: [{texts!r}]")
        rows = []
        for text in texts:
            ids = self.encode(text)[: self.model_max_length - 2]
            row = [self.bos_token_id, *ids, self.eos_token_id]
            rows.append(row + [self.pad_token_id] * (self.model_max_length - len(row)))
        return rows

    def is_token(self, word: str) -> bool:
        """Whether a word, or a piece of one, is a single token of the vocabulary."""
        names = (word, word.lower(), f"{word.lower()}</w>")
        return any(self._tokenizer.token_to_id(name) is not None for name in names)

    def words(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Return each word in a row of ids, in lower case, and the places of its ids."""
        special = {self.bos_token_id, self.eos_token_id, self.pad_token_id}
        loaded = {index: word for word, own in self._words.items() for index in own}
        words: list[tuple[str, list[int]]] = []
        begun: list[int] = []  # places of the ids of a word that has not ended
        for at, index in enumerate(ids):
            if index in loaded:
                word = self._token(loaded[index])
                if (
                    words
                    and words[-1][0] == word
                    and len(words[-1][1]) < len(self._words[loaded[index]])
                ):
                    words[-1][1].append(at)
                else:
                    words.append((word, [at]))
            elif index not in special:
                begun.append(at)
                if self._token(index).endswith("</w>"):
                    words.append((self.decode([ids[i] for i in begun]), begun))
                    begun = []
        return words

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise CheckpointError(
                f"{token!r} is not in the vocabulary of the tokenizer; download the model again"
            )
        return index

    def _token(self, index: int) -> str:
        token = self._tokenizer.id_to_token(index)
        assert token is not None  # ids come from this tokenizer
        return token


def _read_folder(folder: Path) -> tuple[BPE, list[AddedToken], dict[str, Any]]:
    config = read_json(folder / "tokenizer_config.json", optional=True)
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise CheckpointError(
            f"{folder} holds a {kind}; only CLIPTokenizer is supported: check the model folder"
        )
    if "added_tokens_decoder" not in config:  # older folders: this file takes precedence
        config |= read_json(folder / "special_tokens_map.json", optional=True)
    special = {name: config.get(name) or token for name, token in SPECIAL_TOKENS.items()}
    config |= {name: _content(token) for name, token in special.items()}
    length = config.get("model_max_length", CONTEXT_LENGTH)
    # transformers writes 10^30 where it was given no length
    config["model_max_length"] = CONTEXT_LENGTH if length > 1e9 else int(length)

    bpe, listed = _read_bpe(folder, unknown=config["unk_token"])
    listed |= {int(index): token for index, token in config.get("added_tokens_decoder", {}).items()}
    added = [listed[index] for index in sorted(listed)]
    contents = [_content(token) for token in added]
    for name, token in special.items():
        if _content(token) in contents:
            continue
        if bpe.token_to_id(_content(token)) is None:
            raise CheckpointError(
                f"{folder}: {name} {_content(token)!r} is not in the vocabulary, so these files "
                "do not belong together; download the model again"
            )
        added.append(token if isinstance(token, str) else token | {"special": True})
    return bpe, [_added_token(token) for token in added], config


def _read_bpe(folder: Path, unknown: str) -> tuple[BPE, dict[int, Any]]:
    """Read the byte-pair model of a folder, and the tokens that were added to it: id → token."""
    options = {"unk_token": unknown, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    whole, vocab, merges = (folder / f for f in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.exists():
        content = read_json(whole)
        model = content["model"]
        # "a b" in older files, ["a", "b"] in newer ones
        pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        bpe = BPE(vocab=model["vocab"], merges=pairs, **options)
        return bpe, {token["id"]: token for token in content["added_tokens"]}
    for path in (vocab, merges):
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; a CLIP tokenizer is vocab.json and merges.txt, "
                "or tokenizer.json: check the path, or download the model again"
            )
        check_file(path, MOST_BYTES, "vocabulary")
    added = read_json(folder / "added_tokens.json", optional=True)
    return BPE.from_file(str(vocab), str(merges), **options), {
        index: {"content": content, "normalized": True} for content, index in added.items()
    }


def _content(token: str | dict[str, Any]) -> str:
    """Return the text of a token that is written as that, or as an object with flags."""
    return token if isinstance(token, str) else token["content"]


def _added_token(token: str | dict[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(**{key: token[key] for key in token if key not in ("__type", "id")})


def _describe(token: AddedToken) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {flag: getattr(token, flag) for flag in flags}
