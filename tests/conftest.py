"""The parts every test may ask for: real ones, made small."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported anywhere: the tiny model only waits for a second thread.
os.environ["OMP_NUM_THREADS"] = "1"
# On a machine with a GPU too, tests are about the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# And before huggingface_hub is: no test may ask the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Local parts are reached directly, whatever proxy this shell uses.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import pytest

from local.bucket import LocalBucket
from local.tls import Authority
from local.web import ImageHost


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """The module that makes tiny models: imported here, since it needs torch, and most tests do not."""
    from local import tiny_model  # noqa: PLC0415

    return tiny_model


@pytest.fixture(scope="session")
def tiny(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny QwenImageEditPipeline."""
    folder: Path = tiny_model.make(tmp_path_factory.mktemp("models") / "edit")
    return folder


@pytest.fixture(scope="session")
def tiny_plus(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny QwenImageEditPlusPipeline."""
    folder: Path = tiny_model.make(tmp_path_factory.mktemp("models") / "plus", plus=True)
    return folder


@pytest.fixture(scope="session")
def tiny_21(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny QwenImage21Pipeline."""
    folder: Path = tiny_model.make_21(tmp_path_factory.mktemp("models") / "image-21")
    return folder


@pytest.fixture(scope="session")
def tiny_t2i(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny QwenImagePipeline, of the text encoder and the VAE of `tiny`."""
    folder: Path = tiny_model.make_t2i(tmp_path_factory.mktemp("models") / "text-to-image")
    return folder


@pytest.fixture(scope="session")
def shared_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBucket]:
    """A bucket for tests that neither stop it nor look at it as a whole."""
    with LocalBucket(tmp_path_factory.mktemp("s3")) as bucket:
        yield bucket


@pytest.fixture
def own_bucket(tmp_path: Path) -> Iterator[LocalBucket]:
    """A bucket of this test alone."""
    with LocalBucket(tmp_path / "s3") as bucket:
        yield bucket


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates of tests."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def host() -> Iterator[ImageHost]:
    """An image host of this test alone."""
    with ImageHost() as server:
        yield server
