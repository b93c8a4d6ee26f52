"""The networks of Qwen-Image-Edit with their published sizes, and without any weights: on torch's meta device."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from diffusers import QwenImageTransformer2DModel

from qwen_worker.model.frames import PictureVAE

# text_encoder/config.json of Qwen/Qwen-Image-Edit: Qwen2.5-VL-7B. What is not named is as transformers has it.
TEXT_ENCODER: dict[str, Any] = {
    "text_config": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14,
    },
    "tie_word_embeddings": False,
}  # fmt: skip


def transformer() -> Any:
    """QwenImageTransformer2DModel, of the edit models and of Qwen-Image: the defaults of the class are its sizes."""
    return _on_meta(QwenImageTransformer2DModel)


def vae() -> Any:
    """PictureVAE, as it is published: for films; the same goes for its defaults."""
    return _on_meta(PictureVAE)


def text_encoder(**tokens: int) -> Any:
    """Qwen2_5_VLModel: without the head that makes words.

    Args:
        tokens: of the configuration, as `image_token_id`, where the vocabulary is another.
    """
    return _on_meta(lambda: transformers.Qwen2_5_VLModel(transformers.Qwen2_5_VLConfig(**TEXT_ENCODER, **tokens)))


def _on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        model = make()
    # Buffers stay as they are, as where weights are loaded in this precision.
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model.eval().requires_grad_(requires_grad=False)
