"""What the pipelines get: references as they were prepared, masks, the same parts."""

from typing import Any, Self, get_args

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module
from PIL import Image

from local.edits import edited
from qwen_worker.errors import ModelError
from qwen_worker.images.masks import in_cells
from qwen_worker.model.edit import Editor
from qwen_worker.model.load import Model
from qwen_worker.schema import SchedulerName, Size
from tests.model.test_edit import ask, edit, made
from tests.pictures import photo

MASK: dict[str, Any] = {"mask_url": "https://example.com/mask"}
WHICH = pytest.mark.parametrize("which", ["model", "plus_model"])


def mask_of(size: Size, box: tuple[int, int, int, int], cell: int = 16) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return in_cells(mask, cell)


class Seen:
    """What the transformer and the text encoder are given."""

    def __init__(self, model: Model) -> None:
        self.grids: list[Any] = []
        self.latents: list[torch.Tensor] = []
        self.texts: list[Any] = []
        pipeline = model.pipeline
        self._hooks = [
            pipeline.transformer.register_forward_pre_hook(self._transformer, with_kwargs=True),
            pipeline.text_encoder.register_forward_pre_hook(self._text_encoder, with_kwargs=True),
        ]

    def _transformer(self, _module: Any, _args: Any, named: dict[str, Any]) -> None:
        self.grids.append(named["img_shapes"][0])
        self.latents.append(named["hidden_states"])

    def _text_encoder(self, _module: Any, _args: Any, named: dict[str, Any]) -> None:
        self.texts.append(named["input_ids"][0].tolist())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.fixture
def seen(request: pytest.FixtureRequest, which: str) -> Any:
    """Of a model."""
    with Seen(request.getfixturevalue(which)) as watching:
        yield watching


@WHICH
@pytest.mark.parametrize("canvas", [(320, 224), (256, 512), (1024, 96)])
def test_the_reference_lies_on_the_grid_of_the_result(
    request: pytest.FixtureRequest, which: str, seen: Seen, canvas: Size
) -> None:
    """Not on one of its own of about a megapixel, from which the picture would come back shifted and zoomed."""
    editor = Editor(request.getfixturevalue(which), timeout_s=60)
    result = edited(editor, ask(num_inference_steps=2), canvas, [photo(*canvas)])
    grid = (1, canvas[1] // editor.grid, canvas[0] // editor.grid)

    assert result.size == canvas
    assert seen.grids[0] == [grid, grid]
    assert seen.latents[0].shape[1] == 2 * grid[1] * grid[2]


def test_the_pipelines_own_rule_is_back_afterwards(editor: Editor) -> None:
    """After an edit that fails too."""
    own = module.calculate_dimensions
    edit(editor)
    assert module.calculate_dimensions is own

    with pytest.raises(ModelError):
        made(editor, ask().model_copy(update={"prompt": " the" * 9000}))
    assert module.calculate_dimensions is own


def test_references_of_several_shapes_keep_theirs(plus_editor: Editor, plus_model: Model) -> None:
    """Each on its own grid, in their order."""
    shapes = [(320, 224), (224, 320), (256, 256)]
    with Seen(plus_model) as seen:
        pictures = [photo(*shape) for shape in shapes]
        edited(plus_editor, ask(num_inference_steps=2), (288, 256), pictures)

    assert seen.grids[0] == [(1, 8, 9), *((1, height // 32, width // 32) for width, height in shapes)]


@WHICH
def test_the_text_encoder_is_counted_on_right(request: pytest.FixtureRequest, which: str, seen: Seen) -> None:
    """Image tokens are as many as the check of the prompt's length assumes, with a mask too."""
    editor = Editor(request.getfixturevalue(which), timeout_s=60)
    canvas = (352, 224)
    spare = editor._spare_positions("make it warm", canvas, [canvas])
    for mask in (None, mask_of(canvas, (64, 64, 128, 128))):
        edit(editor, photo(*canvas), canvas=canvas, mask=mask, **({} if mask is None else MASK))
    rows = len(request.getfixturevalue(which).pipeline.transformer.pos_embed.pos_freqs)

    assert len(seen.texts[0]) - 64 == rows - spare - 352 // 32 // 2
    assert seen.texts[0] == seen.texts[2]


def test_a_large_canvas_is_shown_smaller_to_the_text_encoder(editor: Editor, model: Model) -> None:
    """Its picture alone would need more positions than there are."""
    processor = model.pipeline.processor.image_processor
    kept, processor.size.longest_edge = processor.size.longest_edge, 12_845_056
    try:
        large = editor._spare_positions("x", (2048, 2048), [(2048, 2048)])
    finally:
        processor.size.longest_edge = kept

    assert large < 0 < editor._spare_positions("x", (2048, 2048), [(2048, 2048)])


@WHICH
def test_a_mask_costs_no_second_model(request: pytest.FixtureRequest, which: str) -> None:
    """Both pipelines hold the same parts."""
    model: Model = request.getfixturevalue(which)

    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor"):
        assert getattr(model.pipeline, part) is getattr(model.inpaint, part)


@pytest.mark.slow
@WHICH
@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_a_masked_edit_heeds_mask_and_strength(request: pytest.FixtureRequest, which: str, name: SchedulerName) -> None:
    """With every sampler; and a plain edit afterwards is as before."""
    editor = Editor(request.getfixturevalue(which), timeout_s=60)
    before = edit(editor)
    boxes = [mask_of((256, 256), box) for box in ((32, 32, 128, 128), (128, 128, 256, 256))]
    said: dict[str, Any] = {"num_inference_steps": 4, "scheduler": name, **MASK}
    results = [
        edit(editor, photo(256, 256), mask=boxes[0], **said),
        edit(editor, photo(256, 256), mask=boxes[1], **said),
        edit(editor, photo(256, 256), mask=boxes[0], strength=0.5, **said),
        edit(editor, photo(256, 256), mask=boxes[0], strength=0.01, **said),
    ]

    assert len(set(results)) == 4
    assert edit(editor, photo(256, 256), mask=boxes[0], **said) == results[0]
    assert edit(editor) == before


@WHICH
@pytest.mark.parametrize("name", ["FlowMatchEuler", "FlowMatchHeun"])
@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.5, 2), (0.26, 2), (0.01, 1)])
def test_strength_is_the_share_of_steps(
    request: pytest.FixtureRequest, which: str, seen: Seen, name: SchedulerName, strength: float, steps: int
) -> None:
    """Rounded up, of samplers with two evaluations a step too."""
    editor = Editor(request.getfixturevalue(which), timeout_s=60)
    mask = mask_of((256, 256), (0, 0, 64, 64))
    said: dict[str, Any] = {
        "num_inference_steps": 4,
        "true_cfg_scale": 1,
        "scheduler": name,
        "strength": strength,
        **MASK,
    }
    edit(editor, photo(256, 256), mask=mask, **said)

    assert len(seen.grids) == (2 * steps - 1 if name == "FlowMatchHeun" else steps)


@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_outside_the_mask_the_latents_are_the_sources(editor: Editor, model: Model, name: SchedulerName) -> None:
    """At the end of every sampler: where the mask is black, an empty one and a small one make the same latents."""
    kept: list[torch.Tensor] = []
    hook = model.pipeline.vae.post_quant_conv.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    size = (256, 256)
    for mask in (Image.new("L", size), mask_of(size, (0, 0, 64, 256))):
        edit(editor, photo(*size), mask=mask, scheduler=name, num_inference_steps=4, **MASK)
    hook.remove()
    empty, small = (latents[0, :, 0].float() for latents in kept)

    assert torch.equal(empty[:, :, 4:], small[:, :, 4:])
    assert (empty[:, :, :4] - small[:, :, :4]).abs().mean() > 0.1
    assert np.isfinite(small.numpy()).all()
