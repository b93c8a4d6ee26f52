"""The pictures of a request as the model gets them, and what of its work is delivered."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from qwen_worker.images.deliver import deliver, deliver_new
from qwen_worker.images.geometry import Plan
from qwen_worker.images.masks import fitted, in_cells
from qwen_worker.originals import Original
from qwen_worker.request import ImageRequest
from qwen_worker.result import Geometry


@dataclass(frozen=True)
class Prepared:
    """The pictures as the model gets them; `mask` is of the result, `cells` is the same as the model gets it.

    `ready`: what the model's room has computed of them.
    """

    originals: Sequence[Original]
    plan: Plan
    references: Sequence[Image.Image]
    mask: Image.Image | None
    cells: Image.Image | None
    warnings: tuple[str, ...]
    ready: Any = None

    @property
    def is_empty(self) -> bool:
        """Whether there is a mask of which nothing is left on the canvas: the model has nothing to do."""
        return self.cells is not None and not self.cells.getbbox()

    def delivered(
        self, request: ImageRequest, made: Image.Image
    ) -> tuple[Image.Image, Geometry | None, tuple[str, ...]]:
        """The result, how it lies on its source if it has one, and what is to be said of it."""
        if not request.images:
            return deliver_new(self.plan, made), None, ()
        source, reference = self.originals[request.size_from].image, self.references[request.size_from]
        delivery = deliver(request, self.plan, source, self.mask, made, reference)
        return delivery.image, delivery.geometry, delivery.warnings


def prepare(request: ImageRequest, planned: Plan, originals: Sequence[Original], grid: int) -> Prepared:
    """Bring the pictures of a request onto their canvases.

    Args:
        request: what to do.
        planned: the canvases.
        originals: the images, then the mask if there is one.
        grid: of the model, in pixels.
    """
    told = tuple(
        f"{name}: {said}"
        for name, original in zip(request.names, originals, strict=True)
        for said in original.decoded.warnings
    )
    images, masks = originals[: len(request.images)], originals[len(request.images) :]
    pairs = zip(planned.references, images, strict=True)
    references = [placement.prepare(original.image) for placement, original in pairs]
    if not masks:
        return Prepared(originals, planned, references, None, None, told)
    mask, warnings = fitted(masks[0].image, planned.delivered)
    # Averaged over each pixel: what rings, or is drawn out of neighbours, would make the mask larger.
    canvas = planned.target.prepare(mask, Image.Resampling.BOX)
    prepared = Prepared(originals, planned, references, mask, in_cells(canvas, grid // 2), (*told, *warnings))
    if not prepared.is_empty:
        return prepared
    return replace(prepared, warnings=(*told, "the mask is empty: nothing was edited", *warnings))
