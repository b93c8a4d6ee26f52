"""Whether the weights fit into what is free on the GPU, before any of them is loaded."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qwen_worker import shards
from qwen_worker.model.hub import LoadError

# Bytes that the smallest edit needs beside the weights. On a real GPU: not measured.
MARGIN = 2_000_000_000
BYTES = 2  # of one weight, in bfloat16
# As GPUs are sold; each has at least so many 10^9 bytes.
GPUS_GB = (16, 24, 32, 48, 80, 96, 141, 180)


def weights(folder: Path, parts: Sequence[str]) -> int:
    """What these parts of a model take on the GPU in bytes, by what their files say of themselves.

    Raises:
        LoadError: a file cannot be read, or is cut.
    """
    return BYTES * sum(_numbers(file) for part in parts for file in shards.files(folder / part))


def check(needed: float) -> None:
    """Whether so many bytes of weights fit on the GPU as it is now; without one there is nothing to check.

    Raises:
        LoadError: they do not.
    """
    if torch.cuda.is_available() and (problem := lack(needed, *torch.cuda.mem_get_info())):
        raise LoadError(problem)


def lack(needed: float, free: int, total: int) -> str | None:
    """What is wrong if weights of so many bytes are to go onto a GPU with so many free and in all; None: they fit."""
    if needed + MARGIN <= free:
        return None
    if needed + MARGIN <= total:
        advice = "another process holds the rest: end it, or let another worker start"
    else:
        fitting = [size for size in GPUS_GB if size * 10**9 >= needed + MARGIN]
        advice = f"choose GPUs of {fitting[0]} GB or more" if fitting else "no GPU is large enough"
    return (
        f"the model does not fit: its weights take {_gb(needed)} and an edit at least {_gb(MARGIN)} more, but of the "
        f"GPU's {_gb(total)} {_gb(free)} are free: {advice}"
    )


def _numbers(file: Path) -> int:
    try:
        with safe_open(file, "np") as tensors:
            used = set(tensors.keys()) - {shards.UNUSED}
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in used)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"the model cannot be loaded: {file} is damaged: {error}") from error


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
