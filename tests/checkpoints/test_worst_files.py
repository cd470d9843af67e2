"""A megabyte of the worst kind for each reader of weights: its time is linear in the size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.checkpoints.header import MOST_AXES
from ldm.checkpoints.pickle_content import read_contents
from ldm.checkpoints.pickles import read_pickle, weights_alone
from ldm.checkpoints.plain import LONGEST_NAME
from ldm.checkpoints.prediction import read_beside
from ldm.checkpoints.tensors import read_checkpoint
from ldm.cli.info import check_values
from ldm.errors import CheckpointError, LDMError
from tests.fuzz import tiny, worst
from tests.fuzz.readers.checkpoints import read_info
from tests.fuzz.readers.weights import read_lora, read_single_file
from tests.helpers import timing

QUARTER = 1 << 18
FLOOR = 1.5  # seconds of a busy machine


def seconds(make: worst.Make, size: int, path: Path, read: Callable[[Path], Any]) -> float:
    path.write_bytes(make(size))
    start = time.process_time()
    with contextlib.suppress(LDMError):
        read(path)
    return time.process_time() - start


def check_linear(make: worst.Make, path: Path, read: Callable[[Path], Any]) -> None:
    """Fail for a megabyte that takes long, and more than its share of a quarter of it."""
    timing.check_linear(lambda size: seconds(make, size, path, read), QUARTER, FLOOR)


@pytest.mark.parametrize("name", worst.WORST)
@pytest.mark.parametrize("read", [read_checkpoint, read_info])
def test_time_is_linear(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    check_linear(worst.WORST[name], tmp_path / "x.bin", read)


@pytest.mark.parametrize("name", ["settings of LoRAs", "words", "LoRA layers", "one storage"])
def test_loras_in_linear_time(tmp_path: Path, name: str) -> None:
    seconds(worst.WORST[name], 1000, tmp_path / "x.bin", read_lora)  # builds the model
    check_linear(worst.WORST[name], tmp_path / "x.bin", read_lora)


def test_a_config_beside_of_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\n" * 900_000)
    start = time.process_time()
    read_beside(tmp_path / "x.safetensors")
    assert time.process_time() - start < FLOOR


def test_names_and_axes_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for names, shape, message in (
        (["a" * (LONGEST_NAME + 1)], (0,), r"has 1,001 characters, more than 1,000"),
        (["a\x1b[2Jb"], (0,), r"'a\\x1b\[2Jb' has characters that cannot be shown"),
        (["\u202eb"], (0,), "characters that cannot be shown"),
        (["a"], (1,) * (MOST_AXES + 1), "shape of 'a' is"),
    ):
        path.write_bytes(worst.safetensors(names, shape))
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)


# Memory: nothing is allocated that the file does not hold.


def unfit() -> dict[str, Any]:
    ones = torch.ones(2, 2)
    attributes = torch.ones(2, 2)
    attributes.shape_note = 3  # type: ignore[attr-defined]
    return {
        "a sparse tensor": ones.to_sparse(),
        "a quantised tensor": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
        "a nested tensor": torch.nested.nested_tensor([ones, ones]),
        "which has no values": torch.empty(10**9, 10**6, device="meta"),
        "values overlap": torch.ones(1).expand(10**6, 10**6),
        "overlap, such": torch.arange(9.0).unfold(0, 3, 1),
        "conjugate or negative": torch.ones(2, dtype=torch.complex64).conj().imag,
        "of the type int": 5,
        "of the type list": [ones],
    }


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of prototypes
@pytest.mark.parametrize("form", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("reason", unfit())
def test_what_is_no_plain_tensor_is_named(tmp_path: Path, reason: str, form: Any) -> None:
    path = tmp_path / "x.pt"
    torch.save({"good": torch.ones(2), "bad.weight": unfit()[reason]}, path, **form)
    for read in (read_checkpoint, read_info):
        with pytest.raises(CheckpointError, match=f"plain mapping .*'bad.weight' is .*{reason}"):
            read(path)


def test_attributes_of_tensors_shadow_nothing(tmp_path: Path) -> None:
    path, value = tmp_path / "x.pt", torch.nn.Parameter(torch.arange(4.0))
    value.__dict__.update(to=1, data_ptr=2, nbytes=3)
    torch.save({"a": value}, path)
    (found,) = read_checkpoint(path).tensors.values()
    assert type(found) is torch.Tensor and not found.__dict__
    assert found.equal(torch.arange(4.0)) and found.to(torch.float64).nbytes == 32


def test_tensors_that_share_values_have_a_limit(tmp_path: Path, monkeypatch: Any) -> None:
    path, value = tmp_path / "x.pt", torch.ones(10_000)
    torch.save({str(i): value for i in range(3)}, path)
    assert len(read_checkpoint(path).tensors) == 3  # such as tied weights
    monkeypatch.setattr("ldm.checkpoints.pickles.SHARED_BYTES", 0)
    torch.save({str(i): value for i in range(100)}, path)
    with pytest.raises(CheckpointError, match="as they share their values"):
        read_checkpoint(path)


def test_records_of_other_programs_are_passed_over_once(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(worst.global_names(14 * 600))
    start = time.process_time()
    assert read_pickle(path) == {}
    assert time.process_time() - start < 0.5  # 12 s by PyTorch's reader, which begins anew for each


def test_weights_alone_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(worst.opcodes(b"csomebody\nClass\n)R0")(200))
    with pytest.raises(CheckpointError, match=r"would run somebody\.Class"):
        read_pickle(path)
    with weights_alone():
        assert read_pickle(path) == {}
    assert read_contents(path, weights_alone=True).places == {}


def test_a_tensor_of_a_level_that_no_unet_has(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", dict(tiny.parts()["unet"])
    tensors["up_blocks.99.resnets.0.conv1.weight"] = torch.ones(8, 8, 3, 3)
    save_file(tensors, path)
    read_info(path)
    with pytest.raises(CheckpointError, match="is a U-Net, not a whole model"):
        read_single_file(path)


def test_values_are_checked_on_request(tmp_path: Path) -> None:
    path, value = tmp_path / "x.pt", torch.ones(100)
    torch.save({"state_dict": {"a.weight": value, "b": torch.arange(3)}}, path)
    assert check_values(path) == "finite, in all of 1 tensors"
    assert check_values(tmp_path) == "finite, in all of 1 tensors"
    value[77] = torch.nan
    torch.save({"state_dict": {"a.weight": value}}, path)
    with pytest.raises(CheckpointError, match=r"state_dict\.a\.weight holds NaN or infinity"):
        check_values(path)
