"""``python -m ldm "a red car"`` is ``ldm-generate "a red car"``."""

import sys

from ldm.cli.generate import main

if __name__ == "__main__":
    sys.argv[0] = "ldm-generate"  # the name in usage and errors
    sys.exit(main())
