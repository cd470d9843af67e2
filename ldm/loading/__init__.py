"""Files and folders of models → the parts of a pipeline, and back.

The names that ``ldm.loading`` had as a module are found for one release: see ``ldm._moved``.
"""

from ldm._moved import names_of_module

__getattr__ = names_of_module(
    "ldm.loading",
    {
        "family_of": "ldm.loading.write_file",
        "load_file": "ldm.loading.single_file",
        "load_vae": "ldm.loading.vae",
        "names_of": "ldm.loading.single_file",
        "save_file": "ldm.loading.write_file",
    },
)
