"""Bytes of a stranger → an upright sRGB picture, as a photographer would expect to see it.

It trusts the libraries with memory and time; `decoder` runs it where those are limited. The result is made in bands of
rows, so that beside it and the decoded picture there is never a third of their size.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from qwen_worker.errors import BadInput

Array = NDArray[np.uint8]
Stored = Image.Image | Array  # as Pillow or OpenCV decoded it

FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow calls the JPEG of many phones and cameras: a second picture (depth, gain map) lies behind the first.
PHONE_JPEG = "MPO"
MAX_SIDE = 16383  # pixels: the longest that a WebP result can have
BAND_PIXELS = 1 << 18
LARGE = 20_000_000  # pixels: from here on memory may be short
# Each scan of a progressive JPEG is decoded over the whole picture: real files have about ten, bombs thousands.
MAX_JPEG_SCANS = 100
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Any JPEG marker that begins a segment or ends the picture. In scans FF is followed by 00 or a restart marker; where
# libjpeg looks for one of those it passes over numbers below C0.
MARKER = re.compile(rb"\xff([^\x00-\xbf\xd0-\xd7\xff])")
ORIENTATION = 0x0112
# EXIF's orientation → a view of the upright picture in which its pixels are where the file has them.
AS_STORED: dict[int, Callable[[Array], Array]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
SIDEWAYS = {5, 6, 7, 8}
# Pillow's own limit is another number: ours is checked before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
# Cameras and programs put long texts beside the pixels; all of them together remain within Pillow's MAX_TEXT_MEMORY.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# Colours from all over the cube: 17 levels of each.
SAMPLES = Image.fromarray(np.stack(np.meshgrid(*[np.linspace(0, 255, 17)] * 3), -1).reshape(17, -1, 3).astype(np.uint8))
ALPHA_FLAG = 0x10  # of a WebP's extended header, at byte 20
BAD_PROFILE = "its colour profile is broken or not for its colours: ignored"
# What the libraries raise for bytes that are no picture.
UNREADABLE = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, LookupError, ArithmeticError, AssertionError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Pixels:
    """A source as the model may see it: upright, sRGB, no alpha. `array`: uint8, (height, width, 3)."""

    array: Array
    format: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Head:
    """What a file says of its pixels."""

    format: str
    size: tuple[int, int]  # as stored: width, height
    orientation: int | None
    profile: bytes | None
    has_alpha: bool
    notes: list[str]


def in_memory(height: int, width: int) -> Array:
    """Where pixels go if nobody says otherwise."""
    return np.empty((height, width, 3), np.uint8)


def decode(
    data: bytes, *, max_pixels: int, backdrop: str = "white", allocate: Callable[[int, int], Array] = in_memory
) -> Pixels:
    """Read a JPEG, PNG or WebP.

    Args:
        data: the file.
        max_pixels: width times height that is accepted, checked before any pixel is decoded.
        backdrop: the colour of what is transparent.
        allocate: height, width → the array to write the pixels to.

    Raises:
        BadInput: the bytes are not such a picture, are damaged, or are too large.
        MemoryError: there is not enough of it.
    """
    try:
        head, stored = _opened(data, max_pixels)
        return _upright(head, _webp(data, head) if stored is None else stored, backdrop, allocate)
    except UNREADABLE as error:
        raise BadInput(_advice(data)) from error


def _opened(data: bytes, max_pixels: int) -> tuple[_Head, Image.Image | None]:
    """What the file says, and its pixels as Pillow decodes them, but for a WebP.

    Of that Pillow has four copies at a time, OpenCV one; both ask the same library.
    """
    # Opening a WebP allocates its canvases.
    _check_size(*_webp_size(data), max_pixels)
    opened = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*opened.size, max_pixels)
    kind = "JPEG" if opened.format == PHONE_JPEG else str(opened.format)
    if kind == "JPEG" and _has_endless_scans(data):
        raise BadInput(f"it is a JPEG of more than {MAX_JPEG_SCANS} scans: save it as a baseline JPEG")
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != PHONE_JPEG:
        notes.append(f"it is animated: the first of its {frames} frames was used")
    if kind != "WEBP":
        depth = str(opened.tile[0].args) if opened.tile else ""
        opened.load()
        notes += _mended_key(opened, depth)
        if opened.mode == "P" and opened.palette is None:
            raise ValueError("it has indices and no palette")
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        orientation = None
        notes.append("its EXIF data is broken: its orientation was ignored")
    profile = opened.info.get("icc_profile")
    if "icc_profile" in opened.info and not profile:
        notes.append(BAD_PROFILE)  # a JPEG's, of which parts are missing
    head = _Head(
        kind,
        opened.size,
        orientation if orientation in AS_STORED else None,
        profile,
        opened.mode == "RGBA" or frames > 1,
        notes,
    )
    return head, None if kind == "WEBP" else opened


def _advice(data: bytes) -> str:
    """What to do about a file that could not be decoded: the libraries say nothing else when memory was short."""
    try:
        width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except UNREADABLE:
        width = height = 0
    if width * height > LARGE:
        return "it is damaged, or decoding it takes too much memory: send all of it, or a smaller one"
    return "it is not a readable JPEG, PNG or WebP picture: send the picture itself, and all of it"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadInput(f"it has {width} x {height} pixels: send at most {max_pixels} pixels")
    if max(width, height) > MAX_SIDE:
        raise BadInput(f"it has {width} x {height} pixels: send at most {MAX_SIDE} a side")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by a WebP's header (RFC 9649); zeros of anything else."""
    kind, number = data[12:16], int.from_bytes(data[21:25], "little")
    if (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        return 1 + (number & 0x3FFF), 1 + (number >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _mended_key(opened: Image.Image, depth: str) -> list[str]:
    """Bring a PNG's transparent colour to the 8 bits of its pixels, which Pillow forgets; what to say of it.

    `depth` is Pillow's name for how the file has them.
    """
    key = opened.info.get("transparency")
    if key is None:
        return []
    if depth in {"L;2", "L;4"}:
        opened.info["transparency"] = key * 255 // (2 ** int(depth[-1]) - 1)
    elif depth == "RGB;16B":
        del opened.info["transparency"]
        return ["its transparent colour is one of 16 bits and was ignored"]
    return []


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


def _webp(data: bytes, head: _Head) -> Array:
    """The first frame, (height, width, 3 or 4), blue first."""
    if data[12:16] == b"VP8X" and head.has_alpha:
        # OpenCV goes by this flag alone; without it what is hidden below alpha 0 would appear.
        data = data[:20] + bytes([data[20] | ALPHA_FLAG]) + data[21:]
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError("OpenCV cannot decode it") from error
    if found is None:
        raise OSError("OpenCV cannot decode it")
    return found.astype(np.uint8, copy=False)


def _upright(head: _Head, stored: Stored, backdrop: str, allocate: Callable[[int, int], Array]) -> Pixels:
    width, height = head.size
    convert, notes = None, head.notes
    if head.profile:
        mode = _colours(_band(stored, 0, 1)).mode
        convert = _to_srgb(mode, head.profile)
        notes = notes if convert else [*notes, BAD_PROFILE]
        if convert and mode == "RGB" and _changes_nothing(convert):
            convert = None
    upright = allocate(*((width, height) if head.orientation in SIDEWAYS else (height, width)))
    view = AS_STORED[head.orientation](upright) if head.orientation else upright
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = _band(stored, top, min(top + rows, height))
        view[top : top + rows] = _flat(convert(band) if convert else band, backdrop)
    return Pixels(upright, head.format, tuple(notes))


def _band(stored: Stored, top: int, bottom: int) -> Image.Image:
    """Some rows, with 8 bits."""
    if isinstance(stored, Image.Image):
        return _eight_bit(stored.crop((0, top, stored.width, bottom)))
    code = cv2.COLOR_BGR2RGB if stored.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return Image.fromarray(cv2.cvtColor(stored[top:bottom], code))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey down to 8 bits; Pillow's own convert clips it to white."""
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image, dtype=np.float32)
    grey = Image.fromarray((deep * (255 / 65535) + 0.5).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _colours(image: Image.Image) -> Image.Image:
    """Without alpha, in a mode that colour management knows."""
    if image.mode in {"RGB", "L", "CMYK"}:
        return image
    return image.convert("L" if image.mode in {"1", "LA"} else "RGB")


def _to_srgb(mode: str, profile: bytes) -> Callable[[Image.Image], Image.Image] | None:
    """What converts colours of this mode and keeps the alpha; None if the profile does not fit them."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None

    def converted(image: Image.Image) -> Image.Image:
        colours: Image.Image = transform.apply(_colours(image))
        if image.has_transparency_data:
            colours.putalpha(image.convert("RGBA").getchannel("A"))
        return colours

    return converted


def _changes_nothing(convert: Callable[[Image.Image], Image.Image]) -> bool:
    """Whether it is sRGB by another name, as most files have it: converting costs more than decoding does."""
    moved = np.asarray(convert(SAMPLES)).astype(np.int16) - np.asarray(SAMPLES)
    return bool(np.abs(moved).max() <= 1)


def _flat(image: Image.Image, backdrop: str) -> Array:
    """Lay a transparent picture on one colour: what lies hidden below alpha 0 must not appear."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, backdrop), layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
