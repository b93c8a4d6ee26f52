"""What makes the imports of libraries cheaper. It imports none itself."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "brand_raw"


class CpuInfo(Mapping[str, Any]):
    """As py-cpuinfo's answer. Its own search starts a Python and other programs; it is done if more than NAME is asked.

    Args:
        search: py-cpuinfo's own.
    """

    def __init__(self, search: Callable[[], dict[str, Any]]) -> None:
        self._search = search

    def __getitem__(self, key: str) -> Any:
        return (key == NAME and _name()) or self._search()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._search())

    def __len__(self) -> int:
        return len(self._search())


@contextmanager
def importing() -> Iterator[None]:
    """For heavy imports: the garbage collector rests meanwhile, and leaves what they made alone for good."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def quick_cpuinfo() -> Iterator[None]:
    """For the import of RunPod's SDK, which asks py-cpuinfo for the name of the processor: it is there at once.

    The SDK tells it with `--rp_debugger` only; py-cpuinfo's own search takes a second.
    """
    try:
        import cpuinfo  # noqa: PLC0415
    except ImportError:  # an SDK that does not want to know
        yield
        return
    search = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: CpuInfo(search)
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = search


def _name() -> str:
    """As the kernel says it, on x86; elsewhere nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""
