"""Pictures for tests."""

import io

import numpy as np
from PIL import Image


def photo(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """A picture with soft, random content."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with content of every fineness, as a photograph has."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for details in (4, 9, 20, 60, 150):
        shape = max(2, height * details // max(width, height)), max(2, width * details // max(width, height)), 3
        layer = Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))
        pixels += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) / details**0.5
    pixels -= pixels.min()
    return Image.fromarray((pixels * (255 / max(pixels.max(), 1))).astype(np.uint8))
