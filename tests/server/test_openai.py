"""OpenAI's own client, unmodified, against the server: every image and model method."""

import asyncio
import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

openai = pytest.importorskip("openai")

from ldm.images.files import read_settings  # noqa: E402

FAST = {"num_inference_steps": 2, "seed": 7}
SLOW = {"num_inference_steps": 12, "seed": 7}  # enough steps for previews


@pytest.fixture(scope="module")
def ours(address):
    with openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0) as client:
        yield client


def picture(colour: str = "red", size: tuple[int, int] = (128, 128), mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, colour).save(content, "PNG")
    return content.getvalue()


def half_transparent(size: tuple[int, int] = (128, 128)) -> bytes:
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def opened(b64: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


def test_generate_is_the_picture_of_our_interface(ours, client) -> None:
    answer = ours.images.generate(prompt="a red car", n=2, extra_body=FAST)
    assert len(answer.data) == 2 and answer.created > 1.7e9
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    assert [row.seed for row in answer.data] == [7, 8]
    job = client.post("/api/draw", json={"prompt": "a red car", **FAST, "seed": 8}).text
    url = job[job.rindex('"url": "') :].split('"')[3]
    alone = Image.open(io.BytesIO(client.get(url).content))
    assert opened(answer.data[1].b64_json).tobytes() == alone.tobytes()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats_and_urls(ours, client, kind, tmp_path) -> None:
    options = {"prompt": "a tree", "size": "64x96", "output_format": kind, "extra_body": FAST}
    compression = {} if kind == "png" else {"output_compression": 30}
    inline = ours.images.generate(**options, **compression)
    image = opened(inline.data[0].b64_json)
    assert (image.format, image.size, inline.size) == (kind.upper(), (64, 96), "64x96")
    linked = ours.images.generate(**options, **compression, response_format="url")
    assert linked.data[0].b64_json is None and linked.data[0].url.startswith("http://127.0.0.1:")
    data = client.get("/api/" + linked.data[0].url.split("/api/")[1]).content
    assert data == base64.b64decode(inline.data[0].b64_json)
    ending = kind.replace("jpeg", "jpg")
    (tmp_path / f"picture.{ending}").write_bytes(data)
    assert read_settings(tmp_path / f"picture.{ending}")["arguments"]["seed"] == 7
    if compression:
        best = ours.images.generate(**options)
        assert len(best.data[0].b64_json) > 1.3 * len(inline.data[0].b64_json)


def test_our_own_arguments_change_the_picture(ours) -> None:
    def draw(**more):
        answer = ours.images.generate(prompt="a red car", extra_body=FAST | more)
        return opened(answer.data[0].b64_json).tobytes()

    plain = draw()
    assert draw() == plain
    for more in ({"guidance_scale": 1.0}, {"negative_prompt": "red"}, {"sampler": "Euler a"}):
        assert draw(**more) != plain, more


def test_edit_draws_where_the_mask_is_transparent(ours) -> None:
    answer = ours.images.edit(
        image=("car.png", picture("red")),
        mask=("mask.png", half_transparent()),
        prompt="a blue car",
        extra_body={"num_inference_steps": 4, "seed": 1, "mask_blur": 0},
    )
    pixels = np.asarray(opened(answer.data[0].b64_json))
    assert (pixels[:, 64:] == [255, 0, 0]).all()
    assert (pixels[:, :64] != [255, 0, 0]).any(-1).mean() > 0.5
    own = ours.images.edit(
        image=half_transparent(), prompt="a blue car", extra_body=FAST | {"mask_blur": 0}
    )
    pixels = np.asarray(opened(own.data[0].b64_json))
    assert not pixels[:, 64:].any() and pixels[:, :64].any()


def test_edit_takes_lists_in_forms(ours) -> None:
    answer = ours.images.edit(
        image=[picture("green", (64, 64))],
        prompt="a tree",
        size="64x64",
        n=2,
        extra_body={"seed": [3, 5], "num_inference_steps": 2, "strength": 0.5, "loras": []},
    )
    assert [row.seed for row in answer.data] == [3, 5] and answer.size == "64x64"
    answer = ours.images.edit(
        image=picture("green", (64, 64)),
        prompt="a tree",
        extra_body=FAST | {"outpaint": [64, 0, 0, 0]},
    )
    assert answer.size == "128x64"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_variations(ours) -> None:
    answer = ours.images.create_variation(image=picture(), n=2, size="256x256", extra_body=FAST)
    first, second = (opened(row.b64_json) for row in answer.data)
    assert first.size == (256, 256) and first.tobytes() != second.tobytes()
    without = FAST | {"ip_adapter_scale": 0}
    plain = ours.images.create_variation(image=picture(), size="256x256", extra_body=without)
    assert plain.data[0].b64_json != answer.data[0].b64_json


def test_streams_of_pictures(ours) -> None:
    with ours.images.generate(
        prompt="a red car", stream=True, partial_images=2, output_format="jpeg", extra_body=SLOW
    ) as stream:
        events = list(stream)
    assert [event.type for event in events[-1:]] == ["image_generation.completed"]
    partial = events[:-1]
    assert 1 <= len(partial) <= 2
    for number, event in enumerate(partial):
        assert type(event).__name__ == "ImageGenPartialImageEvent"
        assert event.partial_image_index == number and event.quality == "auto"
    for event in events:
        image = opened(event.b64_json)
        assert (image.format, event.size, image.size) == ("JPEG", "128x128", (128, 128))
    assert events[-1].usage.total_tokens == 0
    whole = ours.images.generate(prompt="a red car", output_format="jpeg", extra_body=SLOW)
    assert whole.data[0].b64_json == events[-1].b64_json

    events = list(
        ours.images.edit(image=picture(), prompt="a car", n=2, stream=True, extra_body=FAST)
    )
    assert [event.type for event in events] == ["image_edit.completed"] * 2


def test_a_client_that_leaves_a_stream_has_its_job_cancelled(ours, client) -> None:
    server = client.app.state.server
    stream = ours.images.generate(
        prompt="a house", stream=True, partial_images=3, extra_body={"num_inference_steps": 150}
    )
    next(iter(stream))
    stream.close()
    job = list(server.jobs.values())[-1]
    for _ in range(400):
        if job.status.ended:
            break
        threading.Event().wait(0.05)
    assert job.status.state == "cancelled"


def test_async_client(address) -> None:
    async def draw():
        async with openai.AsyncOpenAI(
            api_key="none", base_url=f"{address}/v1", max_retries=0
        ) as client:
            drawn, edited, varied = await asyncio.gather(
                client.images.generate(prompt="a cat", extra_body=FAST),
                client.images.edit(image=picture(), prompt="a cat", extra_body=FAST),
                client.images.create_variation(image=picture(), extra_body=FAST),
            )
            stream = await client.images.generate(prompt="a cat", stream=True, extra_body=FAST)
            events = [event async for event in stream]
            stream = await client.images.edit(
                image=picture(), prompt="a cat", stream=True, extra_body=FAST
            )
            events += [event async for event in stream]
            names = [model.id async for model in client.models.list()]
            return drawn, edited, varied, events, names, await client.models.retrieve("built-in")

    *answers, events, names, model = asyncio.run(draw())
    assert all(opened(answer.data[0].b64_json).size == (128, 128) for answer in answers)
    assert [event.type for event in events] == [
        "image_generation.completed",
        "image_edit.completed",
    ]
    assert events[0].b64_json == answers[0].data[0].b64_json
    assert names == ["built-in"] and model.id == "built-in"


def test_models(ours) -> None:
    (model,) = ours.models.list().data
    assert (model.id, model.object, model.owned_by) == ("built-in", "model", "ldm")
    assert ours.models.retrieve("Built-In").id == "built-in"
    with pytest.raises(openai.NotFoundError, match="did you mean 'built-in'") as info:
        ours.models.retrieve("built-inn")
    assert info.value.code == "model_not_found" and info.value.param == "model"
    with pytest.raises(openai.PermissionDeniedError, match="owner"):
        ours.models.delete("built-in")


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"quality": "hd"}, "quality", "num_inference_steps"),
        ({"style": "vivid"}, "style", "in the prompt"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"output_format": "gif"}, "output_format", "png, jpeg or webp"),
        ({"size": "12"}, "size", "512x512"),
        ({"size": "9999999999x8"}, "width", "too many"),
        ({"size": "12x12"}, None, "multiple"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "num_images_per_prompt", "65 pictures are too many"),
        ({"partial_images": 2}, "partial_images", "without stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"output_compression": 5}, "output_compression", "png"),
        ({"extra_body": {"n": 2, "num_images_per_prompt": 3}}, "n", "differ"),
        ({"size": "64x64", "extra_body": {"width": 64}}, "size", "width"),
        ({"extra_body": {"sede": 1}}, "sede", "did you mean 'seed'"),
        ({"extra_body": {"sampler": "eulr"}}, None, "did you mean 'euler'"),
        ({"extra_body": {"strength": 2}}, "strength", "less than or equal to 1, not 2"),
        ({"extra_body": {"svg": {}}}, "svg", "no vector graphics"),
        ({"extra_body": {"adapter_image": base64.b64encode(picture()).decode()}}, None, "T2I"),
        ({"extra_body": {"image": "aGVsbG8="}}, "image", "no picture"),
        ({"prompt": "a" * 10**6}, "prompt", "1,000,000 characters"),
    ],
)
def test_what_cannot_be_done_is_named(ours, options, param, words) -> None:
    with pytest.raises(openai.BadRequestError) as info:
        ours.images.generate(**{"prompt": "a car"} | options)
    error = info.value
    assert words in error.body["message"] and error.param == param
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"image": b"no picture"}, "image", "no picture"),
        ({"image": [picture(), picture()]}, "image", "reference_image"),
        ({"image": picture(), "mask": picture()}, "mask", "mask_image"),
        ({"image": picture(), "mask": half_transparent((64, 64))}, "mask", "64x64"),
        ({"image": picture(), "input_fidelity": "high"}, "input_fidelity", "strength"),
        ({"image": picture(), "extra_body": {"sede": 1}}, "sede", "seed"),
        ({"image": picture(), "extra_body": {"seed": "x"}}, "seed", "integer"),
    ],
)
def test_wrong_edits_are_named(ours, options, param, words) -> None:
    with pytest.raises(openai.BadRequestError) as info:
        ours.images.edit(**{"prompt": "a car"} | options)
    assert words in info.value.body["message"] and info.value.param == param


def test_a_failure_in_a_stream_is_an_error_of_the_client(ours) -> None:
    body = FAST | {"adapter_image": base64.b64encode(picture()).decode()}
    with pytest.raises(openai.APIError, match="T2I-Adapter"):
        list(ours.images.generate(prompt="a car", stream=True, extra_body=body))


def test_a_cancelled_job_is_not_drawn_again(ours, client) -> None:
    server = client.app.state.server
    before = set(server.jobs)
    found = []

    def cancel():
        while not (new := set(server.jobs) - before):
            threading.Event().wait(0.01)
        server.jobs[found.append(new) or next(iter(new))].cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    patient = ours.with_options(max_retries=2)
    with pytest.raises(openai.ConflictError, match="cancelled"):
        patient.images.generate(prompt="a house", extra_body={"num_inference_steps": 150})
    thread.join()
    assert len(set(server.jobs) - before) == 1


def test_forms_stay_in_memory_and_are_bounded(limited) -> None:
    with limited(body=100_000) as client:
        data = {"prompt": "a car", **{name: str(value) for name, value in FAST.items()}}
        big = {"image": ("a.png", b"\0" * 200_000)}
        answer = client.post("/v1/images/edits", data=data, files=big)
        assert answer.status_code == 413 and "100,000 bytes" in answer.json()["error"]["message"]
        many = [("image[]", ("a.png", picture("red", (8, 8)))) for _ in range(30)]
        answer = client.post("/v1/images/edits", data=data, files=many)
        assert answer.status_code == 400 and "files" in answer.json()["error"]["message"]
        answer = client.post("/v1/images/edits", json={"prompt": "a car"})
        assert answer.status_code == 415 and "multipart/form-data" in answer.text
        kind = {"content-type": "multipart/form-data"}
        answer = client.post("/v1/images/edits", content=b"x", headers=kind)
        assert answer.status_code == 400 and answer.json()["error"]["type"]
        answer = client.post(
            "/v1/images/edits", data=data | {"a[b][c][d]": "1"}, files={"image": picture()}
        )
        assert answer.status_code == 400 and "no name of a field" in answer.text
