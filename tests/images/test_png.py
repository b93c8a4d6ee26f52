"""The PNG encoder: every pixel comes back, whoever reads it, and the files are small."""

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from qwen_worker.images import png
from qwen_worker.schema import Size
from tests.pictures import file_of, scene

SIZES: list[Size] = [(1, 1), (2, 3), (1, 2000), (16383, 1), (17, 5), (333, 777), (1001, 130)]
LARGE: Size = (2000, 1500)


def picture(kind: str, size: Size) -> png.Array:
    width, height = size
    y, x = np.mgrid[:height, :width]
    if kind == "flat":
        pixels = np.full((height, width, 3), (250, 3, 128))
    elif kind == "gradient":
        pixels = np.stack([x, y, x + y], axis=-1)
    elif kind == "half flat":
        pixels = np.asarray(scene(max(2, width), max(2, height)))[:height, :width].copy()
        pixels[height // 3 :, : width // 2] = 255
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return (pixels.astype(int) % 256).astype(np.uint8)


@pytest.mark.parametrize("kind", ["flat", "gradient", "half flat", "noise"])
@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_every_pixel_comes_back(size: Size, kind: str) -> None:
    """By two decoders that have nothing to do with one another."""
    pixels = picture(kind, size)
    data = png.encode(pixels)

    assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()
    assert (_by_opencv(data) == pixels).all()


def _by_opencv(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found[..., ::-1]


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        yield kind, body
        at += 12 + length


def test_the_file_is_as_the_standard_has_it() -> None:
    """Eight bits of red, green and blue; whole, and nothing besides. The stream says of itself that it is intact."""
    data = png.encode(picture("half flat", LARGE))
    parts = dict(chunks(data))

    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    assert parts[b"IHDR"] == struct.pack(">II5B", *LARGE, 8, 2, 0, 0, 0)
    assert len(zlib.decompress(parts[b"IDAT"])) == LARGE[1] * (3 * LARGE[0] + 1)


def test_files_are_small() -> None:
    """Of a photograph as those that took far longer; of what is flat next to nothing, also beside what is not."""
    photograph, half = scene(*LARGE), picture("half flat", LARGE)

    assert len(png.encode(np.asarray(photograph))) < 1.02 * len(file_of(photograph))
    assert len(png.encode(picture("flat", LARGE))) < 20_000
    assert len(png.encode(half)) < 1.02 * len(file_of(Image.fromarray(half)))
