"""What is particular to Qwen-Image-2.1: how it is loaded, what it sees, its positions, its transparency."""

import gc
import json
import math
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Pipeline
from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21 as module
from PIL import Image
from safetensors.torch import load_file, save_file

from local import tiny_model
from local.edits import edited
from qwen_worker.errors import BadInput, ModelError
from qwen_worker.images.geometry import NATIVE_AREA, place
from qwen_worker.model.edit import IMAGE_21_POSITIONS, Editor, to_values
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import Model
from qwen_worker.schema import SchedulerName, Size
from qwen_worker.shards import UNUSED
from tests.model.conftest import load_tiny
from tests.model.test_edit import ask, before_the_transformer, edit, made
from tests.pictures import photo

pytestmark = pytest.mark.slow

SCHEDULERS = get_args(SchedulerName)
SMALL = (256, 256)


@pytest.fixture
def copy(tiny_21: Path, tmp_path: Path) -> Path:
    """A tiny model to break."""
    return Path(shutil.copytree(tiny_21, tmp_path / "model"))


@contextmanager
def seen(part: torch.nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The named arguments of each call of a part: torch's own hook."""
    calls: list[dict[str, Any]] = []
    hook = part.register_forward_pre_hook(lambda _module, _args, named: calls.append(named), with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def test_it_is_loaded_as_what_it_is(model_21: Model) -> None:
    """In bfloat16, without the video half of its processor, which wants torchvision; there is nothing for masks."""
    pipeline: Any = model_21.pipeline

    assert isinstance(pipeline, QwenImage21Pipeline)
    assert not hasattr(pipeline.processor, "video_processor")
    assert model_21.inpaint is None
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("transformer", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_missing_weights_are_an_error(copy: Path, part: str, file: str) -> None:
    """The libraries fill them with random numbers and warn."""
    weights = load_file(copy / part / file)
    del weights[min(weights.keys() - {UNUSED})]
    save_file(weights, copy / part / file, metadata={"format": "pt"})

    with pytest.raises(LoadError, match=f"{part} lacks 1 weights"):
        load_tiny(copy, "QwenImage21Pipeline")


def test_the_classes_are_not_mixed_up(copy: Path) -> None:
    """A folder is loaded as the class that was asked for, or not at all."""
    with pytest.raises(LoadError, match="names QwenImage21Pipeline, not QwenImageEditPipeline"):
        load_tiny(copy)


def test_no_template_of_the_repository_is_run(copy: Path, model_21: Model) -> None:
    """A chat template is a program."""
    (copy / "processor" / "chat_template.jinja").write_text("{{ raise_exception('run') }}")
    pipeline: Any = load_tiny(copy, "QwenImage21Pipeline").pipeline

    assert pipeline._drop_idx == model_21.pipeline._drop_idx  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [2, 5])
def test_the_steps_of_the_request_win_over_those_of_the_repository(copy: Path, steps: int) -> None:
    """A schedule in model_index.json would be walked whatever is asked."""
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "sample_sigmas": [1.0, 0.75, 0.5, 0.25]}))
    model = load_tiny(copy, "QwenImage21Pipeline")
    with seen(model.pipeline.transformer) as calls:
        edit(Editor(model, timeout_s=60), num_inference_steps=steps, true_cfg_scale=1.0)

    assert len(calls) == steps


def test_the_system_prompt_is_what_the_pipeline_drops(model_21: Model) -> None:
    """By our own template, which must be the text that the pipeline formats by hand."""
    pipeline: Any = model_21.pipeline
    ids = pipeline.processor.tokenizer(pipeline.prompt_template_ti2i.format("words")).input_ids
    rest = pipeline.processor.tokenizer.decode(ids[pipeline._drop_idx :])

    assert rest.startswith("<|im_start|>user\n<image1><|vision_start|><|image_pad|><|vision_end|>words<|im_end|>")


def test_the_text_encoder_gets_the_positions_of_the_image_tokens(model_21: Model) -> None:
    """From the pipeline itself: what it encodes is what the last layer makes of everything that the processor made."""
    pipeline: Any = model_21.pipeline
    picture = photo(384, 288)
    inputs = pipeline.processor(
        text=[pipeline.prompt_template_ti2i.format("make it warm")], images=[picture], return_tensors="pt"
    )
    last: list[torch.Tensor] = []
    decoder = pipeline.text_encoder.language_model.layers[-1]
    hook = decoder.register_forward_hook(lambda _module, _args, made: last.append(made))
    with torch.no_grad():
        pipeline.text_encoder(**inputs)
        intended = last[-1][0, pipeline._drop_idx :]
        encoded, _, marks = pipeline.encode_prompt(image=[picture], prompt="make it warm")
        del inputs["mm_token_type_ids"]
        with pytest.raises(ValueError, match="mm_token_type_ids"):  # this encoder would not be silent
            pipeline.text_encoder(**inputs)
    hook.remove()

    assert torch.equal(encoded[0], intended)
    assert int(marks.sum()) == 384 * 288 // 32**2


@pytest.mark.parametrize("area", [256 * 256, NATIVE_AREA, 2048 * 2048])
def test_a_picture_has_as_many_tokens_as_its_latents_want(model_21: Model, area: int) -> None:
    """A quarter of them, on every canvas: the processor's own limits would resize small ones and huge ones."""
    processor = model_21.pipeline.processor.image_processor
    for ratio in (0.02, 0.75, 1.29, 60.0):
        canvas = place((round(1000 * ratio), 1000), area, 32).canvas
        grid = processor([Image.new("RGB", canvas)], return_tensors="pt")["image_grid_thw"][0].tolist()

        assert grid == [1, canvas[1] // 16, canvas[0] // 16]


def test_an_unusual_small_canvas_works(editor_21: Editor) -> None:
    """Of fewer pixels than the processor is published to take."""
    assert made(editor_21, ask(num_inference_steps=2), photo(224, 288), canvas=(224, 288)).size == (224, 288)


@pytest.mark.parametrize("canvas", [(320, 224), (256, 512), (1024, 96)])
def test_the_reference_lies_on_the_grid_of_the_result(editor_21: Editor, model_21: Model, canvas: Size) -> None:
    """Not on one of its own of about a megapixel."""
    with seen(model_21.pipeline.transformer) as calls:
        edited(editor_21, ask(num_inference_steps=2), canvas, [photo(*canvas)])
    grid = (1, canvas[1] // 16, canvas[0] // 16)

    assert calls[0]["img_shapes"][0] == [grid, grid]
    assert calls[0]["hidden_states"].shape[1] == 2 * math.prod(grid)
    assert editor_21.grid == 32


def test_references_of_several_shapes_keep_theirs(editor_21: Editor, model_21: Model) -> None:
    """Each on its own grid, in their order; and the pipeline's own rule is back afterwards."""
    own = module.calculate_dimensions
    shapes = [(320, 224), (224, 320), (256, 256)]
    with seen(model_21.pipeline.transformer) as calls:
        edited(editor_21, ask(num_inference_steps=2), (288, 256), [photo(*shape) for shape in shapes])

    assert calls[0]["img_shapes"][0] == [*((1, height // 16, width // 16) for width, height in shapes), (1, 16, 18)]
    assert module.calculate_dimensions is own


@pytest.mark.parametrize("count", [1, 3])
def test_positions_are_counted_as_the_transformer_gives_them(editor_21: Editor, model_21: Model, count: int) -> None:
    """The result's is the last: behind every word, and behind each picture's longest side."""
    sizes = [(256, 256), (512, 128), (128, 352)][:count]
    rope = model_21.pipeline.transformer.pos_embed
    turns: list[torch.Tensor] = []
    hook = rope.register_forward_hook(lambda _module, _args, made: turns.append(made))
    edited(editor_21, ask(num_inference_steps=2), SMALL, [photo(*size) for size in sizes])
    hook.remove()
    spare = editor_21._spare_positions("make it warm", SMALL, sizes)
    frame = turns[0][-1, : rope.freqs[0].shape[1]]

    assert torch.equal(frame, rope.freqs[0][IMAGE_21_POSITIONS - 1 - spare])


def test_behind_the_last_position_the_table_turns_negative(model_21: Model) -> None:
    """So a text that is too long would raise no error."""
    table = model_21.pipeline.transformer.pos_embed.freqs[1]

    assert len(table) > IMAGE_21_POSITIONS
    assert torch.allclose(table[IMAGE_21_POSITIONS], table[1024].conj(), atol=1e-4)
    assert table[-1].imag[0] < 0 < table[1].imag[0]


def test_the_widest_picture_has_its_rows_and_columns(model_21: Model) -> None:
    """They are counted from its centre, and there are 1,024 to each side."""
    rows = len(model_21.pipeline.transformer.pos_embed.freqs[1]) - IMAGE_21_POSITIONS

    assert max(place((200_000, 1005), 2048 * 2048, 32).canvas) // 16 / 2 < rows == 1024


@pytest.mark.parametrize("references", [[SMALL], [SMALL, (512, 128), (128, 352)]])
def test_a_prompt_is_refused_exactly_where_it_does_not_fit(editor_21: Editor, references: list[Size]) -> None:
    """One token more than there are positions; the last that fits is edited by."""
    word = " the"  # of the system prompt: one token
    room = 1 + editor_21._spare_positions(word, SMALL, references)
    fits = ask(true_cfg_scale=1.0).model_copy(update={"prompt": word * room})

    editor_21.check(fits, SMALL, references)
    with pytest.raises(BadInput, match="prompt: is 1 tokens too long"):
        editor_21.check(fits.model_copy(update={"prompt": word * (room + 1)}), SMALL, references)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_job_leaves_nothing_to_the_next(editor_21: Editor, model_21: Model, name: SchedulerName) -> None:
    """Another sampler in between changes no byte; each takes as many passes as the README says."""
    before = edit(editor_21, true_cfg_scale=1.0)
    with seen(model_21.pipeline.transformer) as calls:
        edit(editor_21, scheduler=name, num_inference_steps=4, true_cfg_scale=1.0)

    assert len(calls) == (7 if name == "FlowMatchHeun" else 4)
    assert [call["kv_cache_mode"] for call in calls] == ["extract", *["cached"] * (len(calls) - 1)]
    assert edit(editor_21, true_cfg_scale=1.0) == before


def test_every_sampler_starts_where_the_models_own_does(editor_21: Editor, model_21: Model) -> None:
    """On the schedule of its size: the shift is the model's own."""
    schedules = []
    for name in SCHEDULERS:
        # Larger than the size at which every rule of shifting says the same.
        edit(editor_21, scheduler=name, num_inference_steps=3, canvas=(320, 256), true_cfg_scale=1.0)
        schedules.append(model_21.pipeline.scheduler.timesteps.unique().flip(0)[:2])

    euler, unipc, dpm, heun, ancestral = schedules
    assert torch.allclose(euler, heun)
    assert torch.allclose(euler, ancestral)
    assert torch.allclose(unipc, dpm)


def test_without_guidance_the_negative_prompt_says_nothing(editor_21: Editor) -> None:
    """Which is this model's default."""
    plain = edit(editor_21, true_cfg_scale=1.0)

    assert edit(editor_21, true_cfg_scale=1.0, negative_prompt="blurry") == plain
    assert edit(editor_21, true_cfg_scale=4.0) != plain


def test_time_runs_out_and_cancelling_stops_between_steps(model_21: Model) -> None:
    """The next edit is untouched."""
    editor = Editor(model_21, timeout_s=60)
    before = edit(editor, true_cfg_scale=1.0)
    with pytest.raises(ModelError, match=r"longer than 0 s") as caught:
        edit(Editor(model_21, timeout_s=0), true_cfg_scale=1.0)
    assert caught.value.details["steps_done"] == 1

    cancelled = threading.Event()
    with before_the_transformer(model_21, cancelled.set), pytest.raises(ModelError, match="cancelled") as caught:
        made(editor, ask(num_inference_steps=50, true_cfg_scale=1.0), cancelled=cancelled)
    assert caught.value.details["steps_done"] == 1

    assert edit(editor, true_cfg_scale=1.0) == before


def test_memory_of_a_failed_edit_is_given_back(editor_21: Editor, model_21: Model) -> None:
    """The keys and values that are kept for later steps too."""
    kept: list[weakref.ref[Any]] = []

    def fail(_module: Any, _args: Any, named: dict[str, Any]) -> None:
        if named["kv_cache_mode"] == "cached":
            kept.append(weakref.ref(named["kv_cache"]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model_21.pipeline.transformer.register_forward_pre_hook(fail, with_kwargs=True)
    gc.disable()  # so that only what the editor does counts
    try:
        with pytest.raises(ModelError, match="out of memory"):
            edit(editor_21, true_cfg_scale=1.0)
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()
        hook.remove()


def test_a_model_of_broken_weights_fails(editor_21: Editor, model_21: Model) -> None:
    """Numbers that are not finite stay so when the alpha channel is taken off."""
    weight = next(model_21.pipeline.transformer.parameters())
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(ModelError, match="not finite"):
            edit(editor_21)
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_the_warm_up_edits(editor_21: Editor, model_21: Model) -> None:
    """With both passes of guidance."""
    with seen(model_21.pipeline.transformer) as calls:
        editor_21.warm_up()

    assert len(calls) == 4


def test_what_is_transparent_becomes_white() -> None:
    """By the share to which it is; what is opaque stays as it is."""
    pixels = np.random.default_rng(0).random((4, 5, 4))
    pixels[0, :, 3] = 1
    pixels[1, :, 3] = 0
    pixels[2, :, 3] = 0.25
    flat = _values(pixels)

    assert flat.shape == (4, 5, 3)
    assert np.array_equal(flat[0], (pixels[0, :, :3] * 255).round())
    assert (flat[1] == 255).all()
    assert flat[2] == pytest.approx(255 * (0.25 * pixels[2, :, :3] + 0.75), abs=0.51)
    pixels[1, 0, 0] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        _values(pixels)


def _values(pixels: np.ndarray) -> np.ndarray:
    return to_values(torch.from_numpy(pixels).permute(2, 0, 1))


def test_the_alpha_that_the_vae_made_is_heeded(editor_21: Editor, model_21: Model) -> None:
    """The picture is that of the four channels, on white; and opaque to the VAE is what goes in."""
    raw: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    vae: Any = model_21.pipeline.vae
    hooks = [
        vae.decoder.register_forward_hook(lambda _module, _args, made: raw.append(made)),
        vae.encoder.register_forward_pre_hook(lambda _module, args: given.append(args[0])),
    ]
    result = np.asarray(made(editor_21, ask(), photo(*SMALL)))
    for hook in hooks:
        hook.remove()
    four = raw[0][0, :, 0].float().clamp(-1, 1).permute(1, 2, 0).numpy() / 2 + 0.5

    assert four.shape == (256, 256, 4)
    assert four[..., 3].std() > 0.05
    assert np.abs(result.astype(int) - _values(four)).max() < 2  # the pipeline rounds to bfloat16 once more
    assert given[0].shape[1] == 4
    assert (given[0][:, 3] == 1).all()


def test_a_tiny_model_is_small_and_the_same_each_time(tiny_21: Path, tmp_path: Path) -> None:
    """Under a megabyte, to the byte."""
    again = tiny_model.make_21(tmp_path / "again")
    files = sorted(path.relative_to(tiny_21) for path in tiny_21.rglob("*") if path.is_file())

    assert sum((tiny_21 / file).stat().st_size for file in files) < 1_000_000
    assert all((tiny_21 / file).read_bytes() == (again / file).read_bytes() for file in files)
