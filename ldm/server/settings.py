"""What a server serves, and the limits that no client gets past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORK_RATE = 20.0  # requests a second


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may ask for; more is refused before anything is decoded or drawn.

    Attributes:
        pixels: of one picture, after a second pass. side: its longest side.
        steps: of one run. pictures: of one job. prompt: characters of a text.
        body: bytes of a request. upload_pixels: of a picture in it.
        waiting: jobs in the queue, of all clients. waiting_each: of one client.
        seconds: that a job may wait for its turn.
        batch: pictures that one run draws at most; batch_pixels: of all of these together.
        preview_seconds: between two previews of a job. preview_share: of the time that a picture
            is drawn in, what its previews may take; preview_share_together: those of several jobs.
        gather_share, gather_seconds: of the time of a batch, and at most, that the next one waits
            for clients that have just got their pictures (see ``FairQueue.gather``).
        kept_bytes: of finished pictures in memory; the oldest are dropped first.
        rate: requests a second of one address, and ``burst`` at once; 0 limits none. None limits
            addresses other than this machine's to ``NETWORK_RATE``.
        connections: open at once. bodies: bytes of all requests that are being answered.
        header_seconds, write_seconds: in which a client sends a request's header, and reads on.
        body_seconds: in which a body begins to come at 64 KiB a second.
        json_depth, json_values: of a body.
        record_bytes: likewise, of the steps of pictures that were to be recorded.
        views: pictures of recorded steps that wait to be computed.
    """

    pixels: int = 2048 * 2048
    side: int = 4096
    steps: int = 150
    pictures: int = 64
    prompt: int = 20_000
    body: int = 64 * 1024 * 1024
    upload_pixels: int = 4096 * 4096
    waiting: int = 512
    waiting_each: int = 128
    seconds: float = 1800.0
    batch: int = 8
    batch_pixels: int = 1024 * 1024
    preview_seconds: float = 0.1
    preview_share: float = 0.3
    preview_share_together: float = 0.08
    gather_share: float = 0.1
    gather_seconds: float = 0.04
    kept_bytes: int = 256 * 1024 * 1024
    rate: float | None = None
    burst: float = 100.0
    connections: int = 1024
    bodies: int = 512 * 1024 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    json_depth: int = 32
    json_values: int = 20_000
    record_bytes: int = 128 * 1024 * 1024
    views: int = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server serves.

    Attributes:
        model: the model that draws at first: a name in ``model_dir``, a path or a hub id, as of
            ``Pipeline.from_pretrained``; None is the built-in one.
        model_dir: the folder of further models, which clients may choose by name.
        lora_dir, embedding_dir, controlnet_dir, upscaler_dir: likewise; None has none.
        output_dir: where pictures are written; None keeps them in memory alone.
        device, dtype: as of ``Pipeline.from_pretrained``.
        optimize: None does on a CPU and on CUDA, as ``ldm generate``.
        ways: how models compute, as arguments of ``Pipeline.optimize``, such as "offload".
        api_key: what clients have to know; None needs none.
        allow_hosts: names of this server beside its own; "*" are all.
        allow_origins: sites whose pages may use it, such as "https://example.com"; "*" are all.
        grace: seconds in which what is being drawn may end when the server stops.
    """

    model: str | None = None
    model_dir: Path | None = None
    lora_dir: Path | None = None
    embedding_dir: Path | None = None
    controlnet_dir: Path | None = None
    upscaler_dir: Path | None = None
    output_dir: Path | None = None
    device: str | None = None
    dtype: str | None = None
    optimize: bool | None = None
    ways: Mapping[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 7860
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    grace: float = 30.0
    limits: Limits = field(default_factory=Limits)
