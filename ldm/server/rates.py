"""A rate for each client: a bucket of tokens, which fills with time."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 4096  # clients whose buckets are kept; the longest unused is dropped, which fills it


class Buckets:
    """A bucket of ``burst`` tokens for each client, filled by ``rate`` a second; 0 limits none."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def wait(self, client: str) -> float:
        """Return in how many seconds there is a token; 0 if there is one."""
        if not self.rate:
            return 0.0
        return max(0.0, (1 - self._tokens(client)) / self.rate)

    def take(self, client: str) -> float:
        """Take a token if there is one, which returns 0; else return ``wait``."""
        seconds = self.wait(client)
        if self.rate and not seconds:
            self._kept[client] = (self._tokens(client) - 1, self.clock())
            self._kept.move_to_end(client)
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
        return seconds

    def _tokens(self, client: str) -> float:
        now = self.clock()
        tokens, then = self._kept.get(client, (self.burst, now))
        return min(self.burst, tokens + (now - then) * self.rate)


def network_of(host: str) -> str:
    """Return whose bucket an address uses: of IPv6, a household has a whole /64."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
