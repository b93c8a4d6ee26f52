"""What is computed beside the GPU, or is remembered, is bit by bit what the library computes itself."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditInpaintPipeline, QwenImageEditPipeline
from PIL import Image

from local.edits import edited, plain
from qwen_worker.model.computed import Computed
from qwen_worker.model.edit import TEXT_TO_IMAGE_TOKENS, Editor
from qwen_worker.model.load import Model, load
from qwen_worker.model.pipelines import sizes_kept
from qwen_worker.schema import Size
from qwen_worker.snapshots import Origin
from tests.model.test_edit import ask, before_the_transformer
from tests.model.test_pipelines import MASK, mask_of
from tests.model.test_text_to_image import ask_words
from tests.pictures import photo

CANVAS: Size = (256, 224)
SHAPES = {"edit": [CANVAS], "plus": [CANVAS, (224, 256), CANVAS], "21": [CANVAS, (320, 224)]}
CLASSES: dict[str, Any] = {
    "edit": "QwenImageEditPipeline",
    "plus": "QwenImageEditPlusPipeline",
    "21": "QwenImage21Pipeline",
}
WHICH = pytest.mark.parametrize("which", list(CLASSES))
PLENTY = 10**9


@pytest.fixture(scope="module")
def remembering(tiny: Path, tiny_plus: Path, tiny_21: Path, tiny_t2i: Path) -> Callable[..., Editor]:
    """An editor that remembers so many bytes; nothing yet."""
    folders = {"edit": tiny, "plus": tiny_plus, "21": tiny_21}

    def build(which: str, computed_bytes: int = PLENTY) -> Editor:
        model = load(
            str(folders[which]),
            "",
            pipeline=CLASSES[which],
            token="",
            caches=(),
            allow_cpu=True,
            t2i=None if which == "21" else Origin(str(tiny_t2i), ""),
            computed_bytes=computed_bytes,
        )
        return Editor(model, timeout_s=60)

    return build


@contextmanager
def calls(editor: Editor) -> Iterator[Counter[str]]:
    """How often the networks run."""
    pipeline = editor._pipeline
    parts = {
        "prompts": pipeline.text_encoder,
        "pictures": pipeline.text_encoder.get_submodule("visual"),
        "references": pipeline.vae.encoder,
    }
    counted: Counter[str] = Counter()
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: counted.update([name])) for name, part in parts.items()
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def pictures(which: str, seed: int = 0) -> list[Image.Image]:
    return [photo(*shape, seed=seed + number) for number, shape in enumerate(SHAPES[which])]


def theirs(pipeline: Any, references: Sequence[Image.Image], **more: Any) -> bytes:
    """What the library's pipeline makes of the request of `ask`, in 8 bits."""
    images: dict[str, Any] = {"image": list(references) if len(references) > 1 else references[0]} if references else {}
    with sizes_kept(pipeline, references):
        made = pipeline(
            prompt="make it warm",
            negative_prompt=" ",
            true_cfg_scale=4.0,
            width=CANVAS[0],
            height=CANVAS[1],
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
            **images,
            **more,
        ).images[0]
    if made.shape[-1] > 3:
        made = made[..., :3] * made[..., 3:] + (1 - made[..., 3:])
    values: bytes = (made * 255).round().astype(np.uint8).tobytes()
    return values


@WHICH
def test_edits_are_those_of_the_library(remembering: Callable[..., Editor], which: str) -> None:
    """Also when everything has been seen before."""
    editor = remembering(which)
    own = plain(editor._pipeline)
    wanted = theirs(own, pictures(which))

    assert edited(editor, ask(), CANVAS, pictures(which)).tobytes() == wanted
    with calls(editor) as counted:
        assert edited(editor, ask(), CANVAS, pictures(which)).tobytes() == wanted
    assert not counted


def test_masked_edits_are_those_of_the_library(remembering: Callable[..., Editor]) -> None:
    """If it took the reference without noise. What a plain edit has seen is known to them."""
    editor = remembering("edit")

    class Own(QwenImageEditInpaintPipeline):  # type: ignore[misc]
        _encode_vae_image = QwenImageEditPipeline._encode_vae_image

    parts: Any = editor._pipeline
    own = Own(**parts.components)
    own.set_progress_bar_config(disable=True)
    mask = mask_of(CANVAS, (32, 32, 128, 128))
    wanted = theirs(own, pictures("edit"), mask_image=mask, strength=1.0)
    before = edited(editor, ask(), CANVAS, pictures("edit")).tobytes()
    with calls(editor) as counted:
        made = edited(editor, ask(**MASK), CANVAS, pictures("edit"), mask).tobytes()

    assert made == wanted != before
    assert not counted


def test_pictures_from_words_are_those_of_the_library(remembering: Callable[..., Editor]) -> None:
    """And an edit with the same words is not taken for one."""
    editor = remembering("edit")
    edited(editor, ask(), CANVAS, pictures("edit"))
    own = plain(editor._t2i)
    wanted = theirs(own, [], max_sequence_length=TEXT_TO_IMAGE_TOKENS)
    request = ask_words(prompt="make it warm", seed=1, num_inference_steps=3)

    for prompts in (2, 0):
        with calls(editor) as counted:
            assert edited(editor, request, CANVAS, []).tobytes() == wanted
        assert counted["prompts"] == prompts


@WHICH
def test_another_prompt_looks_at_nothing_again(remembering: Callable[..., Editor], which: str) -> None:
    """And makes what it would make alone; with another picture everything is done anew."""
    editor = remembering(which)
    with calls(editor) as counted:
        first = edited(editor, ask(), CANVAS, pictures(which))
    assert counted == {
        "prompts": 2,
        "pictures": 1,
        "references": len(set(SHAPES[which])) if which == "edit" else 3 - (which == "21"),
    }

    with calls(editor) as counted:
        second = edited(editor, ask(prompt="make it cold"), CANVAS, pictures(which))
    assert counted == {"prompts": 1}

    alone = remembering(which, 0)
    assert second.tobytes() == edited(alone, ask(prompt="make it cold"), CANVAS, pictures(which)).tobytes()
    assert second.tobytes() != first.tobytes()

    with calls(editor) as counted:
        other = edited(editor, ask(), CANVAS, pictures(which, seed=5))
    assert counted["pictures"] == 1
    assert counted["references"] == len(SHAPES[which])
    assert other.tobytes() == edited(alone, ask(), CANVAS, pictures(which, seed=5)).tobytes()


def test_the_order_of_pictures_counts(remembering: Callable[..., Editor]) -> None:
    """Each is encoded once, but together they are looked at anew."""
    editor, alone = remembering("plus"), remembering("plus", 0)
    edited(editor, ask(), CANVAS, pictures("plus"))
    with calls(editor) as counted:
        made = edited(editor, ask(), CANVAS, pictures("plus")[::-1])

    assert counted == {"prompts": 2, "pictures": 1}
    assert made.tobytes() == edited(alone, ask(), CANVAS, pictures("plus")[::-1]).tobytes()


@WHICH
def test_the_next_job_is_made_ready_beside_an_edit(remembering: Callable[..., Editor], which: str) -> None:
    """Of its own pictures, not of those that are being edited."""
    editor = remembering(which)
    alone = editor.ready(ask(), pictures(which, seed=7))
    beside: list[Any] = []
    model: Any = type("Model", (), {"pipeline": editor._pipeline})
    with before_the_transformer(model, lambda: beside.append(editor.ready(ask(), pictures(which, seed=7)))):
        edited(editor, ask(), CANVAS, pictures(which))

    for ready in beside:
        assert ready.digests == alone.digests
        pairs = [*zip(ready.tensors.values(), alone.tensors.values(), strict=True)]
        for name in ("input_ids", "pixel_values", "image_grid_thw"):
            pairs += [
                (one[name], other[name]) for one, other in zip(ready.words.values(), alone.words.values(), strict=True)
            ]
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_same_bytes_in_another_shape_are_another_picture(remembering: Callable[..., Editor]) -> None:
    """A digest of the pixels alone would not tell them apart."""
    editor = remembering("edit")
    wide, high = (Image.frombytes("RGB", size, photo(*CANVAS).tobytes()) for size in (CANVAS, CANVAS[::-1]))

    assert wide.tobytes() == high.tobytes()
    assert editor.ready(ask(), [wide]).digests != editor.ready(ask(), [high]).digests


def test_no_more_is_kept_than_is_allowed() -> None:
    """What was not used for the longest time goes first; what is too large is not kept at all."""
    computed = Computed(100)
    made: list[str] = []

    def compute(name: str, size: int) -> Any:
        def make() -> Any:
            made.append(name)
            return (torch.zeros(size, dtype=torch.uint8), None)

        return computed.get(name, make)

    for name, size in (("a", 40), ("b", 40), ("a", 40), ("c", 40), ("a", 40), ("b", 40), ("d", 101), ("d", 101)):
        compute(name, size)
        assert computed.size <= 100

    assert made == ["a", "b", "c", "b", "d", "d"]


def test_of_tensors_that_share_their_memory_all_of_it_counts_once() -> None:
    """A view keeps the whole."""
    computed = Computed(1000)
    whole = torch.zeros(300, dtype=torch.uint8)
    computed.get("a", lambda: {"pooler_output": (whole[:50], whole[50:100]), "more": [whole, None]})

    assert computed.size == 300


def test_without_memory_nothing_is_kept(remembering: Callable[..., Editor]) -> None:
    """What is remembered may be what is lacking."""
    editor = remembering("edit")
    edited(editor, ask(), CANVAS, pictures("edit"))
    assert editor._computed.size > 0

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model: Any = type("Model", (), {"pipeline": editor._pipeline})
    with before_the_transformer(model, fail), pytest.raises(Exception, match="out of memory"):
        edited(editor, ask(), CANVAS, pictures("edit"))

    assert editor._computed.size == 0


def test_what_is_kept_is_small_beside_what_the_text_encoder_made(remembering: Callable[..., Editor]) -> None:
    """Of a picture: its features, not what the layers made on the way."""
    editor = remembering("edit")
    edited(editor, ask(), CANVAS, pictures("edit"))
    kept = editor._computed._kept[("pictures", editor.ready(ask(), pictures("edit")).digests)][0]

    assert not {"last_hidden_state", "hidden_states"} & kept.keys()
    assert "pooler_output" in kept


def test_the_worker_keeps_no_warm_up(remembering: Callable[..., Editor]) -> None:
    """Nobody will ask for it."""
    editor = remembering("edit")
    editor.warm_up()

    assert editor._computed.size == 0


@pytest.fixture(scope="module")
def both(model: Model) -> tuple[Any, Any]:
    """Our VAE and the library's, of the same weights."""
    whole = AutoencoderKLQwenImage.from_pretrained(f"{model.id}/vae", torch_dtype=torch.bfloat16).eval()
    return model.pipeline.vae, whole


@pytest.mark.parametrize("size", [(64, 64), (96, 224), (256, 32)])
def test_the_vae_of_single_pictures_makes_the_same(both: tuple[Any, Any], size: Size) -> None:
    """Encoding and decoding. Not bit by bit: by the kernels of a processor sums come in another order."""
    ours, whole = both
    pixels = torch.rand((1, 3, 1, *size), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16) * 2 - 1
    with torch.no_grad():
        latents = [vae.encode(pixels).latent_dist.mode() for vae in both]
        torch.testing.assert_close(*latents, atol=0.02, rtol=0.02)
        decoded = [vae.decode(latents[0]).sample for vae in (ours, whole)]

    torch.testing.assert_close(*decoded, atol=0.02, rtol=0.02)
    # What it would be if it were not the same.
    assert decoded[0].std() > 0.3


def test_the_vae_of_single_pictures_is_smaller_and_takes_no_film(both: tuple[Any, Any]) -> None:
    """Rather than to make something else of it."""
    ours, _ = both
    weights = [sum(one.numel() for one in vae.parameters()) for vae in both]
    assert weights[0] < 0.6 * weights[1]

    with torch.no_grad(), pytest.raises(ValueError, match="single pictures"):
        ours.decode(torch.zeros((1, 16, 2, 4, 4), dtype=torch.bfloat16))
