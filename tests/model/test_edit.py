"""A request and its pictures → the edited picture, with the real pipelines."""

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from local.edits import edited
from qwen_worker import schema
from qwen_worker.errors import BadInput, ModelError
from qwen_worker.images.geometry import place
from qwen_worker.model.edit import Editor, to_image, to_values, untold
from qwen_worker.model.load import Model
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import SchedulerName, Size
from tests.pictures import photo

SCHEDULERS = get_args(SchedulerName)
CANVAS = (256, 256)


def ask(**fields: Any) -> ImageRequest:
    said = {
        "image_url": "https://example.com/a",
        "prompt": "make it warm",
        "seed": 1,
        "num_inference_steps": 3,
    }
    rules = schema.Rules(steps=30, cfg_scale=4.0, max_steps=50, max_images=3)
    return parse_image({**said, **fields}, job_id="job", rules=rules)


def made(
    editor: Editor,
    request: ImageRequest,
    *pictures: Image.Image,
    canvas: Size = CANVAS,
    mask: Image.Image | None = None,
    cancelled: threading.Event | None = None,
    told: Callable[[int, int], None] = untold,
    left_s: float = math.inf,
) -> Image.Image:
    references = [place(one.size, canvas[0] * canvas[1], editor.grid).prepare(one) for one in pictures or [photo()]]
    return edited(editor, request, canvas, references, mask, cancelled=cancelled, told=told, left_s=left_s)


def edit(
    editor: Editor, *pictures: Image.Image, canvas: Size = CANVAS, mask: Image.Image | None = None, **fields: Any
) -> bytes:
    return made(editor, ask(**fields), *pictures, canvas=canvas, mask=mask).tobytes()


@pytest.fixture(scope="module")
def base(model: Model) -> bytes:
    """The picture that the plain request makes."""
    return edit(Editor(model, timeout_s=60))


def _note(told: list[tuple[int, int]], done: int, of: int) -> None:
    told.append((done, of))


@contextmanager
def before_the_transformer(model: Model, act: Any) -> Iterator[None]:
    """Do something each time the transformer is about to run: torch's own hook."""
    hook = model.pipeline.transformer.register_forward_pre_hook(lambda *_: act())
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["editor", "plus_editor", "editor_21"])
def test_whatever_is_asked_changes_the_picture(which: str, request: pytest.FixtureRequest) -> None:
    """An input that is accepted and ignored is a defect."""
    editor = request.getfixturevalue(which)
    base = edit(editor)
    others = {
        "prompt": edit(editor, prompt="make it cold"),
        "negative_prompt": edit(editor, negative_prompt="blurry"),
        "true_cfg_scale": edit(editor, true_cfg_scale=7.0),
        "no guidance": edit(editor, true_cfg_scale=1.0),
        "seed": edit(editor, seed=2),
        "num_inference_steps": edit(editor, num_inference_steps=4),
        "image": edit(editor, photo(seed=5)),
        "canvas": edit(editor, canvas=(512, 256)),
        **{name: edit(editor, scheduler=name) for name in SCHEDULERS[1:]},
    }

    assert edit(editor) == base
    assert len({base, *others.values()}) == 1 + len(others)


def test_without_guidance_the_negative_prompt_says_nothing(editor: Editor, model: Model) -> None:
    """One pass a step instead of two."""
    passes = []
    with before_the_transformer(model, lambda: passes.append(1)):
        plain = edit(editor, true_cfg_scale=1.0)
        one_pass = len(passes)
        assert edit(editor, true_cfg_scale=1.0, negative_prompt="blurry") == plain
        passes.clear()
        edit(editor, true_cfg_scale=4.0)

    assert (one_pass, len(passes)) == (3, 6)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_a_single_step_makes_no_picture(editor: Editor) -> None:
    """With the shipped schedule; so the least that a request may ask for is two."""
    single = ask().model_copy(update={"num_inference_steps": 1})
    with pytest.raises(ModelError, match="not finite"):
        made(editor, single)

    assert schema.MIN_STEPS == 2


def test_fresh_noise_comes_from_the_seed_and_is_not_the_start_noise(editor: Editor, model: Model) -> None:
    """Else two seeds would share it, or the first step would add what is there already."""
    drawn = []
    for seed in (1, 2):
        edit(editor, scheduler="EulerAncestral", seed=seed)
        drawn.append(model.pipeline.scheduler.generator.initial_seed())

    assert len({*drawn, 1, 2}) == 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_job_leaves_nothing_to_the_next(editor: Editor, name: SchedulerName, base: bytes) -> None:
    """Another sampler in between changes no byte."""
    edit(editor, scheduler=name)

    assert edit(editor) == base


@pytest.mark.parametrize("which", ["plus_editor", "editor_21"])
def test_several_pictures_are_seen_in_their_order(which: str, request: pytest.FixtureRequest) -> None:
    """By the classes that take them: each counts, and its place."""
    editor: Editor = request.getfixturevalue(which)
    one, two, three = (photo(seed=seed) for seed in range(3))
    orders = [(one,), (one, two), (two, one), (one, two, three), (one, three, two), (two, one, three)]
    made_by = {edit(editor, *order, num_inference_steps=2, true_cfg_scale=1.0) for order in orders}

    assert len(made_by) == len(orders)


@pytest.mark.parametrize("which", ["editor", "editor_21"])
@pytest.mark.parametrize("canvas", [(256, 512), (224, 288), (1024, 64)])
def test_the_size_is_the_canvas(which: str, request: pytest.FixtureRequest, canvas: Size) -> None:
    """Whatever the reference's."""
    editor: Editor = request.getfixturevalue(which)

    assert made(editor, ask(num_inference_steps=2), canvas=canvas).size == canvas


@pytest.mark.parametrize("which", ["editor", "editor_21"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>", "<|endoftext|>"])
def test_a_control_token_in_a_prompt_is_refused(
    which: str, request: pytest.FixtureRequest, field: str, token: str
) -> None:
    """The tokenizer would obey it."""
    editor: Editor = request.getfixturevalue(which)
    with pytest.raises(BadInput, match=f"{field}: holds") as caught:
        editor.check(ask(**{field: f"make it {token} warm"}), CANVAS, [CANVAS])

    assert [item["field"] for item in caught.value.details["problems"]] == [field]


@pytest.mark.parametrize("which", ["editor", "editor_21"])
def test_ordinary_signs_are_no_control_tokens(which: str, request: pytest.FixtureRequest) -> None:
    """Braces too: the pipelines format their template with the prompt."""
    editor: Editor = request.getfixturevalue(which)
    text = "a {b} <c> | <|d|> %s \\ 100% 日本語 🙂 <image1>"
    editor.check(ask(prompt=text), CANVAS, [CANVAS])

    assert edit(editor, prompt=text) != edit(editor)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["editor", "plus_editor"])
def test_a_prompt_is_refused_exactly_where_the_model_would_fail(which: str, request: pytest.FixtureRequest) -> None:
    """One token more than the position table has rows for."""
    editor: Editor = request.getfixturevalue(which)
    size = (256, 256)
    reference = place(photo().size, 256 * 256, editor.grid).canvas
    room = editor._spare_positions("", size, [reference])
    word = " the"  # of the system prompt: one token
    fits = ask(true_cfg_scale=1.0, num_inference_steps=2).model_copy(update={"prompt": word * room})
    too_long = fits.model_copy(update={"prompt": word * (room + 1)})

    editor.check(fits, size, [reference])
    made(editor, fits, canvas=size)
    with pytest.raises(BadInput, match="prompt: is 1 tokens too long"):
        editor.check(too_long, size, [reference])
    with pytest.raises(ModelError):
        made(editor, too_long, canvas=size)


def test_time_runs_out_between_steps(model: Model) -> None:
    """The next job does not wait for this one's last step."""
    editor = Editor(model, timeout_s=0.3)
    steps = []

    def slow() -> None:
        steps.append(1)
        time.sleep(0.1)

    with before_the_transformer(model, slow), pytest.raises(ModelError, match=r"longer than 0\.3 s") as caught:
        edit(editor, num_inference_steps=50)

    assert len(steps) < 20
    assert caught.value.details["steps_done"] == len(steps) // 2


@pytest.mark.slow
def test_a_step_that_would_end_too_late_is_not_begun(model: Model) -> None:
    """By the length of the one before; the last has none behind it."""
    editor, steps = Editor(model, timeout_s=3.1), []

    def slow() -> None:
        steps.append(1)
        time.sleep(0.8)

    with before_the_transformer(model, slow):
        assert edit(editor, num_inference_steps=3, true_cfg_scale=1.0)
        steps.clear()
        with pytest.raises(ModelError, match=r"longer than 3\.1 s") as caught:
            edit(editor, num_inference_steps=10, true_cfg_scale=1.0)

    assert len(steps) <= 3
    assert not caught.value.retryable


def test_the_job_may_leave_less_time_than_an_edit_has(editor: Editor, model: Model) -> None:
    """Then it may be tried again: the job had to wait."""
    with before_the_transformer(model, lambda: time.sleep(0.1)), pytest.raises(ModelError, match=r"0\.2 s") as caught:
        made(editor, ask(num_inference_steps=50), left_s=0.2)

    assert caught.value.retryable


@pytest.mark.parametrize("which", ["editor", "plus_editor", "editor_21"])
@pytest.mark.parametrize(("name", "passes"), [("FlowMatchEuler", 3), ("FlowMatchHeun", 5)])
def test_each_pass_is_told(which: str, request: pytest.FixtureRequest, name: SchedulerName, passes: int) -> None:
    """As it is done, with how many there are in all; whatever guidance costs."""
    editor: Editor = request.getfixturevalue(which)
    for scale in (1.0, 4.0):
        told: list[tuple[int, int]] = []
        made(editor, ask(scheduler=name, true_cfg_scale=scale), told=partial(_note, told))

        assert told == [(number, passes) for number in range(1, passes + 1)]


@pytest.mark.parametrize("which", ["editor", "plus_editor"])
def test_of_a_masked_edit_the_passes_that_it_takes_are_told(which: str, request: pytest.FixtureRequest) -> None:
    """A low strength takes fewer than its steps."""
    told: list[tuple[int, int]] = []
    mask = Image.new("L", CANVAS, 255)
    low = ask(num_inference_steps=4, strength=0.5, mask_url="https://example.com/mask")
    made(request.getfixturevalue(which), low, photo(*CANVAS), mask=mask, told=partial(_note, told))

    assert told == [(1, 2), (2, 2)]


def test_a_cancelled_edit_stops_between_steps(editor: Editor, model: Model, base: bytes) -> None:
    """As soon as its step is done, and the next edit is untouched."""
    cancelled = threading.Event()
    steps = []

    def cancel() -> None:
        steps.append(1)
        if len(steps) == 4:
            cancelled.set()

    with before_the_transformer(model, cancel), pytest.raises(ModelError, match="cancelled"):
        made(editor, ask(num_inference_steps=50), cancelled=cancelled)

    assert len(steps) == 4
    assert edit(editor) == base


@pytest.mark.parametrize(
    ("raised", "sick", "retryable", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), False, False, "out of memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True, True, "failed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), True, True, "failed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, True, "failed"),
        (RuntimeError("cuDNN Frontend error: execution failed"), True, True, "failed"),
        (RuntimeError("CUDA driver error: device not ready"), True, True, "failed"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True, True, "failed"),
        (AttributeError("'NoneType' object has no attribute 'pop'"), False, False, "failed"),
        (KeyError("hidden_states"), False, False, "failed"),
        (RuntimeError("The size of tensor a (5) must match the size of tensor b (4)"), False, False, "failed"),
        (ValueError("anything"), False, False, "failed"),
    ],
)
def test_what_fails_in_the_model_is_a_model_error(
    editor: Editor, model: Model, raised: Exception, *, sick: bool, retryable: bool, said: str
) -> None:
    """A failing device takes the process with it; anything else does not. Nothing of the text reaches the caller."""

    def fail(*_: Any) -> None:
        raise raised

    hook = model.pipeline.text_encoder.register_forward_pre_hook(fail)  # the first part that runs
    with pytest.raises(ModelError, match=said) as caught:
        edit(editor)
    hook.remove()

    assert caught.value.refresh_worker is sick
    assert caught.value.retryable is retryable
    assert str(raised) not in caught.value.message


@pytest.mark.slow
def test_three_edits_in_a_row_without_memory_end_the_process(editor: Editor, model: Model) -> None:
    """What they left behind is in the way of the next one. A success between them shows that it is not so."""

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def refreshes() -> bool:
        with before_the_transformer(model, fail), pytest.raises(ModelError) as caught:
            edit(editor)
        return caught.value.refresh_worker

    first = [refreshes(), refreshes()]
    edit(editor, num_inference_steps=2)

    assert first == [False, False]
    assert [refreshes(), refreshes(), refreshes()] == [False, False, True]
    edit(editor, num_inference_steps=2)


def test_an_edit_that_fails_leaves_nothing_to_the_next(editor: Editor, model: Model, base: bytes) -> None:
    """Whatever state it was in."""

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with before_the_transformer(model, fail), pytest.raises(ModelError):
        edit(editor, scheduler="UniPCMultistep")

    assert edit(editor) == base


def test_memory_of_a_failed_edit_is_given_back(editor: Editor, model: Model) -> None:
    """While its error is still being told: the next edit may be running already."""
    latents: list[weakref.ref[torch.Tensor]] = []

    def fail(_module: Any, _args: Any, named: dict[str, Any]) -> None:
        latents.append(weakref.ref(named["hidden_states"]))
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.pipeline.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    gc.disable()  # so that only what the editor does counts
    try:
        with pytest.raises(ModelError) as caught:
            edit(editor)
        assert latents
        assert latents[0]() is None
        assert caught.value.__cause__
    finally:
        gc.enable()
        hook.remove()


def test_numbers_that_are_not_finite_are_no_picture() -> None:
    """They would be stored as black."""
    pixels = np.random.default_rng(0).random((16, 16, 3))
    for bad in (np.nan, np.inf):
        spoilt = pixels.copy()
        spoilt[3, 4, 1] = bad
        with pytest.raises(ModelError, match="not finite"):
            to_values(torch.from_numpy(spoilt).permute(2, 0, 1))


@pytest.mark.parametrize("colour", [(0, 0, 0), (0.6, 0.6, 0.6), (1, 1, 1), (1, 0, 0), (0.2, 0.4, 0.8)])
def test_one_flat_colour_is_no_picture(colour: tuple[float, float, float]) -> None:
    """Black is what a broken model makes. Differences that no file can hold do not count."""
    pixels = torch.tensor(colour, dtype=torch.float)[:, None, None].repeat(1, 16, 16)
    pixels[:, 0, 0] += 1e-5
    with pytest.raises(ModelError, match="flat"):
        to_image(to_values(pixels), [photo()])


def test_the_source_is_no_edit() -> None:
    """In its own size, or resized."""
    source = photo(64, 48)
    for size in ((64, 48), (32, 24)):
        pixels = np.array(source.resize(size, Image.Resampling.LANCZOS))
        with pytest.raises(ModelError, match="unchanged"):
            to_image(pixels, [photo(seed=1), source])

        pixels[0, 0, 0] ^= 1
        assert to_image(pixels, [photo(seed=1), source]).size == size


def test_a_model_of_broken_weights_fails(editor: Editor, model: Model) -> None:
    """Through the whole pipeline: its postprocessing alone would make a black picture of it."""
    weight = next(model.pipeline.transformer.parameters())
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="not finite"):
            edit(editor)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_the_warm_up_edits(editor: Editor, model: Model) -> None:
    """With both passes of guidance."""
    passes = []
    with before_the_transformer(model, lambda: passes.append(1)):
        editor.warm_up()

    assert len(passes) == 4
