"""A request and its pictures, if it has any → a picture. Knows no URL, no bucket, no job.

In three parts: `ready` and `picture` are for any thread, and only `edit` needs the GPU.
"""

import contextlib
import copy
import gc
import math
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from qwen_worker.errors import ModelError, WorkerError, bad_input
from qwen_worker.model import schedulers, skipping
from qwen_worker.model.computed import Ready
from qwen_worker.model.kernels import Seen
from qwen_worker.model.load import Model
from qwen_worker.model.loras import switched_on
from qwen_worker.model.pipelines import EditPlusPipeline, Image21Pipeline, make_ready, prepared, seen_by_plus
from qwen_worker.model.schedulers import DISTILLED
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import MIN_STEPS, Rules, Size

# Rows of positions in QwenImage21Rope of diffusers. Behind them its table goes on with negative ones: a text that is
# too long would be read wrongly, without an error.
IMAGE_21_POSITIONS = 8192
# Of a text-to-image prompt, beside what stands before it in the template: tokenizer_max_length of QwenImagePipeline,
# which cuts off what is longer, without an error. Its max_sequence_length is 512 if nobody says so.
TEXT_TO_IMAGE_TOKENS = 1024
WARM_UP_SIZE = (512, 512)
# How the text of a failing device begins where it has no exception class of its own: ATen/cuda/Exceptions.h,
# c10/cuda/driver_api.h, and Triton's driver.
DEVICE_FAILURES = ("CUDA ", "cuDNN ", "cusolver error", "NVML", "Triton Error [CUDA]")
FAILED, OTHERWISE = "the model failed: {}", "try another size or seed; the worker's log says more"
MOST_WITHOUT_MEMORY = 3  # edits in a row that ran out of it, before the process is replaced
#: callback_on_step_end of a pipeline
StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
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
    """The models of this process. `edit` is for one thread at a time; `check` is for one other, the rest for any.

    Both sides of every picture that comes or goes here are multiples of `grid` pixels.

    Attributes:
        model_id: of the model that edits; with `model_revision`.
        t2i_model: id and revision of the model that makes pictures from words alone, if there is one.
        loras: name of a LoRA → what it is: `source@revision/weight_file`.
        preset: of all models, as in PRESET; with `profile`.
        making: what else decides a picture, beside model, LoRAs and request. Kernels and compiled blocks are not in it:
            they change the order of sums, as another GPU does.
    """

    def __init__(self, model: Model, *, timeout_s: float) -> None:
        self.model_id = model.id
        self.model_revision = model.revision
        self.grid = model.pipeline.vae_scale_factor * 2
        self.loras: Mapping[str, str] = {name: lora.origin for name, lora in model.loras.items()}
        self.t2i_model = (model.t2i.id, model.t2i.revision) if model.t2i else None
        self.preset, self.profile = model.preset.name, model.profile.name
        self.making: Mapping[str, Any] = {
            "preset": model.preset.name,
            "weights": model.profile.weights,
            "lightning": [model.lightning, model.t2i.lightning if model.t2i else None],
        }
        self._model = model
        self._pipeline = model.pipeline
        self._inpaint = model.inpaint
        self._t2i = model.t2i.pipeline if model.t2i else None
        self._computed = model.computed
        self._timeout_s = timeout_s
        self._without_memory = 0  # edits in a row
        # Each pipeline gets a sampler for each request, made from its model's own.
        distilled = FlowMatchEulerDiscreteScheduler(**DISTILLED) if model.preset.distilled_steps else None
        self._scheduler = distilled or model.pipeline.scheduler
        self._t2i_scheduler = distilled or (self._t2i.scheduler if self._t2i else None)
        # The tokenizer that reads the prompts; QwenImage21Pipeline has no other.
        # A copy for `check`: to read a prompt sets how the next is read, and the pipelines do so in another thread.
        self._tokenizer = copy.deepcopy(model.pipeline.processor.tokenizer)
        self._control_tokens = sorted(self._tokenizer.get_added_vocab())
        self._is_plus = isinstance(model.pipeline, EditPlusPipeline)
        self._is_21 = isinstance(model.pipeline, Image21Pipeline)

    def made_by(self, request: ImageRequest) -> tuple[str, str]:
        """Id and revision of the model that makes this request's picture."""
        generates = request.operation == "generate" and self.t2i_model
        return generates or (self.model_id, self.model_revision)

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Refuse, without the GPU, what the model would answer with a raw error.

        Args:
            request: what to do.
            canvas: size of the picture that will be made.
            references: sizes of the pictures it will be made from.

        Raises:
            BadInput: a prompt holds a control token, or is too long beside these pictures.
        """
        problems = []
        for field in ("prompt", "negative_prompt"):
            text = getattr(request, field)
            found = [token for token in self._control_tokens if token in text]
            if request.operation == "generate":
                missing = -self._spare_tokens(text)
            else:
                missing = -self._spare_positions(text, canvas, references)
            if found:
                problem = f"holds {found[0]}, which the model would obey as a control token: remove it"
            elif missing > 0:
                problem = f"is {missing} tokens too long for the model: shorten it"
            else:
                continue
            problems.append({"field": field, "problem": problem})
        if problems:
            raise bad_input(problems)

    def ready(self, request: ImageRequest, references: Sequence[Image.Image], mask: Image.Image | None = None) -> Ready:
        """All that can be computed of pictures without the GPU; for any thread, beside an edit too.

        Args:
            request: what to do.
            references: RGB pictures, in the order of the request. Two of the same shape have the same size. None to
                generate.
            mask: of the canvas, black or white in squares of half a grid, for a single reference of its size.

        Raises:
            ModelError: what reads prompts and pictures for the model fails.
        """
        negative = _negative(request)
        prompts = [request.prompt] if negative is None else [request.prompt, negative]
        try:
            return make_ready(self._chosen(request, mask)[0], prompts, references, mask)
        except FAILURES as error:
            raise ModelError(FAILED.format(OTHERWISE)) from error

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        ready: Ready,
        cancelled: threading.Event,
        told: Callable[[int, int], None],
        left_s: float = math.inf,
    ) -> np.ndarray:
        """Run the pipeline once; nothing but what the GPU is needed for.

        Args:
            request: what to do.
            canvas: size of the picture to make.
            ready: of the same request.
            cancelled: when set by another thread, the edit stops after its current step.
            told: called in this thread after each pass through the sampler, with the passes done and those in all; it
                must not raise.
            left_s: seconds that the job leaves for it.

        Returns:
            height x width x 3, 8 bits each.

        Raises:
            ModelError: out of memory, out of time, cancelled, a failing device, or numbers that are no picture.
        """
        try:
            values = self._run(request, canvas, ready, self._between_steps(cancelled, told, left_s))
        except WorkerError as error:
            _give_back(error)
            raise
        except FAILURES as error:
            failure = self._translated(error)
            _give_back(error)
            raise failure from error
        self._without_memory = 0
        return values

    def picture(self, values: np.ndarray, ready: Ready) -> Image.Image:
        """What `edit` made, if it is an edit; for any thread, beside an edit too.

        Raises:
            ModelError: it is of one colour, or a reference unchanged.
        """
        return to_image(values, [one.convert("RGB") for one in ready.references])

    def warm_up(self) -> None:
        """One small picture by each model, so that the first job finds every kernel loaded, and those that were chosen.

        Raises:
            ModelError: the model does not work.
            LoadError: it fell back to other kernels.
        """
        Seen(self._pipeline.transformer, self._warm_up).check(self._model.attention, compiled=self._model.compiled)

    def _warm_up(self) -> None:
        scale = 1.0 if self._model.preset.distilled_steps else 4.0
        rules = Rules(steps=MIN_STEPS, cfg_scale=scale, max_steps=MIN_STEPS, max_images=1)
        rules = replace(rules, generate=rules)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize(WARM_UP_SIZE)
        works: list[tuple[dict[str, str], list[Image.Image]]] = [({"image_url": "https://warm.up/"}, [picture])]
        if self._t2i:
            works.append(({"operation": "generate"}, []))
        for said, references in works:
            request = parse_image({**said, "prompt": "warm up"}, job_id="warm-up", rules=rules)
            ready = self.ready(request, references)
            self.picture(self.edit(request, WARM_UP_SIZE, ready, threading.Event(), untold), ready)
        self._computed.clear()

    def _run(self, request: ImageRequest, canvas: Size, ready: Ready, between_steps: StepEnd) -> np.ndarray:
        pipeline, scheduler = self._chosen(request, ready.mask)
        # Two generators: the noise of the start and that of stochastic steps must not overlap.
        step_noise = torch.Generator().manual_seed(request.seed + 2**32)
        pipeline.scheduler = schedulers.build(request.scheduler, scheduler, step_noise)
        with contextlib.ExitStack() as stack:
            if self._model.preset.skips:
                stack.enter_context(skipping.for_one_picture(pipeline.transformer, guided=request.true_cfg_scale > 1))
            stack.enter_context(prepared(pipeline, ready))
            stack.enter_context(switched_on(self._pipeline.transformer, request.lora))
            output = pipeline(
                prompt=request.prompt,
                negative_prompt=_negative(request),
                true_cfg_scale=request.true_cfg_scale,
                width=canvas[0],
                height=canvas[1],
                num_inference_steps=request.num_inference_steps,
                generator=torch.Generator().manual_seed(request.seed),
                callback_on_step_end=between_steps,
                output_type="pt",
                **_only_of(request, ready),
            )
        return to_values(output.images[0])

    def _chosen(self, request: ImageRequest, mask: Image.Image | None) -> tuple[Any, Any]:
        """The pipeline for a request, and its model's own scheduler."""
        if request.operation == "generate":
            return self._t2i, self._t2i_scheduler
        return self._inpaint if mask else self._pipeline, self._scheduler

    def _spare_tokens(self, text: str) -> int:
        """How many more tokens a text-to-image prompt may have."""
        pipeline: Any = self._t2i
        words: int = len(self._tokenizer(pipeline.text(text, 0)).input_ids)
        start: int = pipeline.prompt_template_encode_start_idx
        return TEXT_TO_IMAGE_TOKENS - (words - start)

    def _spare_positions(self, text: str, canvas: Size, references: Sequence[Size]) -> int:
        """Rows of the transformer's position table that are left over beside prompt and pictures.

        Text positions begin behind half the longest side of any picture (QwenEmbedRope of diffusers), and the text
        carries the image tokens: each picture's one `<|image_pad|>` is replaced by as many as it has.
        """
        if self._is_21:
            return _spare_positions_21(self._pipeline, self._tokenizer, text, references)
        pipeline = self._pipeline
        seen = [seen_by_plus(size) for size in references] if self._is_plus else references
        tokens: int = sum(pipeline.processor.image_tokens(size) - 1 for size in seen)
        words: int = len(self._tokenizer(pipeline.text(text, len(references))).input_ids)
        length = words - pipeline.prompt_template_encode_start_idx + tokens
        longest = max(side for picture in (canvas, *references) for side in picture)
        rows: int = len(pipeline.transformer.pos_embed.pos_freqs)
        return rows - longest // self.grid // 2 - length

    def _between_steps(self, cancelled: threading.Event, told: Callable[[int, int], None], left_s: float) -> StepEnd:
        begin = last = time.monotonic()
        seconds = min(self._timeout_s, left_s)

        def check(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal last
            told(step + 1, pipeline.num_timesteps)
            if cancelled.is_set():
                raise ModelError("the job was cancelled: send it again if it is still wanted", steps_done=step + 1)
            now = time.monotonic()
            # Of the next step, if there is one: the first has the encoding of prompt and pictures in it.
            takes = now - last if 0 < step < pipeline.num_timesteps - 1 else 0.0
            last = now
            if now + takes > begin + seconds:
                raise ModelError(
                    f"the edit takes longer than {seconds:.3g} s: ask for fewer steps",
                    # It had to wait for others, and will perhaps not the next time.
                    retryable=left_s < self._timeout_s,
                    steps_done=step + 1,
                )
            return tensors

        return check

    def _translated(self, error: Exception) -> ModelError:
        """What torch and diffusers raise, as the caller sees it."""
        if isinstance(error, torch.OutOfMemoryError):
            self._computed.clear()
            self._without_memory += 1
            # What one edit leaves behind, or another program on this GPU, is not the next request's fault.
            refresh = self._without_memory >= MOST_WITHOUT_MEMORY
            return ModelError("the GPU ran out of memory: ask for a smaller size", refresh_worker=refresh)
        sick = isinstance(error, torch.AcceleratorError) or str(error).startswith(DEVICE_FAILURES)
        advice = "try again, another worker will do it" if sick else OTHERWISE
        return ModelError(FAILED.format(advice), retryable=sick, refresh_worker=sick)


def _spare_positions_21(pipeline: Any, tokenizer: Any, text: str, references: Sequence[Size]) -> int:
    """The same of QwenImage21Rope: a word takes one position, a picture its longest side in latents.

    The result takes the position that comes next. Rows and columns are counted from a picture's centre; of those there
    are enough for any canvas.
    """
    tokens: int = len(tokenizer(pipeline.text(text, len(references))).input_ids)
    system: int = pipeline._drop_idx  # noqa: SLF001 - nobody else knows
    latent: int = pipeline.vae_scale_factor
    words = tokens - system - len(references)
    return IMAGE_21_POSITIONS - 1 - words - sum(max(size) // latent for size in references)


def _negative(request: ImageRequest) -> str | None:
    """Without a negative prompt diffusers drops the guidance silently; with it, scale 1 is one pass."""
    return request.negative_prompt if request.true_cfg_scale > 1 else None


def _only_of(request: ImageRequest, ready: Ready) -> dict[str, Any]:
    """The arguments that not every pipeline takes."""
    if request.operation == "generate":
        return {"max_sequence_length": TEXT_TO_IMAGE_TOKENS}
    images = {"image": list(ready.references) if len(ready.references) > 1 else ready.references[0]}
    return {**images, "mask_image": ready.mask, "strength": request.strength} if ready.mask else images


def to_values(pixels: torch.Tensor) -> np.ndarray:
    """Pixels as a pipeline makes them, on its device → as a file holds them.

    Args:
        pixels: 3 or 4 channels x height x width, in 0..1.

    Returns:
        height x width x 3, 8 bits each. What QwenImage21Pipeline makes has an alpha channel: what is transparent
        becomes white, as in a source.

    Raises:
        ModelError: the pixels are not finite.
    """
    if not pixels.isfinite().all():
        raise ModelError("the model made no picture, its output is not finite: try another seed")
    pixels = pixels.float()
    if len(pixels) > 3:
        pixels, alpha = pixels[:3], pixels[3:]
        pixels = pixels * alpha + (1 - alpha)
    values = (pixels * 255).round().to(torch.uint8)
    made: np.ndarray = values.permute(1, 2, 0).contiguous().cpu().numpy()
    return made


def to_image(values: np.ndarray, sources: Sequence[Image.Image]) -> Image.Image:
    """What the model made → a picture, if it is one.

    Args:
        values: height x width x 3, 8 bits each.
        sources: what was edited.

    Raises:
        ModelError: it is of one colour, or a source unchanged.
    """
    if (values == values[0, 0]).all():
        raise ModelError("the model made no picture, its output is one flat colour: try another seed")
    image = Image.fromarray(values)
    made = image.tobytes()
    if any(made == source.resize(image.size, Image.Resampling.LANCZOS).tobytes() for source in sources):
        raise ModelError("the model returned the source unchanged: try another prompt or seed")
    return image


def untold(_done: int, _of: int) -> None:
    """For an edit whose progress nobody wants to know."""


def _give_back(error: BaseException) -> None:
    """Free what a failed edit held: its frames live as long as the traceback, of which only the text is kept."""
    error.add_note("".join(traceback.format_exception(error)))
    error.__traceback__ = None
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a device that has failed
            torch.cuda.empty_cache()
