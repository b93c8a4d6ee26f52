"""All that decides how fast a model is, how much memory it takes, and what is given for that."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_worker.family import LoraSource
from qwen_worker.presets import EXACT, Preset
from qwen_worker.profiles import ProfileName

AttentionName = Literal["native", "flash", "cudnn", "efficient"]


@dataclass(frozen=True)
class Tuning:
    """As the operator asks for it.

    Attributes:
        preset: of all models.
        profile: of all models; auto: the best that fits.
        lightning: what is fused into the transformer of the edit model.
        t2i_lightning: the same of the text-to-image model.
        attention: which of torch's kernels compute it; auto: by the GPU.
        compile: the transformer's blocks are compiled.
        compile_cache: folder that what was compiled is kept in; None: where torch keeps it.
    """

    preset: Preset = EXACT
    profile: Literal[ProfileName, "auto"] = "auto"
    lightning: LoraSource | None = None
    t2i_lightning: LoraSource | None = None
    attention: Literal[AttentionName, "auto"] = "auto"
    compile: bool = False
    compile_cache: Path | None = None


PLAIN = Tuning()
