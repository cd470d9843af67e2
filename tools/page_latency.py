"""How soon live mode shows a picture after a key, in a real browser.

    ldm serve & python -m tools.page_latency --keys 20
    python -m tools.page_latency --url http://127.0.0.1:7860

Each key is pressed when the draft before it is finished. A picture counts when the browser has
decoded it and is about to paint it. Chromium is Debian's; the package playwright drives it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tools.browser import open_page

LETTERS = " on a blue background and a green tree, 3d"
WATCH = """() => {
    window.shown = [];
    window.typed = 0;
    const picture = document.querySelector("#picture");
    new MutationObserver(async () => {
        const { src } = picture;
        try { await picture.decode(); } catch { return; }  // replaced already
        requestAnimationFrame(() => window.shown.push(
            { time: performance.now(), preview: src.startsWith("data:") }));
    }).observe(picture, { attributes: true, attributeFilter: ["src"] });
    document.querySelector("#prompt").addEventListener("keydown", () => {
        window.typed = performance.now();
        window.shown.length = 0;
    });
}"""


@dataclass(frozen=True)
class Shown:
    """Milliseconds from a key to its first preview, and to the whole picture of few steps."""

    first_preview: float
    whole: float


def measure(page: Any, letters: str, timeout: float = 60_000) -> list[Shown]:
    """Type letters on the page (of Playwright), with live mode on; return a time for each."""
    # Functions: the page's policy refuses to evaluate strings.
    page.wait_for_function(
        "() => document.querySelector('#status').textContent.startsWith('Draft')", timeout=timeout
    )
    page.evaluate(WATCH)
    page.locator("#prompt").focus()
    page.keyboard.press("End")
    found = []
    for letter in letters:
        page.keyboard.press(letter)
        page.wait_for_function("() => window.shown.some((one) => !one.preview)", timeout=timeout)
        typed, shown = page.evaluate("[window.typed, window.shown]")
        whole = next(one["time"] for one in shown if not one["preview"])
        found.append(Shown(min(one["time"] for one in shown) - typed, whole - typed))
    return found


def main() -> None:
    """Measure a server that runs, and print medians and extremes in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--keys", type=int, default=20)
    arguments = parser.parse_args()
    with open_page(arguments.url) as page:
        letters = (LETTERS * (arguments.keys // len(LETTERS) + 1))[: arguments.keys]
        times = [asdict(one) for one in measure(page, letters)]
    for name in times[0]:
        values = sorted(one[name] for one in times)
        print(
            json.dumps(
                {
                    "what": name,
                    "median_ms": round(statistics.median(values)),
                    "fastest_ms": round(values[0]),
                    "slowest_ms": round(values[-1]),
                    "keys": len(values),
                }
            )
        )


if __name__ == "__main__":
    main()
