"""What the model runs on."""

import os
import resource
from pathlib import Path
from typing import Any

import torch


def device() -> dict[str, Any]:
    """Name and memory, in bytes, of the GPU, or of the process where there is none; asks for no GPU time."""
    process = {"memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if not torch.cuda.is_available():
        return {"name": "cpu", **process}
    return {
        "name": torch.cuda.get_device_name(),
        "memory_total": torch.cuda.get_device_properties().total_memory,
        "memory_allocated": torch.cuda.memory_allocated(),
        "memory_reserved": torch.cuda.memory_reserved(),
        "memory_peak": torch.cuda.max_memory_allocated(),
    }


def memory() -> dict[str, int]:
    """Bytes in use now: of the host by this process, of the GPU by tensors, and the most that these ever were."""
    # The second field of proc(5)'s statm: resident pages.
    held = {"host": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    if torch.cuda.is_available():
        held |= {"gpu": torch.cuda.memory_allocated(), "gpu_peak": torch.cuda.max_memory_allocated()}
    return held
