"""What a GPU can do: which memory profiles it has room for, and which presets a model has.

    python -m bench.plan [CARD] [--model ID] [--t2i ID] [--json]

CARD as in "A40" or "RTX 4090"; without it the GPU of this machine. What an edit takes comes from
bench/results/memory.json, which is computed; what was measured on this kind of GPU from bench/results/gpu.json.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_worker import cards
from qwen_worker.family import EDIT, FAMILY, TEXT_TO_IMAGE, Row
from qwen_worker.presets import EXACT, PRESETS, lightning
from qwen_worker.profiles import PROFILES, QWEN_IMAGE_21, Card, Numbers, ProfileError, choose, published

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = "not measured"
NOT_COMPUTED = "not computed"
# Bytes for what bench/results/memory.json leaves out, and what sums are rounded up to.
LEFT_OUT, STEP = 10**9, 5 * 10**8


class PlanError(Exception):
    """Nothing can be said; why, in one sentence."""


def edits() -> dict[str, int]:
    """Guided edits → the bytes that each takes beside the weights, with room for what was not computed."""
    rows = json.loads((RESULTS / "memory.json").read_text())["cases"]
    return {row["name"]: math.ceil((row["peak_bytes"] + LEFT_OUT) / STEP) * STEP for row in rows if row["guided"]}


def plan(card: Card, model: Row, t2i: Row | None) -> dict[str, Any]:
    """All that is known of a card and models together.

    Raises:
        PlanError: there is no such pair of models, or nothing is known of one.
    """
    numbers = published(model, t2i)
    if t2i and model.pipeline == "QwenImage21Pipeline":
        raise PlanError(f"{t2i.id} goes with the text encoder and the VAE of another model than {model.id}")
    if numbers is None:
        raise PlanError(f"the size of {model.id} is not known")
    margins = edits()
    try:
        auto = choose("auto", numbers, card).name
        none = ""
    except ProfileError as error:
        auto, none = None, str(error)
    computed = margins if numbers != QWEN_IMAGE_21 else dict.fromkeys(margins)
    return {
        "card": {"name": card.name, "compute_capability": list(card.capability), "bytes": card.total,
                 "free_bytes": card.free},
        "models": [row.id for row in (model, t2i) if row],
        "auto": auto,
        "why_none": none,
        "profiles": [_profile(name, numbers, card, computed, model) for name in PROFILES],
        "presets": {name: _preset(name, model, t2i) for name in PRESETS},
        "measured": measured(card.name, RESULTS / "gpu.json"),
    }  # fmt: skip


def _profile(name: Any, numbers: Numbers, card: Card, margins: Mapping[str, int | None], model: Row) -> dict[str, Any]:
    """One line of the table. An edit of several pictures is only for models that take them."""
    weights = round(numbers.on_gpu(PROFILES[name]))
    try:
        choose(name, numbers, card)
        problem = None
    except ProfileError as error:
        problem = str(error)
    with_edit = {
        case: None if margin is None else weights + margin
        for case, margin in margins.items()
        if model.takes_several or not case.startswith("3 ")
    }
    return {"name": name, "problem": problem, "weights_bytes": weights, "with_edit_bytes": with_edit}


def _preset(name: Any, model: Row, t2i: Row | None) -> dict[str, Any]:
    """Whether a preset goes with the models by itself, and the LoRAs that it then fuses."""
    preset = PRESETS[name]
    if preset != EXACT and model.pipeline == "QwenImage21Pipeline":
        return {"goes": False, "said": [f"PRESET={name} is not for {model.id}"]}
    goes, said = True, []
    for row, variable in ((model, "LIGHTNING_LORA"), (t2i, "T2I_LIGHTNING_LORA")):
        if row is None:
            continue
        try:
            if lora := lightning(preset, row.id, None, variable):
                said.append(f"{lora.source}/{lora.weight_file}")
        except ValueError as error:
            goes = False
            said.append(str(error))
    return {"goes": goes, "said": said}


def measured(card: str, file: Path) -> list[str]:
    """What `python -m bench.gpu` measured on a card of this kind, line by line; nothing of a run that is not valid."""
    if not file.exists():
        return []
    report = json.loads(file.read_text())
    gpu = report["setting"]["machine"].get("gpu", {}).get("name", "")
    kind = cards.of_driver(gpu)
    asked = cards.found(card) or cards.of_driver(card)
    same = gpu == card or (kind is not None and kind == asked)
    if not same or report["setting"]["arms"]["tiny"] or not report["valid"]:
        return []
    return [f"{row['what']}: {row['ours']}" for row in report["rows"] if row["verdict"] != NOT_MEASURED]


def markdown(made: Mapping[str, Any]) -> str:
    """A plan for people."""
    card = made["card"]
    first = made["profiles"][0]
    cases = list(first["with_edit_bytes"])
    capability = ".".join(map(str, card["compute_capability"]))
    memory = f"{card['bytes'] / 1e9:.1f} GB, {card['free_bytes'] / 1e9:.1f} GB of it free"
    lines = [
        f"{card['name']}: {memory}, compute capability {capability}; {' and '.join(made['models'])}",
        "",
        "| profile | fits | weights | " + " | ".join(f"with {case}" for case in cases) + " |",
        "|---|---|---|" + "---|" * len(cases),
    ]
    for one in made["profiles"]:
        told = [_size(size, card["free_bytes"]) for size in one["with_edit_bytes"].values()]
        fits = "no" if one["problem"] else "yes"
        lines.append(f"| {one['name']} | {fits} | {_size(one['weights_bytes'])} | {' | '.join(told)} |")
    lines += ["", f"PROFILE=auto takes: {made['auto'] or 'none'}", ""]
    if made["why_none"]:
        lines += [made["why_none"], ""]
    lines += [f"- {one['problem']}" for one in made["profiles"] if one["problem"]]
    for name, preset in made["presets"].items():
        said = "; ".join(preset["said"])
        lines.append(f"- PRESET={name}: {said or 'fuses nothing'}" if preset["goes"] else f"- {said}")
    lines += [
        f"- measured on this kind of GPU, with random weights: {'; '.join(made['measured']) or NOT_MEASURED}",
        "",
        HOW,
    ]
    return "\n".join(lines)


HOW = (
    "GB are 10^9 bytes; weights by their numbers; an edit as computed by python -m bench.memory, with 1 GB for what "
    "that leaves out; (!): too much for this card. No size is measured on a GPU; memory of a named card as nvidia-smi "
    "tells it, about, less 1 GB for CUDA."
)


def _size(size: int | None, free: int | None = None) -> str:
    if size is None:
        return NOT_COMPUTED
    return f"{size / 1e9:.1f} GB" + (" (!)" if free is not None and size > free else "")


def asked_card(said: str) -> Card:
    """The one that is named, or the one of this machine.

    Raises:
        PlanError: there is none, or it is not known.
    """
    if said:
        if one := cards.found(said):
            return one.card
        raise PlanError(f"{said!r} names none of the GPUs that are known, or several: {cards.listed()}")
    from qwen_worker.model import room  # noqa: PLC0415 - it imports torch, which a named card does not need

    if there := room.card():
        return there
    raise PlanError(f"there is no GPU here: name one of {cards.listed()}")


def main(said: Sequence[str] | None = None) -> int:
    """Print a plan; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description="which profiles and presets a GPU can do")
    parser.add_argument("card", nargs="*", help="as in RTX 4090; without it the GPU of this machine")
    parser.add_argument("--model", default=EDIT.id, choices=list(FAMILY), metavar="ID", help="of the edit model")
    parser.add_argument("--t2i", choices=list(TEXT_TO_IMAGE), metavar="ID", help="of a text-to-image model beside it")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(said)
    try:
        made = plan(asked_card(" ".join(options.card)), FAMILY[options.model], TEXT_TO_IMAGE.get(options.t2i))
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(made, indent=1) if options.json else markdown(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
