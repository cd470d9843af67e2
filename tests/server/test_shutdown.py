"""The end of a server: by signals, of its worker, of its device, of clients."""

import asyncio
import json
import signal
import socket
import threading
import time

import httpx
import pytest

pytest.importorskip("fastapi")
from ldm.request import LargeRequest
from ldm.server.drawing import Drawing
from ldm.server.errors import BusyError
from tests.helpers.servers import ServerProcess


def drawing(prompt="a cat", seed=1, **arguments) -> Drawing:
    return Drawing(request=LargeRequest(prompt, seed=seed, **arguments), model="built-in")


def watch(url: str, body: dict, events: list, begun: threading.Event) -> threading.Thread:
    """Draw, and gather the events in another thread."""

    def read() -> None:
        with httpx.stream("POST", f"{url}/api/draw", json=body, timeout=120) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                    if events[-1]["state"] != "queued":
                        begun.set()
                elif line.startswith("event: end"):
                    events.append("end")

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_sigterm_finishes_what_is_drawn_and_ends_what_waits() -> None:
    with ServerProcess("--grace", "300") as server:
        drawn, waiting = [], []
        begun = threading.Event()
        body = {"prompt": "a house", "num_inference_steps": 60, "seed": 1}
        first = watch(server.url, body, drawn, begun)
        assert begun.wait(60)
        other = body | {"prompt": "a dog", "guidance_scale": 3.0}
        second = watch(server.url, other, waiting, threading.Event())
        while not waiting:
            time.sleep(0.02)
        server.signal(signal.SIGTERM)
        second.join(60)
        assert waiting[-2] == "end" and waiting[-1]["state"] == "cancelled"
        assert "stopping" in waiting[-1]["error"]
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 503 and "stopping" in health.json()["reason"]
        refused = httpx.post(f"{server.url}/api/jobs", json=body)
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"]
        first.join(60)
        assert drawn[-1]["state"] == "done" and len(drawn[-1]["pictures"]) == 1
        assert server.wait() == 0
        assert "Traceback" not in "".join(server.log)


def test_ctrl_c_and_the_time_of_grace() -> None:
    with ServerProcess("--grace", "0") as server:
        drawn: list = []
        begun = threading.Event()
        body = {"prompt": "a house", "num_inference_steps": 150, "num_images_per_prompt": 30}
        first = watch(server.url, body, drawn, begun)
        assert begun.wait(60)
        server.signal(signal.SIGINT)
        first.join(60)
        assert drawn[-2] == "end" and drawn[-1]["state"] == "cancelled"
        assert "before the picture was done" in drawn[-1]["error"]
        assert server.wait() == 130
        assert "Traceback" not in "".join(server.log)


def test_second_signal_ends_at_once() -> None:
    with ServerProcess("--grace", "300") as server:
        begun = threading.Event()
        body = {"prompt": "a house", "num_inference_steps": 150, "num_images_per_prompt": 30}

        def read() -> None:
            try:
                with httpx.stream("POST", f"{server.url}/api/draw", json=body) as answer:
                    for _ in answer.iter_lines():
                        begun.set()
            except httpx.HTTPError:
                begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(60)
        server.signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 143
        thread.join(20)


def test_slow_header_is_cut_off() -> None:
    """Ten seconds are the limit of the command; here it is a shorter one."""
    from ldm.server.serving import protocol_of
    from ldm.server.settings import Limits

    async def slow() -> float:
        import uvicorn

        async def app(scope, receive, send) -> None: ...

        config = uvicorn.Config(app, log_level="error", lifespan="off")
        config.load()
        state = uvicorn.Server(config).server_state
        protocol = protocol_of(Limits(header_seconds=0.2))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: protocol(config, state, {}), "127.0.0.1", 0, start_serving=True
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n")  # and nothing more
        began = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        server.close()
        return time.monotonic() - began

    assert asyncio.run(slow()) >= 0.1


def finish(*jobs) -> None:
    async def wait() -> None:
        for job in jobs:
            async for _ in job.watch():
                pass

    asyncio.run(asyncio.wait_for(wait(), 60))


def test_worker_that_dies_fails_all_jobs_in_words(limited, monkeypatch, caplog) -> None:
    with limited() as client:
        server = client.app.state.server
        assert client.get("/health").json() == {"status": "ok"}
        queued = threading.Event()
        monkeypatch.setattr(server.worker, "draw", lambda units: queued.wait(60) / 0)
        jobs = [server.submit(drawing(seed=i, guidance_scale=float(i + 2))) for i in range(3)]
        queued.set()
        finish(*jobs)
        assert {job.status.state for job in jobs} == {"failed"}
        assert "draws no more (ZeroDivisionError)" in str(jobs[2].status.error)
        server.worker.join(10)
        health = client.get("/health")
        assert health.status_code == 503 and "must be restarted" in health.json()["reason"]
        answer = client.post("/api/jobs", json={"prompt": "x"})
        assert answer.status_code == 503 and "restarted" in answer.json()["error"]["message"]
        assert "ldm_ready 0.0" in client.get("/metrics").text


def test_lost_device_ends_the_worker(limited, monkeypatch) -> None:
    """After a failed assertion on a GPU, every call of CUDA fails, until the process ends."""
    with limited() as client:
        server = client.app.state.server

        def lost(*_: object) -> None:
            raise BusyError("the device cuda:0 has failed: an illegal memory access")

        def broken(*_: object) -> None:
            raise RuntimeError("CUDA error: an illegal memory access")

        monkeypatch.setattr(server.worker, "draw_together", broken)
        job = server.submit(drawing())
        finish(job)  # the device still computes: only this job has failed
        assert job.status.state == "failed" and server.trouble() is None
        monkeypatch.setattr(server.model, "check_device", lost)
        job = server.submit(drawing())
        finish(job)
        assert "cuda:0 has failed" in str(job.status.error)
        server.worker.join(10)
        assert "cuda:0 has failed" in client.get("/health").json()["reason"]


def test_nothing_is_drawn_for_those_who_left() -> None:
    with ServerProcess() as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "a", "num_inference_steps": 150, "guidance_scale": 2.5})
        head = f"POST /api/draw HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(request)
            while b'"drawing"' not in leaving.recv(65536):
                pass
            queued = socket.create_connection((host, int(port)))
            queued.sendall(request.replace(b"2.5", b"3.5"))  # which is no batch with the other
            queued.recv(100)
            queued.close()
        figures: dict[str, float] = {}
        for _ in range(200):
            text = httpx.get(f"{server.url}/metrics").text
            rows = [row.rsplit(" ", 1) for row in text.splitlines() if row[:1] != "#"]
            figures = {name: float(value) for name, value in rows}
            if figures.get('ldm_jobs_total{state="cancelled"}') == 2:
                break
            time.sleep(0.05)
        assert figures['ldm_jobs_total{state="cancelled"}'] == 2
        time.sleep(0.3)
        assert figures["ldm_pictures_total"] == 0 and figures["ldm_unwanted_steps_total"] <= 1
        assert figures["ldm_steps_total"] < 150
