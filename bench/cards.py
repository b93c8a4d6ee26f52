"""The GPUs that RunPod rents to Serverless workers, as far as they are of a size for this one."""

import re
from dataclasses import dataclass

from qwen_worker.profiles import CONTEXT, Capability, Card


@dataclass(frozen=True)
class Rented:
    """One kind of GPU.

    Attributes:
        name: as people say it.
        sold_gb: its memory, as it is sold.
        mib: as nvidia-smi tells it, about; what CUDA then has to give is less.
        capability: of CUDA.
        pool: id at RunPod.
    """

    name: str
    sold_gb: int
    mib: int
    capability: Capability
    pool: str

    @property
    def card(self) -> Card:
        """With nothing on it but CUDA's context."""
        total = self.mib * 2**20
        return Card(self.name, self.capability, total, total - CONTEXT)


CARDS = (
    Rented("RTX A4000", 16, 16376, (8, 6), "AMPERE_16"),
    Rented("RTX 3090", 24, 24576, (8, 6), "AMPERE_24"),
    Rented("RTX A5000", 24, 24564, (8, 6), "AMPERE_24"),
    Rented("L4", 24, 23034, (8, 9), "AMPERE_24"),
    Rented("RTX 4090", 24, 24564, (8, 9), "ADA_24"),
    Rented("RTX 5090", 32, 32607, (12, 0), "ADA_32_PRO"),
    Rented("A40", 48, 46068, (8, 6), "AMPERE_48"),
    Rented("RTX A6000", 48, 49140, (8, 6), "AMPERE_48"),
    Rented("L40", 48, 46068, (8, 9), "ADA_48_PRO"),
    Rented("L40S", 48, 46068, (8, 9), "ADA_48_PRO"),
    Rented("RTX 6000 Ada", 48, 49140, (8, 9), "ADA_48_PRO"),
    Rented("A100 80GB", 80, 81920, (8, 0), "AMPERE_80"),
    Rented("H100 80GB", 80, 81559, (9, 0), "ADA_80_PRO"),
    Rented("RTX PRO 6000", 96, 97887, (12, 0), "BLACKWELL_96"),
    Rented("H200", 141, 143771, (9, 0), "HOPPER_141"),
    Rented("B200", 180, 183359, (10, 0), "BLACKWELL_180"),
)


def found(said: str) -> Rented | None:
    """The card that is meant, in any case, with or without its family's name: "4090", "rtx 4090", "NVIDIA A40"."""
    words = _words(said) - {"nvidia", "geforce"}
    meant = [one for one in CARDS if words and words <= _words(one.name)]
    return meant[0] if len(meant) == 1 else None


def of_driver(told: str) -> Rented | None:
    """The card by the name that its driver has for it, as "NVIDIA H100 80GB HBM3": the longest name that is in it."""
    words = _words(told.replace("-", " "))
    inside = [one for one in CARDS if _words(one.name) <= words]
    return max(inside, key=lambda one: len(_words(one.name)), default=None)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def listed() -> str:
    """All of them, in a sentence."""
    return ", ".join(one.name for one in CARDS)
