"""The API key: in a header, or, for browsers, in a cookie that a small form sets."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import html
from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qs

from ldm.server.errors import ServerError

COOKIE = "ldm_session"
LOGIN = "/login"
SHORTEST = 8  # characters of a key
FORM = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>ldm: API key</title>
<style>
:root {{ color-scheme: light dark; font: 1rem system-ui, sans-serif; }}
body {{ max-width: 24rem; margin: 20vh auto; padding: 0 1rem; }}
input, button {{ font: inherit; padding: .4rem; box-sizing: border-box; width: 100%; }}
input {{ margin: .3rem 0 1rem; }}
</style>
<main>
<h1>ldm</h1>
<form method="post" action="/login">
<p role="alert">{words}</p>
<label>API key<input name="key" type="password" autocomplete="current-password" required
autofocus></label>
<button>Open</button>
</form>
</main>
</html>
"""
FORM_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
)


class NoKeyError(ServerError):
    """A request without the API key, or with a wrong one."""

    status = 401


class Key:
    """An API key; comparing takes the same time for all wrong ones."""

    def __init__(self, key: str) -> None:
        self._digest = digest(key)
        # What a browser keeps: whoever reads it does not know the key, and a new key voids it.
        self.session = hmac.new(key.encode(), b"ldm session", hashlib.sha256).hexdigest()

    def matches(self, given: str) -> bool:
        """Whether a text is the key."""
        return hmac.compare_digest(digest(given), self._digest)

    def find(self, headers: Mapping[str, str]) -> Literal["right", "wrong", "none"]:
        """Look for the key in ``Authorization``, ``X-API-Key`` and the cookie.

        ``Basic`` is right if its password or "user:password" is the key, as A1111's clients and
        its ``--api-auth user:password`` have it.
        """
        given = given_keys(headers)
        session = cookie(headers.get("cookie", ""), COOKIE)
        if session is not None:
            if hmac.compare_digest(digest(session), digest(self.session)):
                return "right"
            if not given:
                return "none"  # one of an older key; nobody guesses 256 bits
        if any([self.matches(each) for each in given]):
            return "right"
        return "wrong" if given else "none"


def digest(text: str) -> bytes:
    """Return a hash, so that texts of all lengths compare alike."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def given_keys(headers: Mapping[str, str]) -> list[str]:
    """Return what may be the key in a request's headers."""
    found = [headers["x-api-key"]] if headers.get("x-api-key") else []
    scheme, _, content = headers.get("authorization", "").partition(" ")
    content = content.strip()
    if scheme.lower() == "bearer":
        found.append(content)
    elif scheme.lower() == "basic":
        try:
            pair = base64.b64decode(content, validate=True).decode()
        except (binascii.Error, ValueError):
            pair = content
        found += [pair, pair.partition(":")[2]]
    return found


def cookie(header: str, name: str) -> str | None:
    """Return a cookie's value; None if it is not there."""
    for part in header.split(";"):
        key, equals, value = part.strip().partition("=")
        if equals and key == name:
            return value
    return None


def form(words: str = "") -> bytes:
    """Return the page that asks for the key."""
    return FORM.format(words=html.escape(words)).encode()


def key_of_form(body: bytes) -> str:
    """Return what was typed into the form."""
    try:
        fields = parse_qs(body.decode(), max_num_fields=4)
    except ValueError:
        return ""
    return fields.get("key", [""])[0]


def session_cookie(key: Key, secure: bool) -> str:
    """Return the header that has a browser keep the session: never for scripts or other sites."""
    ending = "; Secure" if secure else ""
    return f"{COOKIE}={key.session}; Path=/; HttpOnly; SameSite=Strict{ending}"
