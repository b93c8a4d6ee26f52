"""Where weights come from: repositories on the Hugging Face Hub, and folders."""

import contextlib
import errno
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qwen_worker.snapshots import Origin, find, find_file, is_whole, own_cache, repository

FAILURES = (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError)
# What the Hub refuses → what to do, the narrower kind first.
REASONS: dict[type[Exception], str] = {
    LocalEntryNotFoundError: ": it is not whole on this machine, and the Hub cannot be reached",
    GatedRepoError: ": ask for access on the model's page, and set HF_TOKEN of the account that has it",
    RepositoryNotFoundError: ": there is no such repository, or HF_TOKEN may not see it",
    RevisionNotFoundError: ": the repository has no such commit",
    EntryNotFoundError: ": the repository has no such file",
}
# Files under way together. One that is cut off begins anew, which huggingface_hub 2 leaves no choice about, and may
# have 5 GB; a single one already takes as many connections as there is bandwidth for.
AT_A_TIME = 2
# Seconds after which a file that is under way, and was not written to, is not under way any more.
CUT_OFF_S = 3600


class LoadError(Exception):
    """The model cannot be loaded: the worker must not take a job."""


@dataclass(frozen=True)
class Hub:
    """The Hub as this worker reaches it, and what is on this machine, which comes first.

    Args:
        token: of the Hub, or empty.
        caches: folders of downloaded repositories, in the order of looking; what is in none is downloaded into the
            first. Without any the library's own is used.
    """

    token: str
    caches: Sequence[Path]

    def folder(self, origin: Origin, patterns: Sequence[str]) -> tuple[Path, str]:
        """A folder with the files that match a pattern, and their revision. If one is whole, the Hub is not asked.

        Raises:
            LoadError: it cannot be downloaded, or read.
        """
        found = find(origin, patterns, self.caches)
        try:
            if found:
                return found, _revision(origin, found)
            _forget_cut_off(origin, self.cache)
        except FAILURES as error:
            raise _not_downloaded(origin, error) from error
        folder = self._snapshot(origin, patterns)
        # Where it cannot reach the Hub the library returns what there is.
        if not is_whole(Path(folder), patterns):
            raise _not_downloaded(origin, LocalEntryNotFoundError(folder))
        return Path(folder), origin.revision

    def file(self, origin: Origin, name: str) -> tuple[Path, str]:
        """One file, and its revision. If it is on this machine, the Hub is not asked.

        Raises:
            LoadError: it cannot be downloaded, or there is no such file.
        """
        found = find_file(origin, name, self.caches)
        try:
            if found:
                return found, _revision(origin, found)
            if Path(origin.id).is_dir():
                raise LoadError(f"there is no file {name} in {origin.id}")
            path = hf_hub_download(
                origin.id, name, revision=origin.revision, token=self.token or None, cache_dir=self.cache
            )
        except FAILURES as error:
            raise _not_downloaded(origin, error) from error
        return Path(path), origin.revision

    def bytes_missing(self, origin: Origin, patterns: Sequence[str]) -> int:
        """What would be downloaded of the files that match a pattern, as the Hub tells their sizes.

        Raises:
            LoadError: it does not tell.
        """
        files = self._snapshot(origin, patterns, dry_run=True)
        return sum(file.file_size or 0 for file in files if file.will_download)

    def _snapshot(self, origin: Origin, patterns: Sequence[str], *, dry_run: bool = False) -> Any:
        try:
            return snapshot_download(
                origin.id,
                revision=origin.revision,
                token=self.token or None,
                cache_dir=self.cache,
                allow_patterns=list(patterns),
                max_workers=AT_A_TIME,
                dry_run=dry_run,
            )
        except FAILURES as error:
            raise _not_downloaded(origin, error) from error

    @property
    def cache(self) -> Path | None:
        """Where downloads go; None: the library's own."""
        return next(iter(self.caches), None)


def _revision(origin: Origin, found: Path) -> str:
    return local_revision(found) if Path(origin.id).is_dir() else origin.revision


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


def _forget_cut_off(origin: Origin, cache: Path | None) -> None:
    """Remove what killed downloads left behind: the library begins such a file anew, under another name."""
    blobs = repository(origin, cache or own_cache()) / "blobs"
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):  # it is complete by now
            if time.time() - file.stat().st_mtime > CUT_OFF_S:
                file.unlink()


def _not_downloaded(origin: Origin, error: BaseException) -> LoadError:
    if isinstance(error, DryRunError) and error.__cause__:  # which says nothing itself
        error = error.__cause__
    said = next((said for kind, said in REASONS.items() if isinstance(error, kind)), "")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        said = ": there is no space left on the disk"
    return LoadError(f"{origin.id} at {origin.revision} could not be downloaded{said}: {type(error).__name__}")
