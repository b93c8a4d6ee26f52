"""The quality gate: its measures have known values, its set of edits is fixed, and its verdicts are its table's."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench import quality, variants
from bench.edit_set import PROMPTS, PicturesError, drawn, own
from bench.likeness import CONVOLUTIONS, Likeness, Lpips, Picture, WeightsError, measure
from bench.quality import BARS, VARIANTS, Bar, Verdict, able, failures, judged, middle, table, worst
from bench.variants import Outcome, Subject, asked, rules_of
from local.worker import ROOT
from qwen_worker.family import EDIT, EDIT_PLUS, FAMILY
from qwen_worker.presets import PRESETS
from qwen_worker.tuning import Tuning
from tests.pictures import file_of, photo, scene

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


def test_ssim_is_that_of_its_definition() -> None:
    """Of moments below a Gaussian of 1.5 pixels, in windows of 11 that lie inside, of all samples and not one less."""
    one, other = pixels() / 1.0, pixels(seed=1) / 1.0

    def below(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5].astype(np.float64)

    mean, its = below(one), below(other)
    spread, its_spread = below(one * one) - mean**2, below(other * other) - its**2
    together = below(one * other) - mean * its
    steady, still = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean * its + steady) * (2 * together + still)
    alike /= (mean**2 + its**2 + steady) * (spread + its_spread + still)

    assert measure(pixels(), pixels(seed=1)).ssim == pytest.approx(alike.mean(), abs=1e-6)


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


@pytest.mark.parametrize(("other", "distance"), [(pixels(seed=1), 1.0572222), (pixels() // 2, 1.8184277)])
def test_lpips_is_that_of_its_authors(other: Picture, distance: float) -> None:
    """What their package, lpips 0.1.4, made of these weights and pictures when this was written."""
    assert Lpips(*tensors()).distance(pixels(), other) == pytest.approx(distance, rel=1e-5)


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
@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_damaged_file_of_lpips_is_named(weights: Path, name: str, content: bytes) -> None:
    """In one sentence, whatever torch says."""
    (weights / name).write_bytes(content)

    with pytest.raises(WeightsError, match=f"{name} cannot be read as weights"):
        Lpips.load(weights)


class Harmful:
    """What makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


def test_weights_that_would_run_code_are_refused(weights: Path) -> None:
    """And do not run it."""
    torch.save({**tensors()[1], "more": Harmful(weights / "made")}, weights / LINEAR)

    with pytest.raises(WeightsError, match="cannot be read as weights: UnpicklingError"):
        Lpips.load(weights)

    assert not (weights / "made").exists()


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


def touched(by: float) -> Picture:
    """The picture `pixels`, each channel moved by so much."""
    rest = np.random.default_rng(0).random(pixels().shape) < by % 1
    return (pixels() // 2 + int(by) + rest).astype(np.uint8)


def like(psnr: float = 50.0, ssim: float = 1.0, lpips: float | None = None) -> Likeness:
    return Likeness(psnr, ssim, lpips, 9)


def verdict(bar: str, *others: Picture, state: str = "ran") -> Verdict:
    outcome = Outcome(state, "because", others)  # type: ignore[arg-type]
    return judged("one", bar, outcome, [touched(0)] * len(others), None)


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        (like(30.0, 0.9, 0.1), []),
        (like(29.9, 0.9, 0.1), ["PSNR 29.9 < 30.0 dB"]),
        (like(30.0, 0.899, 0.1), ["SSIM 0.899 < 0.900"]),
        (like(30.0, 0.9, 0.101), ["LPIPS 0.101 > 0.100"]),
        (like(10.0, 0.1, 0.5), ["PSNR 10.0", "SSIM 0.100", "LPIPS 0.500"]),
        (like(30.0, 0.9, None), []),
    ],
)
def test_a_bar_names_what_is_missed(found: Likeness, missed: list[str]) -> None:
    """Each measure by itself; one that was not measured is not missed."""
    said = Bar(30.0, 0.9, 0.1).missed(found, "median")

    assert len(said) == len(missed)
    assert all(part in one for part, one in zip(missed, said, strict=True))


def test_the_worst_picture_may_be_twice_as_far_off() -> None:
    """An error twice as large is 6 dB."""
    least = Bar(30.0, 0.9, 0.1).of_the_worst

    assert (least.psnr, least.ssim, least.lpips) == pytest.approx((23.98, 0.8, 0.2), abs=0.01)


def test_median_and_worst_are_of_each_measure() -> None:
    """The worst LPIPS is the largest; a single picture without one leaves the rest."""
    found = [like(30, 0.9, 0.1), like(40, 0.8, 0.3), like(35, 0.7, 0.2)]

    assert (middle(found).psnr, middle(found).ssim, middle(found).lpips) == (35, 0.8, 0.2)
    assert (worst(found).psnr, worst(found).ssim, worst(found).lpips) == (30, 0.7, 0.3)
    assert middle([like(), like()]).lpips is None


def test_the_same_pixels_pass_every_bar() -> None:
    """Also the one that nothing else passes."""
    assert not [bar for bar in BARS if verdict(bar, touched(0), touched(0)).misses]


def test_only_the_same_pixels_are_the_same() -> None:
    """One pixel by one level is too much."""
    other = touched(0).copy()
    other[0, 0, 0] += 1

    assert verdict("same", touched(0), touched(0), other).misses


def test_one_broken_picture_is_seen_beside_five_good_ones() -> None:
    """The median alone would not tell."""
    others = [touched(0.5)] * 5

    assert str(verdict("fp8", *others, touched(1))) == "PASS"
    assert "worst PSNR" in str(verdict("fp8", *others, pixels(seed=1)))


def test_what_is_a_little_off_everywhere_is_seen() -> None:
    """No picture is below the bar of the worst, and the median is below its own."""
    said = str(verdict("fp8", *[touched(12)] * 6))

    assert "median PSNR 26.5 < 28.0 dB" in said
    assert "worst" not in said


def test_noise_is_below_the_floor_of_distilled_models() -> None:
    """And a picture of something else, and black."""
    noise = np.random.default_rng(0).integers(0, 256, pixels().shape, dtype=np.uint8)

    assert not verdict("distilled", touched(25)).misses
    for other in (noise, pixels(seed=1), np.zeros_like(noise)):
        assert judged("fast-4", "distilled", Outcome("ran", pictures=[other]), [pixels()], None).misses


def test_a_picture_of_another_size_is_a_miss() -> None:
    """And no error, which would end the whole run."""
    assert verdict("distilled", touched(0)[:-16]).misses == ["pictures of another size"]


def test_what_did_not_run_has_not_passed() -> None:
    """It says why."""
    assert str(verdict("fp8", state="refused")) == "not run: because"
    assert str(verdict("fp8", state="failed")) == "FAIL: because"


def test_the_table_says_what_was_measured_and_of_what() -> None:
    """One line for each variant, whatever a library's sentence holds."""
    outcome = Outcome("refused", "it needs\n8 | 16 bits")
    said = table([verdict("same", touched(0)), Verdict("other", "fp8", outcome)], quality.RANDOM).splitlines()

    assert len(said) == 4
    assert "random weights: says nothing of quality" in said[0]
    assert said[2] == "| one | identical (identical) | 1.000 (1.000) | not measured | 0 |  | PASS |"
    assert said[3].endswith("| not run: it needs 8 / 16 bits |")
    assert len({line.count("|") for line in said}) == 1


@pytest.mark.parametrize(
    ("one", "random", "named", "fails"),
    [
        (verdict("fp8", touched(0)), False, [], False),
        (verdict("fp8", pixels(1)), False, [], True),
        (verdict("fp8", pixels(1)), True, [], False),
        (verdict("same", pixels(1)), True, [], True),
        (verdict("same", touched(0)), True, [], False),
        (verdict("fp8", state="refused"), False, [], False),
        (verdict("fp8", state="refused"), False, ["one"], True),
        (verdict("fp8", state="refused"), True, [], True),
        (verdict("fp8", state="failed"), False, [], True),
        (verdict("fp8", state="failed"), True, [], True),
    ],
)
def test_the_exit_code_is_about_what_must_hold(one: Verdict, random: bool, named: Sequence[str], fails: bool) -> None:
    """Of random weights no threshold means anything, but the same pixels, and that all of it ran."""
    assert failures([one], random=random, named=named) == (["one"] if fails else [])


def test_every_variant_changes_one_thing() -> None:
    """Preset, profile or kernel: else a difference would have two causes."""
    plain = quality.PLAIN
    for name, (tuning, bar) in VARIANTS.items():
        differs = [field for field in vars(plain) if getattr(tuning, field) != getattr(plain, field)]
        assert (name, len(differs), bar in BARS) == (name, 1, True)
    assert {tuning.preset.name for tuning, _ in VARIANTS.values()} == set(PRESETS)


@pytest.mark.parametrize(
    ("capability", "attention", "kernels"),
    [
        (None, "native", set()),
        ("7.5", "native", {"efficient", "compile"}),
        ("8.0", "flash", {"native", "cudnn", "efficient", "compile"}),
        ("9.0", "cudnn", {"native", "flash", "efficient", "compile"}),
    ],
)
def test_a_device_is_asked_for_the_kernels_that_it_has(
    capability: str | None, attention: str, kernels: set[str]
) -> None:
    """And not for the one that `exact` has there anyway."""
    names = set(able({"capability": capability, "attention": attention}))

    assert names & {"native", "flash", "cudnn", "efficient", "compile"} == kernels
    assert {"balanced", "fast-8", "fast-4", "fp8", "int4", "bf16-offload"} <= names


def test_the_set_is_always_the_same() -> None:
    """Six kinds of edits, each with its own seed, of which one has two pictures, and one stands upright."""
    first, again = drawn(96 * 96), drawn(96 * 96)

    for one, other in zip(first, again, strict=True):
        assert (one.name, one.prompt, one.seed) == (other.name, other.prompt, other.seed)
        assert [picture.tobytes() for picture in one.pictures] == [picture.tobytes() for picture in other.pictures]
    assert [edit.name for edit in first] == list(PROMPTS)
    assert len({edit.seed for edit in first}) == len({edit.pictures[0].tobytes() for edit in first}) == 6
    assert [len(edit.pictures) for edit in first].count(2) == 1
    assert any(edit.pictures[0].height > edit.pictures[0].width for edit in first)


def test_own_pictures_come_by_their_names_and_again(tmp_path: Path) -> None:
    """Of whatever size; other files are left alone."""
    for name, width in (("b.png", 64), ("a.PNG", 32), ("c.webp", 96)):
        (tmp_path / name).write_bytes(file_of(photo(width, 32), name[2:].upper()))
    (tmp_path / "notes.txt").write_text("about them")

    widths = [[picture.width for picture in edit.pictures] for edit in own(tmp_path)]

    assert widths == [[32], [64], [96], [32], [64, 96], [96]]


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    """And a file that is none."""
    with pytest.raises(PicturesError, match="has no pictures"):
        own(tmp_path)

    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(PicturesError, match=r"a\.png cannot be edited"):
        own(tmp_path)


def test_a_model_that_takes_one_picture_gets_the_first() -> None:
    """Each at its shape on a canvas of the asked area; the request's steps are those of the preset."""
    edits = drawn(96 * 96)
    for row, most in ((EDIT, 1), (EDIT_PLUS, 2)):
        subject = Subject(row, "", 30, 256 * 256, edits, allow_cpu=True)
        rules = rules_of(subject, Tuning(preset=PRESETS["fast-8"]))
        found = [asked(edit, rules, subject.area, 16) for edit in edits]

        assert max(len(references) for _, _, references in found) == most
        assert {(request.num_inference_steps, request.true_cfg_scale) for request, _, _ in found} == {(8, 1.0)}
        assert all(canvas == references[0].size for _, canvas, references in found)
        assert all(0.8 < canvas[0] * canvas[1] / 256**2 < 1.25 for _, canvas, _ in found)
        assert rules_of(subject, Tuning()).steps == 30


@pytest.mark.slow
def test_a_variant_that_the_loader_refuses_says_why() -> None:
    """In its sentence; the others go on."""
    subject = Subject(EDIT, "", 2, 96 * 96, [], allow_cpu=False)

    found = variants.here(subject, Tuning())

    assert (found.state, found.reason.partition(":")[0]) == ("refused", "no CUDA device")


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        ("Qwen/Qwen-Image-Edit-2511", "fast-8", "has no known Lightning LoRA of 8 steps for Qwen/Qwen-Image-Edit-2511"),
        ("Qwen/Qwen-Image-2.1", "balanced", "balanced is not for QwenImage21Pipeline models"),
    ],
)
def test_a_preset_that_a_model_cannot_have_is_refused(model: str, name: str, sentence: str) -> None:
    """As settings refuse it."""
    subject = Subject(FAMILY[model], "", 2, 96 * 96, [], allow_cpu=False)

    found = quality._run(name, subject, VARIANTS[name][0], {})

    assert found.state == "refused"
    assert sentence in found.reason


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["fp7"], "no such variant: fp7"),
        (["--model", "somebody/model"], "--class must name the class of somebody/model"),
        (["--model", "somebody/model", "--class", "QwenImageEditPipeline"], "must name a commit of somebody/model"),
        (["--model", "x/y", "--class", "QwenImage21Pipeline"], "set ACCEPT_RESEARCH_LICENSE=1"),
        (["--class", "QwenImageEditPipeline"], "go with --model"),
        (["--size", "1024"], "must be as 1024x1024"),
        (["--lightning-8", "{}"], "is no LoRA"),
        (["--lpips", "/nowhere"], "LPIPS needs AlexNet's weights"),
        (["--pictures", "/nowhere"], "/nowhere has no pictures"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with the usage."""
    with pytest.raises(SystemExit) as ended:
        quality.main(arguments)

    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Of the tiny model: the noise floor is nothing, offloading changes nothing, and 8 bits change something."""
    command = [sys.executable, "-m", "bench.quality", "fp8", "bf16-offload", "--size", "128x128"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr[-500:] if done.returncode else "") == (0, "")
    report = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert report["setting"]["weights"] == "random weights: says nothing of quality"
    assert report["setting"]["weights"] in done.stdout
    assert "/tmp" not in json.dumps(report)  # noqa: S108 - where the model lay is nobody's business
    found = {one["name"]: one for one in report["variants"]}
    assert list(found) == ["exact again", "fp8", "bf16-offload"]
    assert all(len(one["edits"]) == 6 for one in found.values())
    assert found["exact again"]["worst"]["identical"]
    assert found["bf16-offload"]["worst"]["identical"]
    assert not found["fp8"]["median"]["identical"]
    assert 10 < found["fp8"]["median"]["psnr_db"] < 50
    assert "| fp8 | " in done.stdout
