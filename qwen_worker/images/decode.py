"""Bytes of a stranger → an upright sRGB picture, as a photographer would expect to see it."""

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from qwen_worker.errors import BadInput

FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow calls the JPEG of many phones and cameras: a second picture (depth, gain map) lies behind the first.
PHONE_JPEG = "MPO"
MAX_SIDE = 16383  # pixels: the longest that a WebP result can have
# Each scan of a progressive JPEG is decoded over the whole picture: real files have about ten, bombs thousands.
MAX_JPEG_SCANS = 100
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Any JPEG marker that begins a segment or ends the picture; in scans FF is followed by 00 or a restart marker.
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
ORIENTATION = 0x0112
# EXIF's orientation → what brings the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's own limit is another number, and global: ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class Decoded:
    """A source as the model may see it: upright, sRGB, 8 bits, no alpha."""

    image: Image.Image
    format: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes, *, max_pixels: int, backdrop: str = "white") -> Decoded:
    """Read a JPEG, PNG or WebP.

    Args:
        data: the file.
        max_pixels: width times height that is accepted, checked before the pixels are decoded.
        backdrop: the colour of what is transparent.

    Raises:
        BadInput: the bytes are not such a picture, are damaged, or are too large.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(opened, data, max_pixels)
        opened.load()
        return _photograph(opened, backdrop)
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        # Pillow raises SyntaxError for broken headers, ValueError and RuntimeError for impossible ones.
        raise BadInput(
            "it is not a readable JPEG, PNG or WebP picture: send the picture itself, and all of it"
        ) from error


def _check_size(opened: Image.Image, data: bytes, max_pixels: int) -> None:
    width, height = opened.size
    if width * height > max_pixels:
        raise BadInput(f"it has {width} x {height} pixels: send at most {max_pixels} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"it has {width} x {height} pixels: send at most {MAX_SIDE} a side")
    if opened.format in {"JPEG", PHONE_JPEG} and _has_endless_scans(data):
        raise BadInput(f"it is a JPEG of more than {MAX_JPEG_SCANS} scans: save it as a baseline JPEG")


def _has_endless_scans(data: bytes) -> bool:
    """Count the scans of the picture itself: not those of a thumbnail before it or a film behind it."""
    at = 2
    scans = 0
    while (found := MARKER.search(data, at)) and scans <= MAX_JPEG_SCANS:
        marker = found[1][0]
        if marker == END_OF_IMAGE:
            break
        scans += marker == START_OF_SCAN
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        at = found.end() + length
    return scans > MAX_JPEG_SCANS


def _photograph(opened: Image.Image, backdrop: str) -> Decoded:
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != PHONE_JPEG:
        notes.append(f"it is animated: the first of its {frames} frames was used")
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        orientation = None
        notes.append("its EXIF data is broken: its orientation was ignored")
    image = _eight_bit(opened)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if profile := opened.info.get("icc_profile"):
        converted = _to_srgb(image, profile)
        if converted is None:
            notes.append("its colour profile is broken and was ignored")
        image = converted or image
    return Decoded(
        _flatten(image, backdrop), "JPEG" if opened.format == PHONE_JPEG else str(opened.format), tuple(notes)
    )


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey down to 8 bits; Pillow's own convert clips it to white."""
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image, dtype=np.float32)
    grey = Image.fromarray((deep * (255 / 65535) + 0.5).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


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


def _flatten(image: Image.Image, backdrop: str) -> Image.Image:
    """Lay a transparent picture on one colour: what lies hidden below alpha 0 must not appear."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, backdrop), layer).convert("RGB")
