"""The start of the process: what begins before the libraries are imported, and when each part of it was done."""

import os
import time
from pathlib import Path

from qwen_worker.readahead import ReadAhead
from qwen_worker.settings import Settings, load_settings
from qwen_worker.snapshots import find, find_file, weight_files

_done: dict[str, float] = {}


def age() -> float:
    """Seconds since the kernel started this process, to a hundredth."""
    # Field 22 of proc(5), in ticks since the machine started; the name in field 2 may hold anything but the last ")".
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def done(part: str) -> float:
    """This part of the start is done now: so many seconds after the process began."""
    _done[part] = round(age(), 2)
    return _done[part]


def seconds() -> dict[str, float]:
    """Each part → seconds from the start of the process until it was done."""
    return dict(_done)


def begin() -> None:
    """Begin to read the weights of the models that the environment names, if they are on this machine.

    Whatever is wrong with the environment is told by the checks of settings and model, which follow.
    """
    try:
        settings = load_settings()
        done("settings")
        files = weights_of(settings)
    except Exception:  # noqa: BLE001 - told later
        return
    reading = ReadAhead(files, lambda: done("first_byte"))
    # Only now: its import takes time, too.
    from qwen_worker import log  # noqa: PLC0415

    log.setup(settings.log_level, settings.secrets)
    reading.tell()


def weights_of(settings: Settings) -> list[Path]:
    """The files of all weights that are on this machine, in the order in which they are loaded."""
    found = [(find(one, patterns, settings.hub_caches), patterns) for one, patterns in settings.origins.items()]
    loras = [find_file(lora.origin, lora.weight_file, settings.hub_caches) for lora in settings.lora_files]
    networks = [file for folder, patterns in found if folder for file in weight_files(folder, patterns)]
    return [*networks, *filter(None, loras)]
