"""Pictures whose statistics are those of what image models make, drawn here: nobody's pictures are downloaded.

Their powers fall with the square of the frequency, as those of photographs do, over soft light, hard edges, words and
grain. How much of each is set such that Pillow's default PNG has the bytes a pixel that real ones have (between 0.96
and 1.52: an edit of FLUX-Kontext, one of Qwen-Image, a photograph; a poster of flat colours 0.38).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qwen_worker.schema import Size

SQUARE: Size = (1024, 1024)
WIDE: Size = (1664, 928)


def real_looking() -> dict[str, Image.Image]:
    """By name, those that a goal is about."""
    return {
        "photograph 1024x1024": painted(SQUARE, seed=1, detail=34, grain=1.0, softness=0.45),
        "portrait 1024x1024": painted(SQUARE, seed=2, detail=45, grain=0.5, softness=0.6),
        "street 1664x928": painted(WIDE, seed=3, detail=40, grain=0.4, softness=0.8, shapes=40, words=20),
        "denoised 1664x928": painted(WIDE, seed=4, detail=42, grain=0.4, softness=0.7, shapes=10),
    }


def painted(
    size: Size, *, seed: int, detail: float, grain: float, softness: float = 0.0, shapes: int = 0, words: int = 0
) -> Image.Image:
    """A picture of light, things and grain.

    Args:
        size: in pixels.
        seed: of everything that is drawn by chance.
        detail: of 255, standard deviation of what is spread over all frequencies, in brightness.
        grain: of 255, standard deviation of what each pixel has by itself.
        softness: how much faster than as 1/f the finer details fade.
        shapes: hard-edged things.
        words: short lines of text.
    """
    draw = np.random.default_rng(seed)
    width, height = size
    across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    light = [95 + 60 * (across * one + down * other) for one, other in draw.uniform(-0.6, 0.6, (3, 2))]
    bright = _clouds(size, draw, softness)
    # Some places are full of detail, others are as smooth as a sky.
    bright *= np.clip(0.9 + 0.6 * _clouds(size, draw, 1.5), 0.1, None)
    # Colours vary less, and over longer ways, than brightness does.
    colours = [bright + 0.5 * _clouds(size, draw, 1) for _ in range(3)]
    pixels = np.stack(light, axis=-1) + detail * np.stack(colours, axis=-1)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    _things(image, draw, shapes, words)
    # A camera's grain is mostly brightness.
    noise = draw.normal(0, grain, (height, width, 1)) + draw.normal(0, grain / 2, (height, width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).round().astype(np.uint8))


def poster(size: Size = SQUARE) -> Image.Image:
    """Flat art: even colours, hard edges, words; made smaller, so that its edges have shades between."""
    draw = np.random.default_rng(5)
    large = Image.new("RGB", (2 * size[0], 2 * size[1]), (238, 229, 211))
    _things(large, draw, 90, 90)
    return large.resize(size, Image.Resampling.BOX)


def _clouds(size: Size, draw: np.random.Generator, softness: float) -> NDArray[np.float64]:
    """Noise of mean 0 and deviation 1 whose amplitudes fall as 1 / f ** (1 + softness)."""
    width, height = size
    away = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    away[0, 0] = np.inf
    waves = np.fft.rfft2(draw.normal(size=(height, width))) / away ** (1 + softness)
    clouds: NDArray[np.float64] = np.fft.irfft2(waves, s=(height, width))
    clouds /= clouds.std()
    return clouds


def _things(image: Image.Image, draw: np.random.Generator, shapes: int, words: int) -> None:
    pen = ImageDraw.Draw(image)
    side = max(image.size)
    for number in range(shapes):
        left, top = draw.uniform(-0.1, 1, 2) * image.size
        wide, high = draw.uniform(0.02, 0.2, 2) * side
        colour = tuple(int(part) for part in draw.integers(0, 256, 3))
        shape = (pen.rectangle, pen.ellipse)[number % 2]
        shape((left, top, left + wide, top + high), fill=colour)
    for _ in range(words):
        font = ImageFont.load_default(float(draw.uniform(0.012, 0.05) * side))
        text = "".join(chr(one) for one in draw.integers(97, 123, 14))
        colour = tuple(int(part) for part in draw.integers(0, 256, 3))
        pen.text(tuple(draw.uniform(0, 0.9, 2) * image.size), text, fill=colour, font=font)
