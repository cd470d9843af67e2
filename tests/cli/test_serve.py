"""`ldm serve`: its options, defaults of the user's own, and what a careless user gets wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from ldm.cli import configuration, serve
from ldm.cli.serve import bind, check_writable, read_settings
from ldm.cli.serve_options import parse
from ldm.errors import ArgumentError, LDMError
from ldm.server.settings import Settings
from tests.helpers.servers import ROOT, ServerProcess

KEY = "correct horse"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Read the settings of a command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *argv: read_settings(parse(argv, "ldm serve"))


def test_defaults_are_safe(settings) -> None:
    found = settings()
    assert found == Settings()
    assert found.host == "127.0.0.1" and not found.allow_origins and not found.allow_hosts


def test_limits(settings) -> None:
    argv = ["--max-pixels", "100", "--max-steps", "5", "--max-pictures", "2", "--max-batch", "3"]
    limits = settings(*argv, "--max-waiting", "7", "--rate", "0.5", "--grace", "1").limits
    assert (limits.pixels, limits.steps, limits.pictures) == (100, 5, 2)
    assert (limits.batch, limits.waiting, limits.rate, limits.burst) == (3, 7, 0.5, 2.5)
    assert settings("--max-pixels", str(8192**2)).limits.side == 8192


def test_how_models_compute(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of ``ldm generate``, which defaults for all commands may set, too."""
    assert settings("--offload").ways == {"offload": True}
    assert settings("--sequential-offload", "--no-int8").ways == {"offload": "sequential"}
    assert settings("--engine", "torch").ways == {}
    wanted = {"int8_weights": True, "engine": "openvino:GPU"}
    assert settings("--int8-weights", "--engine", "openvino:GPU").ways == wanted
    Path(configuration.NAME).write_text("int8 = true\n[serve]\nfp8 = true\n")
    assert settings().ways == {"int8": True, "fp8": True}
    assert settings("--no-int8").ways == {"fp8": True}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--host", "0.0.0.0"], "every machine of the network draw without a key"),
        (["--host", "::"], "set LDM_API_KEY .* or add --insecure"),
        (["--allow-origin", "*"], "every site draw without a key"),
        (["--allow-host", "*"], "rebound names"),
        (["--api-key", "short"], "has 5 characters; give at least 8"),
        (["--api-key", "pässword"], "ASCII"),
        (["--port", "70000"], r"--port is 70000; it must be in \[0, 65535\]"),
        (["--max-steps", "0"], "--max-steps is 0; it must be at least 1"),
        (["--rate", "nan"], "--rate is nan"),
        (["--grace", "-1"], "--grace is -1"),
        (["--output-dir", "nowhere"], "--output-dir is 'nowhere', which is no folder"),
        (["--lora-dir", "nowhere"], "--lora-dir is 'nowhere', which is no folder"),
    ],
)
def test_wrong_options(settings, argv, words) -> None:
    with pytest.raises(ArgumentError, match=words):
        settings(*argv)


def test_network_needs_a_key_or_a_word(settings, tmp_path) -> None:
    assert settings("--host", "0.0.0.0", "--api-key", KEY).api_key == KEY
    assert settings("--host", "0.0.0.0", "--insecure").api_key is None
    (tmp_path / "key").write_text(f"{KEY}\n# mine\n")
    assert settings("--host", "0.0.0.0", "--api-key-file", "key").api_key == KEY


def test_defaults_of_the_user_s_own(settings, tmp_path, monkeypatch) -> None:
    (tmp_path / "loras").mkdir()
    Path("ldm.toml").write_text(
        'lora_dir = "loras"\nsteps = 3\n[serve]\nport = 8000\nmax-steps = 20\n'
        'allow_origin = ["https://a.example", "https://b.example"]\ninsecure = true\n'
    )
    found = settings("--max-steps", "30")
    assert found.port == 8000 and found.limits.steps == 30 and found.lora_dir == Path("loras")
    assert found.allow_origins == ("https://a.example", "https://b.example")
    monkeypatch.setenv("LDM_SERVE_PORT", "8001")
    monkeypatch.setenv("LDM_API_KEY", KEY)
    found = settings()
    assert found.port == 8001 and found.api_key == KEY
    assert set(configuration.read_settings()) == {"lora_dir", "num_inference_steps"}  # generate's


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n[serve]\nprot = 3", "ldm.toml:3: prot is no setting of ldm serve; did you mean 'port'"),
        ('[serve]\nport = "x"', "ldm.toml:2: port: invalid int value: 'x'"),
        ("[serve]\ninsecure = 3", "ldm.toml:2: insecure is 3; expected true or false"),
        ("[serve]\nport = [1]", r"ldm.toml:2: port is \[1\]; expected a text or a number"),
        ("serve = 3", "ldm.toml:1: serve is no setting"),
        ("[serve]\nversion = true", "version is no setting of ldm serve"),
    ],
)
def test_defaults_that_are_wrong(settings, text, words) -> None:
    Path("ldm.toml").write_text(text)
    with pytest.raises(ArgumentError, match=words):
        settings()


def test_port_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        words = rf"--port {port} at 127.0.0.1 .*in use.* another --port, such as {port + 1}"
        with pytest.raises(LDMError, match=words):
            bind("127.0.0.1", port)
    with pytest.raises(ArgumentError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        bind("192.0.2.1", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="folders of Windows have no such bits")
def test_folder_that_cannot_be_written(tmp_path) -> None:
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())  # nothing is left of the trial
    with pytest.raises(LDMError, match=r"--output-dir .* cannot be written"):
        check_writable(Path("/proc"))


def test_errors_are_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve.main(["--host", "0.0.0.0"]) == 2
    assert serve.main(["--model", "nowhere.safetensors", "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and "nowhere.safetensors" in err
    assert err.count("\nerror") + err.startswith("error") == 2


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom ldm.cli.serve import main\ntry:\n    main(['--help'])\n"
        "finally:\n    assert not {'torch', 'fastapi'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0 and "who may use it" in found.stdout, found.stderr


def test_the_command_serves_with_a_key(tmp_path) -> None:
    import httpx

    with ServerProcess("--api-key", KEY, "--output-dir", str(tmp_path)) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        body = {"prompt": "../../a", "num_inference_steps": 1, "seed": 3}
        assert httpx.post(f"{server.url}/api/draw", json=body).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{server.url}/api/draw", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert [path.name for path in tmp_path.iterdir()] == ["a-3.png"]
        (tmp_path / "a-3.png").unlink()
        tmp_path.rmdir()  # the folder is gone
        answer = httpx.post(f"{server.url}/api/draw", json=body, headers=headers, timeout=60)
        assert '"state": "done"' in answer.text and "could not be written" in answer.text
        name, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((name, int(port))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000)
            assert b"400" in raw.recv(1000)[:20]  # a header that is too long
