"""A worker in this process on real, small parts, for attacks that need no process of their own."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from local import tiny_model, worker
from qwen_worker.build import assemble, build_editor
from qwen_worker.job import Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.settings import Settings

#: of a bucket that nobody asks
NO_BUCKET = {
    "S3_ENDPOINT": "127.0.0.1:9",
    "S3_ACCESS_KEY": "nobody",
    "S3_SECRET_KEY": "nothing",  # pragma: allowlist secret
    "S3_BUCKET": "pictures",
    "S3_SECURE": "false",
}


@contextmanager
def tiny_folder() -> Iterator[Path]:
    """A folder with a tiny model in it; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield tiny_model.make(Path(folder) / "model")


def settings_of(model: Path, *variables: Mapping[str, str]) -> Settings:
    """Of a worker with this model and these variables; nothing of this process's environment is read."""
    said = worker.environment(model, NO_BUCKET, {"WARMUP": "0"}, *variables)
    named = {name.lower(): value for name, value in said.items() if value and name.lower() in Settings.model_fields}
    return Settings(_env_file=None, **named)  # type: ignore[arg-type]


def idle_worker(model: Path) -> Jobs:
    """A worker whose requests must all be refused before anything is dialled."""
    settings = settings_of(model)
    return assemble(settings, editor_of(settings))


def editor_of(settings: Settings) -> Editor:
    """Its model, loaded."""
    return build_editor(settings)
