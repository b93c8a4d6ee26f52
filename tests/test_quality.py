"""The quality gate: its measures have known values, its set of edits is fixed, and its verdicts are its table's."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.likeness import CONVOLUTIONS, Lpips, Picture, WeightsError, measure
from tests.pictures import scene

TRUNK, LINEAR = "alexnet-owt-7be5be79.pth", "alex.pth"


def pixels(seed: int = 0) -> Picture:
    return np.asarray(scene(96, 64, seed))


def tensors() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random weights under the names of the published files: AlexNet's, and the linear ones."""
    draw = torch.Generator().manual_seed(0)
    trunk, linear = {"classifier.6.bias": torch.zeros(1000)}, {}
    for order, (number, (outputs, inputs, side, _, _)) in enumerate(CONVOLUTIONS.items()):
        spread = 1 / (side * math.sqrt(inputs))
        trunk[f"features.{number}.weight"] = torch.randn(outputs, inputs, side, side, generator=draw) * spread
        trunk[f"features.{number}.bias"] = torch.randn(outputs, generator=draw) / 10
        linear[f"lin{order}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=draw)
    return trunk, linear


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as `--lpips` takes it."""
    for name, part in zip((TRUNK, LINEAR), tensors(), strict=True):
        torch.save(part, tmp_path / name)
    return tmp_path


def test_the_same_picture_is_alike_in_all() -> None:
    """Without a division by zero, and without rounding."""
    found = measure(pixels(), pixels())

    assert (found.psnr, found.ssim, found.lpips, found.difference) == (math.inf, 1.0, None, 0)


@pytest.mark.parametrize(("error", "psnr"), [(1, 48.1308), (16, 24.0484), (51, 13.9794)])
def test_psnr_is_that_of_a_known_error(error: int, psnr: float) -> None:
    """An even error of 51 of 255 is a fifth of white: 10 log10(25) dB."""
    grey = np.full((32, 32, 3), 100, np.uint8)

    found = measure(grey, grey + np.uint8(error))

    assert found.psnr == pytest.approx(psnr, abs=1e-3)
    assert found.difference == error


def test_ssim_is_that_of_even_pictures() -> None:
    """Without contrast only its term of brightness is left, which can be computed by hand."""
    dark, light = (np.full((32, 32, 3), level, np.uint8) for level in (100, 120))

    steady = (0.01 * 255) ** 2
    assert measure(dark, light).ssim == pytest.approx((2 * 100 * 120 + steady) / (100**2 + 120**2 + steady), abs=1e-6)


def test_ssim_sees_structure_where_psnr_does_not() -> None:
    """Of two pictures with the same error, the one whose error is noise is less alike than the brighter one."""
    one = pixels() // 2
    noise = np.where(np.random.default_rng(0).random(one.shape) < 0.5, -16, 16)
    brighter, noisy = measure(one, one + np.uint8(16)), measure(one + np.uint8(16), (one + 16 + noise).astype(np.uint8))

    assert brighter.psnr == pytest.approx(noisy.psnr)
    assert brighter.ssim > noisy.ssim + 0.1


def test_pictures_of_two_sizes_are_not_compared() -> None:
    """A preset that makes another size is broken, and not merely different."""
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(pixels(), pixels()[:-16])


def test_lpips_is_a_distance(weights: Path) -> None:
    """Nothing from a picture to itself, as much there as back, and more to another picture than to a touched one."""
    lpips = Lpips.load(weights)
    touched = pixels().copy()
    touched[:16, :16] += 20

    assert lpips.distance(pixels(), pixels()) == 0
    assert 0 < lpips.distance(pixels(), touched) < lpips.distance(pixels(), pixels(seed=1))
    assert lpips.distance(pixels(), touched) == pytest.approx(lpips.distance(touched, pixels()), rel=1e-4)
    assert measure(pixels(), touched, lpips).lpips == lpips.distance(pixels(), touched)


def test_lpips_counts_channels_as_its_linear_weights_say() -> None:
    """The distance is linear in them."""
    trunk, linear = tensors()
    first = {name: weight * (name == "lin0.model.1.weight") for name, weight in linear.items()}
    others = {name: weight - first[name] for name, weight in linear.items()}

    whole, one, rest = (Lpips(trunk, some).distance(pixels(), pixels(1)) for some in (linear, first, others))

    assert min(one, rest) > 0
    assert whole == pytest.approx(one + rest, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "sentence"), [(TRUNK, "AlexNet's weights.*has 0: put alexnet-owt"), (LINEAR, "has none: put weights/v0.1")]
)
def test_a_missing_file_of_lpips_is_named(weights: Path, name: str, sentence: str) -> None:
    """And where it is published."""
    (weights / name).unlink()

    with pytest.raises(WeightsError, match=sentence):
        Lpips.load(weights)


@pytest.mark.parametrize("name", [TRUNK, LINEAR])
@pytest.mark.parametrize("content", [b"", b"no weights", b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_file_of_lpips_is_named(weights: Path, name: str, content: bytes) -> None:
    """Also one that would run a command."""
    (weights / name).write_bytes(content)

    with pytest.raises(WeightsError, match=f"{name} cannot be read as weights"):
        Lpips.load(weights)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        (TRUNK, "features.3.weight", "features.3.weight of 192 x 64 x 5 x 5, and has 1 x 2"),
        (LINEAR, "lin4.model.1.weight", "lin4.model.1.weight of 1 x 256 x 1 x 1, and has 1 x 2"),
    ],
)
def test_weights_of_another_network_are_refused(weights: Path, name: str, tensor: str, sentence: str) -> None:
    """Its first tensor that does not fit is named."""
    torch.save({**torch.load(weights / name, weights_only=True), tensor: torch.zeros(1, 2)}, weights / name)

    with pytest.raises(WeightsError, match=sentence):
        Lpips.load(weights)


def test_what_is_no_table_of_weights_is_refused(weights: Path) -> None:
    """As a single tensor, or a table without what is needed."""
    torch.save(torch.zeros(3), weights / LINEAR)
    with pytest.raises(WeightsError, match="holds no weights by their names"):
        Lpips.load(weights)

    torch.save({}, weights / LINEAR)
    with pytest.raises(WeightsError, match="and has none: it is another file"):
        Lpips.load(weights)
