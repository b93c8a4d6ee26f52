"""Pictures as diffusers makes them with nothing but its defaults: what this worker's are compared with.

Two things are not its defaults. Its processor would need torchvision, for films; the one here reads pictures alone. And
the text encoder is told which tokens are image tokens, which diffusers forgets (huggingface/diffusers#14194): pictures
could not be compared otherwise. Neither changes how long it takes.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from PIL import Image
from transformers import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_worker.model.load import ImageProcessor, device, give_image_positions
from qwen_worker.model.pipelines import sizes_kept
from qwen_worker.model.schedulers import DISTILLED


def load(folder: Path) -> Any:
    """A QwenImageEditPlusPipeline, whole on the GPU."""
    # From a folder, and not from the Hub.
    own = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)  # nosec B615
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "processor", local_files_only=True)  # nosec B615
    processor = ImageProcessor(own, tokenizer)
    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder, dtype=torch.bfloat16, processor=processor)
    pipeline.to(device())
    pipeline.text_encoder.register_forward_pre_hook(give_image_positions, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fuse(pipeline: Any, lora: Path) -> None:
    """Add a Lightning LoRA to the transformer, as its model card says."""
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **DISTILLED)


def edited(pipeline: Any, image: Image.Image, prompt: str, *, steps: int, scale: float, seed: int) -> Image.Image:
    """An edit of a picture at its size.

    Args:
        pipeline: of `load`, or one of the same class.
        image: RGB, both sides multiples of 16 pixels, or of 32 if the VAE has five stages.
        prompt: what to do.
        steps: of the sampler.
        scale: of the guidance; 1 is none.
        seed: of the noise.
    """
    with sizes_kept(pipeline, [image]):  # where it has about a megapixel, as it would be anyway
        made: Image.Image = pipeline(
            image=image,
            prompt=prompt,
            negative_prompt=" " if scale > 1 else None,
            true_cfg_scale=scale,
            width=image.width,
            height=image.height,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
    return made
