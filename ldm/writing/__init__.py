"""Files and folders that are written whole or not at all, by one process at a time.

What is being written lies in a part folder, ``.ldm-….part``, beside its final place; see
``parts``. Everything that writes a file of a user's goes through here.
"""

from ldm.writing.claims import claim, wait_until_free
from ldm.writing.parts import clear_leftovers, part_folder
from ldm.writing.whole import as_os_error, whole_file, whole_files, whole_path

__all__ = [
    "as_os_error",
    "claim",
    "clear_leftovers",
    "part_folder",
    "wait_until_free",
    "whole_file",
    "whole_files",
    "whole_path",
]
