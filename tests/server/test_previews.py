"""Previews: for those who watch, in a share of the time, and each sent once."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.pipeline import Progress
from ldm.request import LargeRequest
from ldm.server import batch as runs
from ldm.server.drawing import Drawing
from ldm.server.jobs import Job
from ldm.server.queue import Unit
from ldm.server.routes.common import job_events
from ldm.server.settings import Limits

SHARP, ROUGH = Image.new("RGB", (128, 128)), Image.new("RGB", (16, 16))
STEP, DECODING = 0.05, 0.04  # seconds


def job(number: int, count: int = 1) -> Job:
    request = LargeRequest("a cat", seed=number, num_images_per_prompt=count)
    return Job(Drawing(request=request, model="built-in"), f"client {number}")


@pytest.fixture
def drawn(monkeypatch):
    """Draw jobs without a model; return which previews each of them got, and what these took."""

    def draw(jobs: list[Job], steps: int, small: bool = True) -> tuple[dict[Job, list], float]:
        now, spent = [100.0], [0.0]

        def decoded(pipe: object, x0: torch.Tensor) -> list[Image.Image]:
            assert len(x0) == 1
            now[0] += DECODING
            spent[0] += DECODING
            return [SHARP.copy()]

        monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(runs, "decoded", decoded)
        monkeypatch.setattr(runs, "rough", lambda pipe, x0: ROUGH.copy())
        monkeypatch.setattr(runs, "is_small", lambda pipe, x0: small)
        units = [Unit(one, request) for one in jobs for request in one.drawing.singles()]
        batch = runs.Batch(units, SimpleNamespace(), Limits())
        x = torch.zeros(len(units), 8, 16, 16)
        seen: dict[Job, list] = {one: [] for one in jobs}
        for step in range(1, steps + 1):
            now[0] += STEP
            batch.step(Progress(step, steps + 1, x, x))
            for one in jobs:
                preview = one.status.preview
                if preview is not None and not any(preview is other for other in seen[one]):
                    seen[one].append(preview)
        return seen, spent[0] / (now[0] - 100.0)

    return draw


def watched(count: int) -> list[Job]:
    jobs = [job(number) for number in range(count)]
    for one in jobs:
        one.watchers = 1
    return jobs


def test_nobody_watches_and_nothing_is_decoded(drawn) -> None:
    seen, share = drawn([job(1)], 10)
    assert share == 0 and not any(seen.values())


def test_one_who_watches_gets_the_first_at_once_and_the_others_in_their_share(drawn) -> None:
    seen, share = drawn(jobs := watched(1), 40)
    assert share < 0.3 and len(seen[jobs[0]]) > 8
    assert all(image.size == SHARP.size for image in seen[jobs[0]])
    assert len(drawn(watched(1), 1)[0].popitem()[1]) == 1  # after the first step


def test_many_who_watch_share_little_of_the_time(drawn) -> None:
    seen, share = drawn(watched(8), 60)
    assert 0.03 < share < 0.1
    counts = [len(images) for images in seen.values()]
    assert min(counts) >= 1 and max(counts) - min(counts) <= 1
    assert all(image.size == SHARP.size for images in seen.values() for image in images[1:])


def test_large_pictures_have_rough_previews_alone(drawn) -> None:
    seen, share = drawn(watched(2), 10, small=False)
    assert share == 0
    assert all(image.size == ROUGH.size for images in seen.values() for image in images)


def test_each_preview_is_sent_once(client) -> None:
    server, one = client.app.state.server, job(1)

    async def events() -> list[dict]:
        found = []
        async for block in job_events(server, one, cancel=False):
            found.append(json.loads(block.decode().split("data: ")[1]))
            if len(found) == 1:
                one.update(state="drawing", step=1, preview=SHARP)
            elif len(found) < 4:
                one.update(step=len(found))
            else:
                one.cancel()
        return found

    found = asyncio.run(events())
    assert ["preview" in one for one in found] == [False, True, False, False, False]
    assert [one["step"] for one in found[:4]] == [0, 1, 2, 3]
    assert found[-1]["state"] == "cancelled"
