"""What a single file says that its U-Net predicts, from its names, metadata and a config beside it.

Programs state it in many places. In order of trust:

1. marker keys in the file: ``v_pred`` (ComfyUI, Forge), ``edm_mean`` (Playground 2.5),
   ``edm_vpred.sigma_max`` (CosXL): they survive merging and conversion;
2. the model spec's metadata: ``modelspec.prediction_type``, ComfyUI's ``modelspec.predict_key``,
   then the architecture ("stable-diffusion-v2-768-v");
3. the training settings in the metadata: sd-scripts' ``ss_…`` and OneTrainer's ``ot_config``;
4. a config beside the file: a .yaml or .json of its name, as A1111 reads it, then the
   ``scheduler_config.json`` of a folder of diffusers that holds the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ldm.errors import CheckpointError

KNOWN_PREDICTIONS = ("epsilon", "v_prediction", "sample")
EDM = "EDM"  # Karras et al. 2022: inputs, outputs and times of the network are scaled otherwise
SPELLINGS = {
    **dict.fromkeys(("epsilon", "eps", "noise", "epsscaling"), "epsilon"),
    **dict.fromkeys(("v", "vpred", "vprediction", "velocity", "vscaling"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
    **dict.fromkeys(("edm", "edmscaling", "vscalingwithedmcnoise"), EDM),
}
STATED_PREDICTION = "modelspec.prediction_type"
MOST_BYTES = 1_000_000  # of a config beside a file; published ones have a few thousand
SCHEDULER = "scheduler_config.json"
PARAMETERIZATION = r"^[ \t]*(?:parameterization|prediction_type)\s*:\s*[\"']?([\w-]+)"
ZERO_SNR = (
    r"(?:^|[\s{,\"'])(?:zero_terminal_snr|rescale_betas_zero_snr|zsnr|ztsnr)[\"']?\s*:\s*true\b"
)


class Statement(NamedTuple):
    """One statement of what a U-Net predicts."""

    source: str  # such as "the key v_pred"
    value: str  # a prediction type, EDM, or another program's word for something else


@dataclass(frozen=True)
class Beside:
    """What the configs beside a file state."""

    statements: tuple[Statement, ...] = ()
    zero_snr: bool = False


def find_statements(
    names: Collection[str], metadata: Mapping[str, str], beside: Beside | None = None
) -> list[Statement]:
    """List every statement of what a file's U-Net predicts, the most trusted first."""
    found = [*_markers(names), *_model_spec(metadata), *_training_settings(metadata)]
    return [*found, *(beside.statements if beside else ())]


def has_zero_snr(
    names: Collection[str], metadata: Mapping[str, str], beside: Beside | None = None
) -> bool:
    """Whether anything states that the last training timestep was pure noise (Lin et al. 2023)."""
    stated = (metadata.get(key) for key in ("ztsnr", "ss_zero_terminal_snr"))
    return (
        "ztsnr" in names
        or any(is_true(value) for value in stated)
        or is_true(_one_trainer(metadata).get("rescale_noise_scheduler_to_zero_terminal_snr"))
        or (beside is not None and beside.zero_snr)
    )


def canonical(word: str) -> str:
    """Return our name for a program's word, or the word itself."""
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    return SPELLINGS.get(plain, word)


def is_true(value: object) -> bool:
    """Whether a value of metadata, which is text, or of JSON says yes."""
    return str(value).strip().lower() in ("true", "1", "yes")


def _markers(names: Collection[str]) -> Iterator[Statement]:
    for key in ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"):
        if key in names:
            yield Statement(f"the key {key}", EDM)
    if "v_pred" in names:
        yield Statement("the key v_pred", "v_prediction")


def _model_spec(metadata: Mapping[str, str]) -> Iterator[Statement]:
    for key in (STATED_PREDICTION, "modelspec.predict_key"):
        if word := metadata.get(key, "").strip():
            yield Statement(key, canonical(word))
    key = "modelspec.architecture"
    architecture = metadata.get(key, "").strip().lower().partition("/")[0]
    if re.search(r"playground-?v?2[.-]5|cosxl|[-_]edm\b", architecture):
        yield Statement(key, EDM)
    elif re.search(r"[-_](v|v-?pred(iction)?)$", architecture):
        yield Statement(key, "v_prediction")
    elif architecture == "stable-diffusion-v2-512":
        yield Statement(key, "epsilon")


def _training_settings(metadata: Mapping[str, str]) -> Iterator[Statement]:
    key = "ss_v_parameterization"
    if (word := metadata.get(key, "").strip().lower()) in ("true", "false"):
        yield Statement(key, "v_prediction" if word == "true" else "epsilon")
    key = "ss_base_model_version"  # "sd_v2_v"; "sd_v2" is what its trainer was told, too
    if found := re.fullmatch(r"sd_v[12](_v)?", metadata.get(key, "").strip()):
        yield Statement(key, "v_prediction" if found[1] else "epsilon")
    settings = _one_trainer(metadata)
    # OneTrainer trains v whenever it rescales the schedule.
    for name in ("rescale_noise_scheduler_to_zero_terminal_snr", "force_v_prediction"):
        if is_true(settings.get(name)):
            yield Statement(f"ot_config's {name}", "v_prediction")
    if is_true(settings.get("force_epsilon_prediction")):
        yield Statement("ot_config's force_epsilon_prediction", "epsilon")


def _one_trainer(metadata: Mapping[str, str]) -> dict[str, object]:
    """Read the training settings that OneTrainer writes as JSON; {} for none or damaged ones."""
    return _json_object(metadata.get("ot_config") or "{}")


def read_beside(path: Path) -> Beside:
    """Read the configs beside a file. Raises CheckpointError for one that cannot be read."""
    statements: list[Statement] = []
    zero_snr = False
    own = [path.with_suffix(end) for end in (".yaml", ".yml", ".json")]
    folders = [path.parent / "scheduler", path.parent]
    if path.parent.name == "unet":  # of a folder of diffusers
        folders.append(path.parent.parent / "scheduler")
    for config in (*own, *(folder / SCHEDULER for folder in folders)):
        if config == path or not config.is_file():
            continue
        text = _read_text(config)
        values = {} if config.suffix in (".yaml", ".yml") else _json_object(text)
        stated = _in_json(values) if values else _in_yaml(text)
        if config.name == SCHEDULER:
            edm = str(values.get("_class_name")).startswith("EDM")
            stated = [EDM] if edm else stated or ["epsilon"]  # which is diffusers' default
        name = f"{config.parent.name}/{SCHEDULER}" if config.name == SCHEDULER else config.name
        statements += (Statement(name, value) for value in stated[:1])
        zero_snr |= bool(re.search(ZERO_SNR, text, re.MULTILINE | re.IGNORECASE))
    return Beside(tuple(statements), zero_snr)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if len(content) > MOST_BYTES:
        raise CheckpointError(
            f"{path} has more than {MOST_BYTES:,} bytes, so it is no model's config; rename it"
        )
    text = content.decode("utf-8-sig", "replace")
    if path.suffix == ".json":
        return text
    return re.sub(r"(?:^|(?<=\s))#.*", "", text, flags=re.MULTILINE)  # YAML's comments


def _json_object(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _in_json(values: Mapping[str, object]) -> list[str]:
    words = (values.get(key) for key in ("prediction_type", "parameterization"))
    return [canonical(word) for word in words if isinstance(word, str)]


def _in_yaml(text: str) -> list[str]:
    """Find what a config of CompVis' or SGM's form says of the prediction."""
    stated = [canonical(found[1]) for found in re.finditer(PARAMETERIZATION, text, re.MULTILINE)]
    scalings = (canonical(name) for name in re.findall(r"denoiser_scaling\.(\w+)", text))
    return stated + [value for value in scalings if value in SPELLINGS.values()]
