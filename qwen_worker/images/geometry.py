"""Sizes, in pixels, as (width, height)."""

import math

from qwen_worker.errors import BadInput
from qwen_worker.schema import Size

NATIVE_AREA = 1024 * 1024
NATIVE_GRID = 32
MAX_ASPECT = 200  # of smart_resize in transformers' Qwen2-VL image processors


def native_size(source: Size, area: int = NATIVE_AREA) -> Size:
    """The size that the pipelines bring a source to: its aspect, about `area`, sides in multiples of 32.

    From `calculate_dimensions` of diffusers' Qwen-Image-Edit pipelines.

    Raises:
        BadInput: the source is so narrow that the model cannot see it.
    """
    width = math.sqrt(area * source[0] / source[1])
    height = width * source[1] / source[0]
    native = (round(width / NATIVE_GRID) * NATIVE_GRID, round(height / NATIVE_GRID) * NATIVE_GRID)
    if max(native) > MAX_ASPECT * min(native):
        raise BadInput(f"the source is {source[0]} x {source[1]} pixels, too narrow to edit: crop it")
    return native


def output_size(asked: Size | None, source: Size, grid: int) -> Size:
    """The size of the result: what was asked for, or the source's native size, rounded down to the model's grid."""
    width, height = asked or native_size(source)
    return width // grid * grid, height // grid * grid
