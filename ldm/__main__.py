"""``python -m ldm`` is ``ldm``."""

import sys

from ldm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
