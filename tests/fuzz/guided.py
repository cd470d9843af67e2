"""Fuzz one reader guided by coverage: ``python -m tests.fuzz.guided "NAME" [libFuzzer's options]``.

It needs ``pip install atheris``, and is not part of the tests. What is found is printed with the
bytes that caused it, which libFuzzer also writes to a file. Try it again by giving that file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ldm"]):
    from tests.fuzz.gate import try_case
    from tests.fuzz.readers import READERS


def main() -> None:
    """Fuzz a reader, from its good files on, until libFuzzer's options end it."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"give a reader: {', '.join(map(repr, READERS))}")
    reader = READERS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory(prefix="ldm-guided-") as name:
        folder, corpus = Path(name, "case"), Path(name, "corpus")
        folder.mkdir()
        corpus.mkdir()
        reader.surroundings(folder)
        for number, seed in enumerate(reader.seeds()):
            (corpus / str(number)).write_bytes(seed)

        def test_one_input(data: bytes) -> None:
            path = folder / reader.file
            path.write_bytes(data)
            _, escaped = try_case(reader, path)
            if escaped is not None:
                raise RuntimeError(escaped)

        atheris.Setup([*sys.argv, str(corpus)], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
