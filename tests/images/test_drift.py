"""How far a result has slid and grown, on pictures that were moved by a known map."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from qwen_worker.images import drift
from qwen_worker.schema import Size
from tests.pictures import photo, scene

MOVES = [(0.0, 0.0, 0.0), (0.4, -0.3, 0.001), (3.3, -2.7, 0.0), (0.0, 0.0, 0.01), (9.0, 6.0, 0.02), (-15.0, 8.0, -0.03)]


def moved(picture: Image.Image, right: float, down: float, growth: float) -> Image.Image:
    """Each point goes to p + shift + growth * (p - centre): by Pillow's own map, from where a pixel comes."""
    scale = 1 / (1 + growth)
    centre_x, centre_y = picture.width / 2, picture.height / 2
    x = centre_x - scale * (centre_x + right)
    y = centre_y - scale * (centre_y + down)
    return picture.transform(picture.size, Image.Transform.AFFINE, (scale, 0, x, 0, scale, y), Image.Resampling.BICUBIC)


def edited(picture: Image.Image) -> Image.Image:
    """Other colours everywhere, and another content in a sixth of it."""
    pixels = np.asarray(picture) * [0.9, 0.8, 0.6] + 12
    result = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    result.paste(photo(picture.width // 3, picture.height // 2, seed=99), (picture.width // 4, picture.height // 4))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [
        (1024, 1024),
        (512, 384),
        pytest.param((688, 1488), marks=pytest.mark.slow),
        pytest.param((2000, 1500), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("move", MOVES)
def test_a_known_drift_is_recovered(size: Size, move: tuple[float, float, float]) -> None:
    """Far better than to half a pixel and a tenth of a percent, below a local edit and other colours."""
    source = scene(*size)
    found, fit = drift.measure(source, edited(moved(source, *move)))

    assert found
    assert fit > 0.6
    assert np.abs(np.subtract(found.shift, move[:2])).max() < 0.15
    assert abs(found.growth - move[2]) < 0.0005


def tiled(period: int) -> Image.Image:
    """A brick wall."""
    y, x = np.mgrid[:768, :1024]
    joint = (y % period < 2) | ((x + period * (y // period % 2)) % (2 * period) < 2)
    return Image.fromarray(np.where(joint, 60, 180).astype(np.uint8)).convert("RGB")


@pytest.mark.slow
@pytest.mark.parametrize("period", [12, 20, 32])
def test_a_pattern_that_repeats_is_not_shifted_by_its_period(period: int) -> None:
    """Of equal places the nearest is taken."""
    wall = tiled(period)
    for result in (wall, grainy(wall, 2)):
        found, _ = drift.measure(wall, result)
        assert found
        assert np.hypot(*found.shift) < 0.1


def grainy(picture: Image.Image, deviation: float) -> Image.Image:
    """As on film."""
    grain = np.random.default_rng(0).normal(0, deviation, (picture.height, picture.width, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("after", [lambda made: grainy(made, 8), lambda made: made.filter(ImageFilter.GaussianBlur(2))])
def test_grain_and_blur_do_not_hide_a_drift(after: Callable[[Image.Image], Image.Image]) -> None:
    """Both are what edits are asked for."""
    source = scene(1024, 768)
    found, _ = drift.measure(source, after(moved(source, 6.0, -4.0, 0.01)))

    assert found
    assert np.abs(np.subtract(found.shift, (6, -4))).max() < 0.3
    assert abs(found.growth - 0.01) < 0.001


def clouds() -> Image.Image:
    """A picture whose contrasts grow with their size."""
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(768, 1024)))
    fineness = np.hypot(np.fft.fftfreq(768)[:, None], np.fft.fftfreq(1024)[None])
    fineness[0, 0] = 1
    values = np.fft.ifft2(noise / fineness**2).real
    values = (values - values.min()) * (255 / np.ptp(values))
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("grain", [0, 8])
def test_soft_pictures_are_measured_too(grain: float) -> None:
    """Their likeness falls off slowly: the nearest place that is nearly as good is not the right one."""
    source = clouds()
    found, _ = drift.measure(source, grainy(moved(source, 6.0, -4.0, 0.01), grain))

    assert found
    assert np.abs(np.subtract(found.shift, (6, -4))).max() < 0.5


def test_what_is_flat_has_no_say() -> None:
    """Two thirds of the picture are of one colour, as sky is."""
    source = Image.new("RGB", (1024, 768), "skyblue")
    source.paste(scene(340, 768), (0, 0))
    found, fit = drift.measure(source, moved(source, 3.0, 2.0, 0.0))

    assert found
    assert fit > 0.9
    assert np.abs(np.subtract(found.shift, (3, 2))).max() < 0.1


@pytest.mark.parametrize("shift", [(43.0, 0.0), (-43.0, 20.0), (0.0, 43.0), (200.0, 0.0)])
def test_a_drift_at_the_limit_is_no_error(shift: tuple[float, float]) -> None:
    """Blocks are looked for within a third of their side: what is found there is right."""
    source = scene(1024, 768)
    found, _ = drift.measure(source, moved(source, *shift, 0.0))

    assert found is None or np.abs(np.subtract(found.shift, shift)).max() < 0.2


def test_a_picture_of_the_opposite_brightness_is_another() -> None:
    """Whatever of it lies the same."""
    assert drift.measure(scene(640, 480), ImageOps.invert(scene(640, 480)))[0] is None


@pytest.mark.slow
@pytest.mark.parametrize("move", MOVES[1:])
def test_a_drift_is_undone(move: tuple[float, float, float]) -> None:
    """What is left is far below half a pixel."""
    source = scene(1024, 768)
    result = edited(moved(source, *move))
    found, _ = drift.measure(source, result)
    assert found
    rest, fit = drift.measure(source, drift.undo(found, result))

    assert rest
    assert fit > 0.6
    assert np.hypot(*rest.shift) < 0.1
    assert abs(rest.growth) < 0.0002


@pytest.mark.parametrize(
    "result",
    [
        photo(640, 480, seed=7),
        Image.new("RGB", (640, 480), "grey"),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)),
        scene(640, 480).transpose(Image.Transpose.ROTATE_180),
        scene(640, 480).rotate(10),
    ],
    ids=["another picture", "flat", "noise", "upside down", "turned"],
)
def test_what_does_not_fit_is_not_forced(result: Image.Image) -> None:
    """No map is better than a wrong one."""
    found, fit = drift.measure(scene(640, 480), result)

    assert found is None
    assert fit < drift.MIN_FIT


@pytest.mark.parametrize("size", [(64, 48), (20, 20), (3, 3), (1, 1), (1000, 40), (40, 1000)])
def test_small_and_narrow_pictures_are_no_error(size: Size) -> None:
    """Whatever is found."""
    for source in (scene(*size), Image.new("RGB", size)):
        drift.measure(source, source)

    assert drift.changed_share(scene(*size), scene(*size)) == 0


def test_half_of_the_blocks_must_agree() -> None:
    """A picture of which more than half was replaced says nothing of the rest."""
    source = scene(1024, 768)
    fits = []
    for share in (0.3, 0.7):
        result = source.copy()
        result.paste(photo(1024, int(768 * share), seed=5), (0, 0))
        found, fit = drift.measure(source, result)
        fits.append(fit)
        assert (found is not None) is (share < 0.5)

    assert fits[0] > drift.MIN_FIT > fits[1]


def test_the_share_of_changed_pixels() -> None:
    """Those that visibly differ, in any colour; not those that coding changes."""
    source = scene(400, 300)
    other = np.asarray(source).astype(int)
    other[:, :100, 2] = (other[:, :100, 2] + 128) % 256
    other[:, 100:] += np.where(other[:, 100:] < 200, 10, -10)

    assert drift.changed_share(source, Image.fromarray(other.astype(np.uint8))) == pytest.approx(0.25)
