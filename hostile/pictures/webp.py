"""WebP files that no encoder writes."""

import struct
from collections.abc import Iterator
from functools import cache

from hostile.pictures.parts import Named, exif_of, file_of, photo, photo_file
from hostile.pictures.png import MIB, entities

ANIMATED, XMP, EXIF, ALPHA, ICC = 2, 4, 8, 16, 32


def chunk(kind: bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One chunk, padded to an even length, with a length that may be a lie."""
    return kind + struct.pack("<I", len(body) if length is None else length) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, length: int | None = None) -> bytes:
    """The file around them."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


def extended(width: int, height: int, flags: int = 0) -> bytes:
    """VP8X: a canvas."""
    sides = struct.pack("<I", width - 1 & 0xFFFFFF)[:3] + struct.pack("<I", height - 1 & 0xFFFFFF)[:3]
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def frame(body: bytes, width: int = 64, height: int = 48, at: int = 0) -> bytes:
    """ANMF: a picture of an animation."""
    sides = [struct.pack("<I", value & 0xFFFFFF)[:3] for value in (at, at, width - 1, height - 1, 100)]
    return chunk(b"ANMF", b"".join(sides) + b"\0" + body)


@cache
def pixels(*, lossless: bool = False) -> bytes:
    """The chunk with the pixels of a photograph of 64 x 48."""
    return photo_file("WEBP", lossless=lossless)[12:]


def flat(width: int, height: int, *, alpha: int = 255) -> bytes:
    """The largest picture of the fewest bytes: every code has one symbol, and so no bits at all."""
    bits = f"{width - 1:014b}"[::-1] + f"{height - 1:014b}"[::-1] + "1000" + "000"
    for symbol in (99, 9, 199, alpha, 0):
        bits += "101" + f"{symbol:08b}"[::-1]
    packed = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    return riff(chunk(b"VP8L", b"\x2f" + packed))


def claimed(width: int, height: int, *, lossless: bool) -> bytes:
    """A photograph of 64 x 48 whose bit stream claims another size."""
    body = bytearray(pixels(lossless=lossless))
    if lossless:
        struct.pack_into("<I", body, 9, (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14)
    else:
        struct.pack_into("<HH", body, 14, width & 0x3FFF, height & 0x3FFF)
    return riff(bytes(body))


def sizes() -> Iterator[Named]:
    """Claims, and pictures that are as large as they say."""
    for width, height in (
        (16384, 16384),
        (16383, 16383),
        (7071, 7071),
        (16383, 3000),
        (3000, 16383),
        (16383, 1),
        (1, 16383),
    ):
        for alpha in (255, 128):
            yield f"webp-{width}x{height}-alpha-{alpha}", flat(width, height, alpha=alpha)
    for lossless in (False, True):
        for width, height in ((16383, 16383), (7071, 7071), (16384, 1), (0, 0), (1, 1)):
            yield f"webp-claims-{width}x{height}-lossless-{lossless}", claimed(width, height, lossless=lossless)
        body = pixels(lossless=lossless)
        for width, height in ((2**24, 2**24), (16384, 16384), (7071, 7071), (2**24, 1), (1, 1), (63, 48)):
            yield f"webp-canvas-{width}x{height}-lossless-{lossless}", riff(extended(width, height), body)
            animated = riff(extended(width, height, ANIMATED), chunk(b"ANIM", bytes(6)), frame(body), frame(body))
            yield f"webp-canvas-{width}x{height}-animated-lossless-{lossless}", animated


def animations() -> Iterator[Named]:
    """Very many frames, or frames that are elsewhere."""
    anim, body = chunk(b"ANIM", bytes(6)), pixels(lossless=True)
    tiny = photo().resize((1, 1))
    dot = file_of(tiny, "WEBP", lossless=True)[12:]
    for count in (1, 1000, 100_000, 500_000):
        frames = frame(dot, 1, 1) * count
        yield f"webp-{count}-frames", riff(extended(64, 48, ANIMATED), anim, frames)
    yield "webp-1000-frames-of-49-megapixels", riff(extended(7000, 7000, ANIMATED), anim, frame(dot, 1, 1) * 1000)
    for at in (32, 10_000, 2**23):
        yield f"webp-frame-at-{at}", riff(extended(64, 48, ANIMATED), anim, frame(body, at=at), frame(body))
    yield "webp-no-frames", riff(extended(64, 48, ANIMATED), anim)
    yield "webp-no-animation", riff(extended(64, 48, ANIMATED), frame(body))
    nested = body
    for _ in range(200):
        nested = frame(nested)
    yield "webp-frames-in-frames", riff(extended(64, 48, ANIMATED), anim, nested)


def chunks() -> Iterator[Named]:
    """Very many, very long, twice, lying, or in the wrong place."""
    body = pixels()
    everything = XMP | EXIF | ALPHA | ICC
    for kind in (b"ICCP", b"EXIF", b"XMP ", b"ALPH", b"ANIM", b"quIx", b"VP8X", b"VP8 ", b"VP8L"):
        for flags in (0, everything, 255):
            for content in (b"", b"\0", b"\xff" * 33, bytes(1000)):
                name = f"webp-{kind.decode().strip()}-{flags}-{len(content)}-{content[:1].hex()}"
                yield name, riff(extended(64, 48, flags), chunk(kind, content), body)
                yield f"{name}-behind", riff(extended(64, 48, flags), body, chunk(kind, content))
        for length in (2**31, 2**32 - 1, 2**32 - 8, 2**24):
            yield (
                f"webp-{kind.decode().strip()}-claims-{length}",
                riff(extended(64, 48), chunk(kind, length=length), body),
            )
    for kind in (b"quIx", b"EXIF", b"ICCP"):
        for count in (100_000, 3_000_000):
            many = riff(extended(64, 48, everything), chunk(kind) * count, body)
            yield f"webp-{count}-{kind.decode()}", many
            yield f"webp-{count}-{kind.decode()}-behind", riff(extended(64, 48, everything), body, chunk(kind) * count)
        yield f"webp-20-mb-{kind.decode()}", riff(extended(64, 48, everything), chunk(kind, bytes(20 * MIB)), body)
    yield "webp-xmp-of-entities", riff(extended(64, 48, XMP), body, chunk(b"XMP ", entities()))
    yield "webp-xmp-20-mb", riff(extended(64, 48, XMP), body, chunk(b"XMP ", b"<a>" * (20 * MIB // 3)))
    for length in (0, 4, 2**31, 2**32 - 1):
        yield f"webp-says-it-has-{length}-bytes", riff(body, length=length)
    yield "webp-20-mb-behind", riff(body) + bytes(20 * MIB)
    yield "webp-no-pixels", riff(extended(64, 48))
    yield "webp-of-nothing", riff()
    yield "webp-two-pictures", riff(body, body)


def streams() -> Iterator[Named]:
    """Every byte of the stream's beginning, wrong."""
    for lossless in (False, True):
        whole = riff(pixels(lossless=lossless))
        for place in range(12, 60):
            for value in (0, 255, whole[place] ^ 16):
                odd = bytearray(whole)
                odd[place] = value
                yield f"webp-lossless-{lossless}-byte-{place}-is-{value}", bytes(odd)


def exif() -> Iterator[Named]:
    """The tags of a camera, in a WebP."""
    for name, block in exif_of():
        for head in (b"", b"Exif\0\0"):
            yield f"webp-exif-{name}-{len(head)}", riff(extended(64, 48, EXIF), pixels(), chunk(b"EXIF", head + block))


def all_of_them() -> Iterator[Named]:
    """Every case of this module."""
    for some in (sizes, animations, chunks, streams, exif):
        yield from some()
    yield "webp-as-it-should-be", photo_file("WEBP")
