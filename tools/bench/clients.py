"""Clients of a server, in a process of their own: ``python -m tools.bench.clients``.

Reads what they shall do as JSON from stdin, and writes as JSON when what happened. Each client is a
closed loop: it sends the next request when its last one has been answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 600.0  # seconds for one picture


async def draw(
    http: httpx.AsyncClient, client: str, seed: int, plan: dict[str, Any]
) -> dict[str, Any]:
    """Draw a picture and fetch its file; return when each of its events came, in seconds."""
    body = {**plan["body"], "prompt": f"{plan['body']['prompt']} {seed}", "seed": seed}
    address = f"/api/draw?previews={str(plan['previews']).lower()}"
    found: dict[str, Any] = {"client": client, "seed": seed, "began": time.monotonic()}
    found["previews"] = 0
    headers = {"x-client-id": client}
    async with http.stream("POST", address, json=body, headers=headers) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            status = json.loads(line.removeprefix("data: "))
            now = time.monotonic()
            if status["step"]:
                found.setdefault("first_step", now)
            if status.get("preview"):
                found["previews"] += 1
                found.setdefault("first_preview", now)
            if plan.get("leave") and status["step"]:  # the connection is closed on the way out
                return found
    if status["state"] != "done":
        raise RuntimeError(f"the job ended as {status['state']}: {status['error']}")
    picture = await http.get(status["pictures"][0]["url"], headers=headers)
    found["ended"] = time.monotonic()
    if plan.get("output"):
        (Path(plan["output"]) / f"{seed}.png").write_bytes(picture.content)
    return found


async def draw_all(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the loops of all clients; ``plan["loops"]`` says how many pictures each draws."""
    limits = httpx.Limits(max_connections=None)
    found: list[dict[str, Any]] = []
    async with httpx.AsyncClient(
        base_url=plan["url"], timeout=PATIENCE, limits=limits, trust_env=False
    ) as http:
        await http.get("/api/models")  # what a first request takes is over
        done = asyncio.Event()

        async def loop(client: str, first_seed: int, pictures: int | None) -> None:
            seed = first_seed
            while seed - first_seed < pictures if pictures else not done.is_set():
                found.append(await draw(http, client, seed, plan))
                seed += 1

        loops, greedy = [], []
        for number, (client, first_seed, pictures) in enumerate(plan["loops"]):
            task = asyncio.create_task(loop(client, first_seed, pictures), name=str(number))
            (loops if pictures else greedy).append(task)
        await asyncio.gather(*loops)
        done.set()
        await asyncio.gather(*greedy)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(draw_all(json.load(sys.stdin)))))
