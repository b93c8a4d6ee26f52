"""A pipeline whose model is exact, to see what a sampler makes of a perfect model.

The data are numbers from a normal distribution. Of noise mixed with such data the best velocity is known in closed
form, so whatever the latents that come out miss of the data's mean and spread is the sampler's own error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image

from local.edits import plain
from local.worker import class_of
from qwen_worker.model import schedulers
from qwen_worker.model.load import load
from qwen_worker.schema import SchedulerName

MEAN, SPREAD = 0.7, 0.3
SIZE = 512  # pixels a side: 16,384 numbers in the latents of the tiny model


class ExactVelocity(torch.nn.Module):
    """In the transformer's place: the velocity of data from N(MEAN, SPREAD²) at x = (1 - sigma) data + sigma noise.

    `evaluations` counts its calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=64, guidance_embeds=False)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.evaluations = 0

    @contextmanager
    def cache_context(self, _name: str) -> Iterator[None]:
        """As diffusers' models have it; there is nothing to cache."""
        yield

    def forward(self, *, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """E[noise - data | x], of the shape of `hidden_states`; `timestep` is sigma, one for each of the batch."""
        self.evaluations += 1
        sigma = timestep[:, None, None]
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        off = hidden_states - (1 - sigma) * MEAN
        data = MEAN + (1 - sigma) * SPREAD**2 / variance * off
        noise = sigma / variance * off
        return (noise - data,)


class ExactModel:
    """The real pipeline loop, in float32, around ExactVelocity. Its VAE is as small as can be: it does not matter."""

    def __init__(self, tiny: Path) -> None:
        self.velocity = ExactVelocity()
        own: Any = {"pipeline": class_of(tiny), "token": "", "caches": (), "allow_cpu": True}
        self.pipeline = plain(load(str(tiny), "local", **own).pipeline)
        self.pipeline.transformer = self.velocity
        self.pipeline.text_encoder.to(torch.float32)
        self.pipeline.vae = AutoencoderKLQwenImage(
            base_dim=2, dim_mult=[1] * 5, num_res_blocks=0, temperal_downsample=[False, True, True, True]
        )

    def sample(self, name: SchedulerName, steps: int, seed: int = 0) -> torch.Tensor:
        """The latents that a sampler ends with."""
        own = self.pipeline.scheduler
        self.pipeline.scheduler = schedulers.build(name, own, torch.Generator().manual_seed(seed + 1))
        self.velocity.evaluations = 0
        try:
            latents: torch.Tensor = self.pipeline(
                image=Image.new("RGB", (64, 64)),
                prompt="x",
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                true_cfg_scale=1.0,
                width=SIZE,
                height=SIZE,
            ).images
        finally:
            self.pipeline.scheduler = own
        return latents
