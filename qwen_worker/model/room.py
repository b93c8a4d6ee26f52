"""Whether the weights fit into what is free on the GPU, before any of them is loaded, and in which profile."""

import math
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from qwen_worker import shards
from qwen_worker.model.hub import LoadError
from qwen_worker.profiles import BF16, Card, Numbers, Profile, ProfileError, ProfileName, choose, last_block, part_of


def numbers(folder: Path, *, transformer_alone: bool = False) -> Numbers:
    """What a model's files say of themselves.

    Args:
        folder: of the model.
        transformer_alone: the other parts are another model's.

    Raises:
        LoadError: a file cannot be read, or is cut.
    """
    transformer = _sizes(folder / "transformer")
    last = last_block(transformer)
    found = Counter[str]()
    for name, size in transformer.items():
        found[part_of(name, last)] += size
    if transformer_alone:
        return Numbers(found)  # type: ignore[arg-type]
    found["plain"] += sum(_sizes(folder / "vae").values())
    text = _sizes(folder / "text_encoder")
    return Numbers(found, sum(text.values()), max(text.values(), default=0))  # type: ignore[arg-type]


def card() -> Card | None:
    """The GPU as it is now, if there is one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Card(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free)


def chosen(asked: Literal[ProfileName, "auto"], needed: Numbers, beside: int = 0) -> Profile:
    """The profile for these weights on the GPU; without one, the one that was asked for.

    Args:
        asked: as in PROFILE.
        needed: of all models.
        beside: bytes of what else is kept on the GPU.

    Raises:
        LoadError: none fits, or not this one.
    """
    there = card()
    try:
        if there:
            return choose(asked, needed, there, beside)
        # On a CPU there is room for all, and 8-bit floats can be multiplied.
        return BF16 if asked == "auto" else choose(asked, needed, Card("CPU", (99, 0), *(2**60,) * 2))
    except ProfileError as error:
        raise LoadError(str(error)) from error


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for file in shards.files(folder):
        try:
            with safe_open(file, "np") as tensors:
                for name in set(tensors.keys()) - {shards.UNUSED}:
                    sizes[name] = math.prod(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise LoadError(f"the model cannot be loaded: {file} is damaged: {error}") from error
    return sizes
