"""The GPUs that RunPod rents to Serverless workers, as far as they are of a size for this one, and what they cost."""

import re
from dataclasses import dataclass

from qwen_worker.profiles import CONTEXT, Capability, Card

# Of a flex worker, in US dollars a second that it runs: the page's last table. Since then it sends its readers to
# https://www.runpod.io/pricing, where today's prices are.
PRICES_FROM = "https://docs.runpod.io/serverless/pricing"
PRICES_AS_OF = "2026-08-20"


@dataclass(frozen=True)
class Rented:
    """One kind of GPU.

    Attributes:
        name: as people say it.
        sold_gb: its memory, as it is sold.
        mib: as nvidia-smi tells it, about; what CUDA then has to give is less.
        capability: of CUDA.
        pool: id at RunPod.
        usd_per_second: of a flex worker, by PRICES_FROM; None: not published there.
    """

    name: str
    sold_gb: int
    mib: int
    capability: Capability
    pool: str
    usd_per_second: float | None

    @property
    def card(self) -> Card:
        """With nothing on it but CUDA's context."""
        total = self.mib * 2**20
        return Card(self.name, self.capability, total, total - CONTEXT)


CARDS = (
    Rented("RTX A4000", 16, 16376, (8, 6), "AMPERE_16", 0.00016),
    Rented("RTX 3090", 24, 24576, (8, 6), "AMPERE_24", 0.00019),
    Rented("RTX A5000", 24, 24564, (8, 6), "AMPERE_24", 0.00019),
    Rented("L4", 24, 23034, (8, 9), "AMPERE_24", 0.00019),
    Rented("RTX 4090", 24, 24564, (8, 9), "ADA_24", 0.00031),
    Rented("RTX 5090", 32, 32607, (12, 0), "ADA_32_PRO", None),
    Rented("A40", 48, 46068, (8, 6), "AMPERE_48", 0.00034),
    Rented("RTX A6000", 48, 49140, (8, 6), "AMPERE_48", 0.00034),
    Rented("L40", 48, 46068, (8, 9), "ADA_48_PRO", 0.00053),
    Rented("L40S", 48, 46068, (8, 9), "ADA_48_PRO", 0.00053),
    Rented("RTX 6000 Ada", 48, 49140, (8, 9), "ADA_48_PRO", 0.00053),
    Rented("A100 80GB", 80, 81920, (8, 0), "AMPERE_80", 0.00076),
    Rented("H100", 80, 81559, (9, 0), "ADA_80_PRO", 0.00116),
    Rented("RTX PRO 6000", 96, 97887, (12, 0), "BLACKWELL_96", None),
    Rented("H200", 141, 143771, (9, 0), "HOPPER_141", 0.00155),
    Rented("B200", 180, 183359, (10, 0), "BLACKWELL_180", 0.00240),
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
