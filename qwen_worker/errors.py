"""Every way a job can fail, as its caller sees it.

WorkerError
├── BadInput         the caller must change the request
├── DownloadFailed   the source could not be fetched
├── CacheReadFailed  the source's copy in the bucket could not be read
├── ModelError       the model could not make the picture
└── StorageError     the result could not be stored
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class WorkerError(Exception):
    """A failure the caller is told about: a sentence for people, a type for programs, details for both."""

    #: Whether the same request may succeed later, unless the one who raises knows better.
    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        retryable: bool | None = None,
        attempts: int = 1,
        refresh_worker: bool = False,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = self.retryable_by_default if retryable is None else retryable
        #: How often the worker itself tried what failed.
        self.attempts = attempts
        #: The process can no longer be trusted with another job: RunPod should replace it.
        self.refresh_worker = refresh_worker
        #: JSON values for the caller: never a secret, a path or a traceback.
        self.details = details

    @property
    def type(self) -> str:
        """The name in the taxonomy."""
        return type(self).__name__


class BadInput(WorkerError):
    """The caller must change the request."""


class DownloadFailed(WorkerError):
    """The source could not be fetched."""

    retryable_by_default = True


class CacheReadFailed(WorkerError):
    """The source's copy in the bucket could not be read."""

    retryable_by_default = True


class ModelError(WorkerError):
    """The model could not make the picture."""


class StorageError(WorkerError):
    """The result could not be stored."""

    retryable_by_default = True


def bad_input(problems: list[dict[str, str]]) -> BadInput:
    """The error that names these problems: `field` and `problem` each."""
    return BadInput("; ".join(f"{item['field']}: {item['problem']}" for item in problems), problems=problems)


@contextmanager
def about(picture: str) -> Iterator[None]:
    """What fails inside is told of this picture: one of several, or the mask."""
    try:
        yield
    except WorkerError as error:
        error.message = f"{picture}: {error.message}"
        error.args = (error.message,)
        error.details["picture"] = picture
        raise
