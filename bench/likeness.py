"""How like one picture is to another: PSNR, SSIM, LPIPS.

SSIM as Wang et al. 2004 have it: windows of a Gaussian of 1.5 pixels, the mean over all places and channels. LPIPS as
Zhang et al. 2018 have it, version 0.1 with AlexNet, whose weights are not part of this project:

* `alex.pth`, the linear weights: it lies in the package `lpips`, in weights/v0.1;
* `alexnet-owt-7be5be79.pth`, AlexNet trained on ImageNet: torchvision's, of download.pytorch.org/models.
"""

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Picture = NDArray[np.uint8]
WHITE = 255.0

LINEAR, TRUNK = "alex.pth", "alexnet-*.pth"
# AlexNet up to its last convolution: number in `features` → outputs, inputs, side of the kernel, stride, padding.
CONVOLUTIONS = {
    0: (64, 3, 11, 4, 2), 3: (192, 64, 5, 1, 2), 6: (384, 192, 3, 1, 1), 8: (256, 384, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}  # fmt: skip
POOLED = {3, 6}  # behind a maximum over 3 x 3, every second one
# The mean and the spread of ImageNet's colours, for pixels in -1..1.
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10


class WeightsError(Exception):
    """The weights of LPIPS are not there, or are not those."""


@dataclass(frozen=True)
class Likeness:
    """Of two pictures.

    Attributes:
        psnr: in dB; infinite of the same pixels.
        ssim: 1 of the same pixels.
        lpips: 0 of the same pixels; None where there are no weights.
        difference: the largest of any channel of a pixel, of 255.
    """

    psnr: float
    ssim: float
    lpips: float | None
    difference: int


class Lpips:
    """A learned distance of pictures, on the CPU.

    Args:
        trunk: `features.N.weight` and `features.N.bias` of AlexNet; others are left alone.
        linear: `lin0.model.1.weight` to `lin4.model.1.weight`.

    Raises:
        WeightsError: a weight is missing or of another shape.
    """

    def __init__(self, trunk: Mapping[str, Any], linear: Mapping[str, Any]) -> None:
        self._layers = []
        for order, (number, (outputs, inputs, side, stride, padding)) in enumerate(CONVOLUTIONS.items()):
            weight = _tensor(trunk, TRUNK, f"features.{number}.weight", (outputs, inputs, side, side))
            bias = _tensor(trunk, TRUNK, f"features.{number}.bias", (outputs,))
            counts = _tensor(linear, LINEAR, f"lin{order}.model.1.weight", (1, outputs, 1, 1))
            self._layers.append((number in POOLED, weight, bias, stride, padding, counts))

    @classmethod
    def load(cls, folder: Path) -> "Lpips":
        """Read both files of a folder.

        Raises:
            WeightsError: one is missing or damaged, or holds something else.
        """
        trunks = sorted(folder.glob(TRUNK))
        if len(trunks) != 1:
            raise WeightsError(
                f"LPIPS needs AlexNet's weights, one file {TRUNK}, and {folder} has {len(trunks)}: put "
                "alexnet-owt-7be5be79.pth there, as torchvision publishes it"
            )
        if not (folder / LINEAR).is_file():
            raise WeightsError(
                f"LPIPS needs its linear weights, {LINEAR}, and {folder} has none: put weights/v0.1/{LINEAR} of the "
                "package lpips there"
            )
        return cls(_read(trunks[0]), _read(folder / LINEAR))

    @torch.inference_mode()
    def distance(self, one: Picture, other: Picture) -> float:
        """Of two pictures of the same size, height x width x 3, 8 bits each, with sides of 32 pixels or more."""
        pixels = torch.from_numpy(np.stack([one, other])).permute(0, 3, 1, 2).float()
        mean, spread = (torch.tensor(three).reshape(1, 3, 1, 1) for three in (MEAN, SPREAD))
        values = (pixels / (WHITE / 2) - 1 - mean) / spread
        total = 0.0
        for pooled, weight, bias, stride, padding, counts in self._layers:
            if pooled:
                values = functional.max_pool2d(values, kernel_size=3, stride=2)
            values = functional.conv2d(values, weight, bias, stride, padding).relu()
            directions = values / (values.square().sum(1, keepdim=True).sqrt() + EPSILON)
            apart = (directions[:1] - directions[1:]).square()
            total += float(functional.conv2d(apart, counts).mean())
        return total


def measure(one: Picture, other: Picture, lpips: Lpips | None = None) -> Likeness:
    """Compare two pictures.

    Args:
        one: height x width x 3, 8 bits each, with sides of 11 pixels or more, for LPIPS 32.
        other: of the same size.
        lpips: if it is to be measured.

    Raises:
        ValueError: the sizes differ.
    """
    # It brings SciPy's statistics along, which the processes that edit can do without.
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # noqa: PLC0415

    if one.shape != other.shape:
        raise ValueError(f"pictures of {one.shape} and {other.shape} cannot be compared")
    difference = int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())
    if not difference:  # what follows would divide by zero, and round
        return Likeness(math.inf, 1.0, 0.0 if lpips else None, 0)
    similar = structural_similarity(  # type: ignore[no-untyped-call]
        one, other, channel_axis=2, data_range=WHITE, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    ratio = peak_signal_noise_ratio(one, other, data_range=WHITE)  # type: ignore[no-untyped-call]
    return Likeness(float(ratio), float(similar), lpips.distance(one, other) if lpips else None, difference)


def _read(file: Path) -> Mapping[str, Any]:
    """Tensors by their names; a file that would run code is refused."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{file} cannot be read as weights: {type(error).__name__}") from error
    if not isinstance(found, Mapping):
        raise WeightsError(f"{file} holds no weights by their names")
    return found


def _tensor(weights: Mapping[str, Any], file: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    found = weights.get(name)
    if not isinstance(found, torch.Tensor) or found.shape != shape:
        there = " x ".join(map(str, found.shape)) if isinstance(found, torch.Tensor) else "none"
        raise WeightsError(
            f"the {file} of LPIPS must have a tensor {name} of {' x '.join(map(str, shape))}, and has {there}: it is "
            "another file"
        )
    return found.float()
