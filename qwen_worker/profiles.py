"""How much of a GPU's memory a model takes: in what numbers its weights are kept, and what waits outside."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_worker.family import Row

ProfileName = Literal["bf16", "bf16-offload", "fp8", "fp8-offload", "int4", "int4-offload"]
Weights = Literal["bf16", "fp8", "int4"]
#: what may become of a weight of the transformer: see `part_of`
Part = Literal["plain", "modulation", "sensitive", "bulk"]
Capability = tuple[int, int]


@dataclass(frozen=True)
class Profile:
    """One way of keeping a model.

    Attributes:
        name: as in PROFILE.
        weights: in what numbers the transformer's large matrices are kept; all others stay in bfloat16.
        offload: the text encoder waits in the host's memory, and comes to the GPU layer by layer for each new prompt.
    """

    name: ProfileName
    weights: Weights
    offload: bool


# In the order of preference: the same pictures first, then those closest to them; of each, first without waiting.
PROFILES: dict[ProfileName, Profile] = {
    "bf16": Profile("bf16", "bf16", offload=False),
    "bf16-offload": Profile("bf16-offload", "bf16", offload=True),
    "fp8": Profile("fp8", "fp8", offload=False),
    "fp8-offload": Profile("fp8-offload", "fp8", offload=True),
    "int4": Profile("int4", "int4", offload=False),
    "int4-offload": Profile("int4-offload", "int4", offload=True),
}
BF16 = PROFILES["bf16"]
# The first GPUs that multiply 8-bit floats: Ada, Hopper.
FP8_CAPABILITY: Capability = (8, 9)

# Bytes of one number. Modulation is computed of the time alone, one row a step: 8-bit integers cost no time there, and
# an error of half a percent. What leads out of the picture's MLP has the largest outliers: it is spared in fp8.
BYTES: dict[Weights, dict[Part, float]] = {
    "bf16": {"plain": 2, "modulation": 2, "sensitive": 2, "bulk": 2},
    "fp8": {"plain": 2, "modulation": 1, "sensitive": 2, "bulk": 1},
    # NF4: half a byte, and four bytes of scale for each 64 numbers.
    "int4": {"plain": 2, "modulation": 1, "sensitive": 1, "bulk": 0.5625},
}
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.weight")


def part_of(name: str, last_block: int) -> Part:
    """What may become of a weight of QwenImageTransformer2DModel, by its name in a file.

    Outside the blocks, and in the first and the last of them, everything stays as it is.
    """
    found = _BLOCK.fullmatch(name)
    if not found or int(found[1]) in {0, last_block}:
        return "plain"
    layer = found[2]
    if layer in {"img_mod.1", "txt_mod.1"}:
        return "modulation"
    if layer == "img_mlp.net.2":
        return "sensitive"
    if re.fullmatch(r"attn\.(to_(q|k|v)|add_(q|k|v)_proj|to_out\.0|to_add_out)|(img|txt)_mlp\.net\.(0\.proj|2)", layer):
        return "bulk"
    return "plain"


def last_block(names: Iterable[str]) -> int:
    """The number of the last block, by the names of the weights; -1 without any."""
    return max((int(found[1]) for name in names if (found := _BLOCK.match(name))), default=-1)


@dataclass(frozen=True)
class Numbers:
    """How many numbers the weights of models have.

    Attributes:
        transformer: by what may become of them; the VAE's are "plain" ones.
        text: of the text encoder.
        text_leaf: of its largest layer.
    """

    transformer: Mapping[Part, int]
    text: int = 0
    text_leaf: int = 0

    def on_gpu(self, profile: Profile) -> float:
        """Bytes that the weights take on the GPU."""
        bytes_of = BYTES[profile.weights]
        # One layer of the text encoder is computed with while the next one arrives.
        text = 2 * self.text_leaf if profile.offload else self.text
        return sum(count * bytes_of[part] for part, count in self.transformer.items()) + 2 * text

    @property
    def is_quantizable(self) -> bool:
        """Whether there is anything to be kept in fewer bits."""
        return any(count for part, count in self.transformer.items() if part != "plain")

    def __add__(self, other: "Numbers") -> "Numbers":
        parts = {*self.transformer, *other.transformer}
        return Numbers(
            {part: self.transformer.get(part, 0) + other.transformer.get(part, 0) for part in parts},
            self.text + other.text,
            max(self.text_leaf, other.text_leaf),
        )


# Of the classes with their published sizes, which a test counts: the transformer of Qwen-Image; with the VAE, and with
# Qwen2.5-VL-7B without the head that makes words. Of Qwen-Image-2.1 what is published.
TRANSFORMER = Numbers(
    {"bulk": 10_947_133_440, "modulation": 6_568_280_064, "sensitive": 2_189_426_688, "plain": 725_560_896}
)
QWEN_IMAGE = TRANSFORMER + Numbers({"plain": 126_892_531}, text=7_747_169_280, text_leaf=544_997_376)
QWEN_IMAGE_21 = Numbers({"plain": 7_460_000_000}, text=8_767_000_000, text_leaf=622_000_000)


def published(model: Row, t2i: Row | None) -> Numbers | None:
    """Of models together, if both of them are known."""
    if not all(row.tested for row in (model, t2i) if row):
        return None
    edit = QWEN_IMAGE_21 if model.pipeline == "QwenImage21Pipeline" else QWEN_IMAGE
    return edit + TRANSFORMER if t2i else edit


@dataclass(frozen=True)
class Card:
    """A GPU; memory in bytes."""

    name: str
    capability: Capability
    total: int
    free: int


# As GPUs are sold. Of some, as the L4 and the A40, CUDA has a little less than so many 10^9 bytes to give.
GPUS_GB = (16, 24, 32, 48, 80, 96, 141, 180)
USABLE = 0.96
CONTEXT = 1_000_000_000  # bytes: CUDA's own take less than this, and are no other process's


# Bytes that an edit takes beside the weights: 1.5 and 5.7 GB of tensors, as computed for bench/results/memory.json, and
# 1 GB for what is not counted there, rounded up. On a GPU: not measured.
EDIT_BYTES = 2_500_000_000  # of one picture of a megapixel
LARGEST_EDIT_BYTES = 7_000_000_000  # of one of 2048 x 2048


class ProfileError(Exception):
    """No profile, or not the one that was asked for, fits the card."""


def choose(asked: Literal[ProfileName, "auto"], numbers: Numbers, card: Card, beside: int = 0) -> Profile:
    """The profile of a worker.

    Args:
        asked: as in PROFILE; auto: the first that leaves room for the largest edit, or else for a usual one.
        numbers: of all its models.
        card: that it has.
        beside: bytes of what else is kept on the GPU.

    Raises:
        ProfileError: in one sentence, which names the card and what it would take.
    """
    usual, largest = beside + EDIT_BYTES, beside + LARGEST_EDIT_BYTES
    if asked != "auto":
        if problem := _unfit(PROFILES[asked], numbers, card):
            raise ProfileError(f"PROFILE={asked} {problem}")
        if problem := _lack(numbers.on_gpu(PROFILES[asked]), card, usual):
            smaller = [one.name for one in fitting(numbers, card, usual)]
            raise ProfileError(
                f"PROFILE={asked} does not fit {problem}" + (f", or PROFILE={smaller[0]}" if smaller else "")
            )
        return PROFILES[asked]
    if found := [*fitting(numbers, card, largest), *fitting(numbers, card, usual)]:
        return found[0]
    able = [one for one in PROFILES.values() if not _unfit(one, numbers, card)]
    least = min(able, key=numbers.on_gpu)
    problem = _lack(numbers.on_gpu(least), card, usual)
    raise ProfileError(f"no profile fits: even {least.name} does not fit {problem}")


def fitting(numbers: Numbers, card: Card, margin: int = EDIT_BYTES) -> Sequence[Profile]:
    """The profiles that a card can have with so many bytes left over, the best first."""
    return [
        one
        for one in PROFILES.values()
        if not _unfit(one, numbers, card) and not _lack(numbers.on_gpu(one), card, margin)
    ]


def _unfit(profile: Profile, numbers: Numbers, card: Card) -> str | None:
    """Why a profile is not for this card or these models, however much memory there is."""
    if profile.weights != "bf16" and not numbers.is_quantizable:
        return "is for the transformers of Qwen-Image, and this model has another: choose bf16 or bf16-offload"
    if profile.weights == "fp8" and card.capability < FP8_CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (card.capability, FP8_CAPABILITY))
        return (
            f"needs a GPU that multiplies 8-bit floats, of compute capability {need} (L4, L40S, RTX 4090, H100 or "
            f"newer), and the {card.name} has {have}: choose int4, or such a GPU"
        )
    return None


def _lack(needed: float, card: Card, margin: int) -> str | None:
    """What is wrong if so many bytes of weights are to go onto a card; None: they fit."""
    if needed + margin <= card.free:
        return None
    if needed + margin + CONTEXT <= card.total:
        advice = "another process holds the rest: end it, or let another worker start"
    else:
        enough = [size for size in GPUS_GB if size * 10**9 * USABLE >= needed + margin]
        advice = f"choose GPUs of {enough[0]} GB or more" if enough else "no GPU is large enough"
    return (
        f"the {card.name}: its weights take {_gb(needed)} and an edit with all beside it {_gb(margin)} more, but of "
        f"its {_gb(card.total)} {_gb(card.free)} are free: {advice}"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
