"""The copying model: what lies between source and result is measured through the real pipelines."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from local import copy_model
from local.edits import edited, plain
from qwen_worker.family import PipelineName
from qwen_worker.images import drift
from qwen_worker.images.deliver import deliver
from qwen_worker.images.geometry import plan
from qwen_worker.images.masks import in_cells
from qwen_worker.model.edit import Editor
from qwen_worker.schema import Size
from tests.model.conftest import load_tiny
from tests.model.test_edit import ask
from tests.pictures import scene

pytestmark = pytest.mark.slow

AWKWARD: list[Size] = [(64, 64), (333, 777), (1001, 251), (1170, 2532), (1281, 721), (640, 480)]


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    """Of the Edit class."""
    return Editor(load_tiny(copy_model.make(tmp_path_factory.mktemp("copy"))), timeout_s=60)


def built(folder: Path, pipeline: PipelineName, shift: tuple[int, int] = (0, 0)) -> Editor:
    plus = pipeline == "QwenImageEditPlusPipeline"
    return Editor(load_tiny(copy_model.make(folder, plus=plus, drift=shift), pipeline), timeout_s=60)


def copied(editor: Editor, source: Image.Image, **fields: object) -> Image.Image:
    """At the source's own size."""
    request = ask(num_inference_steps=2, true_cfg_scale=1, **fields)
    canvas = plan(request, [source.size], grid=editor.grid, max_output_pixels=10**8)
    made = edited(editor, request, canvas.target.canvas, [canvas.reference.prepare(source)])
    return deliver(request, canvas, source, None, made).image


def is_in_place(source: Image.Image, result: Image.Image) -> bool:
    """Within half a pixel and a twentieth of a percent, all over."""
    found, fit = drift.measure(source, result)
    return found is not None and math.hypot(*found.shift) < 0.5 and abs(found.growth) < 0.0005 and fit > 0.95


@pytest.mark.parametrize("size", AWKWARD)
def test_nothing_moves_between_source_and_result(copier: Editor, size: Size) -> None:
    """Neither in what we do nor in what diffusers does: measured on what the worker delivers, at full resolution."""
    source = scene(*size)
    result = copied(copier, source)

    assert result.size == size
    if min(size) >= 256:
        assert is_in_place(source, result)
    else:  # too small to be measured: at least it is the same picture
        assert np.corrcoef(np.asarray(source).ravel(), np.asarray(result).ravel())[0, 1] > 0.9


def test_the_pipelines_own_way_moves_the_picture(copier: Editor) -> None:
    """What the measure says of it: at 512 x 384 it conditions on a picture twice as large, and zooms."""
    source = scene(512, 384)
    request = ask(num_inference_steps=2, true_cfg_scale=1)
    said: dict[str, Any] = {"prompt": "x", "width": 512, "height": 384, "num_inference_steps": 2, "true_cfg_scale": 1}
    theirs = plain(copier._pipeline)(image=source, generator=torch.Generator().manual_seed(1), **said).images[0]
    ours = edited(copier, request, source.size, [source])

    assert theirs.size == ours.size
    assert not is_in_place(source, theirs)
    assert is_in_place(source, ours)


@pytest.mark.parametrize("pipeline", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_a_model_that_drifts_is_found_out_and_undone(tmp_path: Path, pipeline: PipelineName) -> None:
    """By one token to the left, two up, of a canvas that is 1.6 times the picture."""
    editor = built(tmp_path, pipeline, (1, 2))
    source = scene(720, 540)
    request = ask(num_inference_steps=2, true_cfg_scale=1, size="source")
    canvas = plan(request, [source.size], grid=editor.grid, max_output_pixels=10**8)
    made = edited(editor, request, canvas.target.canvas, [canvas.reference.prepare(source)])
    seen = deliver(request, canvas, source, None, made)
    undone = deliver(request.model_copy(update={"align": True}), canvas, source, None, made)
    scale = canvas.target.scale[0]

    assert seen.geometry.shift_px == pytest.approx((-16 / scale, -32 / scale), abs=0.2)
    assert seen.geometry.scale_percent == pytest.approx(0, abs=0.1)
    assert not seen.geometry.aligned
    assert undone.geometry.aligned
    assert undone.geometry.shift_px == seen.geometry.shift_px
    assert not is_in_place(source, seen.image)
    assert is_in_place(source, undone.image)


def test_a_masked_copy_stays_in_place(copier: Editor) -> None:
    """The inpaint pipeline too takes its reference as it was prepared."""
    source = scene(512, 384)
    mask = Image.new("L", source.size)
    mask.paste(255, (0, 0, 300, 384))
    request = ask(num_inference_steps=2, true_cfg_scale=1, mask_url="https://example.com/mask")
    result = edited(copier, request, source.size, [source], in_cells(mask, copier.grid // 2))

    assert is_in_place(source, result)
