"""Training of the built-in model: `python -m tools.builtin_model.train`."""

import sys
from pathlib import Path

# The data tools beside this package import one another without `tools.`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
