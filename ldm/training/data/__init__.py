"""Data sets: pictures with captions or labels in every usual form, texts with embeddings.

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
