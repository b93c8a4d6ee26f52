"""Each example with the true worker, in RunPod's loop, on local parts."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from local.stack import Stack
from tests.examples.programs import COMMANDS, Program
from tests.pictures import file_of, photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker for all of them."""
    with Stack(tmp_path_factory.mktemp("stack"), model=tiny, more={"MAX_INFERENCE_STEPS": "2"}) as running:
        yield running


@pytest.mark.parametrize("name", COMMANDS)
def test_an_edit_and_a_refusal(stack: Stack, tmp_path: Path, name: str) -> None:
    """A picture of the source's size is there, or the worker's own words are."""
    source = photo(320, 240)
    url = stack.host.put(f"/{name}.png", file_of(source))
    done = Program(name, tmp_path, stack.api.base_url, url, "make it warm", str(tmp_path / "done.png"))
    assert done.end() == 0, done.told
    assert Image.open(io.BytesIO((tmp_path / "done.png").read_bytes())).size == source.size

    refused = Program(name, tmp_path, stack.api.base_url, "http://169.254.169.254/", "x", str(tmp_path / "no.png"))
    assert refused.end() == 1
    assert refused.told.splitlines()[-2].startswith("BadInput: ")
    assert refused.told.splitlines()[-1] == "The same request would fail again."
    assert not (tmp_path / "no.png").exists()
