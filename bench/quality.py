"""How far each preset and each memory profile is from `exact` in bf16: what speed and memory cost in quality.

    python -m bench.quality [NAME...]      writes out/quality.json, and prints a table

Six edits that are always the same (bench.edit_set), by the production loader, each variant in a process of its own.
Without --model it is a tiny one with random weights: that shows that all of it runs, and says nothing of quality. Of
real weights on a GPU nothing has been measured yet.

    python -m bench.quality --model Qwen/Qwen-Image-Edit-2509 --lpips FOLDER --pictures FOLDER

No time is measured.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

from bench.edit_set import Edit, PicturesError, drawn, own
from bench.likeness import Likeness, Lpips, Picture, WeightsError, measure
from bench.variants import Outcome, Subject, run
from local.worker import class_of
from qwen_worker.family import EDIT_PLUS, FAMILY, RESEARCH_LICENCE, LoraSource, PipelineName, Row, commit_of, untested
from qwen_worker.images.geometry import NATIVE_AREA
from qwen_worker.presets import EXACT, PRESETS, lightning
from qwen_worker.tuning import Tuning

OUT = Path("out") / "quality.json"
LIBRARIES = (
    "torch", "diffusers", "transformers", "torchao", "bitsandbytes", "peft", "cache-dit", "scikit-image", "Pillow",
    "numpy",
)  # fmt: skip
FLASH_CAPABILITY = 8.0  # the first GPUs that flash attention and cuDNN's are for: Ampere

# Of the tiny model. Steps: enough that `balanced` is past its warm-up of four. Gains: with a transformer of smaller
# weights it finds passes to shorten; with a smaller VAE each rounding grows less.
TINY_STEPS, TINY_AREA, TINY_LAYERS = 12, 256 * 256, 4
TINY_GAIN, TINY_REST_GAIN = 0.7, 1.2
# Of the tiny Lightning LoRAs, whose random weights are ten times those of the model: without it nothing is left of it.
TINY_LORA_ALPHA = 0.2
RANDOM = "random weights: says nothing of quality"
AS_GIVEN = "as given"


@dataclass(frozen=True)
class Bar:
    """What the median picture must reach; the worst one may be twice as far off.

    Attributes:
        psnr: in dB, at least.
        ssim: at least.
        lpips: at most.
    """

    psnr: float
    ssim: float
    lpips: float

    @property
    def of_the_worst(self) -> "Bar":
        """Twice the error: 6 dB."""
        return Bar(self.psnr - 20 * math.log10(2), 1 - 2 * (1 - self.ssim), 2 * self.lpips)

    @property
    def is_identity(self) -> bool:
        """Whether it is reached by the same pixels alone: that must hold for any weights."""
        return math.isinf(self.psnr)

    def missed(self, found: Likeness, whose: str) -> list[str]:
        """What is not reached, in words."""
        misses = []
        if found.psnr < self.psnr:
            misses.append(f"{whose} PSNR {found.psnr:.1f} < {self.psnr:.1f} dB")
        if found.ssim < self.ssim:
            misses.append(f"{whose} SSIM {found.ssim:.3f} < {self.ssim:.3f}")
        if found.lpips is not None and found.lpips > self.lpips:
            misses.append(f"{whose} LPIPS {found.lpips:.3f} > {self.lpips:.3f}")
        return misses


# All thresholds. None comes from a measurement of these models, of which there is none yet: they were set beforehand,
# and what real weights reach may be a reason to tighten them.
#   same: nothing is computed otherwise; weights only lie elsewhere meanwhile.
#   rounding: the same sums in another order, and 30 or 40 steps that carry it on.
#   balanced: PSNR and SSIM that are taken for "the same picture" in work on step caching, LPIPS likewise.
#   fp8: 8 bits for weights and inputs; details may move a little.
#   int4: 4 bits for most weights; fine structure becomes another one, the picture stays.
#   distilled: another model by design, whose pixels differ. The floor is above what has nothing to do with the picture:
#     two different pictures of the set have 7 to 12 dB in most pairs, noise has 7 to 9 dB and an SSIM of 0.01, black 3
#     to 8 dB and 0.1 at most.
BARS = {
    "same": Bar(math.inf, 1.0, 0.0),
    "rounding": Bar(35.0, 0.97, 0.03),
    "balanced": Bar(30.0, 0.95, 0.10),
    "fp8": Bar(28.0, 0.90, 0.15),
    "int4": Bar(22.0, 0.80, 0.25),
    "distilled": Bar(12.0, 0.30, 0.65),
}
PLAIN = Tuning(profile="bf16")
AGAIN = "exact again"
# Name → what differs from `exact` in bf16, and the bar for it.
VARIANTS: dict[str, tuple[Tuning, str]] = {
    "balanced": (replace(PLAIN, preset=PRESETS["balanced"]), "balanced"),
    "fast-8": (replace(PLAIN, preset=PRESETS["fast-8"]), "distilled"),
    "fast-4": (replace(PLAIN, preset=PRESETS["fast-4"]), "distilled"),
    "bf16-offload": (Tuning(profile="bf16-offload"), "same"),
    "fp8": (Tuning(profile="fp8"), "fp8"),
    "fp8-offload": (Tuning(profile="fp8-offload"), "fp8"),
    "int4": (Tuning(profile="int4"), "int4"),
    "int4-offload": (Tuning(profile="int4-offload"), "int4"),
    "compile": (replace(PLAIN, compile=True), "rounding"),
    "native": (replace(PLAIN, attention="native"), "rounding"),
    "flash": (replace(PLAIN, attention="flash"), "rounding"),
    "cudnn": (replace(PLAIN, attention="cudnn"), "rounding"),
    "efficient": (replace(PLAIN, attention="efficient"), "rounding"),
}


@dataclass(frozen=True)
class Verdict:
    """Of one variant.

    Attributes:
        name: of the variant.
        bar: which of BARS.
        outcome: what came of it.
        found: of each picture, to that of `exact`.
        misses: what it does not reach, in words.
    """

    name: str
    bar: str
    outcome: Outcome
    found: Sequence[Likeness] = ()
    misses: Sequence[str] = ()

    def __str__(self) -> str:
        """In a few words."""
        if self.outcome.state != "ran":
            return f"{'not run' if self.outcome.state == 'refused' else 'FAIL'}: {self.outcome.reason}"
        return f"FAIL: {'; '.join(self.misses)}" if self.misses else "PASS"


def judged(name: str, bar: str, outcome: Outcome, reference: Sequence[Picture], lpips: Lpips | None) -> Verdict:
    """Compare the pictures of a variant with those of `exact`: the median one, and the worst."""
    if outcome.state != "ran":
        return Verdict(name, bar, outcome)
    if any(one.shape != other.shape for one, other in zip(reference, outcome.pictures, strict=True)):
        return Verdict(name, bar, outcome, (), ["pictures of another size"])
    found = [measure(one, other, lpips) for one, other in zip(reference, outcome.pictures, strict=True)]
    wanted = BARS[bar]
    misses = wanted.missed(middle(found), "median") + wanted.of_the_worst.missed(worst(found), "worst")
    return Verdict(name, bar, outcome, found, misses)


def middle(found: Sequence[Likeness]) -> Likeness:
    """The median of each measure."""
    return _each(found, statistics.median, statistics.median)


def worst(found: Sequence[Likeness]) -> Likeness:
    """The worst of each measure."""
    return _each(found, min, max)


def _each(
    found: Sequence[Likeness], of_likeness: Callable[[list[float]], float], of_distance: Callable[[list[float]], float]
) -> Likeness:
    distances = [one.lpips for one in found if one.lpips is not None]
    return Likeness(
        of_likeness([one.psnr for one in found]),
        of_likeness([one.ssim for one in found]),
        of_distance(distances) if distances else None,
        int(of_distance([one.difference for one in found])),
    )


def failures(verdicts: Sequence[Verdict], *, random: bool, named: Sequence[str]) -> list[str]:
    """The variants for which the command ends with 1.

    Args:
        verdicts: of all variants.
        random: the weights are, so that no bar means anything but that of the same pixels.
        named: variants that were asked for by name, and must run.
    """
    return [
        one.name
        for one in verdicts
        if one.outcome.state == "failed"
        or (one.outcome.state == "refused" and (random or one.name in named))
        or (one.misses and (BARS[one.bar].is_identity or not random))
    ]


def able(told: dict[str, Any]) -> list[str]:
    """The variants for a device that differ from `exact` there, by what a run of that told."""
    capability = float(told["capability"] or 0)
    left_out = {told["attention"]}
    if not capability:  # a CPU has one kernel, by whatever name, and compiling for it takes longer than all the rest
        left_out |= {"native", "flash", "cudnn", "efficient", "compile"}
    elif capability < FLASH_CAPABILITY:
        left_out |= {"flash", "cudnn"}
    return [name for name in VARIANTS if name not in left_out]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; returns the exit code."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(VARIANTS):
        parser.error(f"no such variant: {' '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            lpips = Lpips.load(asked.lpips) if asked.lpips else None
            subject, loras = _subject(asked, Path(scratch))
        except (PicturesError, ValueError, WeightsError) as error:
            parser.error(str(error))
        exact = run(subject, PLAIN)
        if exact.state != "ran":
            print(f"there is nothing to compare with: exact in bf16 does not run here: {exact.reason}", file=sys.stderr)
            return 1
        verdicts = []
        for name in [AGAIN, *(asked.names or able(exact.told))]:
            tuning, bar = VARIANTS.get(name, (PLAIN, "same"))
            outcome = _run(name, subject, tuning, loras)
            verdicts.append(judged(name, bar, outcome, exact.pictures, lpips))
            print(f"{name}: {verdicts[-1]}", flush=True)
    setting = _setting(asked, subject, exact)
    report = {"setting": setting, "variants": [_told(one, subject) for one in verdicts]}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{table(verdicts, setting['weights'])}")
    failed = failures(verdicts, random=not asked.model, named=asked.names)
    if failed:
        print(f"\nnot as it must be: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description="compare presets and profiles with exact in bf16"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {' '.join(VARIANTS)}")
    parser.add_argument("--model", default="", help="repository on the Hub, or a folder; default: tiny random weights")
    parser.add_argument("--class", dest="pipeline", choices=get_args(PipelineName), help="of a model outside the table")
    parser.add_argument("--revision", default="", help="commit of the repository; default: the pinned one")
    for steps in (4, 8):
        parser.add_argument(
            f"--lightning-{steps}", type=_lora, metavar="JSON", help=f"LoRA of fast-{steps}, as LIGHTNING_LORA"
        )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="your own; default: drawn ones")
    parser.add_argument("--size", type=_area, metavar="WxH", help="pixels of a canvas; each picture keeps its shape")
    parser.add_argument("--lpips", type=Path, metavar="FOLDER", help="weights of LPIPS: see bench/likeness.py")
    return parser


def _lora(said: str) -> LoraSource:
    try:
        return LoraSource(**{"name": "lightning", **json.loads(said)})
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"is no LoRA: {error}") from error


def _area(said: str) -> int:
    if not (sides := re.fullmatch(r"(\d{2,4})x(\d{2,4})", said)):
        raise argparse.ArgumentTypeError("must be as 1024x1024")
    return int(sides[1]) * int(sides[2])


def _subject(asked: argparse.Namespace, scratch: Path) -> tuple[Subject, dict[int, LoraSource]]:
    """What is compared, and the LoRAs that were named, by their steps.

    Raises:
        PicturesError: the folder has none.
        ValueError: the model is not told apart from others.
    """
    area = asked.size or (NATIVE_AREA if asked.model else TINY_AREA)
    edits: list[Edit] = own(asked.pictures) if asked.pictures else drawn(area)
    if not asked.model:
        if asked.pipeline or asked.revision or asked.lightning_4 or asked.lightning_8:
            raise ValueError("--class, --revision and --lightning-... go with --model")
        row, loras = _tiny(scratch)
        return Subject(row, "", TINY_STEPS, area, edits, allow_cpu=True), loras
    loras = {steps: lora for steps in (4, 8) if (lora := getattr(asked, f"lightning_{steps}"))}
    row = _row(asked.model, asked.pipeline)
    revision = commit_of(asked.model, asked.revision, row.revision if row.tested else None)
    return Subject(row, revision, row.steps, area, edits, allow_cpu=os.environ.get("ALLOW_CPU") == "1"), loras


def _row(model: str, pipeline: PipelineName | None) -> Row:
    row = FAMILY.get(model)
    if row is None:
        found = pipeline or class_of(Path(model))
        if found not in get_args(PipelineName):
            raise ValueError(f"--class must name the class of {model}, which is not in the table of models")
        row = untested(model, cast("PipelineName", found))
    if row.research_only and os.environ.get("ACCEPT_RESEARCH_LICENSE") != "1":
        raise ValueError(f"{model} is under the {RESEARCH_LICENCE}: set ACCEPT_RESEARCH_LICENSE=1 if you keep to it")
    return row


def _tiny(scratch: Path) -> tuple[Row, dict[int, LoraSource]]:
    """A model with random weights, and LoRAs for it."""
    from local import tiny_model  # noqa: PLC0415 - of a real model it is not needed

    folder = tiny_model.make(scratch / "model", plus=True, layers=TINY_LAYERS, gain=TINY_GAIN, rest_gain=TINY_REST_GAIN)
    loras = {}
    for steps in (4, 8):
        file = f"tiny-Lightning-{steps}steps.safetensors"
        tiny_model.make_lora(scratch / "loras" / file, folder, seed=steps, style="lightning", alpha=TINY_LORA_ALPHA)
        loras[steps] = LoraSource(name="lightning", source=str(scratch / "loras"), weight_file=file)
    return untested(str(folder), EDIT_PLUS.pipeline), loras


def _run(name: str, subject: Subject, tuning: Tuning, loras: dict[int, LoraSource]) -> Outcome:
    """One variant, if its preset and this model go together."""
    preset = tuning.preset
    if preset != EXACT and subject.row.pipeline == "QwenImage21Pipeline":
        return Outcome("refused", f"{name} is not for QwenImage21Pipeline models")
    try:
        of_steps = loras.get(preset.distilled_steps or 0)
        fused = lightning(preset, subject.row.id, of_steps, f"--lightning-{preset.distilled_steps}")
    except ValueError as error:
        return Outcome("refused", str(error))
    return run(subject, replace(tuning, lightning=fused))


def _setting(asked: argparse.Namespace, subject: Subject, exact: Outcome) -> dict[str, Any]:
    several = subject.row.takes_several
    return {
        "command": " ".join(["python -m bench.quality", *asked.names]),
        "weights": AS_GIVEN if asked.model else RANDOM,
        "model": asked.model or f"local.tiny_model, {TINY_LAYERS} blocks, gains {TINY_GAIN} and {TINY_REST_GAIN}",
        "revision": exact.told["revision"] if asked.model else None,
        "class": subject.row.pipeline,
        "reference": {"preset": "exact", "profile": "bf16", "attention": exact.told["attention"]},
        "device": exact.told["device"],
        "capability": exact.told["capability"],
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "steps": subject.steps,
        "true_cfg_scale": subject.row.cfg_scale,
        "canvas_pixels": subject.area,
        "pictures": str(asked.pictures) if asked.pictures else "drawn by bench.edit_set",
        "edits": [
            {
                "name": edit.name,
                "prompt": edit.prompt,
                "seed": edit.seed,
                "pictures": len(edit.pictures) if several else 1,
                "size": [picture.shape[1], picture.shape[0]],
            }
            for edit, picture in zip(subject.edits, exact.pictures, strict=True)
        ],
        "lpips": "AlexNet, v0.1" if asked.lpips else "not measured",
        "bars": {name: None if bar.is_identity else asdict(bar) for name, bar in BARS.items()},
    }


def _told(verdict: Verdict, subject: Subject) -> dict[str, Any]:
    """As the file has it; JSON knows no infinite numbers."""
    outcome = verdict.outcome
    told = {"name": verdict.name, "bar": verdict.bar, "verdict": str(verdict)}
    if not verdict.found:
        return told
    skipped: Sequence[int | None] = outcome.skipped or [None] * len(verdict.found)
    return {
        **told,
        "median": _figures(middle(verdict.found)),
        "worst": _figures(worst(verdict.found)),
        "edits": [
            {"name": edit.name, **_figures(found), **({} if passes is None else {"skipped_passes": passes})}
            for edit, found, passes in zip(subject.edits, verdict.found, skipped, strict=True)
        ],
    }


def _figures(found: Likeness) -> dict[str, Any]:
    return {
        "identical": found.difference == 0,
        "psnr_db": None if math.isinf(found.psnr) else round(found.psnr, 2),
        "ssim": round(found.ssim, 4),
        "lpips": None if found.lpips is None else round(found.lpips, 4),
        "largest_difference": found.difference,
    }


def table(verdicts: Sequence[Verdict], weights: str) -> str:
    """In Markdown: of each measure the median picture and the worst one."""
    head = "| variant | PSNR, dB (worst) | SSIM (worst) | LPIPS (worst) | largest difference | passes shortened |"
    lines = [
        f"{head} {'' if weights == AS_GIVEN else weights} |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in verdicts:
        said = " ".join(str(one).split()).replace("|", "/")  # a library's sentence may have lines
        if not one.found:
            lines.append(f"| {one.name} | | | | | | {said} |")
            continue
        median, least = middle(one.found), worst(one.found)
        lpips = "not measured"
        if median.lpips is not None and least.lpips is not None:
            lpips = f"{median.lpips:.3f} ({least.lpips:.3f})"
        skipped = "" if one.outcome.skipped is None else sum(one.outcome.skipped)
        lines.append(
            f"| {one.name} | {_decibels(median.psnr)} ({_decibels(least.psnr)}) | {median.ssim:.3f} ({least.ssim:.3f}) "
            f"| {lpips} | {least.difference} | {skipped} | {said} |"
        )
    return "\n".join(lines)


def _decibels(psnr: float) -> str:
    return "identical" if math.isinf(psnr) else f"{psnr:.1f}"


if __name__ == "__main__":
    sys.exit(main())
