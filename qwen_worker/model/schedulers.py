"""The samplers a request may name, each walking the model's own sigma schedule.

The pipelines call `set_timesteps(sigmas=..., mu=...)` and then `step`. Of diffusers' solvers only FlowMatchEuler
understands the former. So the schedule is always FlowMatchEuler's, from the model's configuration (dynamic shift and
all), and the adapters below only hand it to another solver.

One thing is left out for the solvers in log-SNR: the stretch of the schedule down to `shift_terminal`. It makes the
last gap but one so wide in log-SNR that they extrapolate across it, and the spread of what they sample is 11 % too
large at 20 steps; without it 2 % (tests/model/test_schedulers.py measures it).
"""

import math
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    UniPCMultistepScheduler,
)

from qwen_worker.schema import SchedulerName

# What the Lightning LoRAs were distilled with, as their model card has it: a shift of 3 at every size. Every setting is
# named, whatever the model comes with.
DISTILLED: dict[str, Any] = {
    "num_train_timesteps": 1000, "use_dynamic_shifting": True, "time_shift_type": "exponential",
    "base_shift": math.log(3), "max_shift": math.log(3), "base_image_seq_len": 256, "max_image_seq_len": 8192,
    "shift": 1.0, "shift_terminal": None, "invert_sigmas": False, "stochastic_sampling": False,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
}  # fmt: skip
SHIFT_SETTINGS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


class _FlowSchedule:
    """Mixin: the sigmas of a FlowMatchEuler configuration, one step per sigma."""

    own: FlowMatchEulerDiscreteScheduler
    sigmas: torch.Tensor
    timesteps: torch.Tensor

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        """As FlowMatchEulerDiscreteScheduler.set_timesteps."""
        self.own.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
        super().set_timesteps(self.own.num_inference_steps, device=device)  # type: ignore[misc]
        self.timesteps, self.sigmas = self._laid_out(self.own.timesteps, self.own.sigmas)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """As FlowMatchEulerDiscreteScheduler.scale_noise, which the inpaint pipeline calls; not all solvers have it."""
        sigma = (timestep / self.own.config.num_train_timesteps).to(sample)
        sigma = sigma.reshape(-1, *[1] * (sample.ndim - 1))
        noisy: torch.Tensor = (1 - sigma) * sample + sigma * noise
        return noisy

    def _laid_out(self, timesteps: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The schedule as the solver's `step` reads it."""
        return timesteps, sigmas


class _LogSNR(_FlowSchedule):
    """Multistep solvers that work in log-SNR."""

    def _laid_out(self, timesteps: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return timesteps, sigmas.cpu()


class _UniPC(_LogSNR, UniPCMultistepScheduler):  # type: ignore[misc]
    pass


class _DPM2M(_LogSNR, DPMSolverMultistepScheduler):  # type: ignore[misc]
    pass


class _Heun(_FlowSchedule, FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Two evaluations a step, but one in the last."""

    def _laid_out(self, timesteps: torch.Tensor, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)]),
            torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]]),
        )


class _Ancestral(_FlowSchedule, LTXEulerAncestralRFScheduler):  # type: ignore[misc]
    """Euler with fresh noise in each step. The pipelines hand no generator to `step`: it is bound here."""

    generator: torch.Generator

    def step(self, model_output: Any, timestep: Any, sample: Any, *, return_dict: bool = True) -> Any:
        return super().step(model_output, timestep, sample, generator=self.generator, return_dict=return_dict)


def build(name: SchedulerName, own: FlowMatchEulerDiscreteScheduler, generator: torch.Generator) -> Any:
    """A fresh sampler for one edit.

    Args:
        name: as in the request.
        own: the scheduler that came with the model; only its configuration is read.
        generator: where a stochastic sampler takes its noise from.
    """
    if name == "FlowMatchEuler":
        return FlowMatchEulerDiscreteScheduler.from_config(own.config)
    sampler: Any
    if name == "UniPCMultistep":
        sampler = _UniPC(use_flow_sigmas=True, prediction_type="flow_prediction")
    elif name == "DPMSolverMultistep":
        sampler = _DPM2M(use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2)
    elif name == "FlowMatchHeun":
        sampler = _Heun()
    else:
        sampler = _Ancestral()
        sampler.generator = generator
    stretch = {"shift_terminal": None} if isinstance(sampler, _LogSNR) else {}
    sampler.own = FlowMatchEulerDiscreteScheduler.from_config(own.config, **stretch)
    # The pipelines compute the shift, from the number of tokens, by what the sampler's configuration says.
    sampler.register_to_config(**{name: own.config[name] for name in SHIFT_SETTINGS})
    return sampler
