"""What measures on a GPU, tried without one on tiny weights: nothing here says how fast anything is."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import full_size
from local.edits import edited
from qwen_worker import shards
from qwen_worker.family import LoraSource
from qwen_worker.model.edit import Editor
from qwen_worker.model.load import load
from qwen_worker.presets import PRESETS
from qwen_worker.request import parse_image
from qwen_worker.schema import Rules
from qwen_worker.tuning import Tuning
from tests.pictures import photo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one in several shards."""
    return full_size.write(tmp_path_factory.mktemp("models") / "small", full_size.SMALL, shard=100_000)


def numbers(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_the_full_model_has_the_published_sizes() -> None:
    """Nothing of it is in memory."""
    made = full_size.networks(full_size.FULL)

    assert numbers(made["transformer"]) == 20_430_401_088
    assert numbers(made["text_encoder"]) == 8_292_166_656
    assert numbers(made["vae"]) == 126_892_531
    assert all(weight.is_meta for network in made.values() for weight in network.parameters())


def test_the_worker_loads_what_was_written(model: Path) -> None:
    """With the LoRA in it, and another prompt, picture or LoRA makes another result."""
    assert len(shards.files(model / "transformer")) > 2
    lora = LoraSource(name="lightning", source=str(model), weight_file=full_size.LORA.format(4))
    works = [("a b", photo(256, 256)), ("c d", photo(256, 256)), ("a b", Image.new("RGB", (256, 256)))]
    made = []
    for tuning in (Tuning(), Tuning(preset=PRESETS["fast-4"], lightning=lora)):
        loaded = load(
            str(model), "", pipeline="QwenImageEditPlusPipeline", token="", caches=(), allow_cpu=True, tuning=tuning
        )
        editor = Editor(loaded, timeout_s=60)
        for prompt, picture in works:
            rules = Rules(steps=4, cfg_scale=1.0, max_steps=4, max_images=1)
            request = parse_image({"image_url": "https://a/", "prompt": prompt, "seed": 1}, job_id="a", rules=rules)
            made.append(edited(editor, request, (256, 256), [picture]).tobytes())

    assert len(set(made)) == len(made)


def test_shards_are_no_larger_than_asked(model: Path) -> None:
    """But for a weight that is larger by itself."""
    index = json.loads((model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    for file in shards.files(model / "transformer"):
        sizes = [end - begin for begin, end in shards.places(file).values()]
        assert sum(sizes) <= 100_000 or len(sizes) == 1
        assert all(index["weight_map"][name] == file.name for name in shards.places(file))
