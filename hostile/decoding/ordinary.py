"""S6: what is ordinary and valid is accepted, with the pixels that another decoder sees.

What is ordinary is decided without the worker: a whole JPEG, PNG or WebP of 8 bits, no animation, within the limits,
which another decoder than the worker's for that format reads.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from hostile.decoding import corpus
from hostile.decoding.caller import Pixels, limits
from hostile.decoding.harness import Decoding
from hostile.outcome import Outcome

ACCEPTED = 0.99  # of the ordinary ones; the corpora hold broken files that others do not mind
MAX_SIDE = 16_383  # pixels, as README says
PNG, JPEG, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
# Alpha is mixed in whole numbers here and in fractions there.
OF_ALPHA = 1.0
# Both decoders are libjpeg-turbo and libwebp, in versions whose arithmetic may round differently; CMYK is converted in
# another order.
OF_LOSSY = 2.0
ANIMATIONS = (b"acTL", b"ANIM")
# OpenCV shows colours as they are stored, knows no tRNS of a grey picture, and an orientation only of a JPEG.
PROFILES = (b"ICC_PROFILE", b"iCCP", b"ICCP")
ORIENTATIONS = (b"eXIf", b"EXIF", b"Raw profile type", b"XML:com.adobe.xmp", b"XMP ")


def attack(candidate: str) -> Iterator[Outcome]:
    """The ordinary ones of all that was fetched."""
    corpus.fetch()
    tried, refused = 0, dict[str, str]()
    with Decoding(candidate) as decoding:
        for path in corpus.files():
            data, name = path.read_bytes(), str(path.relative_to(corpus.ROOT))
            reference = ordinary(data)
            if reference is None:
                continue
            tried += 1
            case = decoding.put(data, wants_pixels=True)
            if case.answer.pixels is None:
                refused[name] = str(case.answer.refused or case.answer.untyped)
            else:
                told = difference(data, reference, case.answer.pixels)
                yield Outcome(name, told, case.answer.seconds, case.grown_mb, control=True)
    few = tried > 0 and len(refused) <= (1 - ACCEPTED) * tried
    yield Outcome(f"{tried - len(refused)} of {tried} accepted", None if few else str(refused), 0, control=True)


def ordinary(data: bytes) -> npt.NDArray[np.uint8] | None:
    """What another decoder sees, blue first and not turned upright; None if the file is not ordinary."""
    if not _whole(data) or any(mark in data for mark in ANIMATIONS) or not _within_limits(data):
        return None
    with hushed():
        # The other one in each case: the worker has OpenCV decode a WebP, and Pillow the rest.
        seen = _by_pillow(data) if data.startswith(WEBP) else _by_opencv(data, cv2.IMREAD_UNCHANGED)
    return seen if seen is not None and seen.dtype == np.uint8 else None


def _by_pillow(data: bytes) -> npt.NDArray[np.uint8] | None:
    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)))
    except (OSError, ValueError, SyntaxError, EOFError):
        return None
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _by_opencv(data: bytes, how: int) -> npt.NDArray[np.uint8] | None:
    try:
        seen = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:
        return None
    return None if seen is None else cast("npt.NDArray[np.uint8]", seen)


@contextmanager
def hushed() -> Iterator[None]:
    """What libraries say of broken files on stderr is of no interest here."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _within_limits(data: bytes) -> bool:
    """By the header alone: OpenCV would need half a minute for the largest."""
    try:
        with hushed():
            width, height = Image.open(io.BytesIO(data)).size
    except (OSError, ValueError, SyntaxError):
        return True  # OpenCV may know better
    return bool(height * width <= limits().pixels and max(height, width) <= MAX_SIDE)


def _whole(data: bytes) -> bool:
    """Whether a file is complete, by what its format says of itself."""
    if data.startswith(PNG):
        return _whole_png(data)
    if data.startswith(JPEG):
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    return data.startswith(WEBP) and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _whole_png(data: bytes) -> bool:
    at = len(PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body, kept = data[at + 4 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if zlib.crc32(body).to_bytes(4, "big") != kept:
            return False
        if body[:4] == b"IEND":
            return True
        at += 12 + length
    return False


def difference(data: bytes, reference: npt.NDArray[np.uint8], found: Pixels) -> str | None:
    """How the pixels differ from the reference; None if they do not, or if it cannot tell."""
    if any(mark in data for mark in PROFILES) or _unknown_to_reference(data):
        return None
    expected, allowed = _on_white(data, reference)
    if expected.shape != found.shape:
        return f"{found.shape[:2]} instead of {expected.shape[:2]}"
    worst = float(np.abs(expected - found).max())
    return f"pixels differ by up to {worst:.0f}" if worst > allowed else None


def _unknown_to_reference(data: bytes) -> bool:
    grey = data.startswith(PNG) and data[25] == 0
    return (grey and b"tRNS" in data) or (not data.startswith(JPEG) and any(mark in data for mark in ORIENTATIONS))


def _on_white(data: bytes, reference: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], float]:
    """The pixels as the worker is to have them, and by how much they may differ."""
    if reference.ndim == 3 and reference.shape[2] == 4:
        alpha = reference[..., 3:] / 255
        return np.rint(reference[..., 2::-1] * alpha + 255 * (1 - alpha)), max(OF_ALPHA, _of_format(data))
    with hushed():
        upright = reference if data.startswith(WEBP) else _by_opencv(data, cv2.IMREAD_COLOR)
    return np.asarray(upright, dtype=np.float64)[..., ::-1], _of_format(data)


def _of_format(data: bytes) -> float:
    return 0.0 if data.startswith(PNG) or b"VP8L" in data[:64] else OF_LOSSY
