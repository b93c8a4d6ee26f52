"""Six edits that are always the same: what presets and profiles are compared on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bench.pictures import painted, poster
from qwen_worker.errors import BadInput
from qwen_worker.images.decode import decode
from qwen_worker.images.geometry import NATIVE_AREA
from qwen_worker.schema import Size

MOST_PIXELS = 50_000_000  # of a picture of the owner's own
ENDINGS = {".jpeg", ".jpg", ".png", ".webp"}
# The others take a second picture of the folder; what the prompt says is true of one picture too.
WITH_TWO = "style"
PROMPTS = {
    "colour": "Make the colours warmer, as in the last light of a summer day.",
    "add": "Add a small red hot-air balloon in the upper right corner.",
    "text": 'Replace the words "GRAND OPENING" with "CLOSED TODAY", in the same letters.',
    "background": "Replace the background with a beach at dusk. Do not change what is in front of it.",
    "style": "Redraw the picture as a poster of a few flat colours with hard edges.",
    "remove": "Remove all words and letters.",
}


class PicturesError(Exception):
    """A folder has no pictures that could be edited."""


@dataclass(frozen=True)
class Edit:
    """One of the set.

    Attributes:
        name: what kind of edit it is.
        prompt: of the request.
        seed: of the request.
        pictures: one or two; of a model that takes one, the first is edited.
    """

    name: str
    prompt: str
    seed: int
    pictures: tuple[Image.Image, ...]


def drawn(area: int = NATIVE_AREA) -> list[Edit]:
    """The set with pictures of its own.

    Args:
        area: of a picture in pixels, about.
    """

    def size(width: int, height: int) -> Size:
        scale = (area / (width * height)) ** 0.5
        return round(width * scale), round(height * scale)

    pictures = {
        "colour": [painted(size(1, 1), seed=11, detail=34, grain=1.0, softness=0.45)],
        "add": [poster(size(1, 1))],
        "text": [_sign(size(4, 3))],
        "background": [painted(size(2, 3), seed=12, detail=45, grain=0.5, softness=0.6, shapes=4)],
        "style": [painted(size(3, 2), seed=13, detail=42, grain=0.4, softness=0.7, shapes=10), poster(size(3, 4))],
        "remove": [painted(size(16, 9), seed=14, detail=40, grain=0.4, softness=0.8, shapes=40, words=20)],
    }
    return _edits([tuple(pictures[name]) for name in PROMPTS])


def own(folder: Path) -> list[Edit]:
    """The set with the pictures of a folder, in the order of their names, from the first again where they run out.

    Raises:
        PicturesError: there is none, or one cannot be read.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise PicturesError(f"{folder} has no pictures: put JPEG, PNG or WebP files there")
    found = [_opened(file) for file in files]
    names = list(PROMPTS)
    chosen = [tuple(found[(n + more) % len(found)] for more in range(1 + (names[n] == WITH_TWO))) for n in range(6)]
    return _edits(chosen)


def _edits(pictures: Sequence[tuple[Image.Image, ...]]) -> list[Edit]:
    return [
        Edit(name, prompt, 1000 + number, some)
        for number, ((name, prompt), some) in enumerate(zip(PROMPTS.items(), pictures, strict=True))
    ]


def _opened(file: Path) -> Image.Image:
    try:
        return Image.fromarray(decode(file.read_bytes(), max_pixels=MOST_PIXELS).array)
    except (BadInput, OSError) as error:
        raise PicturesError(f"{file} cannot be edited: {error}") from error


def _sign(size: Size) -> Image.Image:
    """A board with large words on it, in front of something."""
    image = painted(size, seed=15, detail=38, grain=0.5, softness=0.7, shapes=6)
    width, height = size
    pen = ImageDraw.Draw(image)
    pen.rectangle((0.1 * width, 0.3 * height, 0.9 * width, 0.7 * height), fill=(250, 244, 225), outline=(60, 40, 30))
    font = ImageFont.load_default(0.15 * height)
    pen.multiline_text((width / 2, height / 2), "GRAND\nOPENING", (150, 25, 30), font, anchor="mm", align="center")
    return image
