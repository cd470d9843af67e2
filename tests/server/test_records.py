"""Records: the two predictions, the steps and the words of a picture; bounded, pictures equal."""

import asyncio
import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.denoiser import Predictions
from ldm.request import LargeRequest
from ldm.server.drawing import Drawing
from ldm.server.errors import UnknownNameError
from ldm.server.recorder import Record, Records, Step
from ldm.techniques.predictions import observe_predictions

PROMPT = "a red car"
STEPS = 3


def drawing(prompt=PROMPT, record=True, **arguments) -> Drawing:
    arguments = {"seed": 1, "num_inference_steps": STEPS, **arguments}
    return Drawing(request=LargeRequest(prompt, **arguments), model="built-in", record=record)


def drawn(client, job_drawing):
    job = client.app.state.server.submit(job_drawing)
    asyncio.run(job.finished())
    return job


@pytest.fixture(scope="module")
def job(client):
    return drawn(client, drawing())


def picture(client, path, **query) -> Image.Image:
    answer = client.get(f"/api/records/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_recording_changes_no_picture(client, job) -> None:
    plain = drawn(client, drawing(record=False))
    assert plain.recorder is None
    assert plain.status.pictures[0].tobytes() == job.status.pictures[0].tobytes()


def test_steps_and_words_are_described(client, job) -> None:
    found = client.get(f"/api/records/{job.id}").json()
    assert [step["step"] for step in found["steps"]] == [1, 2, 3] and found["ended"]
    assert all(
        step["alpha"] ** 2 + step["sigma"] ** 2 == pytest.approx(1) for step in found["steps"]
    )
    assert [word["word"] for word in found["words"]] == ["a", "red", "car"]
    assert found["prediction_type"] == "v_prediction" and found["guidance_scale"] == 4.0


def test_guided_prediction_is_the_formula_s(client, job) -> None:
    found = client.get(f"/api/records/{job.id}/steps/2", params={"row": 3, "column": 5}).json()
    u, c, guided = (np.array(found[name]) for name in ("uncond", "cond", "guided"))
    assert found["scale"] == 4.0 and found["rest"] <= 1e-5
    assert np.abs(guided - (u + found["scale"] * (c - u))).max() <= 1e-5
    assert np.abs(c - u).max() > 1e-4  # the text does something


def test_predictions_are_those_of_the_network(client, job) -> None:
    """The recorded x under each text alone gives the recorded predictions."""
    server = client.app.state.server
    pipe, step = server.model.pipe, server.records.get(job.id).step(2)
    seen: list[Predictions] = []
    with observe_predictions(pipe.unet, seen.append):
        pipe(PROMPT, seed=1, num_inference_steps=STEPS)
    assert len(seen) == STEPS
    assert torch.equal(seen[1].cond[0], step.cond) and torch.equal(seen[1].uncond[0], step.uncond)
    x0 = pipe.scheduler.to_x0(step.guided, step.x, step.level)
    assert (x0 - step.x0).abs().max() <= 1e-5


def test_last_estimate_decoded_is_the_picture(client, job) -> None:
    last = picture(client, f"{job.id}/steps/{STEPS}/x0.png")
    ours, theirs = (np.asarray(each, int) for each in (last, job.status.pictures[0]))
    assert np.abs(ours - theirs).max() <= 1
    first = np.asarray(picture(client, f"{job.id}/steps/1/x0.png"), int)
    assert np.abs(first - theirs).max() > 20


def test_views_are_pictures_of_their_sizes(client, job) -> None:
    c, h, w = client.get(f"/api/records/{job.id}").json()["latents"]
    size = job.status.pictures[0].size
    for name in ("x0_uncond", "x0_cond", "x0_guided", "difference"):
        assert picture(client, f"{job.id}/steps/1/{name}.png").size == size
    assert picture(client, f"{job.id}/steps/1/x_rough.png").size == (w, h)
    assert picture(client, f"{job.id}/steps/1/x_channels.png").size == (c * w + c - 1, h)
    guided, x0 = (picture(client, f"{job.id}/steps/1/{n}.png") for n in ("x0_guided", "x0"))
    assert guided.tobytes() == x0.tobytes()
    overlay = picture(client, f"{job.id}/words/2.png")
    assert overlay.mode == "RGBA" and overlay.size == size


def test_pictures_of_several_jobs_in_one_batch_have_their_own(client) -> None:
    server = client.app.state.server
    busy = server.submit(drawing("a house", record=False, num_inference_steps=8))
    both = server.submit(drawing(num_images_per_prompt=2), "one")
    other = server.submit(drawing("a blue bird", seed=9), "another")
    for each in (busy, both, other):
        asyncio.run(each.finished())
    for each, number in ((both, 0), (both, 1), (other, 0)):
        last = picture(client, f"{each.id}/steps/{STEPS}/x0.png", picture=number)
        ours, theirs = (np.asarray(p, int) for p in (last, each.status.pictures[number]))
        assert np.abs(ours - theirs).max() <= 1
    words = client.get(f"/api/records/{other.id}").json()["words"]
    assert [word["word"] for word in words] == ["a", "blue", "bird"]


def test_steps_without_guidance_have_one_prediction(client) -> None:
    job = drawn(client, drawing(guidance_scale=1.0))
    found = client.get(f"/api/records/{job.id}/steps/1").json()
    assert found["uncond"] is None and found["rest"] is None and found["cond"] == found["guided"]
    answer = client.get(f"/api/records/{job.id}/steps/1/x0_uncond.png")
    assert answer.status_code == 404 and "one prediction only" in answer.text


def test_rescaled_guidance_shows_what_the_formula_leaves(client) -> None:
    job = drawn(client, drawing(guidance_rescale=0.7))
    assert client.get(f"/api/records/{job.id}/steps/1").json()["rest"] > 1e-3


def test_both_calls_of_a_step_of_second_order_are_one_step(client) -> None:
    job = drawn(client, drawing(sampler="heun"))
    steps = client.get(f"/api/records/{job.id}").json()["steps"]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert len({step["t"] for step in steps}) == 3


def test_two_passes_have_steps_of_both_sizes(client) -> None:
    request = LargeRequest(PROMPT, seed=1, num_inference_steps=2, hires_scale=2.0)
    job = drawn(client, Drawing(request=request, model="built-in", hires=True, record=True))
    found = client.get(f"/api/records/{job.id}").json()
    sizes = {picture(client, f"{job.id}/steps/{s['step']}/x0.png").size for s in found["steps"]}
    assert len(sizes) == 2 and len(found["words"]) == 3


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("nothing", 404, "draw it again with record true"),
        ("{job}?picture=7", 404, "no record of picture 7"),
        ("{job}/steps/99", 404, "step 99 is not kept; there are: 1, 2, 3"),
        ("{job}/steps/1?row=999", 400, "row 999 and column 0 are outside"),
        ("{job}/steps/1/nonsense.png", 404, "there are: x0"),
        ("{job}/words/99.png", 404, "the prompt has 3"),
    ],
)
def test_what_is_not_there_is_said_in_words(client, job, path, status, words) -> None:
    answer = client.get(f"/api/records/{path.format(job=job.id)}")
    assert answer.status_code == status and words in answer.json()["error"]["message"]


def step(number, side=8) -> Step:
    parts = [torch.zeros(4, side, side) for _ in range(5)]
    return Step(number, None, *parts)  # type: ignore[arg-type]


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    one = step(1).bytes
    assert one == 5 * 4 * 8 * 8 * 4
    records = Records(8 * one)
    for number in range(4):
        record = Record("", None, 1.0)  # type: ignore[arg-type]
        for i in range(1, 4):
            records.add_step((f"job {number}", 0), record, step(i))
        records.end((f"job {number}", 0), record, [])
    assert records.bytes <= 8 * one
    assert len(records.get("job 3").steps) == 3
    with pytest.raises(UnknownNameError, match="newer ones took its place"):
        records.get("job 0")


def test_long_runs_keep_every_second_step_and_the_last() -> None:
    record = Record("", None, 1.0)  # type: ignore[arg-type]
    for i in range(1, 22):
        record.add(step(i), 6 * step(1).bytes)
        assert len(record.steps) <= 6 and i in record.steps
    assert list(record.steps) == [4, 8, 12, 16, 20, 21]


def test_record_too_large_for_all_memory_is_not_kept() -> None:
    records = Records(100)
    records.add_step(("job", 0), Record("", None, 1.0), step(1))  # type: ignore[arg-type]
    assert records.bytes == 0


def test_prompts_whose_maps_do_not_fit_are_not_watched(limited) -> None:
    with limited(record_bytes=400_000) as client:
        job = drawn(client, drawing("a car " * 60, num_inference_steps=1))
        assert client.get(f"/api/records/{job.id}").json()["words"] == []


def test_too_many_views_are_refused(limited) -> None:
    with limited(views=0) as client:
        job = drawn(client, drawing(num_inference_steps=1))
        answer = client.get(f"/api/records/{job.id}")
        assert answer.status_code == 429 and "too many views" in answer.text


def test_record_of_another_model_is_gone_in_words(client, job) -> None:
    record = client.app.state.server.records.get(job.id)
    pipe, record.pipe = record.pipe, lambda: None
    try:
        answer = client.get(f"/api/records/{job.id}/steps/1/x0.png")
    finally:
        record.pipe = pipe
    assert answer.status_code == 410 and "'built-in', which drew this picture" in answer.text
