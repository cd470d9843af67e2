"""Whom a request says it is for, and which site sent it: against DNS rebinding and other sites.

A browser lets any site's script send requests to this machine. Two of its headers give it away:
``Host``, which names the attacker's own domain after rebinding, and ``Origin`` or
``Sec-Fetch-Site``, which name the site whose script it was. Programs send neither.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

from ldm.server.errors import ServerError
from ldm.server.settings import Settings

READING = ("GET", "HEAD", "OPTIONS")  # which draw and change nothing
OWN_SITE = ("same-origin", "none")  # "none": the user typed the address
PORTS = {"http": ":80", "https": ":443"}


class ForbiddenError(ServerError):
    """A request that may not come from where it does."""

    status = 403


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at an address."""
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a name as an IP address; None if it is none."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def name_of(authority: str) -> str:
    """Return the name in "name:port", "[::1]:port" or "name", in small letters."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].rstrip(".").lower()


class Doors:
    """The names under which this server is reached, and the sites that may use it."""

    def __init__(self, settings: Settings) -> None:
        self.local = is_loopback(settings.host)
        self.names = {"localhost", *map(str.lower, (settings.host, *settings.allow_hosts))}
        if not self.local:
            own = socket.gethostname().lower()
            self.names |= {own, f"{own}.local"}
        self.origins = settings.allow_origins

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raise ForbiddenError for a Host that is none of ours.

        An IP address cannot be rebound to another, so any is ours where we listen to the network.
        """
        host = headers.get("host", "")
        name = name_of(host)
        address = address_of(name)
        if name in self.names or "*" in self.names:
            return
        if address is not None and (address.is_loopback or not self.local):
            return
        raise ForbiddenError(
            f"the host {host!r:.80} is no name of this server; its owner may allow it: "
            f"ldm serve --allow-host {name or 'NAME':.60}",
            "Host",
        )

    def check_origin(self, method: str, headers: Mapping[str, str]) -> None:
        """Raise ForbiddenError for another site's request that draws or changes something."""
        if method in READING:
            return
        origin = headers.get("origin")
        if origin is not None:
            if self.allows(origin) or is_same(origin, headers.get("host", "")):
                return
        elif headers.get("sec-fetch-site", "none") in OWN_SITE:
            return
        site = origin or headers.get("sec-fetch-site", "")
        raise ForbiddenError(
            f"the request is of another site ({site!r:.80}); the owner of this server may allow "
            "it: ldm serve --allow-origin ORIGIN",
            "Origin",
        )

    def allows(self, origin: str) -> bool:
        """Whether the owner lets a site use this server."""
        return origin in self.origins or "*" in self.origins


def is_same(origin: str, host: str) -> bool:
    """Whether an Origin is the site of a Host; the scheme is a proxy's matter."""
    scheme, _, authority = origin.lower().partition("://")
    port = PORTS.get(scheme)
    if port is None:  # "null", of files and of sandboxes
        return False
    return authority.removesuffix(port) == host.lower().removesuffix(port) != ""
