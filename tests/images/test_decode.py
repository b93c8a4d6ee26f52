"""Strangers' bytes → pictures."""

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from hostile.pictures import profiles, webp
from qwen_worker.errors import BadInput
from qwen_worker.images.decoder import Decoded, Decoder, Limits
from tests.pictures import file_of, photo

LIMIT = 50_000_000
ORIENTATION = 0x0112


@functools.cache
def decoder(max_pixels: int) -> Decoder:
    """The one that workers use, with its process."""
    return Decoder(Limits(max_pixels, 512_000_000, 2))


def read(data: bytes, max_pixels: int = LIMIT) -> Decoded:
    return decoder(max_pixels).decode(data)


def pixel(decoded: Decoded, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(decoded.image)[at[1], at[0]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_is_read(kind: str) -> None:
    """As an RGB picture of its own size."""
    decoded = read(file_of(photo(), kind))

    assert (decoded.format, decoded.image.mode, decoded.image.size) == (kind, "RGB", (320, 240))
    assert decoded.warnings == ()
    difference = np.asarray(decoded.image, dtype=int) - np.asarray(photo(), dtype=int)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_picture_comes_out_upright(kind: str, orientation: int) -> None:
    """A phone stores the sensor's view and a number; every orientation shows the same scene."""
    # The stored view is what, turned as the number says, gives the upright scene.
    to_stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = photo() if to_stored is None else photo().transpose(to_stored)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    decoded = read(file_of(stored, kind, exif=exif))

    assert decoded.image.size == (320, 240)
    difference = np.asarray(decoded.image, dtype=int) - np.asarray(photo(), dtype=int)
    assert np.abs(difference).mean() < 3


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    """40000 of 65535 is 156 of 255; a plain conversion clips it to white."""
    deep = Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16))

    assert pixel(read(file_of(deep))) == (156, 156, 156)


def test_a_transparent_grey_of_sixteen_bits_counts() -> None:
    """PNG's tRNS on a deep picture."""
    deep = Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16))

    assert pixel(read(file_of(deep, transparency=1000))) == (255, 255, 255)


def test_sixteen_bit_colour_keeps_its_tones() -> None:
    """A 48-bit PNG."""
    row = b"\0" + struct.pack(">HHH", 40000, 10000, 65535) * 4
    assert pixel(read(_png(4, 4, depth=16, colour=2, rows=row * 4))) == (156, 39, 255)


def test_a_palette_is_resolved() -> None:
    """Colours, not indices."""
    assert pixel(read(file_of(Image.new("RGB", (4, 4), (200, 10, 30)).quantize()))) == (200, 10, 30)


def test_one_bit_pictures_are_read() -> None:
    """Line art."""
    assert pixel(read(file_of(Image.new("1", (4, 4), 1)))) == (255, 255, 255)


def test_cmyk_looks_like_its_print() -> None:
    """No ink is white, all ink is black."""
    assert min(pixel(read(file_of(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")))) > 250
    assert max(pixel(read(file_of(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG")))) < 5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    """Colour hidden below alpha 0 must not appear."""
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture = {"RGBA": clear, "LA": clear.convert("LA"), "PA": clear.quantize()}[mode]

    assert pixel(read(file_of(picture))) == (255, 255, 255)


def test_half_transparency_is_mixed_with_white() -> None:
    """As a viewer shows it on a white page."""
    red, green, blue = pixel(read(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))))

    assert red == green == blue == pytest.approx(127, abs=1)


def test_a_transparent_colour_key_counts() -> None:
    """PNG's tRNS on an RGB picture."""
    data = file_of(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))

    assert pixel(read(data)) == (255, 255, 255)


@pytest.mark.parametrize(("depth", "key"), [(2, 1), (4, 5)])
def test_a_transparent_grey_of_few_bits_counts(depth: int, key: int) -> None:
    """The key is one of two or four bits, the pixels are of eight by then."""
    byte = sum(key << at for at in range(0, 8, depth))
    rows = (b"\0" + bytes([byte]) * depth) * 8

    assert pixel(read(_png(8, 8, depth=depth, colour=0, rows=rows, key=struct.pack(">H", key)))) == (255, 255, 255)


def test_a_transparent_colour_of_sixteen_bits_is_said_to_be_ignored() -> None:
    """With eight bits left it cannot be told from its neighbours."""
    row = b"\0" + struct.pack(">HHH", 300, 600, 900) * 4
    decoded = read(_png(4, 4, depth=16, colour=2, rows=row * 4, key=struct.pack(">HHH", 44, 88, 132)))

    assert pixel(decoded) == (1, 2, 3)
    assert "transparent colour" in decoded.warnings[0]


def test_a_large_picture_may_take_too_much_memory() -> None:
    """The libraries do not tell that from a broken file, so the caller is told of both."""
    small = Decoder(Limits(LIMIT, 150_000_000, 2))
    data = file_of(Image.new("RGB", (6000, 5000), "teal"), "JPEG", progressive=True, subsampling=0)
    with pytest.raises(BadInput, match="too much memory"):
        small.decode(data)
    small.close()


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_brought_to_srgb(alpha: bool) -> None:
    """A wide-gamut green is clipped to sRGB's green, not shown as if it had been sRGB."""
    wide = _wide_gamut()
    source = Image.new("RGB", (4, 4), (100, 200, 100))
    if alpha:
        source.putalpha(255)
    expected = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (100, 200, 100)),
        ImageCms.ImageCmsProfile(io.BytesIO(wide)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert expected is not None

    found = pixel(read(file_of(source, icc_profile=wide)))

    assert found == expected.getpixel((0, 0))
    assert found != (100, 200, 100)


def test_a_broken_profile_is_ignored_and_said() -> None:
    """The pixels are good."""
    decoded = read(file_of(Image.new("RGB", (4, 4), (1, 2, 3)), icc_profile=b"nonsense"))

    assert pixel(decoded) == (1, 2, 3)
    assert "profile" in decoded.warnings[0]


@pytest.mark.parametrize(("count", "of"), [(2, 1), (1, 0), (1, 2)])
def test_a_profile_that_is_in_parts_which_do_not_fit_is_said(count: int, of: int) -> None:
    """Pillow drops it without a word."""
    part = b"ICC_PROFILE\0\1" + bytes([of]) + _wide_gamut()
    data = file_of(photo(), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part

    assert "profile" in read(data[:2] + segment * count + data[2:]).warnings[0]


def test_a_profile_that_is_srgb_changes_nothing() -> None:
    """Not by a rounding error, which the numbers in most profiles bring."""
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tones = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)
    primaries = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
    srgb = profiles.profile(profiles.matrix(*primaries, tones), version=4)
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(18, -1, 3).astype(np.uint8)
    found = read(file_of(Image.fromarray(colours), icc_profile=srgb))

    assert np.array_equal(np.asarray(found.image), colours)
    assert found.warnings == ()


def test_a_profile_of_greys_fits_a_picture_of_one_bit() -> None:
    """Black and white are what they were."""
    white = profiles.xyz(*profiles.D50)
    grey = profiles.profile({b"wtpt": white, b"kTRC": profiles.curve(round(1.8 * 256))}, space=b"GRAY")
    found = read(file_of(Image.new("1", (4, 4), 1), icc_profile=grey))

    assert found.warnings == ()
    assert pixel(found) == (255, 255, 255)


def test_what_is_transparent_is_white_whatever_a_webps_header_says() -> None:
    """OpenCV believes it, and would show what is hidden."""
    picture = photo()
    picture.putalpha(0)
    body = file_of(picture, "WEBP", lossless=True, exact=True)[12:]
    body = body[body.index(b"VP8L") :]

    assert pixel(read(webp.riff(webp.extended(*picture.size, 0), body))) == (255, 255, 255)


def test_what_an_animations_first_frame_leaves_out_is_white() -> None:
    """Whatever its header says of transparency."""
    small, full = (file_of(photo(*size), "WEBP", lossless=True)[12:] for size in ((32, 24), (64, 48)))
    frames = (webp.frame(small, 32, 24, at=4), webp.frame(full))
    data = webp.riff(webp.extended(64, 48, webp.ANIMATED), webp.chunk(b"ANIM", bytes(6)), *frames)

    assert pixel(read(data)) == (255, 255, 255)


def test_an_animation_is_its_first_frame_and_said() -> None:
    """The caller learns that the rest was dropped."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    decoded = read(data)

    assert pixel(decoded) == (255, 0, 0)
    assert "animated" in decoded.warnings[0]


def test_a_phones_multi_picture_jpeg_is_a_jpeg() -> None:
    """MPO: the depth or gain map behind the picture is not an animation."""
    data = file_of(photo(), "MPO", save_all=True, append_images=[photo(seed=1)])
    assert Image.open(io.BytesIO(data)).format == "MPO"

    decoded = read(data)

    assert (decoded.format, decoded.warnings) == ("JPEG", ())


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    """Each decoder less is a way in less."""
    with pytest.raises(BadInput, match="JPEG, PNG or WebP"):
        read(file_of(photo(64, 64), kind))


@pytest.mark.parametrize(
    "data", [b"", b"<html>not a picture</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """With one typed error."""
    with pytest.raises(BadInput):
        read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_odd_tag_beside_the_orientation_does_not_matter(kind: str) -> None:
    """Only the orientation is read; cameras write the strangest things beside it."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    exif += struct.pack("<HHII", 0x010E, 5, 1, 38) + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0) + bytes(4)
    exif += struct.pack("<II", 1, 2)

    decoded = read(file_of(photo(), kind, exif=exif))

    assert (decoded.image.size, decoded.warnings) == ((240, 320), ())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0", b"\0" * 10])
def test_broken_exif_data_is_ignored_and_said(kind: str, exif: bytes) -> None:
    """The pixels are good."""
    decoded = read(file_of(photo(), kind, exif=exif))

    assert decoded.image.size == (320, 240)
    assert "EXIF" in decoded.warnings[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_half_a_picture_is_refused(kind: str, share: float) -> None:
    """A download that broke off must not be edited."""
    data = file_of(photo(), kind)

    with pytest.raises(BadInput):
        read(data[: int(len(data) * share)])


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    """Both limits are told with the size found."""
    for height in (178_000_000, 2**31 - 1):
        with pytest.raises(BadInput, match=f"1 x {height} pixels: send at most 50000000"):
            read(_png(1, height, depth=8, colour=0, rows=b""))
    with pytest.raises(BadInput, match="20000 x 10 pixels: send at most 16383 a side"):
        read(_png(20_000, 10, depth=8, colour=0, rows=b""))
    with pytest.raises(BadInput, match="320 x 240"):
        read(file_of(photo()), max_pixels=320 * 240 - 1)

    assert read(file_of(photo()), max_pixels=320 * 240).image.size == (320, 240)


@pytest.mark.parametrize(
    ("options", "at", "sides"),
    [
        ({"quality": 50}, 26, (16383).to_bytes(2, "little") * 2),
        ({"lossless": True}, 21, (16382 | 16382 << 14).to_bytes(4, "little")),
        ({"quality": 50, "icc_profile": b"x"}, 24, (16382).to_bytes(3, "little") * 2),
    ],
)
def test_a_huge_webp_is_refused_before_it_is_opened(options: dict[str, Any], at: int, sides: bytes) -> None:
    """Opening it would take its canvases' memory: 2 GB here."""
    data = bytearray(file_of(photo(), "WEBP", **options))
    data[at : at + len(sides)] = sides

    with pytest.raises(BadInput, match="16383 x 16383 pixels"):
        read(bytes(data))


def test_a_long_text_beside_the_pixels_does_not_matter() -> None:
    """A workflow of two megabytes, as some programs keep it in what they make."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "node " * 400_000, zip=True)

    assert read(file_of(photo(), pnginfo=notes)).image.size == (320, 240)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each scan costs a pass over the picture: a small file could hold a core for a minute."""
    data = file_of(photo(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at : data.rindex(b"\xff\xd9")]

    with pytest.raises(BadInput, match="scans"):
        read(data[:at] + scan * 200 + b"\xff\xd9")


def test_what_lies_behind_or_inside_a_jpeg_is_no_scan() -> None:
    """The film of a motion photo; a thumbnail in the EXIF data."""
    film = bytes(2) + b"\xff\xda\x00\x02" * 500
    behind = file_of(photo(), "JPEG") + film
    inside = file_of(photo(), "JPEG", comment=film[:60_000])

    assert read(behind).image.size == read(inside).image.size == (320, 240)


def _png(width: int, height: int, *, depth: int, colour: int, rows: bytes, key: bytes = b"") -> bytes:
    """A PNG written by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", key) if key else b""
    parts = chunk(b"IHDR", header) + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _wide_gamut() -> bytes:
    """SRGB's profile with its green moved outwards: a matrix profile of another gamut."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    for number in range(count):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if name == b"gXYZ":
            struct.pack_into(">iii", profile, offset + 8, *(int(value * 65536) for value in (0.20, 0.62, 0.07)))
    return bytes(profile)
