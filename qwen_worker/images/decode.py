"""Bytes of a stranger → an upright sRGB picture, as a photographer would expect to see it."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

from qwen_worker.errors import BadInput

FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow calls the JPEG of many phones and cameras: a second picture (depth, gain map) lies behind the first.
PHONE_JPEG = "MPO"
MAX_SIDE = 16384  # pixels
# Each scan of a progressive JPEG is decoded over the whole picture: real files have about ten, bombs thousands.
MAX_JPEG_SCANS = 100
START_OF_SCAN = b"\xff\xda"
# Pillow's own limit is another number, and global: ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Decoded:
    """A source as the model may see it: upright, sRGB, 8 bits, no alpha."""

    image: Image.Image
    format: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes, *, max_pixels: int) -> Decoded:
    """Read a JPEG, PNG or WebP.

    Args:
        data: the file.
        max_pixels: width times height that is accepted, checked before the pixels are decoded.

    Raises:
        BadInput: the bytes are not such a picture, are damaged, or are too large.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(opened, data, max_pixels)
        opened.load()
        return _photograph(opened)
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        # Pillow raises SyntaxError for broken headers, ValueError and RuntimeError for impossible ones.
        raise BadInput(
            "the source is not a readable JPEG, PNG or WebP picture: is the link the picture itself, and complete?"
        ) from error


def _check_size(opened: Image.Image, data: bytes, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise BadInput(f"the source has {width} x {height} pixels: send at most {max_pixels} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"the source has {width} x {height} pixels: send at most {MAX_SIDE} a side")
    if opened.format in {"JPEG", PHONE_JPEG} and data.count(START_OF_SCAN) > MAX_JPEG_SCANS:
        raise BadInput(f"the source is a JPEG of more than {MAX_JPEG_SCANS} scans: save it as a baseline JPEG")


def _photograph(opened: Image.Image) -> Decoded:
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != PHONE_JPEG:
        notes.append(f"the source is animated: the first of its {frames} frames was used")
    profile = opened.info.get("icc_profile")
    upright = _upright(opened)
    if upright is None:
        notes.append("the source's EXIF data is broken: its orientation was ignored")
    image = _eight_bit(upright or opened)
    if profile:
        converted = _to_srgb(image, profile)
        if converted is None:
            notes.append("the source's colour profile is broken and was ignored")
        image = converted or image
    return Decoded(_flatten(image), "JPEG" if opened.format == PHONE_JPEG else str(opened.format), tuple(notes))


def _upright(image: Image.Image) -> Image.Image | None:
    """Turn the picture as its EXIF orientation says; None if that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey down to 8 bits; Pillow's own convert clips it to white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, dtype=np.float32) * (255 / 65535) + 0.5).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert the colours and keep the alpha; None if the profile does not fit the picture."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = image if image.mode in {"RGB", "L", "CMYK"} else image.convert("L" if image.mode == "LA" else "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            colours,
            source,
            SRGB,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted


def _flatten(image: Image.Image) -> Image.Image:
    """Lay a transparent picture on white: what lies hidden below alpha 0 must not appear."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
