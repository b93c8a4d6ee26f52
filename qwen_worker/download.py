"""`python -m qwen_worker.download`: bring the models that the environment names to where the worker will look for them.

Of the worker's variables MODEL_ID, T2I_MODEL_ID, LORAS, PRESET and what goes with them count, HF_HOME and HF_TOKEN;
none of the bucket is needed. What is whole is not asked for again: a download that was broken off goes on.
"""

import argparse
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.utils import enable_progress_bars

from qwen_worker.model.hub import Hub, LoadError
from qwen_worker.settings import Settings, SettingsError, load_settings
from qwen_worker.snapshots import Origin, find, find_file, own_cache, repository

log = logging.getLogger("qwen_worker.download")

LINE_S = 10  # between two lines where there is no terminal to show a bar on
# Of the bucket, which nothing here asks.
NO_BUCKET = {"s3_endpoint": "localhost", "s3_access_key": "-", "s3_secret_key": "-", "s3_bucket": "none"}


def download(settings: Settings) -> None:
    """Download what is missing.

    Raises:
        LoadError: a model or a LoRA cannot be had, or the disk has no room for all of them.
    """
    hub = Hub(settings.hf_token.get_secret_value(), settings.hub_caches)
    missing = {
        one: hub.bytes_missing(one, patterns)
        for one, patterns in settings.origins.items()
        if not find(one, patterns, settings.hub_caches)
    }
    for lora in settings.lora_files:
        there = find_file(lora.origin, lora.weight_file, settings.hub_caches)
        if not (there or Path(lora.source).is_dir()):
            missing[lora.origin] = missing.get(lora.origin, 0) + hub.bytes_missing(lora.origin, [lora.weight_file])
    cache = hub.cache or own_cache()
    _check_room(sum(missing.values()), cache)
    for one, patterns in settings.origins.items():
        with _lines(one, cache, missing.get(one, 0)):
            folder, _ = hub.folder(one, patterns)
        log.info("%s: %s", one.id, folder)
    for lora in settings.lora_files:
        with _lines(lora.origin, cache, missing.get(lora.origin, 0)):
            file, _ = hub.file(lora.origin, lora.weight_file)
        log.info("%s: %s", lora.name, file)


def _check_room(needed: int, cache: Path) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise LoadError(
            f"there is not enough space left on the disk: {needed / 1e9:.1f} GB are to be downloaded to {cache}, and "
            f"{free / 1e9:.1f} GB are free there"
        )


@contextmanager
def _lines(origin: Origin, cache: Path, missing: int) -> Iterator[None]:
    """While something is downloaded, tell how far it is, unless the library's bar does."""
    ended = threading.Event()
    blobs = repository(origin, cache) / "blobs"
    before = _size(blobs)

    def tell() -> None:
        while not ended.wait(LINE_S):
            log.info("%s: %.1f of %.1f GB", origin.id, (_size(blobs) - before) / 1e9, missing / 1e9)

    if missing and not sys.stderr.isatty():
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _size(folder: Path) -> int:
    """Of the files in a folder, in bytes on the disk: of one that is under way, what has come."""
    return sum(file.stat().st_blocks * 512 for file in folder.glob("*") if file.exists())


def main() -> int:
    """The exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    if sys.stderr.isatty():
        enable_progress_bars()  # which the worker switches off
    try:
        download(load_settings(**NO_BUCKET))
    except (SettingsError, LoadError) as error:
        log.error("%s", error)  # noqa: TRY400 - for a person, who has no use for a traceback
        return 1
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m qwen_worker.download", description=__doc__).parse_args()
    sys.exit(main())
