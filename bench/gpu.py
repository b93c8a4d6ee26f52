"""Every figure of the GPU's table, measured on this machine.

    python -m bench.gpu [--only ARM] [--n PICTURES] [--seconds S]     writes out/gpu.json, and prints the table
    python -m bench.gpu --table FILE                                  prints the table of such a file
    python -m bench.gpu --tiny                                        tries all of it on a CPU; measures nothing

It needs one GPU of 80 GB or more, 60 GB of disk and no internet: the model has the published sizes and random weights
(bench.full_size). This worker and diffusers take turns, A-B-B-A, each turn in a fresh process; one picture is edited to
1024 x 1024, after a warm-up, with one reference. An arm that is in out/gpu.json is not measured again, as long as the
setting is the same: whatever broke off goes on. Where commands are cut after ten minutes, `--seconds 400` ends in time.
Random weights say nothing of how pictures look, and of `balanced` nothing of how many steps a trained model would leave
out.

The run is valid if the pictures of each exact way of computing are those of diffusers, and nothing failed or fell back.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.arms import Setting, distance
from bench.row import spread
from local import children
from local.worker import ROOT
from qwen_worker.errors import ModelError

OUT = Path("out") / "gpu.json"
# What is compared first; then by turns; what has no goal last.
ORDER = (
    "variants", "bf16-offload", "exact/1", "balanced/1", "fast/1", "plain/1", "plain/2", "fast/2", "balanced/2",
    "exact/2", "worker/1", "plain-worker/1", "plain-worker/2", "worker/2", "fp8", "int4",
)  # fmt: skip
SIDE, TINY_SIDE = 1024, 256  # pixels
# Pictures of a process; each work has two.
COUNTS = {"40": 10, "8": 10, "4": 10, "jobs": 24}
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "torchao", "bitsandbytes", "cache-dit", "runpod")
LIMIT_S = 1200  # of an arm
# How far bfloat16 may be from itself, computed in another order: a forward, relative to its length (0.03 was seen on a
# CPU, with 60 blocks of a width of 512). The VAE's random weights make much of that in a picture: it must be nearer
# than that of another prompt by so many dB (8 were seen).
FORWARD, NEARER_DB = 0.05, 4.0
TINY = "tiny weights on a CPU: figures say nothing"
NOT_MEASURED = "not measured"
Arms = Mapping[str, dict[str, Any]]


def run(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure one arm in a process of its own; what went wrong is in its `error`."""
    said, out, log = (folder / f"{name.replace('/', '-')}.{end}" for end in ("setting", "json", "log"))
    said.write_text(json.dumps(asdict(setting)))
    out.unlink(missing_ok=True)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if setting.tiny:
        variables |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    with log.open("w") as output:
        command = [sys.executable, "-m", "bench.arms", name, str(said), str(out)]
        process = children.start(command, variables, stdout=output, stderr=output, cwd=ROOT)
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {"error": f"it took longer than {LIMIT_S} s"}
    if code or not out.exists():
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return {"error": f"it ended with {code}: {' | '.join(lines[-3:])[-600:]}"}
    made: dict[str, Any] = json.loads(out.read_text())
    return made | {"process_s": time.perf_counter() - begin}


def machine() -> dict[str, Any]:
    """What computes. The GPU is asked by its own tool: this process takes none of its memory."""
    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "libraries": {library: _version(library) for library in LIBRARIES},
    }
    if torch.cuda.is_available():
        names = ("name", "power.limit", "driver_version", "memory.total")
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"],  # noqa: S607
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found["gpu"] = dict(zip(names, map(str.strip, told.stdout.strip().split(",")), strict=True))
    return found


def _version(library: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(library)
    return None


def kept(file: Path, setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of an earlier run with the same setting that did not fail."""
    if not file.exists():
        return {}
    earlier = json.loads(file.read_text())
    if earlier["setting"] != json.loads(json.dumps(setting)):
        print(f"{file} is of another setting: its arms are measured anew")
        return {}
    return {name: arm for name, arm in earlier["arms"].items() if "error" not in arm}


def problems(arms: Arms) -> Iterator[str]:
    """Why a run is not valid, as far as it goes."""
    if "variants" not in arms:
        yield "nothing was compared with diffusers yet: run the arm variants"
    for name, arm in arms.items():
        if "error" in arm:
            yield f"{name}: {arm['error']}"
    control = arms.get("variants", {}).get("control", {})
    if control and not (control["forward"] > FORWARD and control["picture_db"] and control["guided_db"]):
        yield "the comparison is blind: another picture and prompt pass for the same"
    ways = {
        **arms.get("variants", {}).get("variants", {}),
        **{name: arm for name, arm in arms.items() if "distance" in arm},
    }
    for way, found in ways.items():
        if "distance" not in found:
            yield f"{way}: {found['error']}"
        elif said := _too_far(found["distance"], control):
            yield f"{way} is not what diffusers makes: {said}"


def compare(arms: Mapping[str, dict[str, Any]], checks: Path) -> None:
    """Note of each arm that kept a picture how far it is from diffusers', of the process of the variants."""
    for name, arm in arms.items():
        # Of `plain` the question is whether our loader reads the weights as diffusers does.
        mine = {"plain": "library", "bf16-offload": "bf16-offload"}.get(name.partition("/")[0])
        if not mine or "error" in arm or "distance" in arm or "error" in arms.get("variants", {"error": ""}):
            continue
        with np.load(checks / f"{mine}.npz") as made, np.load(checks / "wanted.npz") as wanted:
            try:
                arm["distance"] = distance(made, wanted)
            except ModelError as error:
                arm["error"] = str(error)


def _too_far(found: Mapping[str, float | None], control: Mapping[str, float | None]) -> str:
    """What is wrong, in words; `control` is of another picture and prompt."""
    forward = found["forward"] or 0.0
    told = [] if forward <= FORWARD else [f"a forward is {forward:.3g} of its length away (at most {FORWARD})"]
    # With guidance small differences of forwards grow by its scale. If there are none, only how the VAE rounds remains.
    for name in ("picture_db", *(["guided_db"] if forward == 0 else [])):
        psnr, least = found[name], (control.get(name) or -math.inf) + NEARER_DB
        if psnr is not None and not psnr >= least:
            told.append(f"its {name.removesuffix('_db')} has a PSNR of {psnr:.1f} dB (at least {least:.1f})")
    return " and ".join(told)


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of the table: what, goal, plain, ours, shares of the matrix rate in percent, verdict, and figures."""
    arms: Arms = {name: arm for name, arm in report["arms"].items() if "error" not in arm}
    return [
        *(_work_row(arms, *line) for line in (
            ("40 steps with guidance, exact", "exact", "40", 26.0),
            ("40 steps with step caching (balanced)", "balanced", "40", 11.0),
            ("8 steps without guidance (fast-8)", "fast", "8", 3.0),
            ("4 steps without guidance (fast-4)", "fast", "4", 1.7),
        )),
        _row("jobs of 4 steps an hour, whole worker", 2100, "{:.0f}", "", *(
            _of(arms, kind, "jobs_an_hour") for kind in ("plain-worker", "worker")
        ), least=True),
        _row("peak of GPU memory, bf16, reserved", 63, "{:.1f}", " GB", *(
            [arm["memory"]["reserved_gb"] for arm in _turns(arms, kind) if arm["memory"]] for kind in ("plain", "exact")
        )),
        _row("start of the process to first picture, model on the local disk", 40, "{:.1f}", " s", *(
            _of(arms, kind, "first_picture_s") for kind in ("plain-worker", "worker")
        )),
    ]  # fmt: skip


def _turns(arms: Arms, kind: str) -> list[dict[str, Any]]:
    return [arm for name, arm in arms.items() if name.partition("/")[0] == kind]


def _of(arms: Arms, kind: str, figure: str) -> list[float]:
    return [arm[figure] for arm in _turns(arms, kind)]


def _work_row(arms: Arms, what: str, kind: str, work: str, goal: float) -> dict[str, Any]:
    """Of pictures."""
    both = [[arm["works"][work] for arm in _turns(arms, one)] for one in ("plain", kind)]
    seconds = [[one for found in side for one in found["seconds"]] for side in both]
    made = _row(what, goal, "{:.2f}", " s", *seconds)
    for side, its in (("plain", "plain"), ("ours", kind)):
        shares = [
            100 * arm["works"][work]["tflop_of_a_picture"]
            / statistics.median(arm["works"][work]["seconds"]) / arm["matrix_tflops"]
            for arm in _turns(arms, its)
        ]  # fmt: skip
        if shares:
            made["share_percent"][side] = round(statistics.mean(shares), 1)
    if left_out := [count for found in both[1] for count in found["skipped_forwards"]]:
        passes, mean = both[1][0]["forwards_of_a_picture"], statistics.mean(left_out)
        made["ours"] += f"; {mean:.0f} of {passes} passes left out, which random weights decide"
        whole = [one for arm in _turns(arms, "exact") for one in arm["works"][work]["seconds"]]
        if whole and mean:
            saved = (statistics.median(whole) - statistics.median(seconds[1])) / mean
            needed = math.ceil((statistics.median(whole) - goal) / saved) if saved > 0 else math.inf
            made["ours"] += f"; within the goal from {max(needed, 0)} on"
    return made


def _row(
    what: str, goal: float, form: str, unit: str, plain: Sequence[float], ours: Sequence[float], *, least: bool = False
) -> dict[str, Any]:
    middle = statistics.median(ours) if ours else None
    passed = middle is not None and (middle >= goal if least else middle <= goal)
    return {
        "what": what,
        "goal": f"{'>=' if least else '<='} {goal:,g}{unit}",
        "plain": _told(plain, form, unit),
        "ours": _told(ours, form, unit),
        "share_percent": {},
        "verdict": NOT_MEASURED if middle is None else "PASS" if passed else "FAIL",
        "figures": {side: spread(values, 3) for side, values in (("plain", plain), ("ours", ours)) if values},
    }


def _told(values: Sequence[float], form: str, unit: str) -> str:
    if not values:
        return NOT_MEASURED
    least, middle, most = (form.format(of(values)) for of in (min, statistics.median, max))
    return f"{middle}{unit} ({least} to {most}, n = {len(values)})"


def table(report: Mapping[str, Any]) -> str:
    """In Markdown, with the setting; of tiny weights without any figure."""
    setting = report["setting"]
    gpu = setting["machine"].get("gpu")
    where = ", ".join(f"{name} {said}" for name, said in gpu.items()) if gpu else TINY
    libraries = setting["machine"]["libraries"]
    attention = sorted({arm["attention"] for arm in report["arms"].values() if "attention" in arm})
    head = [
        f"{where}; CUDA {setting['machine']['cuda']}; "
        + ", ".join(f"{name} {libraries[name]}" for name in ("torch", "diffusers", "transformers"))
        + f"; attention: {', '.join(attention) or NOT_MEASURED}; random weights",
        *(f"NOT VALID: {one}" for one in report["invalid"]),
        "",
        "| measured | goal | plain diffusers | this worker | of the matrix rate | |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        share = ", ".join(f"{side} {percent} %" for side, percent in row["share_percent"].items())
        told = [row["what"], row["goal"], row["plain"], row["ours"], share, row["verdict"]]
        if setting["arms"]["tiny"]:
            told[2:] = NOT_MEASURED, NOT_MEASURED, "", NOT_MEASURED
        elif report["invalid"]:
            told[-1] = "not valid"
        head.append("| " + " | ".join(told) + " |")
    return "\n".join(head)


def write(file: Path, setting: Mapping[str, Any], arms: Arms) -> dict[str, Any]:
    """The report, as it is written into the file too."""
    in_order = {name: arms[name] for name in ORDER if name in arms}
    invalid = list(problems(in_order))
    report: dict[str, Any] = {
        "note": TINY if setting["arms"]["tiny"] else "random weights of the published sizes",
        "setting": setting,
        "complete": len(in_order) == len(ORDER),
        "valid": not invalid,
        "invalid": invalid,
        "arms": in_order,
    }
    report["rows"] = rows(report)
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def prepared(setting: Setting) -> None:
    """Write the model, if it is not there, in a process of its own: this one takes none of the GPU's memory."""
    folder = Path(setting.model)
    if (folder / "model_index.json").exists():
        return
    begin = time.perf_counter()
    command = [sys.executable, "-m", "bench.full_size", str(folder), *(["--small"] if setting.tiny else [])]
    variables = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if setting.tiny else {})}
    subprocess.run(command, check=True, cwd=ROOT, env=variables)
    print(f"{folder} was written in {time.perf_counter() - begin:.0f} s", flush=True)


def measure(said: argparse.Namespace) -> dict[str, Any]:
    """All arms that are asked for and not there yet, one after the other; the file is written after each."""
    begin = time.perf_counter()
    said.out.parent.mkdir(parents=True, exist_ok=True)
    checks = (said.out.parent / f"{said.out.stem}-arms").resolve()
    checks.mkdir(exist_ok=True)
    counts = dict.fromkeys(COUNTS, 2) if said.tiny else dict(COUNTS)
    if said.n:
        counts |= dict.fromkeys(("40", "8", "4"), -(-said.n // 2))
    model = said.model or said.out.parent / ("small" if said.tiny else "full-size")
    side = TINY_SIDE if said.tiny else SIDE
    of_arms = Setting(str(model.resolve()), said.tiny, side, counts, 1 if said.tiny else 2, str(checks))
    setting = {"arms": asdict(of_arms), "machine": machine()}
    prepared(of_arms)
    arms = kept(said.out, setting)
    for name in ORDER:
        if name in arms or (said.only and not {name, name.partition("/")[0]} & set(said.only)):
            continue
        if said.seconds and time.perf_counter() - begin > said.seconds:
            print(f"{said.seconds:.0f} s are over: the same command goes on with {name}")
            break
        arms[name] = run(name, of_arms, checks)
        compare(arms, checks)
        print(f"{name}: {arms[name].get('error') or format(arms[name]['process_s'], '.0f') + ' s'}", flush=True)
        write(said.out, setting, arms)
    return write(said.out, setting, arms)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ARM", help=f"of {' '.join(ORDER)}; without its number both turns")
    parser.add_argument(
        "--n", type=int, help=f"pictures of each row: {2 * COUNTS['40']}; with 6 it takes about half an hour"
    )
    parser.add_argument("--seconds", type=float, help="begin no arm after so many")
    parser.add_argument("--tiny", action="store_true", help="tiny weights on the CPU")
    parser.add_argument("--model", type=Path, help="folder of the model; written if it is not there")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing")
    said = parser.parse_args()
    if said.table:
        print(table(json.loads(said.table.read_text())))
        return
    if unknown := set(said.only or ()) - {part for name in ORDER for part in (name, name.partition("/")[0])}:
        parser.error(f"no such arm: {' '.join(sorted(unknown))}")
    if not (said.tiny or torch.cuda.is_available()):
        sys.exit("there is no CUDA device, and this measures one: --tiny tries the program on a CPU")
    report = measure(said)
    print(table(report))
    sys.exit(0 if report["valid"] else 1)


if __name__ == "__main__":
    main()
