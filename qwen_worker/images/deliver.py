"""The picture that the model made → the picture that is delivered, and how it lies on its source."""

from dataclasses import dataclass

from PIL import Image

from qwen_worker.images import drift
from qwen_worker.images.geometry import Plan
from qwen_worker.images.masks import feathered
from qwen_worker.request import ImageRequest
from qwen_worker.result import Geometry, Transform
from qwen_worker.schema import Size


@dataclass(frozen=True)
class Delivery:
    """The result, and what is to be said of it."""

    image: Image.Image
    geometry: Geometry
    warnings: tuple[str, ...]


def deliver(
    request: ImageRequest,
    plan: Plan,
    source: Image.Image,
    mask: Image.Image | None,
    made: Image.Image,
    reference: Image.Image | None = None,
) -> Delivery:
    """Bring what the model made to the size that was asked for, and compare it with its source.

    Args:
        request: what was asked for.
        plan: of the canvas.
        source: upright, the one that set the size.
        mask: of the delivered picture, if there is one.
        made: the canvas.
        reference: the source on its canvas, if it is there already: it saves time, and changes nothing.
    """
    content = plan.target.cut(made)
    if not plan.keeps_frame:
        told = ("align: the result has another shape than the source, nothing was undone",) if request.align else ()
        geometry = Geometry(source=source.size, generated=made.size)
        return Delivery(_resized(content, plan.delivered), geometry, told)
    before = plan.reference.cut(reference) if reference else _resized(source, content.size)
    found, fit = drift.measure(before, content)
    warnings = []
    if request.align and found:
        content = drift.undo(found, content)
    elif request.align:
        warnings.append(f"align: source and result agree in {fit:.0%} of their parts, too few: nothing was undone")
    image = _resized(content, plan.delivered)
    if mask:
        image = Image.composite(image, _resized(source, plan.delivered), feathered(mask, request.mask_feather or 0))
    geometry = Geometry(
        source=source.size,
        generated=made.size,
        transform=Transform(scale=plan.reference.scale, offset=plan.reference.offset),
        shift_px=found and _in_pixels_of(plan, found),
        scale_percent=found and round(found.growth * 100, 3) + 0.0,
        fit=round(fit, 3),
        changed_percent=round(drift.changed_share(before, _resized(image, content.size)) * 100, 2),
        aligned=request.align and found is not None,
    )
    return Delivery(image, geometry, tuple(warnings))


def deliver_new(plan: Plan, made: Image.Image) -> Image.Image:
    """The same of a picture that was made from nothing: there is nothing to compare it with."""
    return _resized(plan.target.cut(made), plan.delivered)


def _resized(image: Image.Image, size: Size) -> Image.Image:
    """At its own size a picture is not touched."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _in_pixels_of(plan: Plan, found: drift.Drift) -> tuple[float, float]:
    across, down = plan.target.scale
    # Adding 0.0 makes -0.0 positive.
    return round(found.shift[0] / across, 2) + 0.0, round(found.shift[1] / down, 2) + 0.0
