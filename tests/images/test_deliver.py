"""What the model made → what is delivered. The model here returns its reference, moved by a known map."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_worker import schema
from qwen_worker.images import drift
from qwen_worker.images.deliver import Delivery, deliver
from qwen_worker.images.geometry import Plan, plan
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import Size
from tests.images.test_drift import edited, moved
from tests.pictures import scene

GRID = 32
SOURCE: Size = (1281, 721)  # its canvas has room beside it, above and below


def asked(**fields: Any) -> ImageRequest:
    rules = schema.Rules(steps=2, cfg_scale=1.0, max_steps=50, max_images=1)
    return parse_image({"image_url": "https://a/", "prompt": "x", **fields}, job_id="a", rules=rules)


def planned(request: ImageRequest, size: Size = SOURCE) -> Plan:
    return plan(request, [size], grid=GRID, max_output_pixels=10**8)


def delivered(
    source: Image.Image,
    *,
    move: tuple[float, float, float] = (0, 0, 0),
    mask: Image.Image | None = None,
    other: bool = False,
    **fields: Any,
) -> Delivery:
    request = asked(**({"mask_url": "https://m/"} if mask else {}), **fields)
    chosen = planned(request, source.size)
    content = source.resize(chosen.target.content, Image.Resampling.LANCZOS)
    made = Image.new("RGB", chosen.target.canvas, "red")
    made.paste(moved(edited(content) if other else content, *move), chosen.target.offset)
    return deliver(request, chosen, source, mask, made)


def off(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_what_was_filled_up_is_cut_off() -> None:
    """And only that: what is red here lies outside the content."""
    source = scene(*SOURCE)
    chosen = planned(asked())
    done = delivered(source)

    assert chosen.target.offset != (0, 0)
    assert done.image.size == SOURCE
    assert np.abs(np.asarray(done.image).astype(int) - np.asarray(source)).mean() < 1
    assert off(done.image.crop((0, 0, *SOURCE)).resize((40, 22)), source.resize((40, 22))) < 8


def test_the_transform_leads_from_the_source_to_the_canvas() -> None:
    """Its scale and its offset, whatever size is delivered."""
    for fields in ({}, {"size": "native"}, {"width": 640, "height": 360}):
        source = scene(*SOURCE)
        request = asked(**fields)
        chosen = planned(request)
        told = delivered(source, **fields).geometry
        made = np.asarray(chosen.reference.prepare(source))
        left, top = chosen.reference.offset

        assert told.transform
        assert (told.source, told.generated) == (SOURCE, chosen.target.canvas)
        assert told.transform.offset == (left, top)
        assert told.transform.scale == chosen.reference.scale
        assert told.transform.scale[0] * SOURCE[0] + left + left == pytest.approx(made.shape[1], abs=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 640, "height": 360},
        pytest.param({"size": "native"}, marks=pytest.mark.slow),
        pytest.param({"width": 1921, "height": 1081}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("align", [False, True])
def test_a_drift_is_told_in_pixels_of_the_result(fields: dict[str, Any], *, align: bool) -> None:
    """Before it was undone, where that was asked for."""
    move = (6.0, -4.0, 0.02)
    source = scene(*SOURCE)
    done = delivered(source, move=move, align=align, **fields)
    told = done.geometry
    across, down = planned(asked(**fields)).target.scale
    rest, _ = drift.measure(source.resize(done.image.size, Image.Resampling.LANCZOS), done.image)

    assert told.shift_px == pytest.approx((move[0] / across, move[1] / down), abs=0.2)
    assert told.scale_percent == pytest.approx(2, abs=0.05)
    assert told.fit is not None
    assert 0.8 < told.fit <= 1
    assert told.aligned is align
    assert rest
    assert bool(np.hypot(*rest.shift) < 0.5) is align
    assert bool(abs(rest.growth) < 0.001) is align


def test_the_fit_is_the_share_that_was_found() -> None:
    """A sixth of the picture is another."""
    told = delivered(scene(*SOURCE), other=True).geometry

    assert told.fit is not None
    assert 0.6 < told.fit < 0.95


@pytest.mark.slow
def test_changed_pixels_are_counted_on_what_is_delivered() -> None:
    """With a mask over a quarter, what was made of the rest does not count."""
    source = scene(*SOURCE)
    mask = Image.new("L", SOURCE)
    mask.paste(255, (0, 0, SOURCE[0] // 2, SOURCE[1] // 2))
    whole = delivered(source, move=(40, 30, 0)).geometry.changed_percent
    quarter = delivered(source, move=(40, 30, 0), mask=mask).geometry.changed_percent

    assert whole is not None
    assert quarter is not None
    assert quarter == pytest.approx(whole / 4, rel=0.2)
    assert delivered(source).geometry.changed_percent == 0


def test_another_shape_has_no_map() -> None:
    """And nothing is measured against it."""
    done = delivered(scene(*SOURCE), width=512, height=512)

    assert done.image.size == (512, 512)
    assert (done.geometry.transform, done.geometry.fit, done.geometry.changed_percent) == (None, None, None)
    assert done.warnings == ()


def test_below_a_mask_lies_the_source_itself() -> None:
    """Also where the result was aligned first."""
    source = scene(*SOURCE)
    mask = Image.new("L", SOURCE)
    mask.paste(255, (300, 200, 700, 500))
    done = delivered(source, move=(6, -4, 0), mask=mask, align=True)
    outside = np.asarray(mask) == 0

    assert done.geometry.aligned
    assert (np.asarray(done.image)[outside] == np.asarray(source)[outside]).all()


@pytest.mark.parametrize("fields", [{}, {"size": "native", "align": True}])
def test_a_reference_that_is_there_already_changes_nothing(fields: dict[str, Any]) -> None:
    """It is what the source would be brought to anyway."""
    source, request = scene(*SOURCE), asked(**fields)
    chosen = planned(request)
    reference = chosen.reference.prepare(source)
    made = moved(reference, 3.0, 2.0, 0.0)
    without, given = (deliver(request, chosen, source, None, made, *more) for more in ((), (reference,)))

    assert given.geometry == without.geometry
    assert given.image.tobytes() == without.image.tobytes()
