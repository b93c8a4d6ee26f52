"""What fits onto a GPU. On a real one: not measured."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from qwen_worker.family import EDIT, TEXT
from qwen_worker.model import room
from qwen_worker.model.load import Model
from qwen_worker.snapshots import NETWORKS

EDIT_BYTES = round((EDIT.weights_gb or 0) * 1e9)
BOTH_BYTES = EDIT_BYTES + round((TEXT.weights_gb or 0) * 1e9)
GB = 10**9


@pytest.mark.parametrize(
    ("needed", "free", "total"),
    [
        (EDIT_BYTES, 84 * GB, 85 * GB),
        (BOTH_BYTES, 149 * GB, 150 * GB),
        (EDIT_BYTES, EDIT_BYTES + room.MARGIN, 85 * GB),
        (0, room.MARGIN, room.MARGIN),
    ],
)
def test_what_fits_lacks_nothing(needed: int, free: int, total: int) -> None:
    """On GPUs as RunPod has them; exactly enough is enough."""
    assert room.lack(needed, free, total) is None


@pytest.mark.parametrize(
    ("needed", "free", "total", "said"),
    [
        (EDIT_BYTES, 50 * GB, 51 * GB, "57.7 GB .* of the GPU's 51.0 GB 50.0 GB are free: choose GPUs of 80 GB"),
        (EDIT_BYTES, 23 * GB, 25 * GB, "choose GPUs of 80 GB"),
        (EDIT_BYTES, 30 * GB, 85 * GB, "another process holds the rest"),
        (EDIT_BYTES, EDIT_BYTES + room.MARGIN - 1, 85 * GB, "another process holds the rest"),
        (BOTH_BYTES, 84 * GB, 85 * GB, "98.6 GB .* choose GPUs of 141 GB"),
        (300 * GB, 149 * GB, 150 * GB, "no GPU is large enough"),
    ],
)
def test_what_lacks_is_told_with_figures_and_advice(needed: int, free: int, total: int, said: str) -> None:
    """Before anything is loaded, or downloaded where the size is known."""
    assert re.search(said, room.lack(needed, free, total) or "")


def test_without_a_gpu_nothing_is_checked() -> None:
    """As with ALLOW_CPU."""
    assert not torch.cuda.is_available()
    room.check(10**15)


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
    assert room.weights(tiny, NETWORKS) == room.weights(copy, NETWORKS) == loaded
