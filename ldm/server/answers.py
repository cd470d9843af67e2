"""What our own interface answers, as types: the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """An answer; later versions may say more."""

    model_config = ConfigDict(extra="allow")


class PictureOfJob(Answer):
    """A finished picture."""

    id: str
    url: str = Field(description="of its PNG file; .jpeg and .webp are there, too")
    seed: int | list[int] | None
    width: int
    height: int


class JobAnswer(Answer):
    """How far a job is."""

    id: str
    state: Literal["queued", "drawing", "done", "failed", "cancelled"]
    place: int = Field(description="how many pictures of others are drawn before it")
    step: int
    steps: int = Field(description="of all its pictures together; 0 before it is drawn")
    pictures: list[PictureOfJob]
    error: str | None = Field(description="why it failed")


class JobsAnswer(Answer):
    """The jobs of one client."""

    jobs: list[JobAnswer]


class PictureAnswer(Answer):
    """The settings of a picture."""

    id: str
    width: int
    height: int
    settings: dict[str, Any] = Field(description="all that its file says")
    parameters: str = Field(description="the same as A1111 writes it")


class ModelsAnswer(Answer):
    """What can be chosen by name."""

    current: str = Field(description="the model of requests that name none")
    models: list[str]
    loras: list[str]
    embeddings: list[str]
    controlnets: list[str]


class SamplerAnswer(Answer):
    """A sampler or a schedule."""

    name: str
    label: str = Field(description="as A1111 calls it")


class SamplersAnswer(Answer):
    """All samplers."""

    samplers: list[SamplerAnswer]


class SchedulesAnswer(Answer):
    """All schedules of noise levels."""

    schedules: list[SamplerAnswer]


class ParameterAnswer(Answer):
    """A number that a preprocessor takes."""

    name: str
    type: Literal["integer", "number"]
    interval: str = Field(description='such as "[0, 255]"')
    default: int | float


class PreprocessorAnswer(Answer):
    """A preprocessor of control pictures."""

    name: str
    about: str
    parameters: list[ParameterAnswer]


class PreprocessorsAnswer(Answer):
    """All preprocessors."""

    preprocessors: list[PreprocessorAnswer]


class ReadAnswer(Answer):
    """The settings in a picture's file."""

    arguments: dict[str, Any] = Field(description="of /api/draw, which draws the picture again")
    model: str | None = Field(description="a name of /api/models, if that model is here")
    written_model: str | None = Field(description="the model that the file names")
    missing: list[str] = Field(description="what must be given again, such as the image")
    notes: list[str] = Field(description="settings that are not supported here")


class ErrorWords(Answer):
    """What is wrong, in words."""

    message: str
    argument: str | None = Field(description="the name of what is wrong, if it is an argument")


class ErrorAnswer(Answer):
    """An error."""

    error: ErrorWords


def stream_schema(answer: str | None, *names: str) -> dict[str, Any]:
    """Return the description of server-sent events with these names, for the OpenAPI document.

    answer: the schema of their data, a component of the document; None is any.
    """
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json"}
    if answer is not None:
        data["contentSchema"] = {"$ref": f"#/components/schemas/{answer}"}
    properties = {"event": {"enum": list(names)}, "data": data}
    schema = {"type": "object", "properties": properties, "required": ["event", "data"]}
    return {"text/event-stream": {"schema": schema}}


ERROR_WORDS = {
    400: "a value that cannot work",
    401: "an API key is needed",
    403: "not allowed",
    404: "a name that is not there",
    409: "the job was cancelled",
    410: "the model that drew it is no longer loaded",
    413: "more than this server reads",
    415: "another content type",
    422: "a body of another form, or a model's file that does not fit",
    429: "too many jobs or requests",
    503: "the server is stopping, or the job waited too long",
    507: "not enough memory",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers for errors of a route, for FastAPI; some are of all routes."""
    return {
        status: {"model": ErrorAnswer, "description": ERROR_WORDS[status]}
        for status in sorted({*statuses, 400, 401, 403, 422, 429})
    }


# Of all routes that draw.
DRAWING_ERRORS = errors(400, 404, 409, 413, 503, 507)
