"""What tools and authors note in a file's metadata, as rows for users."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

Rows = list[tuple[str, str]]  # what, value
TAGS = 8  # most frequent training tags, and classes, to show
LONGEST = 400  # characters of a note to show
MOST_JSON = 10_000_000  # characters of counted tags; a data set of many words has one million
# Metadata that users look for, by the names of the model spec, sd-scripts, OneTrainer and GGUF.
LABELS = {
    "modelspec.title": "title",
    "general.name": "title",
    "modelspec.author": "author",
    "general.author": "author",
    "modelspec.license": "licence",
    "general.license": "licence",
    "modelspec.date": "date",
    "modelspec.description": "description",
    "general.description": "description",
    "modelspec.trigger_phrase": "trigger phrase",
    "trigger_words": "trigger words",
    "trigger_word": "trigger words",
    "activation text": "trigger words",
    "modelspec.usage_hint": "usage hint",
    "modelspec.tags": "tags (metadata)",
    "modelspec.architecture": "architecture",
    "general.architecture": "architecture",
    "modelspec.implementation": "implementation",
    "modelspec.resolution": "resolution",
    "ss_resolution": "resolution",
    "modelspec.encoder_layer": "encoder layer",
    "modelspec.timestep_range": "timestep range",
    "modelspec.preprocessor": "preprocessor",
    "modelspec.is_negative_embedding": "negative embedding",
    "modelspec.merged_from": "merged from",
    "ss_output_name": "name",
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base model",
    "ss_network_module": "network",
    "ss_network_dim": "network dim",
    "ss_network_alpha": "network alpha",
    "ss_network_args": "network arguments",
    "ss_clip_skip": "clip skip",
    "ss_training_comment": "comment",
    "ss_epoch": "epoch",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "ss_num_train_images": "training images",
    "modelspec.hash_sha256": "hash (metadata)",
    "sshs_model_hash": "hash (metadata)",
}


def notes(metadata: Mapping[str, str]) -> Rows:
    """Return the rows of a file's metadata; a value that another row of the label has is left out.

    Values are another's text: control characters, which could steer a terminal, become spaces.
    """
    rows: Rows = []
    for key, label in LABELS.items():
        value = clean(metadata.get(key, ""))
        if value in ("", "None", "null", "{}") or (label, value) in rows:
            continue
        rows.append((label, value))
    if tags := frequent_tags(metadata):
        rows.append(("tags", ", ".join(map(clean, tags))))
    return rows


def clean(text: str) -> str:
    """Put a text of a file on one line, without control characters, cut to a readable length."""
    line = re.sub(r"\s+", " ", text[: 4 * LONGEST])
    line = "".join(c if c.isprintable() else " " for c in line).strip()
    return f"{line[:LONGEST]}…" if len(line) > LONGEST or len(text) > 4 * LONGEST else line


def frequent_tags(metadata: Mapping[str, str]) -> list[str]:
    """Return the tags that sd-scripts counted in training captions, most frequent first."""
    text = metadata.get("ss_tag_frequency", "{}")
    if len(text) > MOST_JSON:
        return []
    try:
        tags: Counter = Counter()
        for counts in json.loads(text).values():
            tags.update({str(tag).strip(): int(count) for tag, count in counts.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return []  # a free-form note, in whatever form a tool wrote it
    return [tag for tag, _ in tags.most_common(TAGS)]
