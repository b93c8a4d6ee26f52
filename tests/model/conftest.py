"""The tiny models, loaded by the production loader."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_worker.family import LoraSource, PipelineName
from qwen_worker.model.edit import Editor
from qwen_worker.model.load import Model, load
from qwen_worker.snapshots import Origin
from qwen_worker.tuning import PLAIN, Tuning


def load_tiny(
    folder: Path,
    pipeline: PipelineName = "QwenImageEditPipeline",
    *,
    t2i: Origin | None = None,
    loras: Sequence[LoraSource] = (),
    caches: Sequence[Path] = (),
    tuning: Tuning = PLAIN,
) -> Model:
    said: dict[str, Any] = {"t2i": t2i, "loras": loras, "caches": caches, "tuning": tuning}
    return load(str(folder), "", pipeline=pipeline, token="", allow_cpu=True, **said)


@pytest.fixture(scope="session")
def model(tiny: Path) -> Model:
    """The tiny Edit model. Tests leave it as they found it."""
    return load_tiny(tiny)


@pytest.fixture(scope="session")
def plus_model(tiny_plus: Path) -> Model:
    """The tiny EditPlus model. Tests leave it as they found it."""
    return load_tiny(tiny_plus, "QwenImageEditPlusPipeline")


@pytest.fixture(scope="session")
def model_21(tiny_21: Path) -> Model:
    """The tiny Qwen-Image-2.1. Tests leave it as they found it."""
    return load_tiny(tiny_21, "QwenImage21Pipeline")


@pytest.fixture
def editor(model: Model) -> Editor:
    """An editor over the tiny Edit model."""
    return Editor(model, timeout_s=60)


@pytest.fixture
def plus_editor(plus_model: Model) -> Editor:
    """An editor over the tiny EditPlus model."""
    return Editor(plus_model, timeout_s=60)


@pytest.fixture
def editor_21(model_21: Model) -> Editor:
    """An editor over the tiny Qwen-Image-2.1."""
    return Editor(model_21, timeout_s=60)
