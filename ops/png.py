"""PNG files of 8-bit colours, by the standard library alone: what `smoke` sends, and what it looks at."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by the colour type of the header


def written(width: int, height: int, rgb: bytes) -> bytes:
    """The file of a picture."""
    rows = b"".join(b"\0" + rgb[start : start + 3 * width] for start in range(0, 3 * width * height, 3 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(file: bytes) -> tuple[int, int, bytes]:
    """Width, height, and the colours as RGB of a file.

    Raises:
        ValueError: it is none, damaged, or of another kind than this worker writes.
    """
    if not file.startswith(SIGNATURE):
        raise ValueError("it is no PNG file")
    width = height = depth = kind = interlaced = 0
    packed, at = b"", len(SIGNATURE)
    while at + 12 <= len(file):
        length, name = struct.unpack_from(">I4s", file, at)
        data = file[at + 8 : at + 8 + length]
        if file[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(name + data)):
            raise ValueError("it is damaged or cut off")
        if name == b"IHDR":
            width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data)
        elif name == b"IDAT":
            packed += data
        at += 12 + length
    channels = CHANNELS.get(kind, 0)
    if depth != 8 or not channels or interlaced:
        raise ValueError("it is a PNG file of another kind than was asked for")
    try:
        rows = zlib.decompress(packed)
    except zlib.error:
        raise ValueError("its pixels are damaged") from None
    if len(rows) != height * (1 + width * channels):
        raise ValueError("pixels are missing")
    plain = _unfiltered(rows, width * channels, channels)
    if channels == 1:
        return width, height, bytes(value for value in plain for _ in range(3))
    colours = zip(*(plain[part::channels] for part in ((0, 1, 2) if channels > 2 else (0, 0, 0))), strict=True)
    return width, height, bytes(value for pixel in colours for value in pixel)


def _unfiltered(rows: bytes, stride: int, step: int) -> bytearray:
    made, above = bytearray(), bytearray(stride)
    for start in range(0, len(rows), 1 + stride):
        row = bytearray(rows[start + 1 : start + 1 + stride])
        match rows[start]:
            case 1:
                for at in range(step, stride):
                    row[at] = (row[at] + row[at - step]) & 255
            case 2:
                row = bytearray((value + up) & 255 for value, up in zip(row, above, strict=True))
            case 3:
                for at in range(stride):
                    left = row[at - step] if at >= step else 0
                    row[at] = (row[at] + (left + above[at]) // 2) & 255
            case 4:
                for at in range(stride):
                    left, corner = (row[at - step], above[at - step]) if at >= step else (0, 0)
                    row[at] = (row[at] + _paeth(left, above[at], corner)) & 255
        made += row
        above = row
    return made


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda one: abs(guess - one))
