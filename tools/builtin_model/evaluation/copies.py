"""How near drawn pictures come to pictures of training: does the model only repeat those?"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation.examples import on_white, single_rows
from tools.builtin_model.evaluation.things import find_things, together

SIDE = 32  # pixels at which pictures are compared
WHITE = 250  # an icon's background in training is 255
# Below this mean absolute difference a picture is a near-copy. Of real pictures, framed alike: two
# of one icon in one colour word differ by 0.017 (median; four of five by less than 0.03), icons out
# of training from the nearest one in it, such as the same emoji of another set, by 0.08 (one in
# twenty by less than 0.03).
NEAR = 0.03
CANDIDATES = 16  # nearest by squares, which are faster to compute, among which to look closer


def plain_icons(data: CaptionedImages) -> Tensor:
    """All training pictures of one icon on white, in whatever colour: float32 (N, SIDE²·3)."""
    rows = [i for i in single_rows(data) if on_white(data.rows[i])]
    return as_rows([_framed(np.asarray(data.images[i])) for i in rows])


def _framed(rgb: np.ndarray) -> np.ndarray:
    """Cut out the square around all that is not white, (SIDE, SIDE, 3)."""
    rows, columns = (np.flatnonzero((rgb < WHITE).any((axis, 2))) for axis in (1, 0))
    if not len(rows):
        return np.full((SIDE, SIDE, 3), 255, np.uint8)
    length = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    left, top = ((ends[0] + ends[-1] + 1 - length) // 2 for ends in (columns, rows))
    picture = Image.fromarray(255 - rgb).crop((left, top, left + length, top + length))
    return 255 - np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def framed(rgb: np.ndarray) -> np.ndarray:
    """Put the foreground of a picture on white, as large as fits: uint8 (SIDE, SIDE, 3)."""
    whole = together(find_things(rgb))
    if whole is None:
        return np.full((SIDE, SIDE, 3), 255, np.uint8)
    mask = Image.fromarray(whole.mask).resize(rgb.shape[1::-1])
    return _framed(np.where(np.asarray(mask)[..., None], rgb, np.uint8(255)))


def as_rows(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (SIDE, SIDE, 3) each → float32 (N, SIDE²·3) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).flatten(1).float() / 255


def nearest(pictures: list[np.ndarray], icons: Tensor, chunk: int = 64) -> np.ndarray:
    """For each picture the mean absolute difference to the nearest of `icons`, in [0, 1]: (N,).

    Of the foregrounds alone, as large as fits, or of their mirror images.
    """
    thumbnails = [framed(picture) for picture in pictures]
    found = []
    for sight in (thumbnails, [picture[:, ::-1] for picture in thumbnails]):
        parts = as_rows(sight).split(chunk)
        found.append(torch.cat([_nearest(part, icons) for part in parts]))
    return torch.minimum(*found).numpy()


def _nearest(pictures: Tensor, icons: Tensor) -> Tensor:
    near = torch.cdist(pictures, icons).topk(min(CANDIDATES, len(icons)), largest=False).indices
    return (icons[near] - pictures[:, None]).abs().mean(2).min(1).values
