"""Models are brought to where the worker will look for them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from local import tiny_model, worker
from local.hub import COMMIT, LocalHub
from local.web import ImageHost, Reply
from qwen_worker.snapshots import FILES, Origin, find

pytestmark = pytest.mark.slow

DOWNLOAD = [sys.executable, "-m", "qwen_worker.download"]
VAE = "vae/diffusion_pytorch_model.safetensors"
# One after the other in one process: to import the libraries takes longer than all of them.
EACH = """
import os, sys
from qwen_worker import download
for model in sys.argv[1:]:
    os.environ["MODEL_ID"] = model
    print(download.main())
"""


def variables(host: ImageHost, home: Path, **more: str) -> Mapping[str, str]:
    own = {"MODEL_ID": "someone/model", "MODEL_CLASS": "QwenImageEditPipeline", "MODEL_REVISION": COMMIT}
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": host.url(""), "HF_HOME": str(home), "PYTHONPATH": str(worker.ROOT)}
    return worker.environment(Path(), own, hub, more)


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout


def test_a_download_that_was_broken_off_goes_on(host: ImageHost, tiny: Path, tmp_path: Path) -> None:
    """What was whole is not sent again, and what was not leaves nothing behind."""
    hub = LocalHub(host, tiny, "someone/model")
    hub.stall = VAE
    environment = variables(host, tmp_path / "home")
    with subprocess.Popen(DOWNLOAD, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as first:
        assert hub.stalled.wait(60)
        first.kill()
    cache = tmp_path / "home" / "hub"
    origin = Origin("someone/model", COMMIT)
    snapshot = cache / "models--someone--model" / "snapshots" / COMMIT
    whole = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]
    left = list((cache / "models--someone--model" / "blobs").glob("*.incomplete"))
    for file in left:
        os.utime(file, (0, time.time() - 7200))
    assert find(origin, FILES, [cache]) is None

    hub.stall = ""
    assert run(DOWNLOAD, environment, tmp_path) == (0, f"someone/model: {snapshot}\n")

    assert len(whole) > 6
    assert left
    assert not any(file.exists() for file in left)
    assert {file: hub.sent[file] for file in whole} == {file: (tiny / file).stat().st_size for file in whole}
    assert (snapshot / VAE).read_bytes() == (tiny / VAE).read_bytes()
    assert find(origin, FILES, [cache]) == snapshot

    asked = len(host.requests)
    assert run(DOWNLOAD, environment, tmp_path)[0] == 0
    assert len(host.requests) == asked


def test_all_models_are_brought_and_no_more_of_them_than_is_loaded(
    host: ImageHost, tiny: Path, tiny_t2i: Path, tmp_path: Path
) -> None:
    """A text-to-image model without what is shared, and of a LoRA's repository the one file."""
    words = Path(shutil.copytree(tiny_t2i, tmp_path / "words"))
    for name in ("style", "other"):
        tiny_model.make_lora(words / "in" / f"{name}.safetensors", tiny)
    LocalHub(host, tiny, "someone/model")
    hub = LocalHub(host, words)
    lora = {"name": "style", "source": "someone/words", "revision": COMMIT, "weight_file": "in/style.safetensors"}
    more = {
        "HF_TOKEN": "hf_test",
        "T2I_MODEL_ID": "someone/words",
        "T2I_MODEL_REVISION": COMMIT,
        "LORAS": json.dumps([lora]),
    }
    code, said = run(DOWNLOAD, variables(host, tmp_path / "home", **more), tmp_path)
    snapshot = tmp_path / "home" / "hub" / "models--someone--words" / "snapshots" / COMMIT

    assert code == 0
    assert said.splitlines()[1:] == [f"someone/words: {snapshot}", f"style: {snapshot}/in/style.safetensors"]
    assert set(hub.sent) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "in/style.safetensors",
    }
    asked = zip(host.requests, host.headers, strict=True)
    assert {headers["Authorization"] for request, headers in asked if "someone" in request} == {"Bearer hf_test"}


def test_what_cannot_be_had_is_told_in_a_line(host: ImageHost, tiny: Path, tmp_path: Path) -> None:
    """And ends in exit code 1: no repository, no access, no commit, no room on the disk, a wrong variable."""
    LocalHub(host, tiny, "someone/large", sizes={VAE: 10**16})
    refused = {"none": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "old": (404, "RevisionNotFound")}
    for name, (status, code) in refused.items():
        api = f"/api/models/someone/{name}/tree/{COMMIT}?recursive=true&expand=false"
        host.replies[api] = Reply(b"{}", status, {"X-Error-Code": code})
    names = [f"someone/{name}" for name in (*refused, "large")]
    command = [sys.executable, "-c", EACH, *names, "Qwen/Qwen-Image"]
    _, said = run(command, variables(host, tmp_path / "home"), tmp_path)
    lines = said.splitlines()

    assert lines[1::2] == ["1"] * 5
    for line, words in zip(
        lines[::2],
        ("no such repository", "ask for access", "no such commit", "10000000.0 GB are to be downloaded", "MODEL_ID: "),
        strict=True,
    ):
        assert words in line
    assert not any("/resolve/" in request and "HEAD" in request for request in host.requests)
