"""The picture comes back right: sizes, several images and masks, through the whole worker."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from local.stack import Stack
from qwen_worker.schema import Size
from tests.loop.test_jobs import error_of, result_of
from tests.pictures import file_of, photo, scene

pytestmark = pytest.mark.slow

QUICK = {"prompt": "make it warm", "num_inference_steps": 2, "true_cfg_scale": 1.0, "seed": 1}
AWKWARD: list[Size] = [
    (64, 64), (65, 67), (127, 509), (333, 777), (480, 641), (1001, 251), (1170, 2532), (1281, 721), (1920, 1080),
    (16, 16), (3000, 2000), (2048, 100),
]  # fmt: skip


def served(stack: Stack, data: bytes) -> str:
    """The address of a picture that the worker has not seen: it keeps pictures by their address."""
    return stack.host.put(f"/{len(stack.host.replies)}", data)


def picture_of(result: dict[str, Any]) -> Image.Image:
    """The result as its link gives it."""
    return Image.open(io.BytesIO(requests.get(result["presigned_url"], timeout=10).content))


@pytest.mark.parametrize("size", AWKWARD)
def test_an_edit_has_exactly_its_sources_size(stack: Stack, size: Size) -> None:
    """Whatever it is."""
    url = served(stack, file_of(scene(*size)))
    result = result_of(stack.run({"image_url": url, **QUICK}))
    geometry = result["meta"]["geometry"]

    assert picture_of(result).size == size
    assert (result["meta"]["output"]["width"], result["meta"]["output"]["height"]) == size
    assert tuple(geometry["source"]) == size
    assert all(side % 32 == 0 for side in geometry["generated"])
    scale = geometry["transform"]["scale"]
    assert abs(scale[0] / scale[1] - 1) * min(geometry["generated"]) < 1
    assert geometry["changed_percent"] > 50
    assert not geometry["aligned"]


def turn() -> bytes:
    """EXIF that says that the picture must be turned a quarter to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


UNUSUAL = {
    "turned": (file_of(scene(480, 320), "JPEG", exif=turn()), (320, 480)),
    "portrait": (file_of(scene(600, 1800), "JPEG"), (600, 1800)),
    "panorama": (file_of(scene(4000, 500), "JPEG"), (4000, 500)),
    "tiny": (file_of(scene(5, 3)), (5, 3)),
    "huge": (file_of(photo(6000, 4000), "JPEG"), (6000, 4000)),
}


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_unusual_sources_come_back_in_their_size(stack: Stack, name: str) -> None:
    """Upright, where EXIF turns them."""
    source, size = UNUSUAL[name]
    result = result_of(stack.run({"image_url": served(stack, source), **QUICK, "output_format": "jpeg"}))

    assert picture_of(result).size == size
    assert tuple(result["meta"]["geometry"]["source"]) == size


@pytest.mark.parametrize(
    ("asked", "size", "framed"),
    [
        ({"size": "native"}, (1152, 864), True),
        ({"width": 333, "height": 257}, (333, 257), False),
        ({"width": 601, "height": 451}, (601, 451), True),
    ],
)
def test_a_size_that_is_asked_for_is_delivered(
    stack: Stack, asked: dict[str, Any], size: Size, *, framed: bool
) -> None:
    """Native, or any width and height; of another shape than the source there is no map from one to the other."""
    url = served(stack, file_of(scene(800, 600)))
    result = result_of(stack.run({"image_url": url, **QUICK, **asked}))

    assert picture_of(result).size == size
    assert (result["meta"]["geometry"]["transform"] is not None) is framed


def test_nothing_moves_on_the_whole_way(copy_stack: Stack) -> None:
    """With a model that copies its reference: at most a pixel and a fifth of a percent; aligned or not."""
    for size, align in (((801, 603), False), ((1170, 1560), True)):
        url = served(copy_stack, file_of(scene(*size)))
        geometry = result_of(copy_stack.run({"image_url": url, **QUICK, "align": align}))["meta"]["geometry"]

        assert max(map(abs, geometry["shift_px"])) < 1
        assert abs(geometry["scale_percent"]) < 0.2
        assert geometry["fit"] > 0.95
        assert geometry["aligned"] is align


def test_what_cannot_be_aligned_is_left_and_said(stack: Stack) -> None:
    """The tiny model makes noise, which lies nowhere."""
    url = served(stack, file_of(scene(400, 300)))
    plain = result_of(stack.run({"image_url": url, **QUICK}))
    asked = result_of(stack.run({"image_url": url, **QUICK, "align": True}))
    anew = result_of(stack.run({"image_url": url, **QUICK, "align": True, "width": 256, "height": 512}))

    assert plain["meta"]["output"]["sha256"] == asked["meta"]["output"]["sha256"]
    assert plain["meta"]["geometry"]["shift_px"] is None
    assert plain["meta"]["warnings"] == []
    assert "too few" in asked["meta"]["warnings"][0]
    assert "another shape" in anew["meta"]["warnings"][0]
    assert not asked["meta"]["geometry"]["aligned"]


def test_three_images_in_six_orders_make_six_pictures(plus_stack: Stack) -> None:
    """Each of them and its place count; the answer tells them in order, and one of them sets the size."""
    small = {**QUICK, "width": 256, "height": 256}
    urls = [served(plus_stack, file_of(scene(300 + n, 200, seed=n))) for n in range(3)]
    made = {}
    for order in itertools.permutations(range(3)):
        meta = result_of(plus_stack.run({"image_urls": [urls[n] for n in order], **small}))["meta"]
        assert [source["width"] for source in meta["sources"]] == [300 + n for n in order]
        made[order] = meta["output"]["sha256"]
    for fewer in itertools.permutations(range(3), 2):
        meta = result_of(plus_stack.run({"image_urls": [urls[n] for n in fewer], **small}))["meta"]
        made[fewer] = meta["output"]["sha256"]
    sized = result_of(plus_stack.run({"image_urls": urls, **QUICK, "size_from": 2}))

    assert len(set(made.values())) == 12
    assert picture_of(sized).size == (302, 200)
    assert sized["meta"]["cache"] == "hit"
    assert sized["meta"]["num_inference_steps"] == 2


def test_one_image_is_enough_for_a_model_of_several(plus_stack: Stack) -> None:
    """By either name, with the defaults of its class."""
    url = served(plus_stack, file_of(scene(256, 256)))
    small = {"prompt": "x", "width": 256, "height": 256, "seed": 1}
    one, same = (
        result_of(plus_stack.run({**named, **small}))["meta"] for named in ({"image_url": url}, {"image_urls": [url]})
    )

    assert one["output"]["sha256"] == same["output"]["sha256"]
    assert (one["num_inference_steps"], one["true_cfg_scale"]) == (40, 4.0)


def test_a_model_of_one_image_refuses_two(stack: Stack) -> None:
    """With what to do."""
    url = served(stack, file_of(scene(64, 64)))
    error = error_of(stack.run({"image_urls": [url, url], **QUICK}))

    assert error["type"] == "BadInput"
    assert "Qwen-Image-Edit-2511" in error["message"]


def soft() -> Image.Image:
    return Image.radial_gradient("L").resize((301, 203)).point(lambda value: max(0, 255 - 2 * value))


def hairline() -> Image.Image:
    mask = Image.new("L", (301, 203))
    mask.paste(255, (150, 20, 151, 180))
    return mask


MASKS = {
    "full": Image.new("L", (301, 203), "white"),
    "empty": Image.new("L", (301, 203)),
    "hairline": hairline(),
    "soft": soft(),
    "other size": hairline().resize((99, 67)).point(lambda value: 255 if value > 50 else 0),
}


@pytest.mark.parametrize("which", ["stack", "plus_stack"])
@pytest.mark.parametrize("name", list(MASKS))
def test_outside_the_mask_each_byte_is_the_sources(request: pytest.FixtureRequest, which: str, name: str) -> None:
    """In a PNG, of an upright source; inside it is edited."""
    running: Stack = request.getfixturevalue(which)
    source = scene(203, 301)
    turned = source.transpose(Image.Transpose.ROTATE_90)
    said = {
        "image_url": served(running, file_of(turned, exif=turn())),
        "mask_url": served(running, file_of(MASKS[name].transpose(Image.Transpose.ROTATE_90))),
        **QUICK,
    }
    result = result_of(running.run(said))
    mask = np.asarray(MASKS[name].transpose(Image.Transpose.ROTATE_90).resize(source.size, Image.Resampling.BILINEAR))
    before, after = np.asarray(source).astype(int), np.asarray(picture_of(result)).astype(int)
    changed = (before != after).any(axis=2)

    assert picture_of(result).size == source.size
    assert not changed[mask == 0].any()
    assert name == "empty" or changed[mask > 100].mean() > 0.9
    assert result["meta"]["mask"]["format"] == "png"
    assert (result["meta"]["strength"], result["meta"]["mask_feather"]) == (1.0, 4)
    assert [name in warning for warning in result["meta"]["warnings"]] == ([True] if name in {"full", "empty"} else [])


def test_a_masked_edit_may_be_of_another_size(stack: Stack) -> None:
    """Outside the mask it is the source, resized."""
    source, mask = scene(400, 300), Image.new("L", (400, 300))
    mask.paste(255, (0, 0, 200, 300))
    said = {
        "image_url": served(stack, file_of(source)),
        "mask_url": served(stack, file_of(mask)),
        **QUICK,
    }
    picture = picture_of(result_of(stack.run({**said, "width": 800, "height": 600})))
    resized = source.resize((800, 600), Image.Resampling.LANCZOS)

    assert picture.size == (800, 600)
    assert picture.crop((402, 0, 800, 600)).tobytes() == resized.crop((402, 0, 800, 600)).tobytes()
    assert "leave width and height out" in error_of(stack.run({**said, "width": 800, "height": 800}))["message"]


def test_a_mask_that_is_no_picture_is_told_from_the_source(stack: Stack) -> None:
    """Which of the addresses is wrong."""
    source = served(stack, file_of(scene(64, 64)))
    page = served(stack, b"<html>")
    broken = error_of(stack.run({"image_url": source, "mask_url": page, **QUICK}))
    missing = error_of(stack.run({"image_url": source, "mask_url": stack.host.url("/none"), **QUICK}))

    assert broken["message"].startswith("the mask: it is not a readable JPEG, PNG or WebP")
    assert (missing["type"], missing["details"]["picture"]) == ("DownloadFailed", "the mask")
