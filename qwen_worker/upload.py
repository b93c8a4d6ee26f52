"""PUT a result to an address that the caller gave: their own presigned link, beside the bucket.

The link is a credential: no error names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import requests

from qwen_worker.budget import LOOK_UP_S
from qwen_worker.deadlines import Deadline
from qwen_worker.errors import BadInput, StorageError, bad_input
from qwen_worker.web.addresses import Network
from qwen_worker.web.dial import NoAddressError
from qwen_worker.web.openings import PORTS, Openings
from qwen_worker.web.session import FOREIGN, Session, is_worth_another_try

FIELD = "upload_url"  # as requests and errors call the address


@dataclass(frozen=True)
class Uploader:
    """PUT under limits.

    Attributes:
        timeout_s: total seconds of one PUT, name look-up included.
        private: networks that may be dialled although they are not public.
        ca_file: certificates of the authorities to trust; default: those of certifi.
        ports: that may be dialled.
    """

    timeout_s: float
    private: Sequence[Network] = ()
    ca_file: str | None = None
    ports: Sequence[range] = PORTS

    def check(self, url: str) -> None:
        """Look the host up, so that an address that cannot be used is known before any GPU time. Nothing is dialled.

        Raises:
            BadInput: the address is malformed, its port is closed, or its host has no address, none on the public
                internet, or was not found in time.
        """
        seconds = min(self.timeout_s, LOOK_UP_S)
        try:
            with Deadline(seconds), self._session() as session:
                session.addresses(url)
        except (BadInput, NoAddressError, TimeoutError) as error:
            slow = f"its host was not found in {seconds:g} s: check the name, or try again"
            refusal = bad_input([{"field": FIELD, "problem": slow if isinstance(error, TimeoutError) else str(error)}])
            refusal.retryable = not isinstance(error, BadInput)
            raise refusal from error

    def put(self, url: str, data: bytes, content_type: str) -> None:
        """Send `data` to `url`, once; no redirect is followed, and no answer's body is read.

        Raises:
            StorageError: the host did not answer 2xx in time. `details.status` is what it answered, if it did.
        """
        with Deadline(self.timeout_s) as deadline:
            try:
                status = self._send(url, data, content_type)
                deadline.check()
            except (BadInput, *FOREIGN) as error:
                if deadline.passed:
                    raise _failure(f"it took longer than {self.timeout_s:g} s: try again", retryable=True) from error
                if isinstance(error, BadInput):
                    raise _failure(str(error), retryable=False) from error
                if isinstance(error, NoAddressError):
                    raise _failure(f"{error}, or try again", retryable=True) from error
                # A ValueError is a library's verdict on the address: another try would get the same.
                if isinstance(error, ValueError):
                    raise _failure("its address is not valid: give another link", retryable=False) from error
                what = f"its host was not reached, or broke off ({type(error).__name__}): try again"
                raise _failure(what, retryable=True) from error
        if not 200 <= status < 300:
            again = is_worth_another_try(status)
            raise _failure(f"its host answered {status}: {_next_step(status)}", retryable=again, status=status)

    def _send(self, url: str, data: bytes, content_type: str) -> int:
        headers = {"Content-Type": content_type}
        with (
            self._session() as session,
            session.send_exactly("PUT", url, self.timeout_s, data=data, headers=headers) as response,
        ):
            return response.status_code

    def _session(self) -> Session:
        # The operator's list of hosts is about sources: where callers keep their own results is theirs to say.
        return Session(Openings(self.private, self.ports), self.ca_file)


def _next_step(status: int) -> str:
    if is_worth_another_try(status):
        return "try again"
    if 300 <= status < 400:
        return "redirects are not followed, so give the address that it leads to"
    if status in {401, 403}:
        return "sign a new link for PUT"
    if status == requests.codes.request_entity_too_large:
        return "ask for a smaller result"
    return "check what it expects of a PUT"


def _failure(what: str, *, retryable: bool, **details: Any) -> StorageError:
    return StorageError(f"{FIELD}: {what}", retryable=retryable, target=FIELD, **details)
