"""Pictures → files."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from qwen_worker.errors import ModelError
from qwen_worker.images.decode import decode
from qwen_worker.images.encode import encode, largest
from qwen_worker.schema import OutputFormat, Size
from tests.pictures import file_of, photo


@pytest.mark.parametrize(
    ("output_format", "kind", "content_type", "extension"),
    [("png", "PNG", "image/png", "png"), ("jpeg", "JPEG", "image/jpeg", "jpg"), ("webp", "WEBP", "image/webp", "webp")],
)
def test_each_format_is_written(output_format: OutputFormat, kind: str, content_type: str, extension: str) -> None:
    """And reads back as what it says it is."""
    encoded = encode(photo(), output_format, 95)
    back = Image.open(io.BytesIO(encoded.data))

    assert (back.format, encoded.content_type, encoded.extension) == (kind, content_type, extension)
    assert back.size == (320, 240)
    difference = np.asarray(back.convert("RGB"), dtype=int) - np.asarray(photo(), dtype=int)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("profile", [None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_nothing_of_the_sources_metadata_is_left(
    profile: bytes | None, source: str, output_format: OutputFormat
) -> None:
    """EXIF holds the place where a photograph was taken."""
    exif = Image.Exif()
    exif[0x010E] = "secret description"
    texts = PngInfo()
    texts.add_text("note", "secret text")
    by_kind: dict[str, dict[str, Any]] = {
        "JPEG": {"comment": b"secret comment", "xmp": b"secret xmp"},
        "PNG": {"pnginfo": texts},
        "WEBP": {"xmp": b"secret xmp"},
    }
    data = file_of(photo(), source, exif=exif, icc_profile=profile, **by_kind[source])
    assert b"secret" in data

    encoded = encode(Image.fromarray(decode(data, max_pixels=10**6).array), output_format, 95)

    back = Image.open(io.BytesIO(encoded.data))
    back.load()
    assert b"secret" not in encoded.data
    assert b"sRGB" not in encoded.data
    assert not back.getexif()


def test_png_is_exact_whatever_the_quality() -> None:
    """Lossless."""
    assert Image.open(io.BytesIO(encode(photo(), "png", 1).data)).tobytes() == photo().tobytes()


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_is_obeyed(output_format: OutputFormat) -> None:
    """Less quality, fewer bytes."""
    sizes = [len(encode(photo(), output_format, quality).data) for quality in (10, 50, 95)]

    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


@pytest.mark.parametrize(("quality", "subsampling"), [(1, 2), (89, 2), (90, 0), (100, 0)])
def test_a_jpeg_is_pillows(quality: int, subsampling: int) -> None:
    """Byte for byte, with the same colours, and with all of them from quality 90 on."""
    assert encode(photo(), "jpeg", quality).data == file_of(photo(), "JPEG", quality=quality, subsampling=subsampling)


def test_a_picture_that_its_format_cannot_hold_is_no_file() -> None:
    """Of a JPEG's sides."""
    with pytest.raises(ModelError):
        encode(Image.new("RGB", (65501, 1)), "jpeg", 95)


@pytest.mark.parametrize("size", [(512, 512), (257, 256), (1, 1), (1000, 17), (9, 700)])
@pytest.mark.parametrize("kind", ["noise", "black and white", "checkered"])
def test_no_file_is_larger_than_its_bound(size: Size, kind: str) -> None:
    """Of the pictures that compress worst, in each format and at the qualities where something changes."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "black and white":
        pixels = (pixels > 127).astype(np.uint8) * np.uint8(255)
    elif kind == "checkered":
        pixels[:] = (np.indices((height, width)).sum(0) % 2 * 255)[..., None]
    formats: list[tuple[OutputFormat, list[int]]] = [
        ("png", [95]),
        ("jpeg", [1, 89, 90, 100]),
        ("webp", [1, 89, 98, 100]),
    ]
    for name, qualities in formats:
        for quality in qualities:
            assert len(encode(Image.fromarray(pixels), name, quality).data) <= largest(size, name, quality)
