"""How a picture lies on the model's canvas, and what of the canvas is delivered.

The model makes pictures whose sides are multiples of its grid. A source hardly ever has such sides: diffusers stretches
it until it has, and what comes back is of another shape than what was sent. Here the source keeps its shape: it is
scaled to fill a canvas of nearly the same shape, and the few pixels that are left over at two edges are filled up
before the edit and cut off after it. The same map leads in and out. Sizes are (width, height) in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from qwen_worker.errors import BadInput, about, bad_input
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size

NATIVE_AREA = 1024 * 1024  # pixels at which the models were trained
MAX_ASPECT = 200  # of smart_resize in transformers' Qwen2-VL image processors
AREA_SLACK = 0.1  # of a canvas's sides, to look for one of the right shape
AREA_WEIGHT = 0.1  # what missing the area counts beside what is wasted on filling


@dataclass(frozen=True)
class Placement:
    """A picture of any size in the middle of a canvas on the model's grid, as `content`."""

    picture: Size
    canvas: Size
    content: Size

    @property
    def offset(self) -> Size:
        """Of the content's left upper corner on the canvas."""
        return (self.canvas[0] - self.content[0]) // 2, (self.canvas[1] - self.content[1]) // 2

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the canvas for one of the picture, each way: equal up to the rounding of `content`."""
        return self.content[0] / self.picture[0], self.content[1] / self.picture[1]

    def prepare(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """Bring a picture onto the canvas; what is left over at the edges repeats them."""
        resized = image.resize(self.content, resample)
        if self.content == self.canvas:
            return resized
        content = np.asarray(resized)
        (left, top), (width, height) = self.offset, self.canvas
        sides = [(top, height - top - self.content[1]), (left, width - left - self.content[0])]
        return Image.fromarray(np.pad(content, sides + [(0, 0)] * (content.ndim - 2), mode="edge"))

    def cut(self, canvas: Image.Image) -> Image.Image:
        """The content of a canvas."""
        left, top = self.offset
        return canvas.crop((left, top, left + self.content[0], top + self.content[1]))


@dataclass(frozen=True)
class Plan:
    """What is made and what is delivered.

    `target` places the result on the canvas that the model makes, `references` each source on one of its own. The
    source that sets the size is placed as the result is, unless a size of another shape was asked for. What is
    made from nothing has no references.
    """

    target: Placement
    references: tuple[Placement, ...]
    size_from: int

    @property
    def reference(self) -> Placement:
        """Of the source that sets the size."""
        return self.references[self.size_from]

    @property
    def keeps_frame(self) -> bool:
        """Whether each point of that source has its place in the result."""
        if not self.references:
            return False
        return (self.target.canvas, self.target.content) == (self.reference.canvas, self.reference.content)

    @property
    def delivered(self) -> Size:
        """The size of the result."""
        return self.target.picture


def plan(request: ImageRequest, sources: Sequence[Size], *, grid: int, max_output_pixels: int) -> Plan:
    """Choose the canvases.

    Args:
        request: what size is asked for.
        sources: sizes of the upright sources; none for a picture that is made from nothing, whose size is asked for.
        grid: what both sides of a canvas are multiples of.
        max_output_pixels: width times height that may be delivered.

    Raises:
        BadInput: a source is too narrow, the result would be too large, or a mask has no place.
    """
    asked = request.size if isinstance(request.size, tuple) else None
    area = asked[0] * asked[1] if asked else NATIVE_AREA
    references = []
    for name, source in zip(request.names, sources, strict=False):
        with about(name):
            references.append(place(source, area, grid))
    if asked:
        target = place(asked, area, grid)
        if sources and _same_shape(source := sources[request.size_from], asked):
            references[request.size_from] = Placement(source, target.canvas, target.content)
    else:
        source, own = sources[request.size_from], references[request.size_from]
        target = Placement(source if request.size == "source" else own.content, own.canvas, own.content)
    planned = Plan(target, tuple(references), request.size_from)
    _check(request, planned, max_output_pixels)
    return planned


def _check(request: ImageRequest, planned: Plan, max_output_pixels: int) -> None:
    problems = []
    width, height = planned.delivered
    if width * height > max_output_pixels:
        field = "width" if isinstance(request.size, tuple) else "size"
        wish = "a smaller width and height" if isinstance(request.size, tuple) else "native, or a width and height"
        problem = f"{width} x {height} pixels are more than {max_output_pixels}: ask for {wish}"
        problems.append({"field": field, "problem": problem})
    if request.mask and not planned.keeps_frame:
        own = " x ".join(map(str, planned.reference.picture))
        problem = f"goes with the source's own shape, {own}: leave width and height out"
        problems.append({"field": "mask_url", "problem": problem})
    if problems:
        raise bad_input(problems)


def place(picture: Size, area: int, grid: int) -> Placement:
    """Find the canvas of about `area` on which least is left over.

    Of two pictures, canvases of the same shape are of the same size.

    Raises:
        BadInput: the picture is so narrow that the model cannot see it.
    """
    ratio = picture[0] / picture[1]
    ideal = math.sqrt(area * ratio), math.sqrt(area / ratio)
    canvases = product(_multiples(ideal[0], grid), _multiples(ideal[1], grid))
    # Rounded, so that of two of the same shape the same one wins every tie.
    canvas = min(canvases, key=lambda size: (round(_cost(size, ratio, area), 9), size))
    if max(canvas) > MAX_ASPECT * min(canvas):
        raise BadInput(f"it has {picture[0]} x {picture[1]} pixels, too narrow to edit: crop it")
    scale = min(canvas[0] / picture[0], canvas[1] / picture[1])
    content = round(picture[0] * scale), round(picture[1] * scale)
    return Placement(picture, canvas, content)


def _multiples(side: float, grid: int) -> range:
    low, high = math.floor(side * (1 - AREA_SLACK) / grid), math.ceil(side * (1 + AREA_SLACK) / grid)
    return range(max(1, low) * grid, high * grid + 1, grid)


def _cost(canvas: Size, ratio: float, area: int) -> float:
    """Of two canvases of the same shape, the same wins for every picture: so their shape tells them apart."""
    shape = canvas[0] / canvas[1]
    wasted = 1 - min(ratio / shape, shape / ratio)
    return wasted + AREA_WEIGHT * abs(math.log(canvas[0] * canvas[1] / area))


def _same_shape(source: Size, asked: Size) -> bool:
    """Whether a size is the source's shape, up to the rounding of one side."""
    ratio = source[0] / source[1]
    return abs(asked[0] - asked[1] * ratio) < 1 or abs(asked[1] - asked[0] / ratio) < 1
