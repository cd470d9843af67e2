"""What requests pass before the routes: hosts, sites, keys, rates, bodies; and folders."""

import asyncio
import base64
import contextlib
import json
import time

import pytest

pytest.importorskip("fastapi")
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from ldm.server.bodies import Bodies, check_json
from ldm.server.errors import BusyError, ServerError
from ldm.server.guard import Guard
from ldm.server.hosts import is_loopback, is_same
from ldm.server.keys import Key
from ldm.server.metrics import Metrics
from ldm.server.rates import Buckets, network_of
from ldm.server.settings import Limits, Settings
from ldm.server.store import Pictures

KEY = "correct horse"


async def echo(scope, receive, send) -> None:
    """Answer with the length of the body; "/fail" has a mistake."""
    if scope["path"] == "/fail":
        raise RuntimeError("/home/secret/path")
    message = await receive()
    assert not message.get("more_body")
    await JSONResponse({"length": len(message["body"])})(scope, receive, send)


def guarded(peer="127.0.0.1", host="127.0.0.1:7860", limits=None, **settings) -> TestClient:
    """A client of the guard before an application that needs no model."""
    app = Guard(echo, Settings(limits=Limits(**limits or {}), **settings), Metrics())
    return TestClient(app, f"http://{host}", client=(peer, 5000), follow_redirects=False)


@pytest.mark.parametrize(
    ("bound", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:7860", 200),
        ("127.0.0.1", "localhost:9", 200),
        ("127.0.0.1", "LOCALHOST.", 200),
        ("127.0.0.1", "[::1]:7860", 200),
        ("127.0.0.1", "evil.example:7860", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "192.168.1.4:7860", 403),
        ("127.0.0.1", "0.0.0.0:7860", 403),
        ("127.0.0.1", "draw.example", 200),
        ("0.0.0.0", "192.168.1.4:7860", 200),
        ("0.0.0.0", "[fe80::1]:7860", 200),
        ("0.0.0.0", "evil.example", 403),
    ],
)
def test_host_is_one_of_ours(bound, host, status) -> None:
    app = Guard(echo, Settings(host=bound, allow_hosts=("draw.example",)), Metrics())
    client = TestClient(app, "http://127.0.0.1")
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert "--allow-host" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "https://127.0.0.1:7860"}, 200),  # behind a proxy
        ({"Origin": "https://friend.example"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_other_sites_neither_draw_nor_change(headers, status) -> None:
    client = guarded(allow_origins=("https://friend.example",))
    assert client.post("/api/draw", headers=headers).status_code == status
    assert client.delete("/api/jobs/1", headers=headers).status_code == status
    answer = client.get("/", headers=headers)
    assert answer.status_code == 200
    friend = headers.get("Origin") == "https://friend.example"
    assert ("access-control-allow-origin" in answer.headers) == friend


def test_preflight_is_answered_for_allowed_sites_alone() -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    client = guarded(allow_origins=("https://friend.example",), api_key=KEY)
    right = client.options("/api/draw", headers={"Origin": "https://friend.example", **asked})
    assert right.status_code == 200 and "POST" in right.headers["access-control-allow-methods"]
    wrong = client.options("/api/draw", headers={"Origin": "https://evil.example", **asked})
    assert wrong.status_code == 400 and "access-control-allow-origin" not in wrong.headers
    none = guarded().options("/api/draw", headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in none.headers


def test_origins_compare_by_their_authority() -> None:
    assert is_same("https://a.example", "a.example") and is_same("http://a:80", "a")
    assert not is_same("http://", "") and not is_same("file://", "")
    assert is_loopback("127.0.0.2") and is_loopback("::1") and not is_loopback("0.0.0.0")


def basic(text: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
        ({"X-API-Key": KEY}, 200),
        (basic(f"anybody:{KEY}"), 200),
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"Authorization": "Basic ?"}, 401),
        ({"Authorization": "Basic"}, 401),
        ({"Authorization": ""}, 401),
        ({"X-API-Key": "é".encode()}, 401),
        (basic(f"{KEY}:"), 401),
        ({"Cookie": f"ldm_session={KEY}"}, 401),
        ({"Cookie": "ldm_session; ="}, 401),
    ],
)
def test_api_key(headers, status) -> None:
    client = guarded(api_key=KEY)
    assert client.get("/metrics", headers=headers).status_code == status
    assert client.get(f"/?key={KEY}").status_code == 401  # addresses are written into logs
    assert client.get("/health").status_code == 200


def test_basic_is_the_whole_pair_as_with_a1111_s_api_auth() -> None:
    assert guarded(api_key="user:password").get("/", headers=basic("user:password")).is_success
    assert Key("user:password").find({"authorization": "Basic dXNlcjp4"}) == "wrong"


def test_browser_is_asked_for_the_key_and_keeps_a_cookie() -> None:
    client = guarded(api_key=KEY)
    asked = client.get("/", headers={"Accept": "text/html"})
    assert asked.status_code == 401 and 'type="password"' in asked.text
    assert "form-action 'self'" in asked.headers["content-security-policy"]
    wrong = client.post("/login", data={"key": "<b>wrong"})
    assert wrong.status_code == 401 and "set-cookie" not in wrong.headers
    evil = {"Origin": "http://evil.example"}
    assert client.post("/login", data={"key": KEY}, headers=evil).status_code == 403
    right = client.post("/login", data={"key": KEY})
    assert right.status_code == 303 and right.headers["location"] == "/"
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and KEY not in cookie
    assert client.get("/").status_code == 200  # with the cookie
    assert client.post("/api/draw", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    other = guarded(api_key="another key")
    other.cookies = client.cookies
    assert other.get("/").status_code == 401


def test_key_is_not_guessed_fast() -> None:
    client = guarded(api_key=KEY)
    for _ in range(10):
        assert client.get("/", headers={"X-API-Key": "guess"}).status_code == 401
    answer = client.get("/", headers={"X-API-Key": KEY})  # else the right one would be found
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0


def test_rate_is_by_address() -> None:
    client = guarded("10.0.0.1", limits={"rate": 1.0, "burst": 3})
    statuses = [client.get("/").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = client.get("/v1/models")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert client.get("/health").status_code == 200
    local = guarded(limits={"burst": 2})
    assert {local.get("/").status_code for _ in range(5)} == {200}
    assert guarded("10.0.0.1", limits={"burst": 1}).get("/").status_code == 200


def test_buckets_fill_and_are_few() -> None:
    now = 0.0
    buckets = Buckets(2.0, 1, lambda: now)
    assert buckets.take("a") == 0 and buckets.take("a") == 0.5 and buckets.take("b") == 0
    now = 0.5
    assert buckets.take("a") == 0
    for i in range(5000):
        buckets.take(str(i))
    assert len(buckets._kept) == 4096
    assert network_of("2001:db8::1") == network_of("2001:db8::2") != network_of("2001:db8:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/images", "openai"), ("/sdapi/v1/txt2img", "a1111"), ("/api", "own")]
)
def test_errors_have_the_shape_of_the_interface(path, kind) -> None:
    content = guarded(limits={"body": 10}).post(path, content=b"x" * 20).json()
    words = "the body is too long; this server reads up to 10 bytes"
    assert (
        content
        == {
            "openai": {
                "error": {
                    "message": words,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                }
            },
            "a1111": {"error": "HTTPException", "detail": words, "body": "", "errors": words},
            "own": {"error": {"message": words, "argument": None}},
        }[kind]
    )


def test_mistakes_of_the_program_show_nothing(caplog) -> None:
    answer = guarded().get("/fail")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "secret" in caplog.text


def test_every_answer_has_the_headers() -> None:
    for answer in (guarded().get("/"), guarded(api_key=KEY).get("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert "access-control-allow-origin" not in answer.headers


def test_length_of_bodies() -> None:
    client = guarded(limits={"body": 100})
    assert client.post("/api/x", content=b"1" * 60).json() == {"length": 60}
    assert client.post("/api/x", content=b" " * 101).status_code == 413
    assert client.post("/api/x", content=iter([b" " * 60] * 3)).status_code == 413  # chunked
    assert client.app.bodies.held == 0


def receiver(*parts: bytes, wait: float = 0.0):
    left = list(parts)

    async def receive():
        await asyncio.sleep(wait if left else 100)
        return {"type": "http.request", "body": left.pop(0), "more_body": True}

    return receive


def test_slow_bodies_and_too_many() -> None:
    async def read(bodies, receive):
        return await bodies.read({}, receive)

    began = time.monotonic()
    bodies = Bodies(Limits(body_seconds=0.1))
    with pytest.raises(ServerError, match="too slowly") as raised:
        asyncio.run(read(bodies, receiver(b"a", b"b")))
    assert raised.value.status == 408 and time.monotonic() - began < 5 and bodies.held == 0
    bodies = Bodies(Limits(bodies=10))
    bodies.held = 9
    with pytest.raises(BusyError, match="reads too much"):
        asyncio.run(read(bodies, receiver(b"ab")))
    assert bodies.held == 9


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[" * 40, "32 levels deep"),
        ('{"a": ' * 40, "32 levels deep"),
        ('{"scale": NaN}', "NaN"),
        ('{"scale": -Infinity}', "Infinity"),
        ('{"scale": 1e999}', "e999"),
        ('{"seed": ' + "9" * 70 + "}", "999"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ("[" + "1," * 30_000 + "1]", "too many values"),
        ('""' * 200_000, "too many values"),
        ("\0{}", "zero byte"),
    ],
)
def test_json_that_no_request_is(body, words) -> None:
    with pytest.raises(ServerError, match=words):
        check_json(body.encode(), Limits())
    assert guarded().post("/api/draw", content=body.encode()).status_code in (400, 413)


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "NaN [[[[ 1e999 🙂 \\ud800", "a": [1.5e-7, {"b": None}]},
        {"prompt": "a, " * 30_000},
        '"',
    ],
)
def test_json_that_requests_are(value) -> None:
    check_json(json.dumps(value).encode(), Limits())
    check_json(json.dumps(value, ensure_ascii=False).encode(), Limits())


@pytest.mark.parametrize(
    "piece", [b'\\"', b'"', b" ", b"1", b"a", b"[]", b"\\ud83d", b"\xff", b"e"]
)
def test_json_is_checked_in_linear_time(piece) -> None:
    for body in (piece * (2**21 // len(piece)), b'"' + piece * (2**21 // len(piece))):
        began = time.process_time()
        with contextlib.suppress(ServerError):
            check_json(body, Limits())
        assert time.process_time() - began < 2  # 0.01 to 0.1 s when the machine is quiet


@pytest.mark.parametrize(
    "prompt",
    [
        "../../outside", "/etc/passwd", "a\0b", "x" * 10_000, "CON", "a:b|c?*", "..", ".", "",
        "C:\\Windows\\x", "~/x", "\u202egnp.exe", "-rf", "🙂", "a/../../b",
    ],
)  # fmt: skip
def test_names_stay_in_the_output_folder(tmp_path, prompt) -> None:
    folder = tmp_path / "in" / "pictures"
    folder.mkdir(parents=True)
    image = Image.new("RGB", (8, 8))
    image.info["ldm"] = json.dumps({"arguments": {"prompt": prompt, "seed": 1}})
    pictures = Pictures(1000, folder)
    assert pictures.add("job", 0, image).warning is None
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == 1 and found[0].parent == folder and len(found[0].name) < 200
    assert all(c.isalnum() or c in "-." for c in found[0].name)


def test_folder_that_is_gone_loses_no_picture(tmp_path) -> None:
    pictures = Pictures(10**6, tmp_path / "gone")
    stored = pictures.add("job", 0, Image.new("RGB", (8, 8)))
    assert stored.data and "could not be written" in stored.warning
    assert pictures.unwritten == 1 and pictures.get("job-0") is stored


def test_picture_is_written_once(tmp_path) -> None:
    pictures = Pictures(1, tmp_path)  # keeps one
    image = Image.new("RGB", (8, 8))
    for number in (0, 1, 0):
        pictures.add("job", number, image)
    assert len(list(tmp_path.iterdir())) == 2


def test_settings_of_the_server_reach_the_guard(client) -> None:
    """The whole application: its routes are behind the guard, in its shapes."""
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    answer = client.post("/api/draw", content=b"{")
    assert answer.status_code == 422 and answer.json()["error"]["message"]
    answer = client.post("/api/draw", json={"prompt": ["x" * 999, 7]})
    assert answer.status_code == 422 and "xxx" not in answer.text


def test_wrong_kinds_are_no_fault_of_the_server(client) -> None:
    for name in ("negative_prompt", "seed", "width", "image", "control_image"):
        answer = client.post("/api/jobs", json={"prompt": "x", name: 3.5})
        assert answer.status_code == 422, name
        assert name in answer.json()["error"]["message"]
