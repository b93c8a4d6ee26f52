"""Sizes."""

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

from qwen_worker.errors import BadInput
from qwen_worker.images.geometry import native_size, output_size


@pytest.mark.parametrize(
    "source", [(512, 512), (1920, 1080), (4000, 3000), (333, 777), (64, 64), (6000, 400), (1500, 10)]
)
def test_the_native_size_is_the_pipelines_own(source: tuple[int, int]) -> None:
    """Else the check of the position table would look at another grid than the model."""
    width, height, _ = calculate_dimensions(1024 * 1024, source[0] / source[1])

    assert native_size(source) == (width, height)


@pytest.mark.parametrize("source", [(3000, 5), (1, 4000), (1, 16000)])
def test_a_source_too_narrow_is_refused(source: tuple[int, int]) -> None:
    """The pipeline would end in a raw error."""
    with pytest.raises(BadInput, match="too narrow"):
        native_size(source)


def test_an_asked_size_is_rounded_down_to_the_grid() -> None:
    """The model makes multiples of its grid only."""
    assert output_size((1000, 800), (64, 64), 16) == (992, 800)
    assert output_size(None, (1920, 1080), 16) == native_size((1920, 1080))
