"""The queue: turns, places, batches of clients that come back, and what many jobs cost."""

import threading
import time
from collections import Counter

import pytest

from ldm.request import LargeRequest
from ldm.server.drawing import Drawing
from ldm.server.jobs import Job
from ldm.server.queue import FairQueue
from ldm.server.settings import Limits


def job(client: str, count: int = 1, scale: float = 4.0, **more) -> Job:
    request = LargeRequest(
        "a cat", seed=1, num_images_per_prompt=count, guidance_scale=scale, **more
    )
    return Job(Drawing(request=request, model="built-in"), client)


def drained(queue: FairQueue, room: int = 1) -> list[list[str]]:
    """The clients of each batch, until the queue is empty."""
    found = []
    while len(queue):
        found.append([unit.job.client for unit in queue.take(lambda unit: room)])
    return found


def filled(*jobs: Job, **limits) -> FairQueue:
    queue = FairQueue(Limits(**limits))
    for one in jobs:
        queue.add(one)
    return queue


def test_pictures_of_a_job_keep_their_order() -> None:
    queue = filled(job("a", 5))
    seeds = [u.request.seed for _ in range(3) for u in queue.take(lambda unit: 2)]
    assert seeds == [1, 2, 3, 4, 5]


def test_a_batch_takes_clients_in_turn() -> None:
    queue = filled(job("greedy", 20), *(job(f"c{i}", 2) for i in range(3)))
    assert drained(queue, 4)[:2] == [["greedy", "c0", "c1", "c2"], ["c0", "c1", "c2", "greedy"]]


def test_other_settings_wait_for_their_turn_and_not_longer() -> None:
    queue = filled(job("a", 3), job("b", 1, scale=2.0), job("c", 3), job("b", 1))
    # b's first picture is of another run; its second one fits, and is taken with what is drawn
    assert drained(queue, 4) == [["a", "c", "a", "b"], ["b"], ["c", "a", "c"]]


def test_pictures_that_share_a_style_are_one_unit() -> None:
    queue = filled(job("a", 4, style_aligned=True), job("a", 1))
    counts = [[u.count for u in queue.take(lambda unit: 8)] for _ in range(2)]
    assert counts == [[4], [1]]


@pytest.mark.parametrize("room", [1, 3, 8])
def test_equal_clients_get_equal_shares(room) -> None:
    queue = filled(*(job(f"c{i}", 6) for i in range(5)))
    got: Counter[str] = Counter()
    for batch in drained(queue, room):
        got.update(batch)
        assert max(got.values()) - min(got[f"c{i}"] for i in range(5)) <= 2
    assert set(got.values()) == {6}


def test_places_are_those_of_the_order_in_which_units_are_taken() -> None:
    jobs = [job("a", 3), job("a"), job("b", 2), job("c"), job("b", 4, style_aligned=True)]
    queue = filled(*jobs)
    queue._update_places()
    known = [one.status.place for one in jobs]
    before, places = 0, {}
    while len(queue):
        for unit in queue.take(lambda unit: 1):
            places.setdefault(unit.job, before)
            before += unit.count
    assert known == [places[one] for one in jobs] == [0, 10, 1, 2, 6]


def test_place_of_a_new_job_is_exact() -> None:
    jobs = [job("a", 3), job("a"), job("b", 2), job("c"), job("b", 4, style_aligned=True)]
    queue, places = FairQueue(Limits()), []
    for one in jobs:
        queue.add(one)
        known = one.status.place
        queue._places_next = 0.0
        queue._update_places()
        assert one.status.place == known
        places.append(known)
    assert places == [0, 3, 1, 2, 6]


def test_cancelled_jobs_take_no_room() -> None:
    first = job("a")
    queue = filled(first, waiting=1)
    first.cancel()
    queue.add(second := job("a"))
    assert [unit.job for unit in queue.take(lambda unit: 8)] == [second]


def test_clients_that_come_back_are_waited_for() -> None:
    queue = filled(*(job("greedy") for _ in range(20)), job("a"), job("b"))
    assert [u.job.client for u in queue.take(lambda unit: 3)] == ["greedy", "a", "b"]
    queue.gather({"greedy", "a", "b"}, 5.0)
    back = threading.Timer(0.05, lambda: (queue.add(job("a")), queue.add(job("b"))))
    back.start()
    began = time.monotonic()
    assert {u.job.client for u in queue.take(lambda unit: 3)} == {"greedy", "a", "b"}
    assert 0.04 < time.monotonic() - began < 4  # as soon as both are there


def test_clients_that_do_not_come_back_are_waited_for_shortly() -> None:
    queue = filled(job("a"), job("b"))
    queue.gather({"gone"}, 0.05)
    began = time.monotonic()
    assert len(queue.take(lambda unit: 8)) == 2
    assert 0.04 < time.monotonic() - began < 2
    queue.add(job("a"))
    began = time.monotonic()
    assert len(queue.take(lambda unit: 8)) == 1  # one pause for one batch
    assert time.monotonic() - began < 0.04


def test_a_full_queue_is_cheap() -> None:
    limits = Limits(waiting=512, waiting_each=512)
    queue = FairQueue(limits)
    jobs = [job(f"c{i % 64}", 64, scale=1 + i % 7) for i in range(512)]
    began = time.thread_time()
    for one in jobs:
        queue.add(one)
    for _ in range(20):
        assert len(queue.take(lambda unit: 8)) == 8
    # 0.15 s on a busy core; it was 17 s when each unit was looked at each time
    assert time.thread_time() - began < 2
