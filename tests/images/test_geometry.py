"""How a picture lies on the model's canvas."""

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_worker import schema
from qwen_worker.errors import BadInput
from qwen_worker.images.geometry import NATIVE_AREA, Plan, place, plan
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Size
from tests.pictures import photo

GRIDS = (16, 32)  # of the real models, and of the tiny ones


def sizes(count: int) -> list[Size]:
    """From 64 x 64 to 6000 x 4000, of ratios from 1:4 to 4:1."""
    draw = np.random.default_rng(0)
    found: list[Size] = []
    while len(found) < count:
        height = round(math.exp(draw.uniform(math.log(64), math.log(4000))))
        width = round(height * math.exp(draw.uniform(-math.log(4), math.log(4))))
        if 64 <= width <= 6000:
            found.append((width, height))
    return found


def asked(**fields: Any) -> ImageRequest:
    rules = schema.Rules(steps=2, cfg_scale=1.0, max_steps=50, max_images=3)
    return parse_image({"image_urls": ["https://a/"] * 3, "prompt": "x", **fields}, job_id="a", rules=rules)


def planned(source: Size, *others: Size, grid: int = 16, limit: int = 10**8, **fields: Any) -> Plan:
    return plan(asked(**fields), [source, *others], grid=grid, max_output_pixels=limit)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_thousand_sizes_come_back_as_they_went(grid: int) -> None:
    """Output size exact, ratio error none; each point of a grid of coordinates within half a pixel of where it was."""
    for source in sizes(1000):
        found = planned(source, grid=grid)
        (across, down), (left, top) = found.reference.scale, found.reference.offset
        canvas, content = found.target.canvas, found.target.content

        assert found.delivered == source
        assert found.target == found.reference
        assert canvas[0] % grid == canvas[1] % grid == 0
        assert 0.85 < canvas[0] * canvas[1] / NATIVE_AREA < 1.18
        # What is left over is small, in the middle, and the picture keeps its shape up to the rounding of one side.
        assert 1 - content[0] * content[1] / (canvas[0] * canvas[1]) < 0.02
        assert abs(canvas[0] - content[0] - 2 * left) <= 1
        assert abs(canvas[1] - content[1] - 2 * top) <= 1
        assert abs(across / down - 1) * min(content) <= 0.51
        for x in np.linspace(0, source[0], 5):
            there = left + across * x
            assert left <= there <= left + content[0] + 1e-6
            assert abs((there - left) * found.delivered[0] / content[0] - x) < 1e-6


@pytest.mark.parametrize("source", [*sizes(40), (64, 64), (6000, 4000), (6000, 1500), (1000, 4000), (65, 257)])
def test_pixels_come_back_where_they_were(source: Size) -> None:
    """A picture of coordinates, brought onto the canvas and back: far less than half a pixel off.

    But for the rim, four pixels of the canvas wide: beyond the edge there is nothing to resample from.
    """
    found = planned(source)
    rim = [math.ceil(4 / min(scale, 1)) for scale in found.reference.scale]
    x, y = np.meshgrid(np.arange(source[0], dtype=np.float32), np.arange(source[1], dtype=np.float32))
    for coordinate in (x, y):
        canvas = found.reference.prepare(Image.fromarray(coordinate))
        back = np.asarray(found.target.cut(canvas).resize(found.delivered, Image.Resampling.LANCZOS))
        off = np.abs(back - coordinate)

        assert canvas.size == found.target.canvas
        assert off[rim[1] : -rim[1], rim[0] : -rim[0]].max() < 0.1
        assert off.max() < max(0.5, 0.6 / min(found.reference.scale))


def test_what_is_left_over_repeats_the_edge() -> None:
    """A border of another colour would be something to edit."""
    found = planned((1920, 1080))
    canvas = np.asarray(found.reference.prepare(photo(1920, 1080)))
    (left, top), (width, height) = found.reference.offset, found.reference.content

    assert (left, top) == (0, 1)
    assert (canvas[:top] == canvas[top]).all()
    assert (canvas[top + height :] == canvas[top + height - 1]).all()
    assert canvas.shape[:2] == (found.target.canvas[1], found.target.canvas[0])
    assert width == canvas.shape[1]


def test_native_is_the_canvas_without_what_was_left_over() -> None:
    """No pixel is resampled on the way out."""
    found = planned((1920, 1080), size="native")

    assert found.delivered == found.target.content == (1360, 765)
    assert found.target.scale == (1, 1)
    assert found.keeps_frame


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((4000, 3000), (1024, 768)),
        ((3000, 2000), (1000, 667)),
        ((7, 5), (700, 500)),
        ((4000, 1000), (1202, 300)),
        ((1000, 4000), (300, 1202)),
    ],
)
def test_an_asked_size_of_the_same_shape_keeps_the_frame(source: Size, size: Size) -> None:
    """It is made at about that size, and delivered at exactly that."""
    found = planned(source, width=size[0], height=size[1])

    assert found.keeps_frame
    assert found.delivered == size
    assert found.reference.picture == source
    assert 0.8 < found.target.canvas[0] * found.target.canvas[1] / (size[0] * size[1]) < 1.2


def test_an_asked_size_of_another_shape_is_composed_anew() -> None:
    """The reference keeps its own shape, at the same area."""
    found = planned((4000, 3000), width=1001, height=500)

    assert not found.keeps_frame
    assert found.delivered == (1001, 500)
    assert found.target.canvas == (992, 496)
    assert found.reference.canvas == place((4000, 3000), 1001 * 500, 16).canvas
    assert (found.reference.canvas[0] * found.reference.canvas[1]) == pytest.approx(1001 * 500, rel=0.15)


def test_a_canvas_may_be_shared_by_pictures_of_different_shapes() -> None:
    """The frame is kept only if the content is the same too."""
    found = planned((4000, 3000), width=900, height=677)

    assert found.target.canvas == found.reference.canvas
    assert not found.keeps_frame


def test_the_named_image_sets_the_size() -> None:
    """The others are placed for themselves."""
    found = planned((640, 480), (300, 900), (512, 512), size_from=1)

    assert found.delivered == (300, 900)
    assert found.target == found.reference == found.references[1]
    assert found.references[0].canvas == place((640, 480), NATIVE_AREA, 16).canvas


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_canvases_of_one_shape_are_of_one_size(grid: int) -> None:
    """The pipelines know a reference by its ratio only."""
    known: dict[float, Size] = {}
    for area in (NATIVE_AREA, 256 * 256, 2048 * 1024, 1312 * 336):
        known.clear()
        for source in [
            (1000, 1000),
            (101, 100),
            *sizes(1500),
            *((side, side + 1) for side in range(30, 300)),
            (1, 1),
            (2, 2),
            (5000, 50),
        ]:
            canvas = place(source, area, grid).canvas
            assert known.setdefault(canvas[0] / canvas[1], canvas) == canvas


@pytest.mark.parametrize("source", [(3000, 5), (1, 4000), (1, 16000)])
def test_a_picture_too_narrow_is_refused(source: Size) -> None:
    """The text encoder's processor would end in a raw error."""
    with pytest.raises(BadInput, match=r"picture 1: it has .* too narrow to edit: crop it"):
        planned(source)


def test_a_result_too_large_is_refused() -> None:
    """By size, whether it was named or not, with what to do."""
    asked_sizes: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({}, "size", "native, or a width and height"),
        ({"width": 1024, "height": 1024}, "width", "a smaller width and height"),
    )
    for fields, field, wish in asked_sizes:
        with pytest.raises(BadInput, match=f"are more than 1000000: ask for {wish}") as caught:
            planned((1001, 1000), limit=10**6, **fields)
        assert caught.value.details["problems"][0]["field"] == field
    planned((1000, 1000), limit=10**6)


def test_a_mask_goes_with_the_sources_shape() -> None:
    """It has no place in a picture that is composed anew."""
    mask: dict[str, Any] = {"image_urls": ["https://a/"], "mask_url": "https://m/"}
    with pytest.raises(BadInput, match="mask_url: goes with the source's own shape, 640 x 480: leave"):
        planned((640, 480), width=512, height=512, **mask)
    planned((640, 480), width=512, height=384, **mask)
