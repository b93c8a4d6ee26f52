"""The files of the weights: read ahead without what nobody uses, and loaded as they are."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from local import page_cache, tiny_model
from qwen_worker import shards
from qwen_worker.model.load import Model, TextEncoder21, network
from qwen_worker.readahead import ReadAhead
from tests.pictures import photo

UNUSED_BYTES = 64_000_000  # much more than a kernel reads of its own accord
PAGE = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, of which nothing is in memory; the second begins with a head that nobody uses."""
    numbers = np.zeros(UNUSED_BYTES, np.uint8)
    parts = [{"a": numbers[:40_000_000]}, {shards.UNUSED: numbers, "model.z": numbers[:3_000_000]}]
    for number, part in enumerate(parts, 1):
        file = tmp_path / f"model-{number:05}-of-00002.safetensors"
        save_file({name: torch.from_numpy(array.copy()) for name, array in part.items()}, file)
    index: dict[str, Any] = {
        "weight_map": {
            name: f"model-{number:05}-of-00002.safetensors" for number, part in enumerate(parts, 1) for name in part
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    page_cache.drop(shards.files(tmp_path))
    return tmp_path


def test_what_is_used_is_read_into_memory(folder: Path) -> None:
    """From beginning to end, so that nothing has to wait for the disk afterwards; most of the unused head stays."""
    first, second = shards.files(folder)
    assert not page_cache.cached(first).any(), "the files are in memory: put TMPDIR on a disk"
    ReadAhead(shards.files(folder)).wait()

    begin, end = (place // PAGE for place in shards.places(second)[shards.UNUSED])
    pages = page_cache.cached(second)
    assert page_cache.cached(first).all()
    assert pages[: begin + 1].all()
    assert pages[end:].all()
    assert pages[begin:end].mean() < 0.5


def test_what_follows_a_part_in_memory_is_read(folder: Path) -> None:
    """As another reader leaves it that did not come to the end."""
    first, _ = shards.files(folder)
    with first.open("rb") as opened:
        opened.read(2**20)
    ReadAhead(shards.files(folder)).wait()

    assert page_cache.cached(first).all()


def test_places_are_those_of_the_tensors(tiny: Path) -> None:
    """What lies there are the numbers that the library reads."""
    (file,) = shards.files(tiny / "transformer")
    data, tensors = file.read_bytes(), load_file(file)

    assert {name: data[begin:end] for name, (begin, end) in shards.places(file).items()} == {
        name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_are_those_of_the_file_bit_for_bit(model: Model, tiny: Path, part: str) -> None:
    """All of them, as the library's own class loads them, but for the head that nobody uses."""
    own = {
        "transformer": diffusers.QwenImageTransformer2DModel,
        "vae": diffusers.AutoencoderKLQwenImage,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration,
    }
    loaded = dict(getattr(model.pipeline, part).named_parameters())
    wanted = dict(own[part].from_pretrained(tiny / part, dtype=torch.bfloat16).named_parameters())
    wanted.pop(shards.UNUSED, None)

    assert len(loaded) == len(wanted)
    for name, weight in wanted.items():
        name_here = name.removeprefix("model.") if part == "text_encoder" else name
        # Of the VAE what single pictures need.
        is_cut = weight.dim() == loaded[name_here].dim() + 1
        assert torch.equal(loaded[name_here], weight[:, :, -1] if is_cut else weight)


@pytest.mark.parametrize("which", ["edit", "image_21"])
def test_without_its_head_a_text_encoder_makes_the_same(
    which: str, tmp_path: Path, model: Model, model_21: Model
) -> None:
    """Every hidden state of a text with a picture, bit for bit; the file need not even have the head."""
    edit = which == "edit"
    pipeline: Any = (model if edit else model_21).pipeline
    make, whole, headless = (
        (tiny_model.make, transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLModel)
        if edit
        else (tiny_model.make_21, transformers.Qwen3VLForConditionalGeneration, TextEncoder21)
    )
    folder = make(tmp_path / "model") / "text_encoder"
    text = "a <|vision_start|><|image_pad|><|vision_end|> b"
    inputs = pipeline.processor(text=[text], images=[photo(384, 288)], return_tensors="pt")
    assert "mm_token_type_ids" in inputs
    with_head = whole.from_pretrained(folder, dtype=torch.bfloat16).eval()
    (file,) = shards.files(folder)
    tensors = load_file(file)
    del tensors[shards.UNUSED]
    save_file(tensors, file, metadata={"format": "pt"})
    without = network(headless, folder)

    with torch.no_grad():
        wanted = with_head(**inputs, output_hidden_states=True).hidden_states
        made = without(**inputs, output_hidden_states=True).hidden_states
    assert len(made) == len(wanted)
    assert all(map(torch.equal, made, wanted))
    assert without.dtype == torch.bfloat16
