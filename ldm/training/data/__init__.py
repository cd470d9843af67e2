"""Data sets: pictures with captions or labels in every usual form, texts with embeddings.

A data set (`Dataset`) is a list of rows; a row is a picture with a caption, a label, both or
neither, and is known by its index. Rows become a batch (`PictureBatch`): pixels of one size, labels
and captions. ``open_data`` opens any form; `Pictures` is the base of those read in any order,
`Stream` is read in order.

Everything random in a batch depends only on (seed, step), so a resumed run, or one on several
processes, sees what one uninterrupted process would see.
"""

from ldm.training.data.arrays import CaptionedImages
from ldm.training.data.dataset import Dataset, PictureBatch
from ldm.training.data.open import open_data
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.data.seeds import step_generator
from ldm.training.data.texts import EmbeddedTexts

__all__ = [
    "CaptionedImages",
    "DataOptions",
    "Dataset",
    "EmbeddedTexts",
    "PictureBatch",
    "Pictures",
    "open_data",
    "step_generator",
]
