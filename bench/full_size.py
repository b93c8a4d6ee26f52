"""A model of the published sizes with random weights, in the layout of a published repository: for a machine offline.

    python -m bench.full_size FOLDER [--layers 60] [--small]

57.7 GB in bfloat16, and 0.8 GB of a LoRA as the Lightning ones are. It is written shard by shard: the host never holds
more than one of them. Numbers are drawn on the GPU if there is one. They are scaled such that what passes through a
layer keeps its size, and such that pictures and words both move the result; nothing that it makes is a picture.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench.published import TEXT_ENCODER
from local.tiny_model import SCHEDULER_CONFIG, WORDS, make_tokenizer, write_index

DTYPE = torch.bfloat16
SHARD = 5 * 10**9  # bytes
LORA_LAYERS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
LORA = "lightning-{}steps.safetensors"
LORA_STRENGTH = 0.01
# Weights of norms are 1; that of the words' keys is larger, or nothing would look at 235 words beside 8,192 patches.
WORDS_STRENGTH = 3.0


@dataclass(frozen=True)
class Sizes:
    """Settings of the classes that are not their defaults.

    Attributes:
        max_pixels: at which the text encoder sees a picture.
        rank: of the LoRA.
    """

    transformer: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    vae: Mapping[str, Any]
    max_pixels: int
    rank: int


# zero_cond_t: as in Qwen-Image-Edit-2511. Its transformer and VAE have the defaults of their classes.
FULL = Sizes(
    transformer={"zero_cond_t": True},
    text=TEXT_ENCODER["text_config"],
    vision=TEXT_ENCODER["vision_config"],
    vae={},
    max_pixels=12_845_056,
    rank=64,
)  # fmt: skip
SMALL = Sizes(
    transformer={
        "num_layers": 4, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6), "zero_cond_t": True,
    },
    text={
        "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0},
    },
    vision={
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    vae={"base_dim": 4, "dim_mult": [1] * 5, "num_res_blocks": 1, "temperal_downsample": [False, True, True, True]},
    max_pixels=224 * 224,
    rank=4,
)  # fmt: skip


def networks(sizes: Sizes) -> dict[str, torch.nn.Module]:
    """Name of the folder → the network, without numbers."""
    token = make_tokenizer(WORDS).convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes.text, "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
        },
        vision_config=dict(sizes.vision),
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return {
            "transformer": QwenImageTransformer2DModel(**sizes.transformer),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
            "vae": AutoencoderKLQwenImage(**sizes.vae),
        }


def write(folder: Path, sizes: Sizes = FULL, *, shard: int = SHARD) -> Path:
    """Write a model and its two LoRAs into a folder, replacing what is there, and return the folder.

    Args:
        folder: where the model goes.
        sizes: of its parts.
        shard: bytes of a file, at most, if no weight is larger.

    Raises:
        OSError: the disk is too small.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = networks(sizes)
    needed = DTYPE.itemsize * sum(weight.numel() for network in made.values() for weight in network.parameters())
    if (free := shutil.disk_usage(folder).free) < 1.02 * needed:  # the LoRA is the rest
        raise OSError(f"the model takes {needed / 1e9:.1f} GB, and of {folder}'s disk {free / 1e9:.1f} GB are free")
    draw = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    for name, network in made.items():
        _write_network(folder / name, name, network, draw, shard)
    tokenizer = make_tokenizer(WORDS)
    small: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        "tokenizer": tokenizer,
        "processor": Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=sizes.max_pixels),
    }
    for name, part in small.items():
        part.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "processor")
    _write_loras(folder, made["transformer"], sizes.rank, draw)
    # Last: a folder without it was not finished.
    write_index(folder, QwenImageEditPlusPipeline, {**made, **small})
    return folder


def _write_network(folder: Path, name: str, network: Any, draw: torch.Generator, shard: int) -> None:
    folder.mkdir()
    if name == "text_encoder":
        network.config.save_pretrained(folder)
        stem = "model"
    else:
        network.save_config(folder)
        stem = "diffusion_pytorch_model"
    parts = list(_shards({key: weight.shape for key, weight in network.state_dict().items()}, shard))
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {_published(key): _numbers(key, shape, draw).cpu() for key, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shards(shapes: Mapping[str, torch.Size], most: int) -> Iterator[dict[str, torch.Size]]:
    part: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        if part and DTYPE.itemsize * sum(one.numel() for one in (*part.values(), shape)) > most:
            yield part
            part = {}
        part[name] = shape
    yield part


def _published(name: str) -> str:
    """As the files of the text encoder call a weight; other networks have the same names in files and in memory."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def _numbers(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=DTYPE)
    if len(shape) == 1 or name.endswith("gamma"):  # of a norm
        return torch.full(shape, WORDS_STRENGTH if name.endswith("norm_added_k.weight") else 1.0, dtype=DTYPE)
    drawn = torch.randn(shape, generator=draw, device=draw.device, dtype=DTYPE)
    if name.endswith("timestep_embedder.linear_1.weight"):
        # What it reads are cosines of the time, and sines, each from the fastest on. A trained model changes slowly
        # from step to step; one that heard the fast ones would not, and `balanced` would leave no step out.
        drawn.view(shape[0], 2, -1)[:, :, : shape[1] // 4] = 0
    return drawn if "embed_tokens" in name else drawn.div_(shape[1:].numel() ** 0.5)


def _write_loras(folder: Path, transformer: Any, rank: int, draw: torch.Generator) -> None:
    """One file under two names: what it was distilled to is told by its name alone."""
    tensors = {}
    for name, layer in transformer.named_modules():
        if name.endswith(LORA_LAYERS) and isinstance(layer, torch.nn.Linear):
            down = _numbers("", torch.Size((rank, layer.in_features)), draw)
            up = torch.randn((layer.out_features, rank), generator=draw, device=draw.device, dtype=DTYPE)
            tensors[f"{name}.lora_down.weight"] = down.cpu()
            tensors[f"{name}.lora_up.weight"] = (LORA_STRENGTH * up).cpu()
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, folder / LORA.format(4))
    os.link(folder / LORA.format(4), folder / LORA.format(8))


def main() -> None:
    """Write a model, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="blocks of the transformer")
    parser.add_argument("--small", action="store_true", help="all layers tiny, for tests")
    said = parser.parse_args()
    sizes = SMALL if said.small else FULL
    if said.layers:
        sizes = replace(sizes, transformer={**sizes.transformer, "num_layers": said.layers})
    write(said.folder, sizes)


if __name__ == "__main__":
    main()
