"""PNG files that no encoder writes."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from hostile.pictures.parts import Named, exif_of, ifd, photo_file

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
# First column and row of each pass of an interlaced picture, and its steps.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
MIB = 2**20


def chunk(kind: bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One chunk, with a length that may be a lie."""
    size = len(body) if length is None else length
    return struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, depth: int = 8, colour: int = RGB, *, interlaced: bool = False) -> bytes:
    """IHDR."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def rows(width: int, height: int, depth: int = 8, colour: int = RGB, *, interlaced: bool = False) -> bytes:
    """All of one colour, compressed without ever being in memory."""
    lines = []
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns = (width - left + across - 1) // across
        row = b"\0" + b"\x80" * ((columns * CHANNELS[colour] * depth + 7) // 8)
        lines.append(repeat(row, (height - top + down - 1) // down))
    return squeezed(chain.from_iterable(lines), 1)


def squeezed(pieces: Iterable[bytes], level: int = 9) -> bytes:
    """What a stream becomes in zlib."""
    press = zlib.compressobj(level)
    return b"".join([press.compress(piece) for piece in pieces] + [press.flush()])


def nothing(size: int) -> bytes:
    """That many zero bytes, compressed: about a thousandth of it."""
    return squeezed(bytes(MIB) for _ in range(size // MIB))


def png(before: bytes = b"", after: bytes = b"", *, head: bytes | None = None, data: bytes | None = None) -> bytes:
    """A PNG of 8 x 8, with chunks before and after its pixels."""
    pixels = chunk(b"IDAT", rows(8, 8) if data is None else data)
    return SIGNATURE + (head or header(8, 8)) + before + pixels + after + chunk(b"IEND")


def sizes() -> Iterator[Named]:
    """Claims."""
    yield "png-1x178000000", png(head=header(1, 178_000_000, 8, GREY), data=zlib.compress(b""))
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**32 - 1, 1),
        (16384, 1),
        (1, 65535),
    ):
        yield f"png-{width}x{height}", png(head=header(width, height), data=rows(8, 8))
    for width, height in ((0, 0), (0, 8), (8, 0)):
        yield f"png-{width}x{height}", png(head=header(width, height))
    yield "png-16383x1", png(head=header(16383, 1), data=rows(16383, 1))
    yield "png-1x16383", png(head=header(1, 16383), data=rows(1, 16383))
    yield "png-claims-50-megapixels", png(head=header(7071, 7071), data=rows(8, 8))


def bombs() -> Iterator[Named]:
    """Small files that unfold."""
    yield "png-pixels-unfold-to-1-gb", png(data=nothing(1024 * MIB))
    yield "png-more-pixels-after-the-end", png(after=chunk(b"IDAT", nothing(512 * MIB)))
    yield "png-8-mb-behind-the-end", png() + bytes(8 * MIB)
    yield "png-pixels-behind-the-end", png() + chunk(b"IDAT", nothing(256 * MIB)) * 8


def texts() -> Iterator[Named]:
    """Chunks that say something."""
    for size in (64, 512, 1024):
        unfolds = nothing(size * MIB)
        yield f"png-ztxt-{size}-mb", png(chunk(b"zTXt", b"a\0\0" + unfolds))
        yield f"png-itxt-{size}-mb", png(chunk(b"iTXt", b"a\0\1\0\0\0" + unfolds))
        yield f"png-iccp-{size}-mb", png(chunk(b"iCCP", b"a\0\0" + unfolds))
        yield f"png-ztxt-{size}-mb-behind-the-pixels", png(after=chunk(b"zTXt", b"a\0\0" + unfolds))
    yield "png-500-ztxt-of-1-mb", png(chunk(b"zTXt", b"a\0\0" + nothing(MIB)) * 500)
    yield "png-100-iccp-of-32-mb", png(chunk(b"iCCP", b"a\0\0" + nothing(32 * MIB)) * 100)
    yield "png-text-20-mb", png(chunk(b"tEXt", b"a\0" + b"x" * (20 * MIB)))
    yield "png-xmp-of-entities", png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + entities()))
    yield "png-xmp-20-mb", png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * (20 * MIB // 3)))
    for body in (b"", b"\0", b"\0\0", b"a", b"a\0", b"a\0\7", b"a" * 100, b"a\0\0", b"a\0\0nonsense", b"\xff\xfe\0\0x"):
        for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
            yield f"png-{kind.decode()}-of-{body[:12].hex() or 'nothing'}-{len(body)}", png(chunk(kind, body))


def chunks() -> Iterator[Named]:
    """Very many, or in places where they do not belong."""
    yield "png-2100000-empty-chunks", png(chunk(b"quIx") * 2_100_000)
    for count in (100_000, 1_000_000):
        yield f"png-{count}-empty-chunks", png(chunk(b"quIx") * count)
        yield f"png-{count}-texts", png(chunk(b"tEXt", b"a\0b") * count)
        yield f"png-{count}-texts-behind", png(after=chunk(b"tEXt", b"a\0b") * count)
        yield f"png-{count}-empty-pixels", png(chunk(b"IDAT") * count)
    yield "png-100000-distinct-texts", png(b"".join(chunk(b"tEXt", b"%d\0b" % n) for n in range(100_000)))
    yield "png-a-byte-a-chunk", png(b"".join(chunk(b"IDAT", bytes([byte])) for byte in rows(64, 64)), data=b"")
    for kind in (
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"gAMA",
        b"sRGB",
        b"pHYs",
        b"cHRM",
        b"acTL",
        b"fcTL",
        b"fdAT",
    ):
        for body in (b"", b"\0", b"\xff" * 3, bytes(8), b"\xff" * 40, bytes(1000)):
            yield f"png-{kind.decode()}-of-{len(body)}-{body[:1].hex()}", png(chunk(kind, body))
    for length in (2**31 - 1, 2**31, 2**32 - 1, 2**24):
        yield f"png-a-chunk-claims-{length}", png(chunk(b"tEXt", b"a\0b", length=length))
    yield "png-no-header", SIGNATURE + chunk(b"IDAT", rows(8, 8)) + chunk(b"IEND")
    yield "png-two-headers", png(header(5000, 5000))
    yield "png-no-pixels", SIGNATURE + header(8, 8) + chunk(b"IEND")
    yield "png-palettes-after-the-pixels", png(after=chunk(b"PLTE", bytes(768)) * 1000)


def animations() -> Iterator[Named]:
    """APNG: very many frames, or claims of them."""
    for count in (1, 5000, 2**31 - 1, 2**32 - 1, 0):
        yield f"apng-claims-{count}-frames", png(chunk(b"acTL", struct.pack(">II", count, 0)))
    frame = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0)
    drawn = chunk(b"fcTL", frame) + chunk(b"fdAT", bytes(4) + rows(8, 8))
    yield "apng-20000-frames", png(chunk(b"acTL", struct.pack(">II", 20_000, 0)), drawn * 20_000)
    beyond = struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 0, 0, 9, 9)
    yield "apng-frame-beyond-the-picture", png(chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", beyond))


def palettes() -> Iterator[Named]:
    """Colours that are not there, or too many."""
    indices = zlib.compress(b"".join(b"\0" + bytes(range(200, 208)) for _ in range(8)))
    for colours in (0, 1, 16, 256, 257, 10_000):
        for clear in (None, 0, 1, 256, 257, 5000):
            before = chunk(b"PLTE", bytes(3 * colours)) + (b"" if clear is None else chunk(b"tRNS", bytes(clear)))
            yield f"png-palette-{colours}-clear-{clear}", png(before, head=header(8, 8, 8, PALETTE), data=indices)
    yield "png-palette-missing", png(head=header(8, 8, 8, PALETTE), data=indices)
    yield "png-palette-of-4-bytes", png(chunk(b"PLTE", bytes(4)), head=header(8, 8, 8, PALETTE), data=indices)


def shapes() -> Iterator[Named]:
    """Every depth and colour, those that do not exist too."""
    for depth in (0, 1, 2, 3, 4, 8, 16, 32, 255):
        for colour in (0, 1, 2, 3, 4, 5, 6, 7, 255):
            channels = CHANNELS.get(colour, 1)
            data = squeezed(b"\0" + bytes((8 * channels * depth + 7) // 8) for _ in range(8))
            for clear in (b"", chunk(b"tRNS", bytes(2)), chunk(b"tRNS", bytes(6))):
                before = chunk(b"PLTE", bytes(768)) * (colour == PALETTE) + clear
                for interlaced in (False, True):
                    head = header(8, 8, depth, colour, interlaced=interlaced)
                    name = f"png-depth-{depth}-colour-{colour}-clear-{len(clear)}-interlaced-{interlaced}"
                    yield name, png(before, head=head, data=data)
    for place, value in ((24, 3), (26, 1), (27, 1), (28, 2), (28, 255)):
        odd = bytearray(png())
        odd[place] = value
        yield f"png-header-byte-{place}-is-{value}", bytes(odd)


def exif() -> Iterator[Named]:
    """The tags of a camera, in a PNG."""
    for name, block in exif_of():
        yield f"png-exif-{name}", png(chunk(b"eXIf", block))
    yield "png-10000-exif", png(chunk(b"eXIf", ifd([(0x0112, 3, 1, 6)])) * 10_000)
    yield "png-exif-behind", png(after=chunk(b"eXIf", ifd([(0x0112, 3, 1, 6)])))
    yield (
        "png-exif-as-text",
        png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  99999999\n00zz"))),
    )


def entities() -> bytes:
    """XML of a few hundred bytes that would be 10 ** 9 words, were its entities resolved."""
    lines = [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)]
    return ('<!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(lines) + "]><x>&a9;</x>").encode()


def all_of_them() -> Iterator[Named]:
    """Every case of this module."""
    for some in (sizes, bombs, texts, chunks, animations, palettes, shapes, exif):
        yield from some()
    yield "png-as-it-should-be", photo_file("PNG")
