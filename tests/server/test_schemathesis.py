"""Generated requests of all routes in the OpenAPI document: no 5xx, and answers as it says.

SCHEMATHESIS_CASES=200 pytest -n 0 tests/server/test_schemathesis.py    # for each route
"""

import base64
import io
import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from tests.server.conftest import served

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import checks  # noqa: E402
from schemathesis.core.failures import FailureGroup  # noqa: E402

checks.load_all_checks()

CASES = int(os.environ.get("SCHEMATHESIS_CASES", "3"))
CHECKS = [
    checks.CHECKS.get_one(name)
    for name in (
        "negative_data_rejection",
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    )
]


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> bytes:
    content = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(content, kind)
    return content.getvalue()


FILES = [
    picture("PNG"),
    picture("PNG", "RGBA", (24, 16)),
    picture("JPEG", "L"),
    picture("GIF", "P"),
    picture("PNG")[:60],
    b"",
    b"no picture",
]
DRAWING = {
    f"POST {path}"
    for path in (
        *("/api/draw", "/api/jobs", "/v1/images/generations"),
        *("/v1/images/edits", "/v1/images/variations"),
    )
}
# Names that lead further than random ones do.
NAMES = {
    "sampler": ["euler", "DPM++ 2M", "eulr", "\0"],
    "schedule": ["karras", "beta", "karas"],
    "model": ["built-in", "BUILT-IN", "bild-in"],
}


def shortened(body):
    """Have most bodies be drawn: few steps, small pictures, names that there are."""
    if isinstance(body, dict):
        for name, value in {"num_inference_steps": 1, "width": 64, "height": 64}.items():
            if not isinstance(body.get("size"), str) or name == "num_inference_steps":
                body.setdefault(name, value)
        for name, known in NAMES.items():
            if isinstance(body.get(name), str):
                body[name] = known[len(body[name]) % len(known)]
        if isinstance(body.get("num_inference_steps"), int):
            body["num_inference_steps"] %= 4
        for name in ("width", "height"):
            if isinstance(body.get(name), int):
                body[name] = body[name] % 10 * 8
    return body


@pytest.mark.filterwarnings("ignore")
def test_no_generated_request_is_answered_with_an_error_of_the_server(limited) -> None:
    schemathesis.openapi.format(
        "byte", st.sampled_from([base64.b64encode(file).decode() for file in FILES])
    )
    schemathesis.openapi.format("binary", st.sampled_from(FILES))
    failures: dict[str, str] = {}
    count = 0
    with limited(pixels=64 * 64, side=128, steps=3, pictures=2, waiting_each=64) as client:
        server = client.app.state.server
        drawing = {"prompt": "a cat", "num_inference_steps": 1, "width": 64, "height": 64}
        made = client.post("/v1/images/generations", json=drawing | {"response_format": "url"})
        real = {"picture_id": made.json()["data"][0]["url"].rpartition("/")[2][: -len(".png")]}
        real["job_id"] = real["picture_id"].rpartition("-")[0]
        with served(client.app) as address:
            schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
            for found in schema.get_all_operations():
                operation = found.ok()

                @seed(0)
                @settings(
                    max_examples=CASES,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(
                    st.one_of(
                        operation.as_strategy(generation_mode=mode)
                        for mode in (
                            schemathesis.GenerationMode.POSITIVE,
                            schemathesis.GenerationMode.NEGATIVE,
                        )
                    )
                )
                def send(case) -> None:
                    nonlocal count
                    count += 1
                    for name in case.path_parameters or {}:
                        if name in real and count % 2:
                            case.path_parameters[name] = real[name]
                    positive = schemathesis.GenerationMode.POSITIVE
                    if case.meta.generation.mode == positive and case.operation.label in DRAWING:
                        case.body = shortened(case.body)
                    # Of a form, what was meant to be wrong may be a text like any other.
                    form = "multipart" in str(case.media_type)
                    case.call_and_validate(checks=CHECKS[form:], timeout=60)

                try:
                    send()
                except (Exception, FailureGroup) as error:
                    failures[operation.label] = str(error)
        assert not server.queue or server.worker.is_alive()
    print(f"{count} requests")
    assert not failures, "\n\n".join(failures.values())
