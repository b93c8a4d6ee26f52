"""A picture → the bytes of a file."""

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from qwen_worker.schema import OutputFormat

EXTENSION = {"png": "png", "jpeg": "jpg", "webp": "webp"}
FULL_CHROMA_QUALITY = 90


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
    # Pillow writes comments and profiles that a picture still carries.
    pixels = Image.frombytes(image.mode, image.size, image.tobytes())
    pixels.save(buffer, output_format, **by_format[output_format])
    data = buffer.getvalue()
    return Encoded(data, hashlib.sha256(data).hexdigest(), f"image/{output_format}", EXTENSION[output_format])
