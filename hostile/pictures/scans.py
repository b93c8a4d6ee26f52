"""JPEGs of very many scans: each is a pass over all of the picture, and takes a few bytes."""

import struct
from collections.abc import Iterator

from hostile.pictures.jpeg import END, LONG_RUNS, PROGRESSIVE, START, TABLES, frame, scan, segment
from hostile.pictures.parts import Named


def empty_scans(width: int, height: int, count: int, *, between: bytes = b"") -> bytes:
    """A progressive picture of which each scan says that nothing follows, for every block: a pass for a few bytes."""
    blocks = (width + 7) // 8 * ((height + 7) // 8)
    direct = bytes((blocks + 7) // 8)
    bits = "".join("0" + "1" * 14 for _ in range(blocks // 32767 + 1))
    runs = (
        int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\xff", b"\xff\0")
    )
    scans = [scan(0, 0, 0, 0, direct), *[scan(1, 63, 0, 0, runs)] * (count - 1)]
    return START + TABLES + LONG_RUNS + frame(width, height, PROGRESSIVE) + between.join(scans) + END


def hidden_scans(width: int, height: int, marker: int, groups: int) -> bytes:
    """As many of the same as a lie of two bytes can hide, several times over.

    Where the first scan must restart, libjpeg skips a marker that it does not know. Who walks from segment to segment
    takes it for one, and jumps by the length that it claims.
    """
    plain = empty_scans(width, height, 2)
    first, second = plain.index(b"\xff\xda"), plain.rindex(b"\xff\xda")
    pass_over = plain[second:-2]
    blocks = (width + 7) // 8 * ((height + 7) // 8)
    tail = struct.pack(">BBBB", 0xFF, marker, 0xFF, 0xFF) + b"\xff\xd0" + bytes(1)
    direct = scan(0, 0, 0, 0, bytes((blocks + 6) // 8) + tail)
    group = (
        segment(0xDD, struct.pack(">H", blocks - 1))
        + direct
        + segment(0xDD, bytes(2))
        + pass_over * (65_500 // len(pass_over))
    )
    return plain[:first] + group * groups + END


def all_of_them() -> Iterator[Named]:
    """Every case of this module, in the open and hidden."""
    for count in (2, 99, 100, 101, 1000, 5000):
        yield f"jpeg-{count}-empty-scans", empty_scans(2000, 2000, count)
    for count in (99, 100, 2000):
        yield f"jpeg-{count}-empty-scans-of-49-megapixels", empty_scans(7000, 7000, count)
    hidden = {
        "fill-bytes": b"\xff" * 3,
        "restart": b"\xff\xd0",
        "start-again": START,
        "zeros": bytes(10),
        "end-stuffed": b"\xff\0\xd9",
        "tem": b"\xff\x01",
        "fake-end-in-comment": segment(0xFE, END + bytes(20)),
        "comment-that-lies": segment(0xFE, b"", length=2),
        "long-comment": segment(0xFE, b"\xff\xd9" * 30_000),
        "restart-interval": segment(0xDD, b"\0\1"),
        "restart-interval-of-none": segment(0xDD, b"\0\0"),
        "nothing-follows": segment(0xDF, b"\0"),
        "unknown": segment(0xF0, bytes(9)),
        "reserved": segment(0x02, bytes(9)),
        "reserved-without-length": b"\xff\x02",
        "lines": segment(0xDC, b"\x07\xd0"),
        "tables": LONG_RUNS,
        "stray": b"stray bytes",
    }
    for name, between in hidden.items():
        count = 1500 if len(between) < 1000 else 300
        yield f"jpeg-{count}-scans-behind-{name}", empty_scans(3000, 3000, count, between=between)
    plain = empty_scans(3000, 3000, 1500)
    first = plain.index(b"\xff\xda")
    for name, before in hidden.items():
        yield f"jpeg-{name}-before-1500-scans", plain[:first] + before + plain[first:]
        yield f"jpeg-{name}-at-its-start", START + before + plain[2:]
    for marker in (0x02, 0x4F, 0xBF):
        for side, groups in ((800, 1), (2040, 1), (2040, 90)):
            yield f"jpeg-scans-hidden-by-{marker:02x}-{side}-{groups}", hidden_scans(side, side, marker, groups)
    yield "jpeg-end-before-1500-scans", plain[:first] + END + plain[first:]
    yield "jpeg-fill-bytes-in-markers", plain.replace(b"\xff\xda", b"\xff\xff\xff\xff\xda")
    yield "jpeg-scans-without-an-end", plain[:-2]
    yield "jpeg-arithmetic-scans", plain.replace(b"\xff\xc2", b"\xff\xca", 1)
    yield "jpeg-baseline-with-1500-scans", plain.replace(b"\xff\xc2", b"\xff\xc0", 1)
    yield "jpeg-million-scan-headers", START + TABLES + frame(64, 48, PROGRESSIVE) + scan(0, 0) * 1_000_000 + END
