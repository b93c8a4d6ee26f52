"""What the files of a model say of its size. On a real GPU: not measured."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from local import tiny_model
from qwen_worker.model import room
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import Model
from qwen_worker.profiles import BF16, PROFILES, Numbers

HUGE = Numbers({"plain": 10**15})


def test_without_a_gpu_everything_fits() -> None:
    """As with ALLOW_CPU; what is asked for is done, and auto is the plain one."""
    assert not torch.cuda.is_available()
    assert room.card() is None
    assert room.chosen("auto", HUGE) == BF16
    assert room.chosen("bf16-offload", HUGE) == PROFILES["bf16-offload"]


def test_a_profile_that_is_none_for_the_model_is_refused_without_a_gpu_too() -> None:
    """In one sentence."""
    with pytest.raises(LoadError, match=r"^PROFILE=int4 is for the transformers of Qwen-Image"):
        room.chosen("int4", HUGE)


def test_weights_are_counted_from_their_files(model: Model, tiny: Path, tmp_path: Path) -> None:
    """As many bytes as the loaded model has: in two files or one, in another precision, and not twice."""
    pipeline = model.pipeline
    # Of the VAE a part is dropped after it has been loaded.
    parts = (pipeline.transformer, AutoencoderKLQwenImage.from_pretrained(tiny / "vae"), pipeline.text_encoder)
    loaded = 2 * sum(weight.numel() for part in parts for weight in part.parameters())
    copy = Path(shutil.copytree(tiny, tmp_path / "model"))
    shutil.rmtree(copy / "transformer")
    pipeline.transformer.save_pretrained(copy / "transformer", max_shard_size="100KB")
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, vae.with_suffix(".fp16.safetensors"))
    save_file({name: weight.float() for name, weight in load_file(vae).items()}, vae)

    assert len(list((copy / "transformer").glob("*.safetensors"))) == 2
    assert room.numbers(tiny) == room.numbers(copy)
    assert room.numbers(tiny).on_gpu(BF16) == loaded
    alone = room.numbers(tiny, transformer_alone=True)
    assert alone.on_gpu(BF16) == 2 * sum(weight.numel() for weight in pipeline.transformer.parameters())


def test_the_first_and_the_last_block_stay_as_they_are(tmp_path: Path) -> None:
    """Of four blocks two may be kept in fewer bits, of two none."""
    small = room.numbers(tiny_model.make(tmp_path / "two"))
    large = room.numbers(tiny_model.make(tmp_path / "four", layers=4))
    assert not small.is_quantizable
    assert large.is_quantizable
    assert large.transformer["bulk"] == 5 * large.transformer["sensitive"]
