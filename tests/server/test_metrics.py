"""Figures: they count, their labels are few, and the key protects them."""

import pytest

pytest.importorskip("prometheus_client")
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from ldm.server.metrics import Metrics, route_of
from ldm.server.settings import Settings


def figures(client: TestClient) -> dict[tuple[str, ...], float]:
    """Read the figures: (name, label values…) → value."""
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_count_what_is_drawn(client) -> None:
    before = figures(client)
    body = {"prompt": "a cat", "num_inference_steps": 2, "num_images_per_prompt": 3, "seed": 1}
    assert client.post("/api/draw", json=body).status_code == 200
    after = figures(client)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert grown("ldm_pictures_total") == 3 and grown("ldm_steps_total") == 6
    assert grown("ldm_unwanted_steps_total") == 0
    assert grown("ldm_jobs_total", "done") == 1 and grown("ldm_waiting_seconds_count") == 1
    assert grown("ldm_batch_pictures_sum") == 3 and grown("ldm_busy_seconds_total") > 0
    assert grown("ldm_requests_total", "POST", "/api/draw", "200") == 1
    assert grown("ldm_request_seconds_count", "/api/draw") == 1
    assert after[("ldm_queue_jobs",)] == 0 and after[("ldm_ready",)] == 1
    assert after[("process_resident_memory_bytes",)] > 1e7


def test_labels_are_few_whatever_is_asked(client) -> None:
    client.get("/api/jobs/a")  # these routes are known from now on
    client.get("/nothing")
    client.request("PURGE", "/x")
    before = len(figures(client))
    for i in range(30):
        client.get(f"/api/jobs/{i}")
        client.get(f"/nothing/{i}")
        client.request(f"METHOD{i}", f"/x{i}")
        client.get("/", headers={"Host": f"evil{i}.example"})
    assert len(figures(client)) <= before + 12  # of the refused host: one route's
    keys = figures(client)
    assert ("ldm_requests_total", "GET", "/api/jobs/{job_id}", "404") in keys


def test_route_of_what_no_route_is() -> None:
    assert route_of({"path": "/page/js/a.js"}) == "/page"
    assert route_of({"path": "/anything"}) == "other"


def test_every_server_has_its_own_figures() -> None:
    first, second = Metrics(), Metrics()
    first.answered({"path": "/x", "method": "GET"}, 200, 0.1)
    assert b'status="200"' in first.text()[0] and b'status="200"' not in second.text()[0]


def test_figures_need_the_key(limited) -> None:
    with limited(Settings(api_key="correct horse")) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        answer = client.get("/metrics", headers={"X-API-Key": "correct horse"})
        assert answer.status_code == 200 and "version=" in answer.headers["content-type"]
