"""The worker as a process, in RunPod's production loop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local import copy_model
from local.stack import Stack

# The harshest for secrets: everything is logged, by us and by the SDK.
LOUD = {
    "LOG_LEVEL": "DEBUG",
    "RUNPOD_LOG_LEVEL": "DEBUG",
    # Without fast 16-bit arithmetic the VAE of a megapixel alone takes a processor eight seconds.
    "INFERENCE_TIMEOUT_SECONDS": "60",
    "TIMEOUT_SECONDS": "5",
    "STORAGE_TIMEOUT_SECONDS": "5",
}


@pytest.fixture(scope="module")
def stack(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker on parts of its own, for all tests of a module; each leaves it working."""
    with Stack(tmp_path_factory.mktemp("stack"), model=tiny, more=LOUD) as running:
        yield running


@pytest.fixture(scope="module")
def plus_stack(tiny_plus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same with a model that takes several images."""
    with Stack(tmp_path_factory.mktemp("plus"), model=tiny_plus) as running:
        yield running


@pytest.fixture(scope="module")
def copy_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The same with a model that copies its reference."""
    folder = tmp_path_factory.mktemp("copy")
    with Stack(folder, model=copy_model.make(folder / "model")) as running:
        yield running
