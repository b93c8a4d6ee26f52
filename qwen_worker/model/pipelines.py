"""diffusers' pipelines, with the things changed that they do not offer.

Each brings every reference to about a megapixel on a grid of 32 pixels, whatever the size of the result. Here a
reference comes prepared, and `prepared` has the pipeline take it as it is. Each turns its pictures into numbers on the
way, and encodes prompts and pictures anew. Here `make_ready` does the former beside the GPU, and what was encoded is
remembered.
"""

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    QwenImage21Pipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE, calculate_dimensions
from PIL import Image

from qwen_worker.family import PipelineName
from qwen_worker.model.computed import Computed, Ready
from qwen_worker.schema import Size


def seen_by_plus(size: Size) -> Size:
    """The size at which an EditPlus model's text encoder sees a reference of this size."""
    width, height = calculate_dimensions(CONDITION_IMAGE_SIZE, size[0] / size[1])
    return width, height


# What QwenImageEditPlusPipeline has before the prompt for each picture: img_prompt_template, _get_qwen_prompt_embeds.
PLUS_PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
# What QwenImage21Pipeline has in its template for each picture.
IMAGE_21_PICTURE = "<image{}><|vision_start|><|image_pad|><|vision_end|>"


class Prepared:
    """Mixin of pipelines: takes what `computed` has, of the edit that is being done and of those before it."""

    computed: Computed
    transformer: Any

    def adapt(self, computed: Computed) -> None:
        """To be called once, before the first edit. The processor and the text encoder may have been before."""
        self.computed = computed
        self._device = self.transformer.device
        for name in {"image_processor", "mask_processor"} & vars(self).keys():
            setattr(self, name, Pictures(getattr(self, name), computed))
        if processor := getattr(self, "processor", None):
            processor.computed = computed

    @property
    def _execution_device(self) -> Any:
        """As the library's, which looks at every module for it, and takes the first one's."""
        return self._device

    def maybe_free_model_hooks(self) -> None:
        """Nothing to do: the library looks at every module for what it has moved off the GPU itself."""

    def text(self, prompt: str, _pictures: int) -> str:
        """What the text encoder reads: prompt and pictures in the pipeline's template."""
        template: str = self.prompt_template_encode  # type: ignore[attr-defined]
        return template.format(prompt)

    def encode_prompt(self, prompt: str, **said: Any) -> Any:
        """As the pipeline's."""
        encode = super().encode_prompt  # type: ignore[misc]
        ready = self.computed.ready
        if ready is None:
            return encode(prompt, **said)
        if "image" in said:
            said["image"] = ready.seen
        template = getattr(self, "prompt_template_encode", None)  # pipelines with the same one encode alike
        return self.computed.get(("words", template, prompt, ready.digests), lambda: encode(prompt, **said))

    def encode_references(self) -> None:
        """Begin anew to encode the references of an edit, in their order."""
        ready = self.computed.ready
        self._digests = iter(ready.digests if ready else ())

    def _encode_vae_image(self, image: Any, generator: Any) -> Any:
        encode = super()._encode_vae_image  # type: ignore[misc]
        return self.computed.get(("latents", next(self._digests)), lambda: encode(image, generator))


class Pictures:
    """A pipeline's image processor that has done its work before: of references and masks, which have their size.

    Args:
        own: of the pipeline.
        computed: knows the edit that is being done.
    """

    def __init__(self, own: Any, computed: Computed) -> None:
        self.own = own
        self.postprocess = own.postprocess
        self._computed = computed

    def resize(self, image: Image.Image, *_size: int, **_sides: int) -> Image.Image:
        """The picture itself."""
        return image

    def preprocess(self, image: Image.Image, *_size: int, **_said: Any) -> torch.Tensor:
        """1 x channels x height x width."""
        ready = self._computed.ready
        if ready is None:
            raise RuntimeError("no edit has been prepared")
        return ready.tensors[id(image)]


class EditPipeline(Prepared, QwenImageEditPipeline):  # type: ignore[misc]
    """QwenImageEditPipeline on prepared pictures."""


class _PlusText(Prepared):
    """Prompts of EditPlus."""

    def text(self, prompt: str, pictures: int) -> str:
        """As QwenImageEditPlusPipeline puts it together."""
        return super().text("".join(map(PLUS_PICTURE.format, range(1, pictures + 1))) + prompt, pictures)


class EditPlusPipeline(_PlusText, QwenImageEditPlusPipeline):  # type: ignore[misc]
    """QwenImageEditPlusPipeline on prepared pictures."""


class Image21Pipeline(Prepared, QwenImage21Pipeline):  # type: ignore[misc]
    """QwenImage21Pipeline on prepared pictures."""

    def text(self, prompt: str, pictures: int) -> str:
        """As the library puts it together."""
        marks = " ".join(map(IMAGE_21_PICTURE.format, range(1, pictures + 1)))
        template: str = self.prompt_template_ti2i
        return template.replace(IMAGE_21_PICTURE.format(1), marks).format(prompt or " ")


class TextPipeline(Prepared, QwenImagePipeline):  # type: ignore[misc]
    """QwenImagePipeline."""


class _EncodedAsByEdit:
    """The library's inpaint pipeline draws the reference from what the VAE thinks likely; plain edits do not."""

    _encode_vae_image = QwenImageEditPipeline._encode_vae_image  # noqa: SLF001


class InpaintPipeline(Prepared, _EncodedAsByEdit, QwenImageEditInpaintPipeline):  # type: ignore[misc]
    """QwenImageEditInpaintPipeline for samplers of two evaluations a step too, with a reference free of noise."""

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any) -> tuple[Any, int]:
        """As the library's, which takes the number of evaluations for that of steps."""
        del device
        order = self.scheduler.order
        steps = math.ceil(num_inference_steps / order)
        begin = int(steps - steps * strength) * order
        return self.scheduler.timesteps[begin:], num_inference_steps - begin

    def prepare_mask_latents(self, mask: Any, masked_image: Any, *said: Any) -> tuple[Any, Any]:
        """As the library's, which encodes the masked picture too, and uses it for no transformer of this family."""
        height, width = (side // self.vae_scale_factor for side in masked_image.shape[-2:])
        unused = masked_image.new_zeros((1, self.latent_channels, 1, height, width))
        made: tuple[Any, Any] = super().prepare_mask_latents(mask, unused, *said)
        return made


class PlusInpaintPipeline(_PlusText, InpaintPipeline):
    """The same, whose text encoder sees picture and prompt as EditPlus models were trained to."""

    _get_qwen_prompt_embeds = QwenImageEditPlusPipeline._get_qwen_prompt_embeds  # noqa: SLF001

    def adapt(self, computed: Computed) -> None:
        """As every pipeline, and with the template of EditPlus."""
        super().adapt(computed)
        plus = QwenImageEditPlusPipeline(**self.components)
        self.prompt_template_encode = plus.prompt_template_encode
        self.prompt_template_encode_start_idx = plus.prompt_template_encode_start_idx


#: class of a repository → the classes that edit with its parts, without and with a mask (None: it takes none)
CLASSES: dict[PipelineName, tuple[Any, Any]] = {
    "QwenImageEditPipeline": (EditPipeline, InpaintPipeline),
    "QwenImageEditPlusPipeline": (EditPlusPipeline, PlusInpaintPipeline),
    "QwenImage21Pipeline": (Image21Pipeline, None),
}


def make_ready(
    pipeline: Any, prompts: Sequence[str], references: Sequence[Image.Image], mask: Image.Image | None
) -> Ready:
    """All that a pipeline computes on the CPU; for any thread, beside an edit too.

    Args:
        pipeline: that will edit.
        prompts: the prompt, and the negative one if there is one.
        references: RGB pictures at the size at which they are to be encoded.
        mask: of the canvas.
    """
    if not references:
        return Ready()
    digests = tuple(hashlib.sha256(f"{one.size}".encode() + one.tobytes()).digest() for one in references)
    seen = list(references)
    if isinstance(pipeline, (EditPlusPipeline, PlusInpaintPipeline)):
        sizes = [seen_by_plus(one.size) for one in references]
        resize = pipeline.image_processor.own.resize
        seen = [resize(one, height, width) for one, (width, height) in zip(references, sizes, strict=True)]
    if isinstance(pipeline, Image21Pipeline):
        # The pipeline's own conversion would make other pictures of them, which nothing is known of.
        references = [one.convert("RGBA") for one in references]
    dtype = pipeline.vae.dtype
    tensors = {id(one): _tensor(pipeline.image_processor, one).to(dtype) for one in references}
    if mask:
        tensors[id(mask)] = _tensor(pipeline.mask_processor, mask)
    texts = [pipeline.text(prompt, len(seen)) for prompt in prompts]
    return Ready(references, mask, digests, tensors, seen, pipeline.processor.read(texts, seen, dtype))


def _tensor(pictures: Pictures, image: Image.Image) -> torch.Tensor:
    made: torch.Tensor = pictures.own.preprocess(image, height=image.height, width=image.width)
    return made


@contextmanager
def prepared(pipeline: Any, ready: Ready) -> Iterator[None]:
    """For one call, the pipeline takes what has been computed, and leaves the references at their sizes."""
    pipeline.computed.ready = ready
    pipeline.encode_references()
    try:
        with sizes_kept(pipeline, ready.references):
            yield
    finally:
        pipeline.computed.ready = None


@contextmanager
def sizes_kept(pipeline: Any, references: Sequence[Image.Image]) -> Iterator[None]:
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
