"""What ``import ldm`` offers, and what an interactive session shows."""

from __future__ import annotations

import inspect
import os
import pydoc
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ldm
from ldm.errors import ArgumentError
from ldm.interface import progress_bar
from ldm.pipeline import Pipeline

SHORT: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def test_names() -> None:
    assert {*ldm.__all__} == {*ldm.MODULE_OF, "__version__"}
    assert {*ldm.__all__} <= {*dir(ldm)}
    assert not {"TYPE_CHECKING", "import_module", "MODULE_OF"} & {*dir(ldm)}
    for name in ldm.__all__:
        assert getattr(ldm, name) is not None
    assert ldm.read_info.__name__ == "read_generation_info"
    assert all(name in ldm.__doc__ for name in ldm.__all__ if name != "__version__")
    text = pydoc.plain(pydoc.render_doc(ldm))
    assert "hires_fix" in text and "class Pipeline" in text


def test_import_is_light() -> None:
    code = "import ldm, sys; dir(ldm); print(*{'torch', 'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_repr(pipe: Pipeline) -> None:
    lines = repr(pipe).splitlines()
    count = sum(p.numel() for p in pipe.unet.parameters())
    assert (lines[0], lines[-1]) == ("Pipeline(", ")")
    assert f"  unet: UNet, {count / 1e6:.1f}M parameters" in lines
    assert "  draws: 64x64 pixels, ddim (normal), 50 steps, guidance 7.5" in lines
    assert "  on: cpu, float32" in lines
    assert pipe.origin.model in lines[1]


def test_repr_of_families(models: Any) -> None:
    assert "of Stable Diffusion's form, inpainting" in repr(models("sd_inpaint")[0])
    assert "text_encoder_2" in repr(models("sdxl")[0])


# The bar


def bars(pipe: Pipeline, capsys: pytest.CaptureFixture, **arguments: Any) -> str:
    pipe("a car", **SHORT, **arguments)
    return capsys.readouterr().err


def test_the_bar_is_for_somebody_who_looks(
    pipe: Pipeline, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bars(pipe, capsys) == ""
    assert "2/2" in bars(pipe, capsys, progress_bar=True)
    monkeypatch.setattr(progress_bar, "is_watched", lambda: True)
    assert "2/2" in bars(pipe, capsys)
    assert bars(pipe, capsys, progress_bar=False) == ""
    pipe.set_progress_bar_config(desc="car")
    assert "car: 100%" in bars(pipe, capsys)
    pipe.set_progress_bar_config(disable=True)
    assert bars(pipe, capsys) == ""
    pipe.set_progress_bar_config()
    with pytest.raises(ArgumentError, match="tqdm has no option 'dissable'"):
        pipe.set_progress_bar_config(dissable=True)
    with pytest.raises(ArgumentError, match="progress_bar is 'yes'; it must be true or false"):
        pipe("a car", progress_bar="yes", **SHORT)


def test_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress_bar.in_notebook()
    for shell in (None, SimpleNamespace(), SimpleNamespace(kernel=1)):
        fake: Any = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        want = hasattr(shell, "kernel")
        assert progress_bar.in_notebook() == progress_bar.is_watched() == want


def test_a_terminal(folder: Path) -> None:
    """In a pseudo-terminal, and with stderr in a file."""
    pty, termios, fcntl = map(pytest.importorskip, ("pty", "termios", "fcntl"))
    code = (
        "import sys; from ldm import Pipeline; "
        f"Pipeline.from_pretrained({str(folder)!r}, device='cpu')('a', num_inference_steps=2)"
    )
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    root = str(Path(inspect.getfile(ldm)).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], stderr=other, env=env, check=True)
    assert b"2/2" in os.read(main, 10_000)
    os.close(other)
    os.close(main)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stderr == b""
