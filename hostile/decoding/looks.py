"""S7: a picture looks as its sender saw it, and a result tells nothing of its source's metadata.

What is expected is computed here, from the definitions: neither Pillow's turns nor lcms's colours are used for it.
"""

import struct
import time
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from hostile.decoding.caller import Decode, candidate
from hostile.outcome import Outcome
from hostile.pictures import png, profiles
from hostile.pictures.parts import ORIENTATION, file_of, ifd, photo
from qwen_worker import schema
from qwen_worker.images.deliver import deliver
from qwen_worker.images.encode import encode
from qwen_worker.images.geometry import plan
from qwen_worker.request import parse_image

Array = npt.NDArray[np.float64]
FORMATS = ("JPEG", "PNG", "WEBP")
LOSSLESS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}
# EXIF's orientation → how rows and columns are laid out anew, as its definition says.
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: seen[::-1].swapaxes(0, 1),
    7: lambda seen: seen[::-1, ::-1].swapaxes(0, 1),
    8: lambda seen: seen.swapaxes(0, 1)[::-1],
}
DELTA_E = 2.0  # CIE76: what an eye just sees
LEVEL = 1.0  # of 255
OF_JPEG = 2.0  # levels that JPEG's own arithmetic costs at quality 100, in the mean
# x and y of red, green and blue, and the gamma; both have the white point D65.
DISPLAYS = {
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 0.0),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256),
}
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65 = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
D50 = np.array(profiles.D50)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# IEC 61966-2-1's tones, as a profile's function 3 has them.
TONES = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
SECRET = b"SECRET"
# What the source says, and where each format would keep it.
MARKS = (
    SECRET,
    b"Exif\0",
    b"eXIf",
    b"EXIF",
    b"ICC_PROFILE",
    b"iCCP",
    b"ICCP",
    b"ns.adobe.com",
    b"XML:com.adobe",
    b"XMP ",
)


def attack(name: str) -> Iterator[Outcome]:
    """All of them, put to a candidate. They are honest files: nothing guards the one who decodes them."""
    with candidate(name) as decode_with:
        for some in (_turned, _deep, _clear, _printed, _colours, _secrets):
            begin = time.perf_counter()
            for case, told in some(decode_with):
                yield Outcome(case, told, time.perf_counter() - begin, control=True)
                begin = time.perf_counter()


Told = tuple[str, str | None]


def _pixels(decode_with: Decode, data: bytes) -> Array:
    return np.asarray(decode_with(data).image, dtype=np.float64)


def _off(error: float, allowed: float, of: str) -> str | None:
    return f"{of} off by {error:.2f}" if not error <= allowed else None


def _turned(decode_with: Decode) -> Iterator[Told]:
    for kind, number in product(FORMATS, UPRIGHT):
        plain = _pixels(decode_with, file_of(photo(), kind))
        exif = Image.Exif()
        exif[ORIENTATION] = number
        found = _pixels(decode_with, file_of(photo(), kind, exif=exif))
        same = np.array_equal(found, UPRIGHT[number](plain))
        yield f"{kind} of orientation {number}", None if same else "other pixels than those of the one not turned"


def _deep(decode_with: Decode) -> Iterator[Told]:
    ramp = np.arange(65_536).reshape(256, 256)
    rows = b"".join(b"\0" + line.astype(">u2").tobytes() for line in ramp)
    data = png.png(head=png.header(256, 256, 16, png.GREY), data=png.squeezed([rows]))
    error = float(np.abs(_pixels(decode_with, data) - ramp[..., None] / 257).mean())
    yield "grey of 16 bits", _off(error, LEVEL, "mean")


def _clear(decode_with: Decode) -> Iterator[Told]:
    grey = photo().convert("L")
    alpha = np.asarray(grey.transpose(Image.Transpose.ROTATE_180), dtype=np.float64)[..., None] / 255
    for mode, kind in (("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        picture = (photo() if mode == "RGBA" else grey).copy()
        colours = np.asarray(picture.convert("RGB"), dtype=np.float64)
        picture.putalpha(grey.transpose(Image.Transpose.ROTATE_180))
        options: dict[str, object] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        found = _pixels(decode_with, file_of(picture, kind, **options))
        error = float(np.abs(found - (colours * alpha + 255 * (1 - alpha))).max())
        yield f"{kind} {mode} on white", _off(error, LEVEL, "worst")


def _printed(decode_with: Decode) -> Iterator[Told]:
    inks = np.stack(np.meshgrid(*[[0, 90, 255]] * 4), axis=-1).reshape(9, 9, 4).astype(np.uint8)
    large = inks.repeat(16, axis=0).repeat(16, axis=1)
    data = file_of(Image.frombytes("CMYK", (144, 144), large.tobytes()), "JPEG", **LOSSLESS["JPEG"])
    light = 255 - large.astype(np.float64)
    error = float(np.abs(_pixels(decode_with, data) - light[..., :3] * light[..., 3:] / 255).mean())
    yield "CMYK without a profile", _off(error, OF_JPEG, "mean")


def _colours(decode_with: Decode) -> Iterator[Told]:
    levels = np.array([0, 51, 102, 153, 204, 255], dtype=np.uint8)
    patches = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(12, 18, 3)
    large = patches.repeat(16, axis=0).repeat(16, axis=1)
    for name, (primaries, gamma) in DISPLAYS.items():
        profile, expected = _profile(primaries, gamma), _in_srgb(patches / 255, primaries, gamma)
        for kind in FORMATS:
            data = file_of(Image.fromarray(large), kind, icc_profile=profile, **LOSSLESS[kind])
            found = _pixels(decode_with, data)[8::16, 8::16] / 255
            error = float(np.linalg.norm(_lab(found) - _lab(expected), axis=-1).max())
            yield f"{kind} of {name}", _off(error, DELTA_E, "worst delta E")


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> Array:
    """Light of a display → XYZ under D65: its primaries, so strong that together they are white."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    strengths: Array = np.linalg.solve(columns, D65)
    return columns * strengths


def _light(values: Array, gamma: float) -> Array:
    """From 0 to 1; a gamma of 0 is sRGB's own tones."""
    if gamma:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _in_srgb(values: Array, primaries: tuple[tuple[float, float], ...], gamma: float) -> Array:
    xyz = _light(values, gamma) @ _to_xyz(primaries).T
    light = (xyz @ np.linalg.inv(_to_xyz(SRGB)).T).clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _lab(values: Array) -> Array:
    """CIE L*a*b* under D65, of sRGB."""
    share = _light(values, 0) @ _to_xyz(SRGB).T / D65
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    )


def _profile(primaries: tuple[tuple[float, float], ...], gamma: float, words: bytes = b"made") -> bytes:
    """Of a display: its primaries brought from D65 to the D50 of profiles."""
    gains = np.diag((BRADFORD @ D50) / (BRADFORD @ D65))
    red, green, blue = (np.linalg.inv(BRADFORD) @ gains @ BRADFORD @ _to_xyz(primaries)).T
    function = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(struct.pack(">i", round(v * 65536)) for v in TONES)
    tones = profiles.curve(round(gamma * 256)) if gamma else function
    tags = profiles.matrix(tuple(red), tuple(green), tuple(blue), tones)
    return profiles.profile({**tags, b"desc": profiles.text(words)}, version=2 if gamma else 4)


def _secrets(decode_with: Decode) -> Iterator[Told]:
    for kind in FORMATS:
        source = _telling(kind)
        if source.count(SECRET) < 2:
            raise AssertionError(f"the {kind} does not carry what it is to tell")
        decoded = decode_with(source).image
        for output_format in ("png", "jpeg", "webp"):
            for name, image in (("as it is", decoded), ("delivered", _delivered(decoded))):
                data = encode(image, output_format, 95).data
                marks = [mark for mark in MARKS if mark in data]
                told = f"it carries {marks}" if marks else None
                yield f"the metadata of a {kind}, in a {output_format} {name}", told


def _telling(kind: str) -> bytes:
    """A photograph that says in every way where it was taken, and by whom."""
    tags = ifd([(0x010E, 2, 18, 26)]) + SECRET + b" description"
    options: dict[str, object] = {"exif": b"Exif\0\0" + tags, "icc_profile": _profile(SRGB, 2.2, SECRET)}
    if kind == "PNG":
        told = PngImagePlugin.PngInfo()
        told.add_text("Author", SECRET.decode())
        told.add_itxt("XML:com.adobe.xmp", f"<x>{SECRET.decode()}</x>")
        return file_of(photo(320, 240), kind, pnginfo=told, **options)
    comment: dict[str, object] = {"comment": SECRET} if kind == "JPEG" else {}
    return file_of(photo(320, 240), kind, xmp=b"<x>" + SECRET + b"</x>", **comment, **options)


def _delivered(source: Image.Image) -> Image.Image:
    """An edit of it that a mask confines: most of what comes out is the source itself."""
    rules = schema.Rules(steps=2, cfg_scale=1.0, max_steps=2, max_images=1)
    asked = {"image_url": "https://a/", "mask_url": "https://b/", "prompt": "x"}
    request = parse_image(asked, job_id="hostile", rules=rules)
    planned = plan(request, [source.size], grid=16, max_output_pixels=10**8)
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 0, 160, 120))
    return deliver(request, planned, source, mask, planned.target.prepare(source)).image
