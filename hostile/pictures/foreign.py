"""What is no JPEG, PNG or WebP, and what is one and something else too."""

import io
import zipfile
from collections.abc import Iterator

from hostile.pictures.parts import Named, file_of, photo, photo_file
from hostile.pictures.png import chunk, png
from hostile.pictures.webp import chunk as piece
from hostile.pictures.webp import pixels, riff

KINDS = (
    *(
        "GIF",
        "BMP",
        "DIB",
        "TIFF",
        "ICO",
        "ICNS",
        "PPM",
        "PCX",
        "TGA",
        "SGI",
        "DDS",
        "QOI",
        "IM",
        "MSP",
        "XBM",
        "SPIDER",
    ),
    *("JPEG2000", "AVIF", "PDF", "EPS", "PALM", "MPO", "BLP", "WMF"),
)
MODES = {"MSP": "1", "XBM": "1", "PALM": "P", "SPIDER": "F", "BLP": "P"}
TEXTS = {
    "nothing": b"",
    "a-byte": b"\xff",
    "text": b"this is not a picture\n" * 100,
    "html": b"<!DOCTYPE html><html><body><img src=x onerror=alert(1)></body></html>",
    "json": b'{"error": "not found"}',
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "svg-of-entities": b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
    "eps-that-runs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file run\n",
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "psd": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\x75\x30\0\0\x75\x30\0\x08\0\3" + bytes(100),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "avif-of-nothing": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(200),
    "jpeg-xl": b"\xff\x0a" + bytes(100),
    "flic": b"\x80\0\0\0\x11\xaf\xff\xff\xff\xff\xff\xff" + bytes(200),
    "farbfeld": b"farbfeld" + b"\xff" * 8 + bytes(100),
    "zip": b"PK\3\4" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "program": b"\x7fELF\2\1\1" + bytes(100),
    "zeros": bytes(1_000_000),
    "ones": b"\xff" * 1_000_000,
    "jpeg-start": b"\xff\xd8",
    "jpeg-start-and-end": b"\xff\xd8\xff\xd9",
    "jpeg-start-25-million-times": b"\xff\xd8" * 12_500_000,
    "png-signature": b"\x89PNG\r\n\x1a\n",
    "png-signature-spoilt-by-a-text-transfer": b"\x89PNG\n\x1a\n" + bytes(100),
    "riff": b"RIFF\x10\0\0\0WEBP",
    "riff-sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(100),
    "ppm-claims": b"P6 65535 65535 255\n" + bytes(100),
    "xpm": b'/* XPM */ static char *a[] = {"9999 9999 1 1"};',
    "byte-order-mark": b"\xef\xbb\xbf",
}


def kinds() -> Iterator[Named]:
    """Honest files of other formats."""
    for kind in KINDS:
        picture = photo().convert(MODES.get(kind, "RGB"))
        try:
            yield f"{kind.lower()}-photo", file_of(picture, kind)
        except (OSError, KeyError, ValueError):
            continue  # this Pillow does not write it
    yield from TEXTS.items()


def polyglots() -> Iterator[Named]:
    """Files that are two things at once."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.txt", "hidden")
    page = b"<script>alert(1)</script>"
    script = b"*/=1;alert(1)/*"
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = photo_file(kind)
        name = kind.lower()
        for other, data in {
            "zip": archive.getvalue(),
            "html": page,
            "pdf": TEXTS["pdf"],
            "jar": b"PK\5\6" + bytes(18),
        }.items():
            yield f"{name}-and-{other}", whole + data
            yield f"{other}-before-{name}", data + whole
        for other in ("JPEG", "PNG", "WEBP", "GIF"):
            yield f"{name}-and-{other.lower()}", whole + photo_file(other)
            yield f"{name}-with-the-start-of-{other.lower()}", photo_file(other)[:8] + whole[8:]
    yield "jpeg-comment-html", photo_file("JPEG", comment=page * 1000)
    yield "jpeg-comment-script", photo_file("JPEG", comment=script)
    yield "png-in-png", png(chunk(b"tEXt", b"a\0" + photo_file("PNG")))
    yield "gif-and-jar", photo_file("GIF") + archive.getvalue()
    yield "gif-script", b"GIF89a/*" + script + photo_file("GIF")[16:]
    yield "pdf-with-jpeg", TEXTS["pdf"][:9] + photo_file("JPEG")
    for odd in (b"PK\3\4", b"JUNK", b"LIST", b"fmt ", b"\0\0\0\0"):
        yield f"webp-with-{odd.hex()}", riff(piece(odd, archive.getvalue()), pixels())
        yield f"webp-with-{odd.hex()}-behind", riff(pixels(), piece(odd, archive.getvalue()))


def all_of_them() -> Iterator[Named]:
    """Every case of this module."""
    for some in (kinds, polyglots):
        yield from some()
