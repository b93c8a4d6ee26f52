"""Every sampler that is offered samples rightly, in the pipeline's own loop."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from local.exact_model import MEAN, SPREAD, ExactModel
from qwen_worker.model import schedulers
from qwen_worker.schema import SchedulerName

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


@pytest.fixture(scope="module")
def exact(tiny: Path) -> ExactModel:
    """The real pipeline around a model without error."""
    return ExactModel(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [20, 50])
def test_the_mean_and_the_spread_of_the_data_come_out(exact: ExactModel, name: SchedulerName, steps: int) -> None:
    """A sampler that is named but wrong makes pictures that look almost right."""
    latents = exact.sample(name, steps)

    assert latents.numel() == 16384
    assert float(latents.mean()) == pytest.approx(MEAN, abs=MEAN_TOLERANCE)
    assert float(latents.std()) == pytest.approx(SPREAD, abs=SPREAD_TOLERANCE[name][steps])


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_what_the_readme_says(exact: ExactModel, name: SchedulerName) -> None:
    """One evaluation of the model a step; Heun two, but one in the last."""
    exact.sample(name, 10)

    assert exact.velocity.evaluations == (19 if name == "FlowMatchHeun" else 10)


@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_steps_make_finite_numbers(exact: ExactModel, name: SchedulerName) -> None:
    """Two is the least that a request may ask for."""
    assert torch.isfinite(exact.sample(name, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(exact: ExactModel, name: SchedulerName) -> None:
    """Of the stochastic one too, to which the pipelines hand no generator."""
    first = exact.sample(name, 4)

    assert torch.equal(first, exact.sample(name, 4))
    assert not torch.equal(first, exact.sample(name, 4, seed=9))


def test_only_the_ancestral_one_adds_noise(exact: ExactModel) -> None:
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
def test_every_sampler_walks_the_models_own_schedule(exact: ExactModel, name: SchedulerName) -> None:
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


@pytest.mark.parametrize("name", NAMES)
def test_the_pipelines_find_the_models_own_shift(exact: ExactModel, name: SchedulerName) -> None:
    """They look for it in the configuration of the sampler, and else take another without a word."""
    own = exact.pipeline.scheduler.config
    found = schedulers.build(name, exact.pipeline.scheduler, torch.Generator()).config

    assert (own["max_image_seq_len"], own["max_shift"]) == (8192, 0.9)
    for setting in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"):
        assert found.get(setting) == own[setting]


def test_the_models_own_scheduler_is_only_read(exact: ExactModel) -> None:
    """The next job begins where this one began."""
    own = exact.pipeline.scheduler
    before = (dict(own.config), own.timesteps.clone(), own.sigmas.clone())
    for name in NAMES:
        exact.sample(name, 3)

    assert dict(own.config) == before[0]
    assert torch.equal(own.timesteps, before[1])
    assert torch.equal(own.sigmas, before[2])
