"""JPEG files that no encoder writes."""

import struct
from collections.abc import Iterator

from hostile.pictures.parts import Named, exif_of, ifd, photo, photo_file
from hostile.pictures.png import MIB, entities

START, END = b"\xff\xd8", b"\xff\xd9"
# Of the fewest bits: one code of one bit, for "nothing" in DC and for "end of block" in AC.
TABLES = b"".join(
    [
        b"\xff\xdb\x00\x43\x00" + bytes([16] * 64),
        *(b"\xff\xc4\x00\x14" + bytes([kind, 1, *[0] * 15, 0]) for kind in (0x00, 0x10)),
    ]
)
# The longest runs of "end of band" that a progressive scan can have: one code for 32,767 blocks.
LONG_RUNS = b"\xff\xc4\x00\x14" + bytes([0x10, 1, *[0] * 15, 0xE0])
BASELINE, PROGRESSIVE, ARITHMETIC, ARITHMETIC_PROGRESSIVE = 0xC0, 0xC2, 0xC9, 0xCA


def segment(marker: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    """One segment, with a length that may be a lie."""
    size = len(body) + 2 if length is None else length
    return struct.pack(">BBH", 0xFF, marker, size) + body


def frame(width: int, height: int, kind: int = BASELINE, components: int = 1, depth: int = 8) -> bytes:
    """SOF, without any subsampling."""
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    return segment(kind, struct.pack(">BHHB", depth, height, width, components) + parts)


def scan(first: int = 0, last: int = 63, high: int = 0, low: int = 0, data: bytes = b"", components: int = 1) -> bytes:
    """SOS of a band, and its bits."""
    parts = b"".join(bytes([number, 0]) for number in range(1, components + 1))
    return segment(0xDA, bytes([components]) + parts + bytes([first, last, high << 4 | low])) + data


def patched(width: int, height: int, **options: object) -> bytes:
    """A photograph of 64 x 48 whose header claims another size."""
    data = bytearray(photo_file("JPEG", **options))
    at = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def with_segments(*segments: bytes) -> bytes:
    """A photograph with these before all others."""
    return START + b"".join(segments) + photo_file("JPEG")[2:]


def sizes() -> Iterator[Named]:
    """Claims."""
    for width, height in (
        (65535, 65535),
        (13000, 13000),
        (7071, 7071),
        (16383, 3000),
        (65500, 1),
        (1, 65500),
        (0, 0),
        (0, 9),
        (9, 0),
    ):
        yield f"jpeg-claims-{width}x{height}", patched(width, height)
        yield f"jpeg-claims-{width}x{height}-progressive", patched(width, height, progressive=True)
    yield "jpeg-16383x1", START + TABLES + frame(16383, 1) + scan(data=bytes(512)) + END
    yield "jpeg-flat-7071x7071", START + TABLES + frame(7071, 7071) + scan(data=bytes(200_000)) + END
    for components in (0, 1, 2, 3, 4, 5, 10, 255):
        for depth in (0, 1, 8, 12, 16, 255):
            body = frame(64, 48, BASELINE, components, depth) + scan(data=bytes(512), components=min(components, 4))
            yield f"jpeg-{components}-components-of-{depth}-bits", START + TABLES + body + END
    for kind in (*range(0xC0, 0xD0), 0xF7):
        yield f"jpeg-frame-{kind:02x}", START + TABLES + frame(64, 48, kind) + scan(data=bytes(512)) + END
    yield (
        "jpeg-lines-told-later",
        START + TABLES + frame(64, 0) + scan(data=bytes(64)) + segment(0xDC, b"\x75\x30") + END,
    )
    yield "jpeg-two-frames", START + TABLES + frame(8, 8) + frame(13000, 13000) + scan(data=bytes(512)) + END
    yield (
        "jpeg-frame-after-its-scan",
        START + TABLES + frame(8, 8) + scan(data=b"\0") + frame(13000, 13000) + scan() + END,
    )
    sampled = START + TABLES + segment(BASELINE, struct.pack(">BHHB", 8, 7000, 7000, 3) + b"\1\x44\0\2\x11\0\3\x11\0")
    yield "jpeg-sampled-4-by-4", sampled + scan(data=bytes(500_000), components=3) + END


def segments() -> Iterator[Named]:
    """Very many, very long, or lying."""
    for marker in (*range(0xE0, 0xF0), 0xFE):
        yield f"jpeg-1000-segments-{marker:02x}", with_segments(*[segment(marker, b"x" * 100)] * 1000)
        yield f"jpeg-380-long-segments-{marker:02x}", with_segments(*[segment(marker, bytes(65_000))] * 380)
        for head in (
            b"",
            b"JFIF\0",
            b"Exif\0\0",
            b"ICC_PROFILE\0",
            b"ICC_PROFILE\0\1",
            b"Adobe",
            b"Photoshop 3.0\0",
            b"MPF\0",
        ):
            yield f"jpeg-segment-{marker:02x}-{head[:5].hex()}-{len(head)}", with_segments(segment(marker, head))
        yield f"jpeg-segment-{marker:02x}-of-length-0", with_segments(segment(marker, length=0))
        yield f"jpeg-segment-{marker:02x}-longer-than-the-file", with_segments(segment(marker, length=65535))
    yield "jpeg-6-million-empty-comments", with_segments(segment(0xFE) * 6_000_000)
    yield "jpeg-25-mb-of-fill-bytes", START + b"\xff" * (25 * MIB) + photo_file("JPEG")[2:]
    yield "jpeg-25-mb-of-zeros-before", START + bytes(25 * MIB) + photo_file("JPEG")[2:]
    yield "jpeg-25-mb-behind", photo_file("JPEG") + b"\xff\xda\x00\x02" * (6 * MIB)
    yield "jpeg-xmp-of-entities", with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + entities()))
    long = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32
    parts = [segment(0xE1, long + struct.pack(">II", 20 * MIB, n * 60_000) + b"<a>" * 20_000) for n in range(350)]
    yield "jpeg-xmp-20-mb", with_segments(*parts)
    shop = b"Photoshop 3.0\0" + (b"8BIM" + struct.pack(">HHI", 0x03ED, 0, 16) + bytes(16)) * 2000
    yield "jpeg-2000-photoshop-resources", with_segments(segment(0xED, shop))
    for size in (0, 1, 2**31, 2**32 - 1):
        lie = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", 0x03ED, 0, size)
        yield f"jpeg-photoshop-resource-of-{size}", with_segments(segment(0xED, lie))


def tables() -> Iterator[Named]:
    """Of Huffman codes and quantization, wrong or missing."""
    for kind in (0xC4, 0xDB, 0xDD, 0xCC):
        for body in (
            b"",
            b"\0",
            b"\xff" * 17,
            bytes(17),
            b"\x00" + b"\xff" * 16 + bytes(4080),
            bytes(65),
            b"\x13" + bytes(128),
        ):
            yield f"jpeg-table-{kind:02x}-{body[:2].hex()}-{len(body)}", with_segments(segment(kind, body))
    bare = START + frame(64, 48) + scan(data=bytes(512)) + END
    yield "jpeg-no-tables", bare
    for first, last, high, low in (
        (5, 2, 0, 0),
        (0, 255, 0, 0),
        (64, 64, 0, 0),
        (1, 63, 15, 15),
        (0, 63, 13, 14),
        (0, 0, 0, 14),
    ):
        for kind in (BASELINE, PROGRESSIVE):
            body = frame(64, 48, kind) + scan(first, last, high, low, bytes(512))
            yield f"jpeg-{kind:02x}-band-{first}-{last}-{high}-{low}", START + TABLES + body + END


def phones() -> Iterator[Named]:
    """MPO: pictures behind the picture, and indices that lie about them."""
    honest = photo_file("MPO", save_all=True, append_images=[photo()] * 3)
    yield "mpo-4-pictures", honest
    yield "mpo-1000-pictures", photo_file("MPO", save_all=True, append_images=[photo(16, 16)] * 1000)
    at = honest.index(b"MPF\0") + 4
    for number in range(0, 120, 2):
        odd = bytearray(honest)
        odd[at + number : at + number + 2] = b"\xff\xff"
        yield f"mpo-index-wrong-at-{number}", bytes(odd)
    for count in (0, 1, 2**31, 2**32 - 1):
        index = ifd([(0xB000, 7, 4, 0x30303130), (0xB001, 4, 1, count), (0xB002, 7, 16, 50)]) + bytes(16)
        yield f"mpo-claims-{count}", with_segments(segment(0xE2, b"MPF\0" + index))
    loops = ifd([(0xB001, 4, 1, 2), (0xB002, 7, 32, 8)], after=8)
    yield "mpo-index-of-itself", with_segments(segment(0xE2, b"MPF\0" + loops))


def exif() -> Iterator[Named]:
    """The tags of a camera, in a JPEG."""
    for name, block in exif_of():
        for cut in range(0, min(len(block), 60_001), 60_000):
            yield f"jpeg-exif-{name}-{cut}", with_segments(segment(0xE1, b"Exif\0\0" + block[cut : cut + 65_000]))
    upright = segment(0xE1, b"Exif\0\0" + ifd([(0x0112, 3, 1, 6)]))
    yield "jpeg-1000-exif", with_segments(upright * 1000)
    pieces = [segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 380
    yield "jpeg-exif-of-25-mb", with_segments(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0"), *pieces)


def all_of_them() -> Iterator[Named]:
    """Every case of this module."""
    for some in (sizes, segments, tables, phones, exif):
        yield from some()
    yield "jpeg-as-it-should-be", photo_file("JPEG")
