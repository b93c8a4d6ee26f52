"""Where models lie: whole ones, and parts of some."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.worker import ROOT
from qwen_worker.snapshots import FILES, TEXT_TO_IMAGE_FILES, Origin, find, find_file, is_whole, weight_files

COMMIT = "0123456789" * 4
ORIGIN = Origin("someone/model", COMMIT)


def snapshot_in(cache: Path, model: Path) -> Path:
    """As huggingface_hub puts it there: links to blobs."""
    repository = cache / "models--someone--model"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(one for one in model.rglob("*") if one.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    return snapshot


def listed(snapshot: Path) -> None:
    """As huggingface_hub 2 remembers what the repository has."""
    files = [one for one in snapshot.rglob("*") if one.is_file()]
    sizes = {one.relative_to(snapshot).as_posix(): {"size": one.stat().st_size, "blob_id": "0"} for one in files}
    listing = snapshot.parent.parent / "trees" / f"{COMMIT}.json"
    listing.parent.mkdir()
    listing.write_text(json.dumps({"format_version": 1, "files": sizes}))


def in_shards(part: Path, name: str = "diffusion_pytorch_model") -> None:
    """A network whose weights are three files."""
    shards = [f"{name}-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for shard in shards:
        shutil.copy(part / f"{name}.safetensors", part / shard)
    (part / f"{name}.safetensors").unlink()
    index = {"weight_map": {f"weight.{number}": shard for number, shard in enumerate(reversed(shards))}}
    (part / f"{name}.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def snapshot(tiny: Path, tmp_path: Path) -> Path:
    """A whole tiny model, its transformer in three files."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    in_shards(model / "transformer")
    return snapshot_in(tmp_path / "cache", model)


@pytest.mark.parametrize("which", ["tiny", "tiny_plus", "tiny_21"])
def test_every_kind_of_model_is_found_where_it_is_whole(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In the first of the places; a folder is its own."""
    model = request.getfixturevalue(which)
    second, third = (snapshot_in(tmp_path / name, model) for name in ("second", "third"))
    caches = [tmp_path / name for name in ("first", "second", "third")]

    assert find(ORIGIN, FILES, caches) == second
    (second / "vae" / "config.json").unlink()
    assert find(ORIGIN, FILES, caches) == third
    assert find(ORIGIN, FILES, caches[:2]) is None
    assert find(Origin(str(model), "local"), FILES, []) == model


@pytest.mark.parametrize("known", [True, False], ids=["listing", "files alone"])
@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "processor/preprocessor_config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
    ],
)
@pytest.mark.parametrize("way", ["no file", "a link into nothing", "no folder"])
def test_a_model_that_lacks_a_file_is_not_whole(snapshot: Path, missing: str, way: str, *, known: bool) -> None:
    """However it is missing, and whether the repository's listing is known or not."""
    if known:
        listed(snapshot)
    assert is_whole(snapshot, FILES)
    file = snapshot / missing
    if way == "a link into nothing":
        file.resolve().unlink()
    elif way == "no folder" and file.parent != snapshot:
        shutil.rmtree(file.parent)
    else:
        file.unlink()

    assert not is_whole(snapshot, FILES)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_may_not_be_read_is_not_there(tiny: Path, *, known: bool) -> None:
    """Of a worker that is not root, on a volume that is somebody else's."""
    with tempfile.TemporaryDirectory() as name:
        snapshot = snapshot_in(Path(name), tiny)
        if known:
            listed(snapshot)
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755)
        with as_nobody():
            assert is_whole(snapshot, FILES)
        (snapshot / "vae" / "diffusion_pytorch_model.safetensors").resolve().chmod(0)
        with as_nobody():
            assert not is_whole(snapshot, FILES)


def test_a_file_of_another_size_than_listed_is_not_whole(snapshot: Path) -> None:
    """A copy that was broken off."""
    listed(snapshot)
    with (snapshot / "vae" / "diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"0")

    assert not is_whole(snapshot, FILES)


@pytest.mark.parametrize("files", ["{}", "[]", "1", '{"vae/config.json": {}}', '{"README.md": {"size": 1}}'])
def test_a_listing_that_says_nothing_is_not_whole(snapshot: Path, files: str) -> None:
    """Damaged, or of none of the files."""
    listed(snapshot)
    listing = snapshot.parent.parent / "trees" / f"{COMMIT}.json"
    listing.write_text(f'{{"format_version": 1, "files": {files}}}')

    assert not is_whole(snapshot, FILES)


def test_a_listed_file_that_nobody_loads_may_be_missing(snapshot: Path) -> None:
    """It was not downloaded."""
    (snapshot / "README.md").touch()
    listed(snapshot)
    (snapshot / "README.md").unlink()

    assert is_whole(snapshot, FILES)


@pytest.mark.parametrize("broken", ["[]", "{", "{}", '{"transformer": 1}'])
def test_an_index_that_says_nothing_is_not_whole(snapshot: Path, broken: str) -> None:
    """The loader never sees it."""
    (snapshot / "model_index.json").write_text(broken)

    assert not is_whole(snapshot, FILES)


def test_of_a_text_to_image_model_two_parts_are_enough(tiny_t2i: Path, tmp_path: Path) -> None:
    """The rest is the edit model's."""
    snapshot = snapshot_in(tmp_path, tiny_t2i)
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(snapshot / part)

    assert is_whole(snapshot, TEXT_TO_IMAGE_FILES)
    assert not is_whole(snapshot, FILES)
    assert {file.parent.name for file in weight_files(snapshot, TEXT_TO_IMAGE_FILES)} == {"transformer"}


def test_weights_come_in_the_order_of_loading(snapshot: Path) -> None:
    """Network by network, shard by shard."""
    shards = [f"transformer/diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    files = [*shards, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]

    assert weight_files(snapshot, FILES) == [snapshot / name for name in files]


def test_a_file_is_found_in_whatever_place_has_it(tmp_path: Path) -> None:
    """A LoRA is one file, of a repository or a folder."""
    file = tmp_path / "second" / "models--someone--model" / "snapshots" / COMMIT / "in" / "style.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    caches = [tmp_path / "first", tmp_path / "second"]

    assert find_file(ORIGIN, "in/style.safetensors", caches) == file
    assert find_file(ORIGIN, "in/other.safetensors", caches) is None
    assert find_file(Origin(str(file.parent), "local"), "style.safetensors", []) == file


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", None])
def test_the_librarys_own_cache_is_where_it_says(variable: str | None) -> None:
    """The library itself is asked."""
    code = "from huggingface_hub.constants import HF_HUB_CACHE as theirs; from qwen_worker.snapshots import own_cache; "
    variables = {"PATH": os.environ["PATH"], "HOME": "/home/worker", **({variable: "/somewhere"} if variable else {})}
    command = [sys.executable, "-c", f"{code} print(theirs, own_cache())"]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=True)
    theirs, ours = done.stdout.split()

    assert ours == theirs


def test_a_list_of_numbers_in_the_index_is_no_part(tiny_21: Path, tmp_path: Path) -> None:
    """As the schedule that models of this class may bring along."""
    model = Path(shutil.copytree(tiny_21, tmp_path / "model"))
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "sample_sigmas": [1.0, 0.5]}))

    assert is_whole(snapshot_in(tmp_path / "cache", model), FILES)


def test_a_vocabulary_without_its_settings_is_not_whole(snapshot: Path) -> None:
    """It would not know the mark of a picture."""
    assert is_whole(snapshot, FILES)
    (snapshot / "processor" / "tokenizer_config.json").unlink()

    assert not is_whole(snapshot, FILES)
