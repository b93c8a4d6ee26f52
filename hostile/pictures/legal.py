"""Pictures that are large, slow and honest: just within what is accepted, in every way of storing pixels."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from hostile.pictures import png, profiles
from hostile.pictures.parts import ORIENTATION, Named, file_of, noise

KEPT = Path("out/pictures")  # they take a minute to make
LARGEST = 7071, 7071  # pixels: 49,999,041
PHONE = 4000, 3000  # pixels
STORED = (
    *((1, png.GREY), (8, png.GREY), (16, png.GREY), (8, png.RGB), (16, png.RGB), (8, png.PALETTE)),
    *((8, png.GREY_ALPHA), (16, png.GREY_ALPHA), (8, png.RGBA), (16, png.RGBA)),
)


def all_of_them() -> Iterator[Named]:
    """Every case of this module, made once and then kept."""
    if not KEPT.is_dir():
        part = KEPT.with_name("pictures.part")
        part.mkdir(parents=True, exist_ok=True)
        for some in (_pngs, _jpegs, _webps):
            for name, data in some():
                (part / name).write_bytes(data)
        part.rename(KEPT)
    for path in sorted(KEPT.iterdir()):
        yield path.name, path.read_bytes()


def _pngs() -> Iterator[Named]:
    palette = png.chunk(b"PLTE", bytes(range(256)) * 3) + png.chunk(b"tRNS", bytes(range(256)))
    for depth, colour in STORED:
        for interlaced in (False, True):
            head = png.header(*LARGEST, depth, colour, interlaced=interlaced)
            data = png.rows(*LARGEST, depth, colour, interlaced=interlaced)
            name = f"png-50-megapixels-depth-{depth}-colour-{colour}{'-interlaced' * interlaced}"
            yield name, png.png(palette * (colour == png.PALETTE), head=head, data=data)
    yield "png-12-megapixels-of-noise", file_of(noise(*PHONE).quantize(kmeans=0), "PNG", compress_level=1)


def _jpegs() -> Iterator[Named]:
    sideways = Image.Exif()
    sideways[ORIENTATION] = 6
    large = noise(*LARGEST)
    yield "jpeg-50-megapixels", file_of(large, "JPEG", quality=10)
    yield "jpeg-50-megapixels-sideways", file_of(large, "JPEG", quality=10, exif=sideways)
    yield "jpeg-50-megapixels-progressive-444", file_of(large, "JPEG", quality=30, progressive=True, subsampling=0)
    wide = profiles.profile(profiles.honest())
    yield "jpeg-50-megapixels-profile", file_of(large, "JPEG", quality=30, progressive=True, icc_profile=wide)
    yield "jpeg-50-megapixels-grey", file_of(noise(*LARGEST, "L"), "JPEG", quality=20)
    yield "jpeg-50-megapixels-cmyk", file_of(noise(*LARGEST, "CMYK"), "JPEG", quality=2)
    yield "jpeg-12-megapixels-of-noise", file_of(noise(*PHONE), "JPEG", quality=90)


def _webps() -> Iterator[Named]:
    yield "webp-12-megapixels-of-noise", file_of(noise(*PHONE), "WEBP", quality=50, method=0)
    yield "webp-12-megapixels-of-noise-lossless", file_of(noise(2400, 2000), "WEBP", lossless=True, method=0, quality=0)
    yield "webp-50-megapixels-lossy", file_of(Image.new("RGB", LARGEST, (9, 99, 199)), "WEBP", method=0)
    clear = Image.new("RGBA", LARGEST, (9, 99, 199, 9))
    yield "webp-50-megapixels-lossy-alpha", file_of(clear, "WEBP", method=0)
