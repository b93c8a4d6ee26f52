"""A picture → the bytes of a file."""

import hashlib
import io
import math
from dataclasses import dataclass

from PIL import Image

from qwen_worker.schema import OutputFormat, Size

EXTENSION = {"png": "png", "jpeg": "jpg", "webp": "webp"}
FULL_CHROMA_QUALITY = 90
HEADERS = 1024  # bytes, more than any file has besides its pixels


@dataclass(frozen=True)
class Encoded:
    """A file in memory, and the digest of its bytes in hex."""

    data: bytes
    sha256: str
    content_type: str
    extension: str


def encode(image: Image.Image, output_format: OutputFormat, quality: int) -> Encoded:
    """Write an RGB picture without any metadata.

    Args:
        image: an RGB picture.
        output_format: png (lossless), jpeg or webp.
        quality: 1 to 100, for jpeg and webp.
    """
    by_format: dict[str, dict[str, int]] = {
        # zlib's run-length mode: as small as its default on photographs, a fraction of the time.
        "png": {"compress_level": 1, "compress_type": 3},
        "jpeg": {"quality": quality, "subsampling": 0 if quality >= FULL_CHROMA_QUALITY else 2},
        "webp": {"quality": quality},
    }
    buffer = io.BytesIO()
    image.save(buffer, output_format, **by_format[output_format])
    data = buffer.getvalue()
    return Encoded(data, hashlib.sha256(data).hexdigest(), f"image/{output_format}", EXTENSION[output_format])


def largest(size: Size, output_format: OutputFormat, quality: int) -> int:
    """Bytes that the file of a picture of this size, in pixels, can have at most.

    Of a PNG they are the pixels themselves, a filter byte a row, and what zlib adds to data that it cannot compress
    (https://zlib.net/zlib_tech.html: five bytes a block, far below 1 %). Of a JPEG it is libjpeg-turbo's tjBufSize().
    Of a WebP nobody states a bound: of noise at quality 100 it has 1.3 bytes a pixel, and twice as many are counted.
    """
    width, height = size
    if output_format == "png":
        return math.ceil(1.01 * height * (3 * width + 1)) + HEADERS
    if output_format == "webp":
        return math.ceil(2.6 * width * height) + HEADERS
    full = quality >= FULL_CHROMA_QUALITY
    block = 8 if full else 16
    across, down = (-(-side // block) * block for side in size)
    return across * down * (6 if full else 3) + 2 * HEADERS
