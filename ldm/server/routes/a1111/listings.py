"""What can be chosen by name: models, samplers, LoRAs and the like, in A1111's shapes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Request

from ldm.checkpoints.header import read_header
from ldm.errors import LDMError
from ldm.samplers import SAMPLERS, SCHEDULES
from ldm.server.routes.a1111.answers import make_router, plain
from ldm.server.routes.a1111.requests import PREFERRED
from ldm.server.routes.a1111.styles import read_styles
from ldm.server.routes.common import server_of
from ldm.upscaling import list_upscalers

router = make_router()
Rows = list[dict[str, Any]]


@router.get("/sd-models")
async def get_models(request: Request) -> Rows:
    """List the models. Files are named without their folders, and not hashed."""
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": name if path is None else Path(path).name,
            "config": None,
        }
        for name, path in server_of(request).library.models.items()
    ]


@router.get("/sd-vae")
async def get_vaes() -> Rows:
    """List VAEs to choose: none, as each model has its own."""
    return []


@router.post("/refresh-vae")
async def refresh_vaes() -> dict[str, Any]:
    """Do nothing: there are no VAEs to choose."""
    return {}


@router.get("/samplers")
async def get_samplers() -> Rows:
    """List the samplers by A1111's labels; aliases are our names."""
    return [
        {
            "name": row.label,
            "aliases": [name, f"k_{name}"],
            "options": {"scheduler": PREFERRED[name]} if name in PREFERRED else {},
        }
        for name, row in SAMPLERS.items()
    ]


@router.get("/schedulers")
async def get_schedulers() -> Rows:
    """List the schedules of noise levels."""
    rows = [("automatic", "Automatic"), *((n, s.label) for n, s in SCHEDULES.items())]
    return [
        {
            "name": name,
            "label": label if name != "ays_xl" else "Align Your Steps XL",
            "aliases": None,
            "default_rho": 7.0 if name == "karras" else -1,
            "need_inner_model": False,
        }
        for name, label in rows
        if name != "normal"  # which is "automatic"
    ]


@router.get("/upscalers")
async def get_upscalers(request: Request) -> Rows:
    """List what enlarges pictures."""
    found = await asyncio.to_thread(list_upscalers, server_of(request).settings.upscaler_dir)
    none = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}
    return [
        none,
        *(
            {
                "name": one.name,
                "model_name": None if one.path is None else one.path.stem,
                "model_path": None if one.path is None else one.path.name,
                "model_url": None,
                "scale": one.scale or 4,
            }
            for one in found
            if not one.latent
        ),
    ]


@router.get("/latent-upscale-modes")
async def get_latent_upscalers() -> Rows:
    """List what enlarges latents between two passes."""
    return [{"name": one.name} for one in list_upscalers() if one.latent]


@router.get("/loras")
async def get_loras(request: Request) -> Rows:
    """List the LoRAs, with the metadata of safetensors files."""
    return await asyncio.to_thread(loras, dict(server_of(request).library.loras))


def loras(files: dict[str, Path]) -> Rows:
    """Return the rows of LoRAs."""
    rows = []
    for name, path in files.items():
        metadata: dict[str, str] = {}
        if path.suffix == ".safetensors":
            try:
                metadata = read_header(path).metadata
            except (LDMError, OSError):  # it is named, and says why when it is used
                metadata = {}
        alias = metadata.get("ss_output_name") or name
        rows.append({"name": name, "alias": alias, "path": path.name, "metadata": metadata})
    found: Rows = plain(rows)
    return found


@router.post("/refresh-loras")
async def refresh_loras(request: Request) -> dict[str, Any]:
    """Look for new LoRAs."""
    await asyncio.to_thread(server_of(request).library.refresh)
    return {}


@router.get("/embeddings")
async def get_embeddings(request: Request) -> dict[str, Any]:
    """List the words that the loaded model has learnt, and files that are not for it."""
    server = server_of(request)
    pipe = server.model.pipe
    words = {} if pipe is None else dict(pipe.inversions.loaded)
    loaded = {}
    for word, inversion in words.items():
        shapes = [vectors.shape for vectors in inversion.vectors.values()]
        loaded[word] = embedding(max(shape[1] for shape in shapes), shapes[0][0])
    names = set(words) | (set() if pipe is None else set(pipe.origin.embeddings))
    skipped = [name for name in server.library.embeddings if name not in names]
    return {"loaded": loaded, "skipped": {name: embedding(None, None) for name in skipped}}


def embedding(width: int | None, vectors: int | None) -> dict[str, Any]:
    """Return the row of a word; None is not known."""
    return {
        "step": None,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "shape": width,
        "vectors": vectors,
    }


@router.post("/refresh-embeddings")
async def refresh_embeddings(request: Request) -> dict[str, Any]:
    """Look for new words, and load them."""
    server = server_of(request)
    await asyncio.to_thread(server.library.refresh)
    await asyncio.to_thread(server.model.refresh_embeddings)
    return {}


@router.get("/prompt-styles")
async def get_styles(request: Request) -> Rows:
    """List the prompt styles."""
    styles = await asyncio.to_thread(read_styles, server_of(request).settings.model_dir)
    return [plain(vars(style)) for style in styles.values()]


@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
async def get_nothing() -> Rows:
    """List what is not here."""
    return []
