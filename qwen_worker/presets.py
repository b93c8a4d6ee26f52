"""What a worker gives for speed: PRESET says it once for all requests, and every answer tells it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from qwen_worker.family import EDIT, EDIT_PLUS, FAMILY, TEXT, TEXT_TO_IMAGE, LoraSource

PresetName = Literal["exact", "balanced", "fast-8", "fast-4"]


@dataclass(frozen=True)
class Preset:
    """One way of making pictures.

    Attributes:
        name: as in PRESET.
        distilled_steps: those that a Lightning LoRA was distilled to, which is fused into the transformer. Such a model
            has the guidance in it, and takes none.
        skips: blocks of the transformer are left out in steps in which they would change little.
    """

    name: PresetName
    distilled_steps: int | None = None
    skips: bool = False


EXACT = Preset("exact")
PRESETS: dict[PresetName, Preset] = {
    "exact": EXACT,
    "balanced": Preset("balanced", skips=True),
    "fast-8": Preset("fast-8", distilled_steps=8),
    "fast-4": Preset("fast-4", distilled_steps=4),
}

KNOWN = FAMILY.keys() | TEXT_TO_IMAGE.keys()


def _published(source: str, revision: str, files: Mapping[int, str]) -> dict[int, LoraSource]:
    return {
        steps: LoraSource(name="lightning", source=source, revision=revision, weight_file=file)
        for steps, file in files.items()
    }


_LIGHTNING = ("lightx2v/Qwen-Image-Lightning", "e74da8d4e71a54b341de86aa9f8d2509165aa513")
#: model id → steps → the Lightning LoRA that was distilled from it, at a pinned commit
LIGHTNING: dict[str, dict[int, LoraSource]] = {
    EDIT.id: _published(*_LIGHTNING, {n: f"Qwen-Image-Edit-Lightning-{n}steps-V1.0-bf16.safetensors" for n in (4, 8)}),
    EDIT_PLUS.id: _published(
        *_LIGHTNING,
        {n: f"Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-{n}steps-V1.0-bf16.safetensors" for n in (4, 8)},
    ),
    "Qwen/Qwen-Image-Edit-2511": _published(
        "lightx2v/Qwen-Image-Edit-2511-Lightning",
        "fd3a43ffb5bc98c7d09b2238e5b09a63284a16f8",
        {4: "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"},
    ),
    TEXT.id: _published(*_LIGHTNING, {n: f"Qwen-Image-Lightning-{n}steps-V2.0-bf16.safetensors" for n in (4, 8)}),
}


def lightning(preset: Preset, model: str, named: LoraSource | None, variable: str) -> LoraSource | None:
    """The LoRA that a preset fuses into a model's transformer, if it fuses one.

    Args:
        preset: of the worker.
        model: id of the model, or its folder.
        named: by the operator.
        variable: where the operator names it.

    Raises:
        ValueError: there is none, or it was made for another model or for other steps.
    """
    steps = preset.distilled_steps
    if steps is None:
        if named:
            raise ValueError(f"PRESET={preset.name} fuses no LoRA: leave {variable} empty, or choose fast-8 or fast-4")
        return None
    found = named or LIGHTNING.get(model, {}).get(steps)
    if found is None:
        raise ValueError(
            f"PRESET={preset.name} has no known Lightning LoRA of {steps} steps for {model}: name it in {variable}, or "
            "choose another preset"
        )
    if problem := _mismatch(found, model, steps):
        raise ValueError(f"PRESET={preset.name} does not go with {found.weight_file}: it was {problem}")
    return found


def _mismatch(lora: LoraSource, model: str, steps: int) -> str | None:
    """What a LoRA was made for by its name, if it is something else. Its shapes do not tell: all are the same."""
    name = PurePosixPath(lora.weight_file).name
    if (said := re.search(r"(\d+)[ _-]?steps?", name, re.IGNORECASE)) and int(said[1]) != steps:
        return f"distilled to {said[1]} steps, as its name says"
    if model not in KNOWN:
        return None
    own = model.rpartition("/")[2]
    # The published ones are called as their model is.
    of, dash, _ = name.partition("-Lightning")
    if dash and of != own and of in {other.rpartition("/")[2] for other in KNOWN}:
        return f"distilled from {of}, as its name says, and the model is {model}"
    if (version := re.search(r"(?<!\d)25\d\d(?!\d)", name)) and version[0] not in model:
        return f"distilled from a {version[0]} model, as its name says, and the model is {model}"
    return None
