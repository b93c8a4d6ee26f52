"""A picture → the bytes of a file."""

import hashlib
import io
import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from qwen_worker.errors import ModelError
from qwen_worker.images import png
from qwen_worker.schema import OutputFormat, Size

EXTENSION = {"png": "png", "jpeg": "jpg", "webp": "webp"}
FULL_CHROMA_QUALITY = 90
# Least quality → libwebp's method, 0 to 6. Method 2 makes smaller files than 1, but for fine ones; what is beyond takes
# two or three times as long for some percent. At 99 and 100 the methods below 3 make noise three times as large.
WEBP_METHODS = {99: 4, 90: 1, 1: 2}
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
    if output_format == "png":
        data = png.encode(np.asarray(image))
    elif output_format == "jpeg":
        data = _jpeg(image, quality)
    else:
        data = _webp(image, quality)
    return Encoded(data, hashlib.sha256(data).hexdigest(), f"image/{output_format}", EXTENSION[output_format])


def _jpeg(image: Image.Image, quality: int) -> bytes:
    """By OpenCV: the same bytes as Pillow's, which would keep all other threads waiting meanwhile."""
    full = quality >= FULL_CHROMA_QUALITY
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ModelError("the picture that was made cannot be written as a JPEG")
    return data.tobytes()


def _webp(image: Image.Image, quality: int) -> bytes:
    method = next(method for least, method in WEBP_METHODS.items() if quality >= least)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=method)
    return file.getvalue()


def largest(size: Size, output_format: OutputFormat, quality: int) -> int:
    """Bytes that the file of a picture of this size, in pixels, can have at most.

    Of a PNG they are the pixels themselves, a filter byte a row, and what deflate adds to data that it cannot compress
    (five bytes a block and a band, far below 1 %). Of a JPEG it is libjpeg-turbo's tjBufSize().
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
