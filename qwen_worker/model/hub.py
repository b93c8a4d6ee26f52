"""Where weights come from: repositories on the Hugging Face Hub, and folders."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)


class LoadError(Exception):
    """The model cannot be loaded: the worker must not take a job."""


@dataclass(frozen=True)
class Origin:
    """A repository on the Hub at a commit, or a folder, of which `revision` says nothing."""

    id: str
    revision: str


@dataclass(frozen=True)
class Hub:
    """The Hub as this worker reaches it, and folders beside it.

    Args:
        token: of the Hub, or empty.
        cache: folder of downloaded repositories; None means the library's own.
    """

    token: str
    cache: Path | None

    def folder(self, origin: Origin, patterns: Sequence[str]) -> tuple[Path, str]:
        """A folder with the files that match a pattern, and their revision.

        Raises:
            LoadError: it cannot be downloaded, or read.
        """
        try:
            if Path(origin.id).is_dir():
                return Path(origin.id), local_revision(Path(origin.id))
            folder = snapshot_download(
                origin.id,
                revision=origin.revision,
                token=self.token or None,
                cache_dir=self.cache,
                allow_patterns=list(patterns),
            )
        except FAILURES as error:
            raise _not_downloaded(origin, error) from error
        return Path(folder), origin.revision

    def file(self, origin: Origin, name: str) -> tuple[Path, str]:
        """One file, and its revision.

        Raises:
            LoadError: it cannot be downloaded, or there is no such file.
        """
        try:
            if Path(origin.id).is_dir():
                file = Path(origin.id) / name
                if not file.is_file():
                    raise LoadError(f"there is no file {name} in {origin.id}")
                return file, local_revision(file)
            path = hf_hub_download(
                origin.id, name, revision=origin.revision, token=self.token or None, cache_dir=self.cache
            )
        except FAILURES as error:
            raise _not_downloaded(origin, error) from error
        return Path(path), origin.revision


def local_revision(path: Path) -> str:
    """What tells a folder, or a file, from another and from itself after a change: `local-` and 12 hex digits.

    It knows names, sizes and times of change, and reads no content: that of a model would take minutes.

    Raises:
        OSError: a file cannot be looked at.
    """
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    seen = []
    for name, file in sorted((file.relative_to(base).as_posix(), file) for file in files):
        status = file.stat()
        seen.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n")
    return f"local-{hashlib.sha256(''.join(seen).encode(errors='surrogateescape')).hexdigest()[:12]}"


def _not_downloaded(origin: Origin, error: Exception) -> LoadError:
    return LoadError(f"{origin.id} at {origin.revision} could not be downloaded: {type(error).__name__}")
