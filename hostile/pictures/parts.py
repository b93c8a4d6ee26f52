"""What pictures of several formats share."""

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

#: a case's name and its file
Named = tuple[str, bytes]
ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD, INTEROP_IFD, MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
ENTRY = "<HHII"
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value, by TIFF's type


def photo(width: int = 64, height: int = 48) -> Image.Image:
    """Soft content of many colours."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A tile of noise, repeated: what is slow to decode and quick to make."""
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, len(mode)), dtype=np.uint8)
    pixels = np.tile(tile, (-(-height // 256), -(-width // 256), 1))[:height, :width]
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_file(kind: str, **options: object) -> bytes:
    """A small, honest one."""
    return file_of(photo(), kind, **options)


def ifd(
    entries: Sequence[tuple[int, int, int, int]], *, after: int = 0, at: int = 8, count: int | None = None
) -> bytes:
    """TIFF's head and one directory, of entries of tag, type, count and value or offset.

    Args:
        entries: in the order in which they are written.
        after: offset of the next directory.
        at: offset of this one, as the head has it.
        count: of entries, if it is to be a lie.
    """
    body = b"".join(struct.pack(ENTRY, *entry) for entry in entries)
    told = len(entries) if count is None else count
    return b"II*\0" + struct.pack("<I", at) + struct.pack("<H", told) + body + struct.pack("<I", after)


def exif_of() -> Iterator[Named]:
    """Tags that a camera would not write: loops, lies and values out of range."""
    for value in (0, 9, 255, 65535):
        yield f"orientation-{value}", ifd([(ORIENTATION, 3, 1, value)])
    for kind in (0, *WIDTHS, 13, 255, 65535):
        yield f"orientation-of-type-{kind}", ifd([(ORIENTATION, kind, 1, 6)])
        yield f"orientation-of-type-{kind}-many", ifd([(ORIENTATION, kind, 2**32 - 1, 8)])
    yield "orientation-rational", ifd([(ORIENTATION, 5, 1, 26)]) + struct.pack("<II", 6, 1)
    yield "orientation-divided-by-zero", ifd([(ORIENTATION, 5, 1, 26)]) + struct.pack("<II", 6, 0)
    yield "orientation-text", ifd([(ORIENTATION, 2, 4, 0x363636)])
    yield "orientation-not-a-number", ifd([(ORIENTATION, 12, 1, 26)]) + struct.pack("<d", float("nan"))
    yield "orientation-twice", ifd([(ORIENTATION, 3, 1, 6), (ORIENTATION, 3, 1, 8)])
    yield "directory-after-itself", ifd([(ORIENTATION, 3, 1, 6)], after=8)
    yield "directory-in-itself", ifd([(tag, 4, 1, 8) for tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD, MAKER_NOTE)])
    yield "65535-entries", ifd([(tag, 3, 1, 1) for tag in range(5000)], count=65535)
    yield "5000-entries-of-all", ifd([(tag, 7, 60_000, 8) for tag in range(5000)])
    yield "beyond-the-end", ifd([], at=2**32 - 1)
    yield "inside-its-head", ifd([(ORIENTATION, 3, 1, 6)], at=0)
    yield "big-tiff", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63)
    yield "deep", _deep(4000)
    yield "deep-directories-one-after-another", _chain(4000)
    yield "maker-note", ifd([(MAKER_NOTE, 7, 2**31, 8)]) + bytes(100)
    yield "of-zeros", bytes(64)
    yield "of-nothing", b""
    yield "a-header", b"II*\0\x08\0\0\0"
    yield "mixed-order", b"MM*\0" + ifd([(ORIENTATION, 3, 1, 6)])[4:]


def _deep(levels: int) -> bytes:
    """Each directory holds the next."""
    size = 2 + 12 + 4
    parts = [struct.pack("<H" + ENTRY[1:] + "I", 1, EXIF_IFD, 4, 1, 8 + (n + 1) * size, 0) for n in range(levels)]
    return b"II*\0\x08\0\0\0" + b"".join(parts)


def _chain(levels: int) -> bytes:
    """Each directory is followed by the next."""
    size = 2 + 12 + 4
    parts = [struct.pack("<H" + ENTRY[1:] + "I", 1, ORIENTATION, 3, 1, 6, 8 + (n + 1) * size) for n in range(levels)]
    return b"II*\0\x08\0\0\0" + b"".join(parts)
