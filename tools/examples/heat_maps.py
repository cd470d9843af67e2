"""Where each word looked: the cross-attention of one run as heat maps beside its picture.

Tang et al. 2022, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention".
"""

from PIL.Image import Image

from ldm import Pipeline
from ldm.images.sheets import heat, sheet


def draw(prompt: str, seed: int = 1) -> Image:
    """Draw the picture, and a map of each word over it."""
    pipe = Pipeline.from_pretrained()
    with pipe.explain() as attention:
        picture = pipe(prompt, seed=seed).images[0]
    words = attention.words()  # (word, map of attention) in the prompt's order
    maps = [heat(picture, values.numpy()) for _, values in words]
    return sheet([picture, *maps], len(words) + 1, ["the picture", *(word for word, _ in words)])


if __name__ == "__main__":
    draw("a red car and a green tree").save("heat_maps.png")
