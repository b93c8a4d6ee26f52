"""diffusers' edit pipelines, with the two things changed that they do not offer.

Each brings every reference to about a megapixel on a grid of 32 pixels, whatever the size of the result. Here a
reference comes prepared, and `prepared` has the pipeline take it as it is.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import (
    QwenImage21Pipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE, calculate_dimensions
from PIL import Image

from qwen_worker.family import PipelineName
from qwen_worker.schema import Size


def seen_by_plus(size: Size) -> Size:
    """The size at which an EditPlus model's text encoder sees a reference of this size."""
    width, height = calculate_dimensions(CONDITION_IMAGE_SIZE, size[0] / size[1])
    return width, height


class InpaintPipeline(QwenImageEditInpaintPipeline):  # type: ignore[misc]
    """QwenImageEditInpaintPipeline for samplers of two evaluations a step too, with a reference free of noise."""

    # The library's draws the reference from what the VAE thinks likely; that of plain edits takes the most likely.
    _encode_vae_image = QwenImageEditPipeline._encode_vae_image  # noqa: SLF001

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any) -> tuple[Any, int]:
        """As the library's, which takes the number of evaluations for that of steps."""
        del device
        order = self.scheduler.order
        steps = math.ceil(num_inference_steps / order)
        begin = int(steps - steps * strength) * order
        return self.scheduler.timesteps[begin:], num_inference_steps - begin


class PlusInpaintPipeline(InpaintPipeline):
    """The same, whose text encoder sees picture and prompt as EditPlus models were trained to."""

    def _get_qwen_prompt_embeds(self, prompt: Any, image: Any, device: Any = None, dtype: Any = None) -> Any:
        """As QwenImageEditPlusPipeline, with one picture."""
        width, height = seen_by_plus(image.size)
        seen = [self.image_processor.resize(image, height, width)]
        plus = QwenImageEditPlusPipeline(**self.components)
        return plus._get_qwen_prompt_embeds(prompt, seen, device, dtype)  # noqa: SLF001 - as our base class would


#: class of a repository → the classes that edit with its parts, without and with a mask (None: it takes none)
CLASSES: dict[PipelineName, tuple[Any, Any]] = {
    "QwenImageEditPipeline": (QwenImageEditPipeline, InpaintPipeline),
    "QwenImageEditPlusPipeline": (QwenImageEditPlusPipeline, PlusInpaintPipeline),
    "QwenImage21Pipeline": (QwenImage21Pipeline, None),
}


@contextmanager
def prepared(pipeline: Any, references: Sequence[Image.Image]) -> Iterator[None]:
    """For one call, the pipeline leaves these references at their sizes.

    The pipelines compute the size of a reference by `calculate_dimensions(area, ratio)` of their module, which is
    replaced here. Of two references of the same ratio the sizes must be the same. Without any, nothing is to be done.
    """
    if not references:
        yield
        return
    sizes = {image.width / image.height: image.size for image in references}
    # Where `__call__` was written: our own classes inherit it.
    module = sys.modules[type(pipeline).__call__.__module__]
    own = module.calculate_dimensions

    def dimensions(area: int, ratio: float) -> tuple[Any, ...]:
        usual: tuple[Any, ...] = own(area, ratio)
        # The small copy for EditPlus's text encoder is left as it is.
        return usual if area == CONDITION_IMAGE_SIZE else (*sizes[ratio], *usual[2:])

    module.calculate_dimensions = dimensions  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.calculate_dimensions = own  # type: ignore[attr-defined]
