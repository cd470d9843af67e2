"""How the server's models compute: as its settings say."""

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.server.app import create_app
from ldm.server.library import Library
from ldm.server.models import LoadedModel
from ldm.server.settings import Settings
from tests.server.conftest import ADDRESS
from tests.server.test_server import events


def test_the_engine_draws_and_is_recorded() -> None:
    pytest.importorskip("openvino")
    app = create_app(Settings(ways={"engine": "openvino"}))
    body = {"prompt": "a red car", "seed": 7, "num_inference_steps": 2}
    with TestClient(app, base_url=ADDRESS, client=("127.0.0.1", 5000)) as client:
        (_, last), *_ = reversed(events(client.post("/api/draw", json=body)))
        data = client.get(last["pictures"][0]["url"]).content
        pipe = app.state.server.model.pipe
        assert pipe.optimized.engine_name == "openvino"
    plain = Pipeline.from_pretrained(device="cpu").optimize(engine="openvino")
    want = plain("a red car", seed=7, num_inference_steps=2).images[0]
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(want)).all()
    assert "openvino" in str(Image.open(io.BytesIO(data)).info)


def test_int8_and_what_does_not_work() -> None:
    model = LoadedModel(Library(Settings(ways={"int8": True})))
    assert model.load("built-in").int8
    wrong = LoadedModel(Library(Settings(device="cpu", ways={"int8_weights": True})))
    with pytest.raises(ArgumentError, match="int8_weights is for weights on a GPU"):
        wrong.load("built-in")


def test_parts_are_loaded_into_the_cpu_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def load(*arguments: object, **ways: object) -> None:
        given.append(ways)
        raise ArgumentError("enough")

    monkeypatch.setattr(Pipeline, "from_pretrained", load)
    for ways in ({"offload": "sequential"}, {"int8_weights": True}, {"fp8": True}, {}):
        with pytest.raises(ArgumentError, match="enough"):
            LoadedModel(Library(Settings(device="cuda", ways=ways))).load("built-in")
    expected = [{"offload": "sequential"}, {"int8_weights": True}, {}, {}]
    assert given == [{"device": "cuda", "dtype": None, **ways} for ways in expected]
