"""Colour profiles: honest ones of known primaries, and those that are to hurt who reads them."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache

from PIL import Image, ImageCms

from hostile.pictures import jpeg, png, webp
from hostile.pictures.parts import Named, file_of, noise, photo_file

HEAD = 128  # bytes
D50 = (0.9642, 1.0, 0.8249)
NAMES = (b"desc", b"cprt", b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
A_SEGMENT = 65_500  # bytes of a profile that one segment of a JPEG holds


def xyz(*values: float) -> bytes:
    """A tag of numbers."""
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(*points: int, count: int | None = None) -> bytes:
    """A tag of tones: none, a gamma in 1/256, or a table."""
    told = len(points) if count is None else count
    return b"curv\0\0\0\0" + struct.pack(">I", told) + b"".join(struct.pack(">H", point) for point in points)


def text(words: bytes) -> bytes:
    """A tag of words, as version 2 has them."""
    return b"desc\0\0\0\0" + struct.pack(">I", len(words) + 1) + words + bytes(79)


def profile(
    tags: Mapping[bytes, bytes],
    *,
    space: bytes = b"RGB ",
    pcs: bytes = b"XYZ ",
    kind: bytes = b"mntr",
    version: int = 2,
) -> bytes:
    """A profile of these tags; equal ones are stored once."""
    offset = HEAD + 4 + 12 * len(tags)
    table, body, places = b"", b"", dict[bytes, int]()
    for name, tag in tags.items():
        if tag not in places:
            places[tag] = offset + len(body)
            body += tag + bytes(-len(tag) % 4)
        table += name + struct.pack(">II", places[tag], len(tag))
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", version << 24, kind, space, pcs) + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    return head.ljust(HEAD, b"\0") + struct.pack(">I", len(tags)) + table + body


def matrix(
    red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...], tones: bytes
) -> dict[bytes, bytes]:
    """The tags of a display, from the XYZ of its primaries under D50."""
    values = (text(b"made"), text(b"none"), xyz(*D50), xyz(*red), xyz(*green), xyz(*blue), tones, tones, tones)
    return dict(zip(NAMES, values, strict=True))


@cache
def honest() -> dict[bytes, bytes]:
    """The tags of something like sRGB."""
    return matrix((0.436, 0.222, 0.014), (0.385, 0.717, 0.097), (0.143, 0.061, 0.714), curve(round(2.2 * 256)))


def lut(inputs: int, outputs: int, grid: int, *, wide: bool = True, table: bytes | None = None) -> bytes:
    """A tag of a cube of colours, in 16 or 8 bits."""
    head = (b"mft2" if wide else b"mft1") + bytes(4) + bytes([inputs, outputs, grid, 0])
    head += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    size = grid**inputs * outputs * (1 + wide)
    ramp = struct.pack(">HH", 0, 65535) if wide else bytes(range(256))
    head += struct.pack(">HH", 2, 2) * wide
    return head + ramp * inputs + (bytes(size) if table is None else table) + ramp * outputs


def elements(count: int, kind: bytes = b"matf") -> bytes:
    """A tag of so many steps of arithmetic, one after the other."""
    matrix_of_3 = struct.pack(">HH", 3, 3) + struct.pack(">12f", *(1, 0, 0, 0, 1, 0, 0, 0, 1), 0, 0, 0)
    step = kind + bytes(4) + matrix_of_3
    start = 16 + 8 * count
    table = b"".join(struct.pack(">II", start, len(step)) for _ in range(count))
    return b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, count) + table + step


def bad_ones() -> Iterator[Named]:
    """Profiles, by name."""
    for some in (_large, _damaged, _kinds, _cubes, _long, _tones, _words):
        yield from some()


def _large() -> Iterator[Named]:
    good = profile(honest())
    yield "good", good
    yield "25-mb", profile({**honest(), b"note": bytes(24 * 2**20)})
    yield "60000-tags", profile({**honest(), **{struct.pack(">I", n): b"text\0\0\0\0" for n in range(60_000)}})
    yield "100-tags-and-more", profile({**honest(), **{b"x%03d" % n: b"text\0\0\0\0" for n in range(91)}})
    yield "own-table-as-tag", good.replace(b"cprt" + good[148:156], b"cprt" + struct.pack(">II", 0, len(good)))


def _damaged() -> Iterator[Named]:
    good = profile(honest())
    for share in range(0, 100, 7):
        yield f"cut-at-{share}-percent", good[: len(good) * share // 100]
    for place in (0, 4, 8, 12, 16, 20, 36, 64, 68, 128, 132, 136, 140, 144):
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            yield f"byte-{place}-is-{value}", good[:place] + struct.pack(">I", value) + good[place + 4 :]


def _kinds() -> Iterator[Named]:
    for space in (b"GRAY", b"CMYK", b"Lab ", b"XYZ ", b"YCbr", b"HSV ", b"2CLR", b"FCLR", b"MCHF", b"nmcl", b"    "):
        yield f"of-{space.decode().strip()}", profile(honest(), space=space)
        yield f"into-{space.decode().strip()}", profile(honest(), pcs=space)
    for kind in (b"scnr", b"prtr", b"link", b"spac", b"abst", b"nmcl", b"cenc", b"mid ", b"\xff" * 4):
        for version in (2, 4, 5, 255):
            yield f"kind-{kind.hex()}-{version}", profile(honest(), kind=kind, version=version)
            cube = {**honest(), b"A2B0": lut(3, 3, 9), b"B2A0": lut(3, 3, 9)}
            yield f"kind-{kind.hex()}-{version}-cube", profile(cube, kind=kind, version=version, pcs=b"Lab ")


def _cubes() -> Iterator[Named]:
    for grid in (0, 1, 2, 33, 100, 255):
        table = bytes(min(grid**3 * 6, 6 * 100**3))
        cube = {**honest(), b"A2B0": lut(3, 3, grid, table=table), b"A2B1": lut(3, 3, grid, table=table)}
        yield f"cube-of-{grid}", profile(cube, pcs=b"Lab ")
        yield (
            f"cube-of-{grid}-bytes",
            profile({**honest(), b"A2B0": lut(3, 3, grid, wide=False, table=table)}, pcs=b"Lab "),
        )
    for inputs in (0, 1, 4, 8, 15, 255):
        yield f"cube-of-{inputs}-dimensions", profile({**honest(), b"A2B0": lut(inputs, 3, 2, table=bytes(200_000))})


def long(count: int, version: int = 4) -> bytes:
    """A profile of that many steps: lcms takes seconds for 10,000, and minutes for more."""
    ways = (b"D2B0", b"D2B1", b"B2D0", b"B2D1", b"A2B0")
    return profile({**honest(), **dict.fromkeys(ways, elements(count))}, version=version)


def _long() -> Iterator[Named]:
    yield "5-steps-5", long(5, version=5)
    for count in (1, 100, 10_000, 200_000):
        yield f"{count}-steps", long(count)


def _tones() -> Iterator[Named]:
    for points in (0, 1, 2, 4096, 65536, 1_000_000):
        yield f"curve-of-{points}", profile({**honest(), **dict.fromkeys(NAMES[6:], curve(*[0] * points))})
    yield "curve-claims-more", profile({**honest(), **dict.fromkeys(NAMES[6:], curve(count=2**32 - 1))})
    for number in (0, 1, 4, 5, 65535):
        for gamma in (0, 1, -1, 2**31 - 1, -(2**31)):
            tones = b"para\0\0\0\0" + struct.pack(">HH", number, 0) + struct.pack(">7i", *[gamma] * 7)
            yield f"function-{number}-of-{gamma}", profile({**honest(), **dict.fromkeys(NAMES[6:], tones)}, version=4)
    for all_three in (0.0, -1.0, 32767.0, -32768.0):
        primaries = xyz(all_three, all_three, all_three)
        yield f"primaries-of-{all_three:g}", profile({**honest(), **dict.fromkeys(NAMES[3:6], primaries)})


def _words() -> Iterator[Named]:
    colours = b"ncl2\0\0\0\0" + struct.pack(">III", 0, 100_000, 15) + bytes(64) + bytes(68 * 100_000)
    yield "named-colours", profile({**honest(), b"ncl2": colours}, kind=b"nmcl", space=b"RGB ")
    languages = b"mluc\0\0\0\0" + struct.pack(">II", 100_000, 12) + b"enUS" + struct.pack(">II", 2**31, 28)
    yield "words-in-100000-languages", profile({**honest(), b"desc": languages}, version=4)
    sequence = b"pseq\0\0\0\0" + struct.pack(">I", 2**31)
    yield "sequence-of-profiles", profile({**honest(), b"pseq": sequence}, kind=b"link")
    for made in ("LAB", "XYZ", "sRGB"):
        yield f"made-{made}", ImageCms.ImageCmsProfile(ImageCms.createProfile(made)).tobytes()


def in_jpeg(data: bytes, picture: bytes | None = None) -> bytes:
    """A JPEG that carries it, in as many segments as it takes."""
    pieces = [data[at : at + A_SEGMENT] for at in range(0, len(data), A_SEGMENT)][:255]
    head = b"ICC_PROFILE\0"
    segments = [jpeg.segment(0xE2, head + bytes([n + 1, len(pieces)]) + piece) for n, piece in enumerate(pieces)]
    return jpeg.START + b"".join(segments) + (picture or photo_file("JPEG"))[2:]


def in_png(data: bytes) -> bytes:
    """A PNG that carries it."""
    return png.png(png.chunk(b"iCCP", b"a\0\0" + zlib.compress(data, 1)))


def in_webp(data: bytes) -> bytes:
    """A WebP that carries it."""
    return webp.riff(webp.extended(64, 48, webp.ICC), webp.chunk(b"ICCP", data), webp.pixels())


def pieces() -> Iterator[Named]:
    """A profile in a JPEG, in segments that do not fit together."""
    good = profile(honest())
    for first, second, count in ((1, 1, 2), (0, 1, 2), (2, 1, 2), (1, 3, 2), (1, 2, 255), (255, 255, 255), (1, 2, 0)):
        parts = [jpeg.segment(0xE2, b"ICC_PROFILE\0" + bytes([n, count]) + good) for n in (first, second)]
        yield f"jpeg-profile-pieces-{first}-{second}-{count}", jpeg.with_segments(*parts)
    yield "jpeg-1000-profiles", jpeg.with_segments(*[jpeg.segment(0xE2, b"ICC_PROFILE\0\1\1" + good)] * 1000)


def all_of_them() -> Iterator[Named]:
    """Every profile in each format, and slow ones in a picture of some size."""
    yield from pieces()
    for name, data in bad_ones():
        yield f"jpeg-profile-{name}", in_jpeg(data)
        yield f"png-profile-{name}", in_png(data)
        yield f"webp-profile-{name}", in_webp(data)
        for mode in ("L", "CMYK"):
            yield f"jpeg-{mode}-profile-{name}", in_jpeg(data, file_of(Image.new(mode, (16, 16)), "JPEG"))


def slow() -> Iterator[Named]:
    """Profiles that take their time with every pixel, in large pictures of noise."""
    large = file_of(noise(3000, 2000), "JPEG", quality=70)
    for name, data in bad_ones():
        if name.split("-")[0] in {"cube", "10000", "made", "100", "function"}:
            yield f"jpeg-6-megapixels-profile-{name}", in_jpeg(data, large)
