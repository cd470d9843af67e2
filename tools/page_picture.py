"""A picture of the page of a running ``ldm serve``, for the documentation.

ldm serve & python -m tools.page_picture --output tools/pictures/page.webp
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from tools.browser import open_page

PROMPT, SEED = "a red car and a green tree", 8
SIZE = {"width": 1280, "height": 1000}


def main() -> None:
    """Draw a picture on the page, point at a word, and take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--output", type=Path, default=Path("tools/pictures/page.webp"))
    arguments = parser.parse_args()
    with open_page(arguments.url, viewport=SIZE, color_scheme="light") as page:
        page.locator("#random-seed").uncheck()
        page.locator("#seed").fill(str(SEED))
        page.locator("#prompt").fill(PROMPT)
        page.keyboard.press("Control+Enter")
        page.wait_for_function(
            "() => document.querySelector('#status').textContent.startsWith('Finished')"
        )
        page.wait_for_timeout(2000)  # for the views
        taken = page.screenshot()
    with Image.open(io.BytesIO(taken)) as image:
        image.convert("RGB").save(arguments.output, quality=80, method=6)


if __name__ == "__main__":
    main()
