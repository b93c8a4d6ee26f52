"""A request and its pictures → the edited picture. Knows no URL, no bucket, no job."""

import contextlib
import gc
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from qwen_worker.errors import ModelError, WorkerError
from qwen_worker.images.geometry import NATIVE_AREA, native_size, output_size
from qwen_worker.model import schedulers
from qwen_worker.model.load import Model
from qwen_worker.schema import MIN_STEPS, EditRequest, Size, bad_input, parse

# Area at which the text encoder sees a reference: CONDITION_IMAGE_SIZE of diffusers' EditPlus pipeline.
PLUS_CONDITION_AREA = 384 * 384
# What the same pipeline puts before the prompt for each picture: img_prompt_template of _get_qwen_prompt_embeds.
PLUS_PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
# How the text of a failing device begins where it has no exception class of its own: ATen/cuda/Exceptions.h,
# c10/cuda/driver_api.h, and Triton's driver.
DEVICE_FAILURES = ("CUDA ", "cuDNN ", "cusolver error", "NVML", "Triton Error [CUDA]")
# Whatever else torch, diffusers, transformers and tokenizers raise.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Editor:
    """The one pipeline of this process. `edit` is for one thread at a time; `size` and `check` are for one other."""

    def __init__(self, model: Model, *, timeout_s: float) -> None:
        self.model_id = model.id
        self.model_revision = model.revision
        self._pipeline = model.pipeline
        self._timeout_s = timeout_s
        self._scheduler = model.pipeline.scheduler
        self._control_tokens = sorted(model.pipeline.tokenizer.get_added_vocab())
        self._is_plus = type(model.pipeline).__name__ == "QwenImageEditPlusPipeline"

    def size(self, request: EditRequest, source: Size) -> Size:
        """The size, in pixels, of the picture that `edit` will make.

        Raises:
            BadInput: the source has no aspect that the model can make.
        """
        return output_size(request.size, source, self._pipeline.vae_scale_factor * 2)

    def check(self, request: EditRequest, sources: Sequence[Size]) -> None:
        """Refuse, without the GPU, what the model would answer with a raw error.

        Raises:
            BadInput: a prompt holds a control token, or is too long beside these pictures.
        """
        problems = []
        for field in ("prompt", "negative_prompt"):
            text = getattr(request, field)
            found = [token for token in self._control_tokens if token in text]
            missing = -self._spare_positions(text, self.size(request, sources[-1]), sources)
            if found:
                problem = f"holds {found[0]}, which the model would obey as a control token: remove it"
            elif missing > 0:
                problem = f"is {missing} tokens too long for the model: shorten it"
            else:
                continue
            problems.append({"field": field, "problem": problem})
        if problems:
            raise bad_input(problems)

    def edit(self, request: EditRequest, images: Sequence[Image.Image], cancelled: threading.Event) -> Image.Image:
        """Run the pipeline once.

        Args:
            request: what to do.
            images: RGB sources, in the order of the request.
            cancelled: when set by another thread, the edit stops after its current step.

        Raises:
            ModelError: out of memory, out of time, cancelled, a failing device, or an output that is no edit.
        """
        try:
            pixels = self._run(request, images, cancelled)
        except WorkerError as error:
            _give_back(error)
            raise
        except FAILURES as error:
            failure = _translated(error)
            _give_back(error)
            raise failure from error
        return to_image(pixels, images[-1])

    def warm_up(self) -> None:
        """One small edit, so that the first job finds every kernel loaded.

        Raises:
            ModelError: the model does not work.
        """
        said = {"image_url": "https://warm.up/", "prompt": "warm up", "num_inference_steps": MIN_STEPS}
        request = parse(said, job_id="warm-up", max_steps=MIN_STEPS)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        self.edit(request, [Image.fromarray(pixels).resize((512, 512))], threading.Event())

    def _run(self, request: EditRequest, images: Sequence[Image.Image], cancelled: threading.Event) -> np.ndarray:
        """The pixels that the pipeline makes: height x width x 3, floats in 0..1."""
        width, height = self.size(request, images[-1].size)
        # Two generators: the noise of the start and that of stochastic steps must not overlap.
        step_noise = torch.Generator().manual_seed(request.seed + 2**32)
        self._pipeline.scheduler = schedulers.build(request.scheduler, self._scheduler, step_noise)
        output = self._pipeline(
            image=list(images) if len(images) > 1 else images[0],
            prompt=request.prompt,
            # Without a negative prompt diffusers drops the guidance silently; with it, scale 1 is one pass.
            negative_prompt=request.negative_prompt if request.true_cfg_scale > 1 else None,
            true_cfg_scale=request.true_cfg_scale,
            width=width,
            height=height,
            num_inference_steps=request.num_inference_steps,
            generator=torch.Generator().manual_seed(request.seed),
            callback_on_step_end=self._between_steps(cancelled),
            output_type="np",
        )
        pixels: np.ndarray = output.images[0]
        return pixels

    def _spare_positions(self, text: str, size: Size, sources: Sequence[Size]) -> int:
        """Rows of the transformer's position table that are left over beside prompt and pictures.

        Text positions begin behind half the longest side of any picture (QwenEmbedRope of diffusers), and the text
        carries the image tokens: each picture's one `<|image_pad|>` is replaced by as many as it has.
        """
        pipeline = self._pipeline
        area = PLUS_CONDITION_AREA if self._is_plus else NATIVE_AREA
        seen: int = sum(pipeline.processor.image_tokens(native_size(source, area)) - 1 for source in sources)
        if self._is_plus:
            text = "".join(PLUS_PICTURE.format(number) for number in range(1, len(sources) + 1)) + text
        words: int = len(pipeline.tokenizer(pipeline.prompt_template_encode.format(text)).input_ids)
        length = words - pipeline.prompt_template_encode_start_idx + seen
        longest = max(side for picture in (size, *map(native_size, sources)) for side in picture)
        rows: int = len(pipeline.transformer.pos_embed.pos_freqs)
        return rows - longest // (pipeline.vae_scale_factor * 2) // 2 - length

    def _between_steps(self, cancelled: threading.Event) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
        end = time.monotonic() + self._timeout_s

        def check(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if cancelled.is_set():
                raise ModelError("the job was cancelled", steps_done=step + 1)
            if time.monotonic() > end:
                raise ModelError(
                    f"the edit took longer than {self._timeout_s:g} s: ask for fewer steps", steps_done=step + 1
                )
            return tensors

        return check


def to_image(pixels: np.ndarray, source: Image.Image) -> Image.Image:
    """Pixels of the pipeline → a picture, if they are one.

    Args:
        pixels: height x width x 3, floats in 0..1.
        source: what was edited.

    Raises:
        ModelError: the pixels are not finite, of one colour, or the source unchanged.
    """
    if not np.isfinite(pixels).all():
        raise ModelError("the model made no picture: its output is not finite")
    values = (pixels * 255).round().astype(np.uint8)
    if (values == values[0, 0]).all():
        raise ModelError("the model made no picture: its output is one flat colour")
    image = Image.fromarray(values)
    if image.tobytes() == source.resize(image.size, Image.Resampling.LANCZOS).tobytes():
        raise ModelError("the model returned the source unchanged")
    return image


def _translated(error: Exception) -> ModelError:
    """What torch and diffusers raise, as the caller sees it."""
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError("the GPU ran out of memory: ask for a smaller size")
    sick = isinstance(error, torch.AcceleratorError) or str(error).startswith(DEVICE_FAILURES)
    return ModelError("the model failed", retryable=sick, refresh_worker=sick)


def _give_back(error: BaseException) -> None:
    """Free what a failed edit held: its frames live as long as the traceback, of which only the text is kept."""
    error.add_note("".join(traceback.format_exception(error)))
    error.__traceback__ = None
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a device that has failed
            torch.cuda.empty_cache()
