"""Our own interface: its body from the request's fields, jobs, pictures, names, bad input."""

import base64
import dataclasses
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from ldm.images.files import read_settings
from ldm.request import LargeRequest
from ldm.server.schema import INTERNAL, request_fields

FAST = {"num_inference_steps": 2, "seed": 7}
JSON = {"content-type": "application/json"}


def base64_of(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


PICTURE = base64_of(Image.radial_gradient("L").resize((64, 64)))


def drawn(client, **body):
    """Draw through a job; its description."""
    answer = client.post("/api/jobs", json=FAST | body)
    assert answer.status_code == 202, answer.text
    text = client.get(f"/api/jobs/{answer.json()['id']}/events").text
    return json.loads(text.rpartition("data: ")[2])


def refused(client, status: int, words: str, argument: str | None = None, **body) -> None:
    answer = client.post("/api/jobs", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and words in error["message"], answer.text
    assert argument is None or error["argument"] == argument


def test_every_argument_is_there_with_its_range_and_words(client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["DrawingBody"]["properties"]
    forms = {f.name for f in dataclasses.fields(LargeRequest) if f.name.endswith("embeds")}
    left_out = {f.name for f in dataclasses.fields(LargeRequest)} - set(fields)
    assert left_out == INTERNAL | forms | {"generator", "latents"}
    assert schemas["DrawingBody"]["additionalProperties"] is False
    assert fields["strength"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert fields["tiling"]["anyOf"][0] == {"type": "boolean"}
    assert "seed" in fields["variation_strength"]["description"]
    for name in request_fields():
        assert fields[name]["description"] and "--" not in fields[name]["description"], name


def test_every_route_names_its_answers_and_errors(client) -> None:
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            if not path.startswith(("/api/", "/v1/")):
                continue
            assert {"401", "403", "429"} <= set(route["responses"]), (method, path)
            for status, answer in route["responses"].items():
                schemas = [content["schema"] for content in answer["content"].values()]
                assert schemas and all(schemas), (method, path, status)


def test_job_is_listed_described_and_read_again(client) -> None:
    job = drawn(client, prompt="a red car", strength=0.5, image=PICTURE)
    assert job["state"] == "done"
    assert client.get("/api/jobs").json()["jobs"][0]["id"] == job["id"]
    assert client.get(f"/api/jobs/{job['id']}").json()["pictures"] == job["pictures"]
    other = {"x-client-id": "another page"}
    assert client.get("/api/jobs", headers=other).json() == {"jobs": []}
    (picture,) = job["pictures"]
    assert (picture["seed"], picture["width"], picture["height"]) == (7, 64, 64)
    settings = client.get(f"/api/pictures/{picture['id']}").json()
    assert settings["settings"]["arguments"]["strength"] == 0.5
    assert "Steps: 2" in settings["parameters"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_picture_s_file_draws_it_again(client, kind, tmp_path) -> None:
    body = {"prompt": "a red car", "guidance_scale": 3.5, "sampler": "Euler", "clip_skip": 1}
    (picture,) = drawn(client, **body)["pictures"]
    answer = client.get(f"/api/pictures/{picture['id']}.{kind}?quality=100")
    assert answer.headers["content-type"] == f"image/{kind}"
    (tmp_path / f"picture.{kind}").write_bytes(answer.content)
    assert read_settings(tmp_path / f"picture.{kind}")["arguments"]["seed"] == 7
    data = base64.b64encode(answer.content).decode()
    read = client.post("/api/read", json={"image": data}).json()
    assert "error" not in read, read
    assert read["model"] == "built-in" and not read["missing"] and not read["notes"]
    assert read["arguments"]["guidance_scale"] == 3.5 and read["arguments"]["clip_skip"] == 1
    (again,) = drawn(client, **read["arguments"])["pictures"]
    url, other = (f"/api/pictures/{one['id']}.png" for one in (picture, again))
    first, second = (Image.open(io.BytesIO(client.get(one).content)) for one in (url, other))
    assert first.tobytes() == second.tobytes()


def test_reads_what_other_programs_write(client) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters",
        "a cat\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7, Seed: 3, Size: 512x768, Model: somebody_v3, Hires upscale: 2",
    )
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=info)
    data = base64.b64encode(content.getvalue()).decode()
    read = client.post("/api/read", json={"image": data}).json()
    assert read["arguments"] == {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "seed": 3,
        "width": 512,
        "height": 768,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "hires": True,
        "hires_scale": 2.0,
    }
    assert (read["model"], read["written_model"]) == (None, "somebody_v3") and read["notes"]
    answer = client.post("/api/read", json={"image": PICTURE})
    assert answer.status_code == 400 and "how it was made" in answer.json()["error"]["message"]


def test_control_picture_is_preprocessed(client) -> None:
    def draw(control, **more):
        body = {"prompt": "a house", "width": 64, "height": 64, "control_image": control} | more
        (picture,) = drawn(client, **body)["pictures"]
        return client.get(picture["url"]).content

    edges = {"preprocessor": "scribble", "image": PICTURE}
    plain = draw(PICTURE)
    assert draw(edges) != plain and draw([edges]) == draw(edges)
    control = {"preprocessor": "cany", "image": PICTURE}
    refused(client, 400, "did you mean 'canny'", "preprocessor", control_image=control)
    control = {"preprocessor": "canny,low=x", "image": PICTURE}
    refused(client, 400, "low is 'x'", control_image=control)


def test_interrupt_and_cancel(client) -> None:
    body = {"prompt": "a house", "num_inference_steps": 150}
    job = client.post("/api/jobs", json=body).json()
    events = f"/api/jobs/{job['id']}/events"
    assert client.post(f"/api/jobs/{job['id']}/interrupt").status_code == 200
    last = json.loads(client.get(events).text.rpartition("data: ")[2])
    assert last["state"] == "done" and len(last["pictures"]) == 1 and last["step"] < 150
    job = client.post("/api/jobs", json=body).json()
    assert client.delete(f"/api/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.delete("/api/jobs/nobody").status_code == 404


def test_lists_and_switching(client) -> None:
    models = client.get("/api/models").json()
    assert models == client.post("/api/refresh").json() and models["current"] == "built-in"
    assert client.post("/api/models/current", json={"name": "Built-In"}).json() == models
    answer = client.post("/api/models/current", json={"name": "built-inn"})
    assert answer.status_code == 404 and "did you mean" in answer.text
    samplers = client.get("/api/samplers").json()["samplers"]
    assert {"name": "dpmpp_2m", "label": "DPM++ 2M"} in samplers
    names = [row["name"] for row in client.get("/api/schedules").json()["schedules"]]
    assert "karras" in names
    found = {row["name"]: row for row in client.get("/api/preprocessors").json()["preprocessors"]}
    low = {"name": "low", "type": "number", "interval": "[0, 2040]", "default": 100}
    assert low in found["canny"]["parameters"] and found["canny"]["about"]


def test_a_model_is_switched_in_the_worker_s_turn(tmp_path, limited) -> None:
    from ldm.server.settings import Settings

    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with limited(Settings(model_dir=tmp_path)) as client:
        answer = client.post("/api/models/current", json={"name": "broken"})
        assert answer.status_code == 422 and "broken" in answer.json()["error"]["message"]
        assert client.get("/api/models").json()["current"] == "built-in"
        assert drawn(client, prompt="a cat")["state"] == "done"


def test_documentation_loads_nothing_from_elsewhere(client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and "POST /api/draw" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text
    assert client.get("/page/docs.css").status_code == 200
    assert client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("status", "words", "argument", "body"),
    [
        (422, "did you mean 'seed'", "sede", {"sede": 1}),
        (422, "expected a string or expected a list, not 5", "prompt", {"prompt": 5}),
        (422, "less than or equal to 1, not 2", "strength", {"strength": 2}),
        (422, "integer", "width", {"width": "8"}),
        (422, "at most 4 items", "outpaint", {"outpaint": [8] * 9}),
        (422, "'attention'", "reference_mode", {"reference_mode": "x"}),
        (400, "the JSON has the number", None, {"seed": 10**300}),
        (400, "too many", "width", {"width": 10**12, "height": 8}),
        (400, "too many", "width", {"image": base64_of(Image.new("1", (2049, 2048)))}),
        (400, "did you mean 'euler'", None, {"sampler": "eulr"}),
        (400, "schedule", None, {"schedule": "karas"}),
        (400, "0 texts for 1 prompts", "negative_prompt", {"negative_prompt": []}),
        (
            400,
            "2 texts for 3",
            "negative_prompt",
            {"prompt": ["a"] * 3, "negative_prompt": ["b"] * 2},
        ),
        (400, "1,000,000 characters", "prompt", {"prompt": "a" * 10**6}),
        (400, "no picture", "image", {"image": "aGVsbG8="}),
        (400, "an address", "image", {"image": "file:///etc/passwd"}),
        (404, "not known", "lora", {"loras": [{"name": "nobody"}]}),
        (404, "built-in", "model", {"model": "../../etc/passwd"}),
    ],
)
def test_bad_values_are_refused_in_words(client, status, words, argument, body) -> None:
    refused(client, status, words, argument, **body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"seed": ' + b"1" * 5000 + b"}",
        b'{"guidance_scale": NaN}',
        b'{"guidance_scale": -Infinity}',
        b'{"guidance_interval": [0, 1e999]}',
        b'{"\\ud800": 1}',
        b'{"sampler": "\\ud800"}',
        b'{"model": "\\ud800"}',
        b'{"image": "\\ud800"}',
        b'{"prompt": ["\\ud800"]}',
    ],
)
@pytest.mark.parametrize("path", ["/api/draw", "/api/read", "/v1/images/generations"])
def test_bodies_that_are_none(client, path, content) -> None:
    answer = client.post(path, content=content, headers=JSON)
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json()["error"]["message"]


def test_decompression_bombs_are_not_decoded(client) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    for side in (6000, 60_000):  # past our own limit, and past Pillow's
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        answer = client.post("/api/read", json={"image": base64.b64encode(data).decode()})
        assert answer.status_code in (400, 413), answer.text
        assert "pixels" in answer.json()["error"]["message"]
