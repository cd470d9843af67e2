"""The core: jobs, turns, batches, cancelling; and that pictures are those of `ldm generate`."""

import asyncio
import base64
import io
import json
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ldm.cli.main import main
from ldm.errors import CheckpointError
from ldm.images.files import read_settings
from ldm.request import LargeRequest
from ldm.server.drawing import Drawing, make_drawing
from ldm.server.errors import BusyError, ServerError, UnknownNameError
from ldm.server.jobs import Job
from ldm.server.library import Library
from ldm.server.queue import FairQueue
from ldm.server.settings import Limits, Settings
from ldm.server.state import Server

PICTURE = Image.new("RGB", (8, 8))


def drawing(prompt="a cat", seed=1, **arguments) -> Drawing:
    return Drawing(request=LargeRequest(prompt, seed=seed, **arguments), model="built-in")


def events(answer) -> list[tuple[str, dict]]:
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_picture_equals_the_command_s(client, tmp_path) -> None:
    body = {"prompt": "a red car", "seed": 7, "num_inference_steps": 3}
    answer = client.post("/api/draw", json=body)
    (name, last), *_ = reversed(events(answer))
    assert name == "end" and last["state"] == "done" and last["step"] == last["steps"] == 3
    data = client.get(last["pictures"][0]["url"]).content
    command = ["generate", "a red car", "--seed", "7", "--steps", "3", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "car.png")]) == 0
    (tmp_path / "served.png").write_bytes(data)
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("served", "car"))
    assert (ours == theirs).all()
    mine, its = (read_settings(tmp_path / f"{n}.png") for n in ("served", "car"))
    assert mine["arguments"] == its["arguments"]


def test_few_steps_are_the_command_s_and_leave_no_trace(client, tmp_path) -> None:
    def draw(**more) -> np.ndarray:
        body = {"prompt": "a red car", "seed": 7} | more
        (_, last), *_ = reversed(events(client.post("/api/draw", json=body)))
        (tmp_path / "served.png").write_bytes(client.get(last["pictures"][0]["url"]).content)
        return np.asarray(Image.open(tmp_path / "served.png"))

    before = draw(num_inference_steps=2)
    few = draw(few_steps=True)
    mine = read_settings(tmp_path / "served.png")
    command = ["generate", "a red car", "--seed", "7", "--few-steps", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "car.png")]) == 0
    assert (few == np.asarray(Image.open(tmp_path / "car.png"))).all()
    assert mine["arguments"] == read_settings(tmp_path / "car.png")["arguments"]
    assert client.get("/page/choices.json").json()["defaults"]["num_inference_steps"] == 20
    assert (draw(num_inference_steps=2) == before).all()


def test_jobs_of_several_clients_are_one_batch_and_the_same_pictures(client) -> None:
    server = client.app.state.server
    alone = []
    for seed in range(3):
        job = server.submit(drawing("a dog", seed, num_inference_steps=3))
        asyncio.run(job.finished())
        alone += job.status.pictures
    batches = []
    draw = server.worker.draw
    server.worker.draw = lambda units: (batches.append(len(units)), draw(units))[1]
    try:
        busy = server.submit(drawing("a house", num_inference_steps=12))  # while these gather
        jobs = [
            server.submit(drawing("a dog", seed, num_inference_steps=3), f"client {seed}")
            for seed in range(3)
        ]
        for job in [busy, *jobs]:
            asyncio.run(job.finished())
    finally:
        server.worker.draw = draw
    assert 3 in batches
    for job, picture in zip(jobs, alone, strict=True):
        assert job.status.pictures[0].tobytes() == picture.tobytes()
        assert job.status.pictures[0].info["ldm"] == picture.info["ldm"]


def test_clients_take_turns() -> None:
    queue = FairQueue(Limits())
    greedy = [Job(drawing(seed=i, num_images_per_prompt=2), "greedy") for i in range(3)]
    for job in greedy:
        queue.add(job)
    late = Job(drawing("a dog", steering := 5, guidance_scale=2.0), "late")
    queue.add(late)
    assert steering and late.status.place == 1
    order = []
    while len(queue):
        order += [unit.job.client for unit in queue.take(lambda unit: 1)]
    assert order[:3] == ["greedy", "late", "greedy"] and len(order) == 7


def test_cancelled_job_ends_at_once_and_is_not_drawn(client) -> None:
    server = client.app.state.server
    busy = server.submit(drawing("a house", num_inference_steps=20))
    waiting = server.submit(drawing("a horse", guidance_scale=3.0, num_inference_steps=20))
    waiting.cancel()
    busy.cancel()
    drawn = server.worker.drawn
    after = server.submit(drawing("a cow", num_inference_steps=1))
    asyncio.run(after.finished())
    assert (waiting.status.state, busy.status.state) == ("cancelled", "cancelled")
    assert server.worker.drawn == drawn + 1 and not waiting.status.pictures


def test_interrupted_job_keeps_the_picture_as_it_is(client) -> None:
    server = client.app.state.server
    job = server.submit(drawing("a house", num_inference_steps=150))

    async def interrupt():
        async for status in job.watch(previews=True):
            if status.preview is not None:
                job.interrupt()
        return status

    status = asyncio.run(interrupt())
    assert status.state == "done" and len(status.pictures) == 1 and status.step < 150


def test_a_wrong_job_fails_alone(client) -> None:
    server = client.app.state.server
    busy = server.submit(drawing("a house", num_inference_steps=10))
    right = server.submit(drawing(seed=1, num_inference_steps=2))
    wrong = server.submit(drawing(seed=2, num_inference_steps=2, adapter_image=PICTURE))
    asyncio.run(right.finished())
    with pytest.raises(ValueError, match="T2I-Adapter"):
        asyncio.run(wrong.finished())
    asyncio.run(busy.finished())


def test_full_queue_is_refused() -> None:
    queue = FairQueue(Limits(waiting=2, waiting_each=1))
    queue.add(Job(drawing(), "a"))
    with pytest.raises(BusyError, match="1 your jobs are waiting"):
        queue.add(Job(drawing(), "a"))
    queue.add(Job(drawing(), "b"))
    with pytest.raises(BusyError, match="jobs are waiting already"):
        queue.add(Job(drawing(), "c"))
    queue.close()
    with pytest.raises(BusyError, match="stopping"):
        queue.add(Job(drawing(), "d"))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ({"width": 10**9, "height": 8}, {}, "1000000000x8 pixels are too many"),
        ({"num_inference_steps": 10**6}, {}, "num_inference_steps is 1000000"),
        ({"num_images_per_prompt": 65}, {}, "65 pictures are too many"),
        ({"prompt": "a" * 10**6}, {}, "prompt has 1,000,000 characters"),
        ({"image": "/etc/passwd"}, {}, "image is a path; send the picture itself"),
        ({"control_image": ["/etc/passwd"]}, {}, "control_image is a path"),
        ({"nonsense": 1}, {}, "nonsense"),
        ({"prompt": "a <lora:nobody:1> cat"}, {}, "lora 'nobody' is not known"),
        ({}, {"model": "built-inn"}, "model 'built-inn' is not known; did you mean 'built-in'"),
        ({"guidance_scale": float("nan")}, {}, "guidance_scale is nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(arguments, options, words) -> None:
    make = partial(make_drawing, Library(Settings()), Limits())
    with pytest.raises((ServerError, ValueError, UnknownNameError), match=words):
        make(arguments, **options)


def test_upload_is_decoded_after_its_size_is_known(limited) -> None:
    content = io.BytesIO()
    Image.new("1", (3000, 3000)).save(content, "PNG")
    body = {"prompt": "x", "image": base64.b64encode(content.getvalue()).decode()}
    with limited(upload_pixels=1000 * 1000) as client:
        answer = client.post("/api/draw", json=body)
        assert answer.status_code == 413 and "3000x3000" in answer.json()["error"]["message"]
        for wrong in ("http://example.com/a.png", "!!!", "aGVsbG8=", "/etc/passwd"):
            answer = client.post("/api/draw", json={"prompt": "x", "image": wrong})
            assert answer.status_code == 400, wrong


def test_server_stops_and_reports_what_was_under_way(limited) -> None:
    with limited() as client:
        server = client.app.state.server
        job = server.submit(drawing("a house", num_inference_steps=150))
        queued = server.submit(drawing("a horse", guidance_scale=3.0))
        while job.status.state == "queued":
            threading.Event().wait(0.01)
    assert {job.status.state, queued.status.state} == {"cancelled"}


def test_jobs_with_large_uploads_are_forgotten_first(limited) -> None:
    """Their pictures count to what is kept, as those that were drawn do."""
    upload = Image.new("RGB", (512, 512))
    with limited(kept_bytes=3 * 512 * 512 + 100_000) as client:
        server = client.app.state.server
        jobs = []
        for seed in range(3):
            job = server.submit(drawing(image=upload, strength=0.0, width=64, height=64, seed=seed))
            asyncio.run(job.finished())
            jobs.append(job.id)
        server.submit(drawing())
        assert jobs[0] not in server.jobs and jobs[2] in server.jobs


def test_the_first_model_is_loaded_in_a_thread_that_ends(monkeypatch) -> None:
    """Its OpenMP threads beside the worker's would have all of them sleep."""
    server = Server(Settings())
    threads: list[threading.Thread] = []
    monkeypatch.setattr(server.model, "load", lambda _: threads.append(threading.current_thread()))
    server.load_first()
    assert threads[0] is not threading.main_thread() and not threads[0].is_alive()

    def broken(_: str) -> None:
        raise CheckpointError("it does not load")

    monkeypatch.setattr(server.model, "load", broken)
    with pytest.raises(CheckpointError, match="does not load"):
        server.load_first()
