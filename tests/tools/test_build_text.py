"""The text set of `build_text`: its phrases, its reader of WordNet, its sentence means."""

import io
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tools.builtin_model import build_text
from tools.builtin_model.icons.sources import BuildError
from tools.builtin_model.phrases import plural, scene
from tools.builtin_model.wordnet import Noun, rarity, read_nouns

DATA = """\
  1 the licence
00000001 05 n 02 cat 0 true_cat 0 001 @ 00000009 n 0000 | (zoology) feline mammal; "the cat sat"
00000002 18 n 01 cat 0 001 @ 00000009 n 0000 | a spiteful woman gossip
00000003 04 n 01 walk 0 001 @ 00000009 n 0000 | the act of walking
00000004 18 n 01 oaf 0 001 @ 00000009 n 0000 | (ethnic slur) an offensive name
00000005 18 n 01 Rembrandt 0 001 @ 00000009 n 0000 | a painter
"""
INDEX = """\
cat%1:05:00:: 00000001 1 18
cat%1:18:00:: 00000002 2 0
cat%2:29:00:: 00000007 1 0
true_cat%1:05:00:: 00000001 1 0
walk%1:04:00:: 00000003 1 9
oaf%1:18:00:: 00000004 1 0
rembrandt%1:18:00:: 00000005 1 0
"""
NOUNS = [
    Noun("cat", "animal", 19, 0.9, "feline mammal"),
    Noun("sports car", "artifact", 1, 1.0, "a fast car"),
    Noun("box", "artifact", 5, 0.5, "a container"),
    Noun("taiga", "object", 1, 1.0, "a cold forest"),
]


@pytest.fixture
def wordnet_archive(tmp_path: Path) -> Path:
    path = tmp_path / "wordnet.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (("data.noun", DATA), ("index.sense", INDEX)):
            member = tarfile.TarInfo(f"package/dict/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode("latin-1")))
    return path


def test_read_nouns_keeps_concrete_decent_common_nouns(wordnet_archive: Path) -> None:
    cat, true_cat, gossip = read_nouns(wordnet_archive)
    # 18 + 1 of 18 + 3 uses: three senses of "cat", one of them a verb.
    assert cat == Noun("cat", "animal", 19, 19 / 21, "feline mammal")
    assert true_cat == Noun("true cat", "animal", 1, 1.0, "feline mammal")
    assert gossip == Noun("cat", "person", 1, 1 / 21, "a spiteful woman gossip")


def test_rarity_orders_common_before_compound_before_unknown() -> None:
    ranks = {"cat</w>": 2368, "sports</w>": 2041, "car</w>": 1615, "box</w>": 2823}
    cat, sports_car, box, taiga = NOUNS
    assert sorted([taiga, sports_car, box, cat], key=lambda n: rarity(n, ranks)) == [
        cat,
        box,
        sports_car,
        taiga,
    ]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("car", "cars"),
        ("box", "boxes"),
        ("berry", "berries"),
        ("toy", "toys"),
        ("wolf", "wolves"),
        ("roof", "roofs"),
        ("kitchen knife", "kitchen knives"),
        ("giraffe", "giraffes"),
        ("postman", "postmen"),
        ("human", "humans"),
        ("mouse", "mice"),
        ("peach", "peaches"),
        ("glasses", "glasses"),
    ],
)
def test_plural(one: str, many: str) -> None:
    assert plural(one) == many


def test_scenes_name_their_thing_with_its_article() -> None:
    texts = [scene(random.Random(seed), ["umbrella"]) for seed in range(300)]
    assert all("umbrella" in text for text in texts)
    assert {"an umbrella", "a red umbrella"} <= {*texts, *(t.split(" on ")[0] for t in texts)}
    assert not any(re.search(r"\ba (umbrella|orange)", text) for text in texts)


def test_compose_is_whole_distinct_and_repeatable() -> None:
    captions = ["a red car", "a blue cat", "a red car"]
    texts = build_text.compose(captions, NOUNS, ["car"], 200, seed=3)
    assert texts[:2] == ["a red car", "a blue cat"]
    assert len(texts) == len(set(texts)) == 200
    assert any("feline mammal" in text for text in texts)
    assert texts == build_text.compose(captions, NOUNS, ["car"], 200, seed=3)
    assert texts != build_text.compose(captions, NOUNS, ["car"], 200, seed=4)


def test_batches_hold_every_index_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_text, "BATCH_TOKENS", 40)
    lengths = [7, 3, 12, 40, 3, 9, 25, 1]
    found = list(build_text.batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 40 for batch in found)


def test_embed_is_the_normalised_mean_of_each_text_alone() -> None:
    torch.manual_seed(0)
    size = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
    config = BertConfig(**size, num_attention_heads=2, intermediate_size=64, initializer_range=0.3)
    model = BertModel(config).eval()
    tokens = [[2, 5, 3], [2, 9, 8, 7, 6, 5, 3], [2, 3], [2, 11, 12, 3]]
    rows = build_text.embed(model, tokens)
    assert rows.dtype == np.float16
    for row, ids in zip(rows, tokens, strict=True):
        with torch.no_grad():  # float32, no padding
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        difference = np.abs(row.astype(np.float32) - (mean / mean.norm()).numpy()).max()
        assert difference < 0.02  # bfloat16 has 8 bits; rows have values up to about 0.5


def test_missing_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError,
        match=r"metadata\.jsonl does not exist; run python -m tools\.builtin_model\.build_icons",
    ):
        build_text.icon_captions(tmp_path)


def test_captions_are_distinct_and_tell_what_they_say(tmp_path: Path) -> None:
    fish = {"noun": "fish", "colour": "blue", "count": 3, "size": "small", "place": "left"}
    tree = {"noun": "tree", "colour": None, "count": 1, "size": None, "place": None}
    rows = [
        {"caption": "a cat", "split": "train"},  # of a build without things
        {"caption": "three blue fish", "things": [fish], "background": "red"},
        {"caption": "a tree, three blue fish", "things": [tree, fish], "background": None},
        {"caption": "a cat"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = build_text.icon_captions(tmp_path)
    assert list(captions) == ["a cat", "three blue fish", "a tree, three blue fish"]
    assert captions["a cat"] == {}
    assert captions["three blue fish"] == {
        **{"noun 1": "fish", "colour 1": "blue", "count 1": "3", "size 1": "small"},
        **{"place 1": "left", "noun 2": "none", "colour 2": "none", "count 2": "none"},
        **{"size 2": "none", "place 2": "none", "background": "red"},
    }
    two = captions["a tree, three blue fish"]
    assert (two["noun 1"], two["colour 1"], two["count 1"]) == ("tree", "none", "1")
    assert (two["noun 2"], two["place 2"], two["background"]) == ("fish", "left", "none")
    assert two.keys() == captions["three blue fish"].keys()


def test_a_sample_of_captions_is_spread_and_repeatable() -> None:
    captions = [f"{i:03d}" for i in range(1000)]
    drawn = build_text.sample(captions, 200, seed=1)
    assert drawn == sorted(set(drawn)) and len(drawn) == 200
    assert 70 < sum(caption < "500" for caption in drawn) < 130
    assert drawn == build_text.sample(captions, 200, seed=1)
    assert drawn != build_text.sample(captions, 200, seed=2)
    assert build_text.sample(captions, 1000, seed=1) == captions


def test_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    output, rows = tmp_path / "data" / "text", np.ones((2, 4), np.float16)
    says = {"a cat": {"noun 1": "cat"}, "b": {}, "left out": {"noun 1": "ox"}}
    with pytest.raises(TypeError):  # a config that JSON cannot hold is found last
        build_text.write(output, ["a", "b"], says, rows, {"seed": object()})
    assert list(output.parent.iterdir()) == []
    build_text.write(output, ["a cat", "b"], says, rows, {"seed": 0})
    lines = (output / "texts.jsonl").read_text().splitlines()
    assert lines == ['{"text": "a cat", "says": {"noun 1": "cat"}}', '{"text": "b"}']
    assert np.array_equal(np.load(output / "embeddings.npy"), rows)
    assert [path.name for path in output.parent.iterdir()] == ["text"]
