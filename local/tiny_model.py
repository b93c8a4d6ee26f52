"""Tiny, true Qwen-Image models: the real classes with random weights, made offline in seconds.

A folder made here has the layout of a published repository (`model_index.json` and one folder a part), so the
production loader loads it like the real one. Two things are chosen and not just small:

* the tokenizer is trained on the pipelines' own system prompts, each word one token, so that the 64 tokens the edit
  pipelines drop are exactly their system prompt, and the 34 of text-to-image exactly its own;
* the weights are larger than a fresh initialisation, so that prompt, negative prompt and source all move pixels.

    python -m local.tiny_model FOLDER [--plus | --image-21 | --text-to-image]
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

# They warn of what is meant here: random weights, a small vocabulary.
for library in (transformers.utils.logging, diffusers.utils.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()

# Qwen2.5's control tokens, in the order of its published tokenizer.
CONTROL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
SYSTEM_PROMPT = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain "
    "how the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate."
)
TEXT_TO_IMAGE_PROMPT = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)
WORDS = [f"system\n{prompt}\nuser\nassistant\nPicture 1: " for prompt in (SYSTEM_PROMPT, TEXT_TO_IMAGE_PROMPT)]
WORDS_21 = ["system\nComprehend and analyze the provided prompt.\nuser\nassistant\n<image1> "]
SCHEDULER_CONFIG = {  # scheduler/scheduler_config.json of Qwen/Qwen-Image-Edit, and of Qwen/Qwen-Image-2.1
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0,
    "shift_terminal": 0.02, "time_shift_type": "exponential", "use_dynamic_shifting": True,
}  # fmt: skip
WEIGHT_GAIN = 2.5
LORA_RANK = 4
# Of the transformer's layers, those that a LoRA changes.
LORA_LAYERS = ("attn.to_q.weight", "attn.to_v.weight", "attn.to_out.0.weight")
LoraStyle = Literal["peft", "lightning"]


def make(
    folder: Path,
    *,
    plus: bool = False,
    seed: int = 0,
    layers: int = 2,
    gain: float = WEIGHT_GAIN,
    rest_gain: float = WEIGHT_GAIN,
) -> Path:
    """Write a tiny model into `folder`, replacing what is there, and return the folder.

    The same arguments make the same bytes.

    Args:
        folder: where the model goes.
        plus: QwenImageEditPlusPipeline (several images) instead of QwenImageEditPipeline.
        seed: of the random weights.
        layers: blocks of the transformer.
        gain: how much larger the transformer's weights are than a fresh initialisation.
        rest_gain: the same of the other networks.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(WORDS)
    processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=224 * 224)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        "text_encoder": _text_encoder(tokenizer),
        "transformer": _transformer(layers),
        "vae": _vae(),
        "tokenizer": tokenizer,
        "processor": processor,
    }
    _write(folder, QwenImageEditPlusPipeline if plus else QwenImageEditPipeline, parts, gain, rest_gain)
    tokenizer.save_pretrained(folder / "processor")
    return folder


def make_t2i(folder: Path, *, seed: int = 0) -> Path:
    """The same of QwenImagePipeline. Text encoder and VAE are those that `make` writes of the same seed.

    Args:
        folder: where the model goes.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(WORDS)
    text_encoder = _text_encoder(tokenizer)
    _transformer()  # draws what that of the edit model does, so that the VAE is the same
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        "text_encoder": text_encoder,
        "vae": _vae(),
        "transformer": _transformer(),
        "tokenizer": tokenizer,
    }
    _write(folder, QwenImagePipeline, parts)
    return folder


def make_lora(file: Path, model: Path, *, seed: int = 0, style: LoraStyle = "peft", alpha: float | None = None) -> Path:
    """Write a LoRA with random weights that fits the transformer of a tiny model, and return the file.

    Args:
        file: where it goes; a `.safetensors` file.
        model: folder of the tiny model.
        seed: of the random weights. The same seed makes the same weights in each style.
        style: of its names: peft's, with the alpha in the header, or those of the Lightning LoRAs.
        alpha: its weights count alpha / LORA_RANK times; None means that the file says nothing of it.
    """
    draw = torch.Generator().manual_seed(seed)
    prefix, down, up = ("transformer.", "lora_A", "lora_B") if style == "peft" else ("", "lora_down", "lora_up")
    tensors = {}
    with safe_open(model / "transformer" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        for name in sorted(weights.keys()):
            if name.endswith(LORA_LAYERS):
                outputs, inputs = weights.get_slice(name).get_shape()
                layer = prefix + name.removesuffix(".weight")
                tensors[f"{layer}.{down}.weight"] = torch.randn(LORA_RANK, inputs, generator=draw)
                tensors[f"{layer}.{up}.weight"] = torch.randn(outputs, LORA_RANK, generator=draw)
                if style == "lightning" and alpha is not None:
                    tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    header = {"transformer.r": LORA_RANK, "transformer.lora_alpha": alpha}
    told = style == "peft" and alpha is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={LORA_ADAPTER_METADATA_KEY: json.dumps(header)} if told else None)
    return file


def make_21(folder: Path, *, seed: int = 0) -> Path:
    """The same of QwenImage21Pipeline.

    Args:
        folder: where the model goes.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(WORDS_21)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        "text_encoder": _text_encoder_21(tokenizer),
        "transformer": _transformer_21(),
        "vae": _vae_21(),
        # As published: without care it would enlarge what is smaller than 256 x 256 pixels.
        "processor": Qwen2VLImageProcessorPil(
            size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}, patch_size=16,
            image_mean=[0.5] * 3, image_std=[0.5] * 3,
        ),
    }  # fmt: skip
    _write(folder, QwenImage21Pipeline, parts)
    tokenizer.save_pretrained(folder / "processor")
    return folder


def _write(
    folder: Path, pipeline: type, parts: dict[str, Any], gain: float = WEIGHT_GAIN, rest_gain: float = WEIGHT_GAIN
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            _amplify(part, gain if isinstance(part, QwenImageTransformer2DModel) else rest_gain)
            part.to(torch.bfloat16)
        part.save_pretrained(folder / name)
    write_index(folder, pipeline, parts)


def write_index(folder: Path, pipeline: type, parts: dict[str, Any]) -> None:
    """Write the `model_index.json` of a pipeline of these parts."""
    names = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    if "processor" in names:
        names["processor"][1] = "Qwen3VLProcessor" if pipeline is QwenImage21Pipeline else "Qwen2VLProcessor"
    index = {"_class_name": pipeline.__name__, **dict(sorted(names.items()))}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_tokenizer(words: list[str]) -> Qwen2Tokenizer:
    """Byte-level BPE in which each word of the system prompts is one token, as in Qwen's own vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(words, trainer)
    content = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in content["merges"]]
    return Qwen2Tokenizer(
        vocab=content["vocab"], merges=merges, extra_special_tokens=CONTROL_TOKENS, pad_token=CONTROL_TOKENS[0]
    )


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [1], "window_size": 112,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def _transformer(layers: int = 2) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=layers, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _vae() -> AutoencoderKLQwenImage:
    """Five stages instead of four: one latent stands for 16 pixels, a quarter of the tokens of the real model."""
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1] * 5, num_res_blocks=1, temperal_downsample=[False, True, True, True]
    )


def _text_encoder_21(tokenizer: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5000000.0},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config)


def _transformer_21() -> QwenImage21Transformer2DModel:
    return QwenImage21Transformer2DModel(
        in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        context_in_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _vae_21() -> AutoencoderKLQwenImage21:
    return AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=16, dim_mult=[1] * 5, num_res_blocks=1, latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )  # fmt: skip


def _amplify(module: torch.nn.Module, gain: float) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.mul_(gain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--plus", action="store_true", help="QwenImageEditPlusPipeline: several images")
    kind.add_argument("--image-21", action="store_true", help="QwenImage21Pipeline: the same, another architecture")
    kind.add_argument("--text-to-image", action="store_true", help="QwenImagePipeline: pictures from words alone")
    arguments = parser.parse_args()
    if arguments.text_to_image:
        make_t2i(arguments.folder)
    elif arguments.image_21:
        make_21(arguments.folder)
    else:
        make(arguments.folder, plus=arguments.plus)
