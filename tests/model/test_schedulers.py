"""Every sampler that is offered samples rightly, in the pipeline's own loop."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from qwen_worker.model import schedulers
from qwen_worker.model.load import Model
from qwen_worker.schema import SchedulerName
from tests.model.conftest import load_tiny
from tests.pictures import photo

MEAN, SPREAD = 0.7, 0.3
NAMES = get_args(SchedulerName)
MEAN_TOLERANCE = 0.01
# How far the spread may be off at 20 and at 50 steps. Euler comes short of it at few steps, more so with fresh noise
# in each; both come nearer with more steps, which a sampler that is wrong does not.
SPREAD_TOLERANCE = {
    "FlowMatchEuler": {20: 0.04, 50: 0.02},
    "UniPCMultistep": {20: 0.01, 50: 0.006},
    "DPMSolverMultistep": {20: 0.01, 50: 0.006},
    "FlowMatchHeun": {20: 0.006, 50: 0.003},
    "EulerAncestral": {20: 0.065, 50: 0.035},
}


class GaussianVelocity(torch.nn.Module):
    """In the transformer's place: the exact velocity of data from N(MEAN, SPREAD²) at x = (1-s) data + s noise."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=64, guidance_embeds=False)
        self.evaluations = 0
        self.device, self.dtype = torch.device("cpu"), torch.float32

    @contextmanager
    def cache_context(self, _name: str) -> Iterator[None]:
        yield

    def forward(self, *, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.evaluations += 1
        sigma = timestep[:, None, None]
        variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
        off = hidden_states - (1 - sigma) * MEAN
        data = MEAN + (1 - sigma) * SPREAD**2 / variance * off
        noise = sigma / variance * off
        return (noise - data,)


@pytest.fixture(scope="module")
def exact(tiny: Path) -> Model:
    """A pipeline in float32 whose model is exact. What it encodes does not matter: its VAE is as small as can be."""
    model = load_tiny(tiny)
    pipeline = model.pipeline
    pipeline.transformer = GaussianVelocity()
    pipeline.text_encoder.to(torch.float32)
    pipeline.vae = AutoencoderKLQwenImage(
        base_dim=2, dim_mult=[1] * 5, num_res_blocks=0, temperal_downsample=[False, True, True, True]
    )
    return model


def sample(model: Model, name: SchedulerName, steps: int, seed: int = 0) -> torch.Tensor:
    pipeline = model.pipeline
    own = pipeline.scheduler
    pipeline.scheduler = schedulers.build(name, own, torch.Generator().manual_seed(seed + 1))
    pipeline.transformer.evaluations = 0
    try:
        latents: torch.Tensor = pipeline(
            image=photo(64, 64),
            prompt="x",
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            true_cfg_scale=1.0,
            width=512,
            height=512,
        ).images
    finally:
        pipeline.scheduler = own
    return latents


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [20, 50])
def test_the_mean_and_the_spread_of_the_data_come_out(exact: Model, name: SchedulerName, steps: int) -> None:
    """A sampler that is named but wrong makes pictures that look almost right."""
    latents = sample(exact, name, steps)

    assert latents.numel() == 16384
    assert float(latents.mean()) == pytest.approx(MEAN, abs=MEAN_TOLERANCE)
    assert float(latents.std()) == pytest.approx(SPREAD, abs=SPREAD_TOLERANCE[name][steps])


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_what_the_readme_says(exact: Model, name: SchedulerName) -> None:
    """One evaluation of the model a step; Heun two, but one in the last."""
    sample(exact, name, 10)

    assert exact.pipeline.transformer.evaluations == (19 if name == "FlowMatchHeun" else 10)


@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_steps_make_finite_numbers(exact: Model, name: SchedulerName) -> None:
    """Two is the least that a request may ask for."""
    assert torch.isfinite(sample(exact, name, 2)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(exact: Model, name: SchedulerName) -> None:
    """Of the stochastic one too, to which the pipelines hand no generator."""
    first = sample(exact, name, 4)

    assert torch.equal(first, sample(exact, name, 4))
    assert not torch.equal(first, sample(exact, name, 4, seed=9))


def test_only_the_ancestral_one_adds_noise(exact: Model) -> None:
    """The others depend on the start noise alone."""
    own = exact.pipeline.scheduler
    for name in NAMES:
        ends = []
        for seed in (1, 2):
            sampler = schedulers.build(name, own, torch.Generator().manual_seed(seed))
            sampler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.7)
            sampler.set_begin_index(0)
            latents = torch.ones(1, 4, 8)
            for timestep in sampler.timesteps:
                latents = sampler.step(latents * 0.5, timestep, latents, return_dict=False)[0]
            ends.append(latents)

        assert torch.equal(*ends) is (name != "EulerAncestral")


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_walks_the_models_own_schedule(exact: Model, name: SchedulerName) -> None:
    """Its dynamic shift; and its last sigma, but for the solvers in log-SNR."""
    own = exact.pipeline.scheduler
    sigmas = [1 - index / 10 for index in range(10)]
    sampler = schedulers.build(name, own, torch.Generator())
    sampler.set_timesteps(sigmas=sigmas, mu=math.log(3))
    shifted = [3 / (3 + 1 / sigma - 1) for sigma in sigmas]
    if name not in {"UniPCMultistep", "DPMSolverMultistep"}:
        stretch = (1 - own.config.shift_terminal) / (1 - shifted[-1])
        shifted = [1 - (1 - sigma) * stretch for sigma in shifted]

    assert sampler.sigmas.unique().tolist() == pytest.approx([0, *reversed(shifted)], abs=2e-6)
    assert sampler.timesteps.unique().tolist() == pytest.approx([1000 * sigma for sigma in reversed(shifted)], abs=2e-3)


def test_the_models_own_scheduler_is_only_read(exact: Model) -> None:
    """The next job begins where this one began."""
    own = exact.pipeline.scheduler
    before = (dict(own.config), own.timesteps.clone(), own.sigmas.clone())
    for name in NAMES:
        sample(exact, name, 3)

    assert dict(own.config) == before[0]
    assert torch.equal(own.timesteps, before[1])
    assert torch.equal(own.sigmas, before[2])
