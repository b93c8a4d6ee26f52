"""Where weights come from: what is downloaded, and what tells folders apart."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local import tiny_model, worker
from local.hub import COMMIT, LocalHub
from local.web import ImageHost
from qwen_worker.model.hub import Hub, LoadError, local_revision
from qwen_worker.snapshots import FILES, Origin
from tests.model.conftest import load_tiny

LOAD = """
import sys
from pathlib import Path
from qwen_worker.family import LoraSource
from qwen_worker.snapshots import FILES, Origin
from qwen_worker.model.load import load
tiny, cache, commit = sys.argv[1:]
lora = LoraSource(name="style", source="someone/words", revision=commit, weight_file="in/style.safetensors")
model = load(
    tiny, "", pipeline="QwenImageEditPipeline", token="hf_test", caches=[Path(cache)], allow_cpu=True,
    t2i=Origin("someone/words", commit), loras=[lora],
)
print(model.t2i.id, model.t2i.revision, model.loras["style"].origin)
"""


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A tiny model to change."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_a_folders_revision_is_its_own(folder: Path, tmp_path: Path) -> None:
    """The same each time and wherever the folder lies, and said by the model that was loaded from it."""
    revision = local_revision(folder)
    moved = folder.rename(tmp_path / "moved")

    assert revision.startswith("local-")
    assert len(revision) == len("local-") + 12
    assert local_revision(moved) == revision == load_tiny(moved).revision


@pytest.mark.parametrize("change", ["time", "size", "name", "more", "less"])
def test_a_folder_that_changed_has_another_revision(folder: Path, change: str) -> None:
    """Whatever changed: a file's time, size or name, or their number."""
    before = local_revision(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    status = file.stat()
    if change == "time":
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "size":
        file.write_text(file.read_text() + "\n")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "name":
        file.rename(file.with_name("other.json"))
    elif change == "more":
        (folder / "README.md").touch()
    else:
        file.unlink()

    assert local_revision(folder) != before


def test_a_files_revision_is_of_that_file_alone(folder: Path) -> None:
    """What lies beside it says nothing."""
    file = folder / "model_index.json"
    before = local_revision(file)
    (folder / "README.md").touch()
    assert local_revision(file) == before

    os.utime(file, ns=(0, 0))
    assert local_revision(file) != before


def test_what_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    """Named by its repository and commit, or by its folder."""
    hub = Hub("", [tmp_path])
    with pytest.raises(LoadError, match=f"someone/words at {COMMIT} could not be downloaded"):
        hub.folder(Origin("someone/words", COMMIT), ["*"])
    with pytest.raises(LoadError, match=f"someone/words at {COMMIT} could not be downloaded"):
        hub.file(Origin("someone/words", COMMIT), "a.safetensors")
    with pytest.raises(LoadError, match=r"there is no file a\.safetensors in "):
        hub.file(Origin(str(tmp_path), "local"), "a.safetensors")


def test_a_part_of_a_model_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    """The library would hand it over where the Hub does not answer."""
    snapshot = tmp_path / "cache" / "models--someone--words" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (snapshot / "text_encoder" / "model.safetensors").unlink()

    with pytest.raises(LoadError, match="not whole on this machine, and the Hub cannot be reached"):
        Hub("", [tmp_path / "cache"]).folder(Origin("someone/words", COMMIT), FILES)


WHOLE = """
import sys
from pathlib import Path
from qwen_worker.model.hub import Hub
from qwen_worker.snapshots import FILES, Origin
hub, origin = Hub("", [Path("nowhere"), Path(sys.argv[1])]), Origin("someone/words", sys.argv[2])
print(hub.folder(origin, FILES)[1], hub.file(origin, "vae/config.json")[1])
"""


@pytest.mark.slow
def test_of_a_model_that_is_whole_nothing_is_asked(host: ImageHost, tiny: Path, tmp_path: Path) -> None:
    """Neither of a file in it, though the Hub could be: here of one in the second of two places."""
    snapshot = tmp_path / "cache" / "models--someone--words" / "snapshots" / COMMIT
    shutil.copytree(tiny, snapshot)
    LocalHub(host, tiny)
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": host.url(""), "PYTHONPATH": str(worker.ROOT)}
    command = [sys.executable, "-c", WHOLE, str(tmp_path / "cache"), COMMIT]
    variables = worker.environment(Path(), hub)
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout.split() == [COMMIT, COMMIT]
    assert host.requests == []


PARTS = """
from pathlib import Path
from qwen_worker.model.hub import LoadError
from qwen_worker.model.load import load
for part in sorted(path for path in Path("model").iterdir() if path.is_dir()):
    away = part.rename("away")
    try:
        load("model", "local", pipeline="QwenImageEditPipeline", token="", caches=(), allow_cpu=True)
    except LoadError as error:
        print(error)
    away.rename(part)
"""


@pytest.mark.slow
def test_a_part_that_is_missing_is_not_looked_for_on_the_hub(host: ImageHost, folder: Path) -> None:
    """`model/vae` may be the repository of a stranger: of a folder nothing is asked of the Hub."""
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": host.url(""), "HF_HOME": str(folder.parent / "home")}
    variables = worker.environment(Path(), hub, {"PYTHONPATH": str(worker.ROOT)})
    command, beside = [sys.executable, "-c", PARTS], folder.parent
    done = subprocess.run(command, env=variables, cwd=beside, capture_output=True, text=True, check=True, timeout=120)
    parts = ("processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")

    assert done.stdout.splitlines() == [f"there is no folder model/{part}" for part in parts]
    assert host.requests == []


@pytest.mark.slow
def test_no_more_is_downloaded_than_is_loaded(host: ImageHost, tiny: Path, tiny_t2i: Path, tmp_path: Path) -> None:
    """Of a text-to-image model neither text encoder nor VAE; of a LoRA's repository one file. The token is sent."""
    repository = Path(shutil.copytree(tiny_t2i, tmp_path / "repository"))
    for name in ("style", "other"):
        tiny_model.make_lora(repository / "in" / f"{name}.safetensors", tiny)
    LocalHub(host, repository)
    variables = worker.environment(Path(), {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": host.url("")})
    command = [sys.executable, "-c", LOAD, str(tiny), str(tmp_path / "cache"), COMMIT]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=120)
    snapshot = tmp_path / "cache" / "models--someone--words" / "snapshots" / COMMIT

    assert done.stdout.split() == ["someone/words", COMMIT, f"someone/words@{COMMIT}/in/style.safetensors"]
    assert {one.relative_to(snapshot).as_posix() for one in snapshot.rglob("*") if one.is_file()} == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "in/style.safetensors",
    }
    # The library now and then asks for something of its own, without a token.
    asked = [sent for target, sent in zip(host.requests, host.headers, strict=True) if "someone/words" in target]
    assert {sent["Authorization"] for sent in asked} == {"Bearer hf_test"}
