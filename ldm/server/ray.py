"""Past one machine: the same application as a deployment of Ray Serve (extra ``ldm[ray]``).

    serve run ldm.server.ray:app    # one replica of the built-in model
    serve run ldm.server.ray:app replicas=4 num_gpus=1 model=sd15.safetensors
    serve run ldm.server.ray:app min_replicas=1 max_replicas=8 num_gpus=1

Ray starts the replicas, spreads requests over them and adds or removes some by the load. Each is a
whole server with jobs and pictures of its own, which the others do not know: see
``ldm/server/README.md``.

Source: https://docs.ray.io/en/latest/serve (app builders, ingress, autoscaling).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ldm.server.app import create_app
from ldm.server.settings import Settings


class Arguments(BaseModel):
    """What ``serve run`` takes as ``name=value``, or a config file as ``args``.

    Attributes:
        replicas: how many servers. min_replicas, max_replicas: between which Ray chooses by the
            load, instead. target_requests: of a replica at once, by which it does.
        num_gpus, num_cpus: of each replica; num_gpus 0 draws on CPUs.
        max_requests: that a replica has at once, and that wait in its queue; others wait in Ray.
        model, …, api_key: as of ``Settings``; paths are of the replicas' machines.
    """

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(default=1, ge=1)
    min_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_requests: float = Field(default=8.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    num_cpus: float = Field(default=1.0, ge=0)
    max_requests: int = Field(default=256, ge=1)
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
    api_key: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Arguments:
        if self.max_replicas is None and self.min_replicas is not None:
            raise ValueError("min_replicas needs max_replicas, up to which replicas are added")
        if self.max_replicas is not None and (self.min_replicas or 0) > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas}, above max_replicas {self.max_replicas}"
            )
        return self

    def settings(self) -> Settings:
        """Return what each replica serves."""
        own = {name: getattr(self, name) for name in type(self).model_fields if name in SETTINGS}
        return Settings(**own)

    def options(self) -> dict[str, Any]:
        """Return the options of the deployment."""
        options: dict[str, Any] = {
            "ray_actor_options": {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus},
            "max_ongoing_requests": self.max_requests,
        }
        if self.max_replicas is None:
            return options | {"num_replicas": self.replicas}
        scaling = {
            "min_replicas": 1 if self.min_replicas is None else self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_requests,
        }
        return options | {"autoscaling_config": scaling}


SETTINGS = Settings.__dataclass_fields__


def app(arguments: dict[str, Any]) -> Any:
    """Build the application of Ray Serve: what ``serve run ldm.server.ray:app`` calls.

    Raises ValidationError for an argument that there is not, or a value that cannot be.
    """
    from ray import serve

    given = Arguments.model_validate(arguments)
    settings = given.settings()

    def build() -> FastAPI:  # in the replica: the application itself cannot be sent to it
        return create_app(settings)

    class Replica:  # here, as Ray would look up a class of the module and miss what it wraps
        """A server; Ray runs the application's lifespan, which loads the model and draws."""

    deployment: Any = serve.deployment(name="ldm", **given.options())
    return deployment(serve.ingress(build)(Replica)).bind()
