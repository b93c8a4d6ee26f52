"""RunPod's two APIs over HTTP: REST v2, which endpoints are made with, and the job API, which they are used with."""

import ipaddress
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase

REST_URL = "https://api.runpod.io"
JOBS_URL = "https://api.runpod.ai/v2"
TIMEOUT_S = (10.0, 60.0)  # to connect, and without a byte
TRIES = 5
LONGEST_PAUSE_S = 60.0  # that a Retry-After is kept to
# A server that is busy did nothing: what may be done twice is tried again.
BUSY = {502, 503, 504}
IDEMPOTENT = {"GET", "DELETE"}
MAKE_A_KEY = "make one in RunPod's console (Settings, API keys) and set RUNPOD_API_KEY to it"

Answer = dict[str, Any]


class DeployError(Exception):
    """What went wrong and what to do, in words for a person."""


def key() -> str:
    """The API key of this shell.

    Raises:
        DeployError: there is none, or it is none.
    """
    found = os.environ.get("RUNPOD_API_KEY", "").strip()
    if not found:
        raise DeployError(f"there is no API key: {MAKE_A_KEY}")
    if not re.fullmatch("[!-~]+", found):
        raise DeployError(f"RUNPOD_API_KEY has a space, a line break or a letter that no API key has: {MAKE_A_KEY}")
    return found


class _Bearer(AuthBase):
    """As `auth`, and not as a header, which a ~/.netrc would replace."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._secret}"
        return request


class Api:
    """One of the APIs.

    Args:
        base: its address.
        secret: the API key.
        pause_s: before the second try; doubled before each further one.

    Raises:
        DeployError: the key would travel unencrypted, or the address is none.
    """

    def __init__(self, base: str, secret: str, pause_s: float = 1.0) -> None:
        self.base = base.rstrip("/")
        self._secret = secret
        self._pause_s = pause_s
        self._session = requests.Session()
        try:
            parts = urlsplit(self.base)
        except ValueError as error:
            raise DeployError(f"{self.base} is no address: {error}") from None
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))):
            raise DeployError(f"{self.base} must begin with https://: the API key is sent there")

    def call(self, method: str, path: str, body: Any = None, *, what: str) -> Answer:
        """What is answered, as JSON.

        Args:
            method: of HTTP.
            path: after the base.
            body: sent as JSON.
            what: that is asked for, in words for a message.

        Raises:
            DeployError: it is refused, or does not come.
        """
        with self.open(method, path, body, what=what) as response:
            if response.status_code == requests.codes.no_content:
                return {}
            try:
                answer = response.json()
            except ValueError:
                answer = None
            except requests.RequestException as error:
                raise self._lost(method, error) from None
        if not isinstance(answer, dict):
            raise DeployError(f"{self._host} answers something else than JSON: is {self.base} right?")
        return answer

    def open(
        self, method: str, path: str, body: Any = None, *, what: str, headers: Mapping[str, str] | None = None,
        read_s: float = TIMEOUT_S[1],
    ) -> requests.Response:  # fmt: skip
        """As `call`, with the answer still to be read; `read_s`: longest wait for a byte."""
        pause = self._pause_s
        for attempt in range(1, TRIES + 1):
            try:
                response = self._session.request(
                    method, self.base + path, json=body, headers=dict(headers or {}), auth=_Bearer(self._secret),
                    timeout=(TIMEOUT_S[0], read_s), stream=True, allow_redirects=False,
                )  # fmt: skip
            except requests.RequestException as error:
                if method in IDEMPOTENT and attempt < TRIES:
                    time.sleep(pause)
                    pause *= 2
                    continue
                raise self._lost(method, error) from None
            if response.ok and not response.is_redirect:
                return response
            again = response.status_code == requests.codes.too_many_requests or (
                response.status_code in BUSY and method in IDEMPOTENT
            )
            wait_s = _retry_after(response, pause)
            if again and attempt < TRIES and wait_s <= LONGEST_PAUSE_S:
                response.close()
                time.sleep(wait_s)
                pause *= 2
                continue
            if response.status_code == requests.codes.not_found and method == "DELETE" and attempt > 1:
                # An earlier try did it, and its answer got lost.
                response.status_code = requests.codes.no_content
                return response
            raise DeployError(self._refusal(response, what, wait_s))
        raise AssertionError("the last try returns or raises")

    def _lost(self, method: str, error: requests.RequestException) -> DeployError:
        unsure = "" if method in IDEMPOTENT else "; it may have been done all the same: look with `status`"
        name = type(error).__name__
        return DeployError(f"{self._host} cannot be reached ({name}): is there a network, or a proxy?{unsure}")

    @property
    def _host(self) -> str:
        return urlsplit(self.base).netloc.rpartition("@")[2]

    def _refusal(self, response: requests.Response, what: str, wait_s: float) -> str:
        """What a person does about an answer (problems as in RFC 9457)."""
        status = response.status_code
        try:
            problem = response.json()
        except (ValueError, requests.RequestException):
            problem = None
        told = problem if isinstance(problem, dict) else {}
        details = [str(one) for one in told.get("errors") or [] if one] or [str(told.get("detail") or "")]
        said = "; ".join(filter(None, details)).replace(self._secret, "***")
        because = f" ({said})" if said else ""
        match status:
            case 401:
                return f"{self._host} does not accept the API key{because}: {MAKE_A_KEY}"
            case 403:
                return (
                    f"the API key may not do this{because}: give it read and write access to Serverless in RunPod's "
                    "console (Settings, API keys), or use another one"
                )
            case 404:
                return f"there is no {what} for this API key{because}: `status --name` or the console tells the ids"
            case 400 | 409 | 422:
                return f"RunPod refuses {what}: {said or f'answer {status}'}"
            case 429:
                return f"RunPod limits this API key{because}: try again in {math.ceil(wait_s)} s"
            case _:
                return f"{self._host} answers {status} to {what}{because}: try again, or look at RunPod's status page"


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(response: requests.Response, otherwise: float) -> float:
    said = response.headers.get("Retry-After", "").strip()
    return float(said) if said.isdecimal() else otherwise


class Rest(Api):
    """Endpoints of REST v2."""

    def __init__(self, secret: str, pause_s: float = 1.0) -> None:
        super().__init__(rest_url(), secret, pause_s)

    def endpoints(self) -> list[Answer]:
        """All of this account."""
        found: list[Answer] = self.call("GET", "/v2/serverless", what="list of endpoints")["endpoints"]
        return found

    def endpoint(self, endpoint_id: str) -> Answer:
        """One, with its settings."""
        return self.call("GET", path_of(endpoint_id), what=f"endpoint {endpoint_id}")

    def create(self, body: Answer) -> Answer:
        """A new one."""
        return self.call("POST", "/v2/serverless", body, what="the endpoint")

    def change(self, endpoint_id: str, body: Answer) -> Answer:
        """Some of its fields."""
        return self.call("PATCH", path_of(endpoint_id), body, what=f"endpoint {endpoint_id}")

    def delete(self, endpoint_id: str) -> None:
        """For good."""
        self.call("DELETE", path_of(endpoint_id), what=f"endpoint {endpoint_id}")

    def workers(self, endpoint_id: str) -> Answer:
        """Those that there are now, with a summary."""
        return self.call("GET", f"{path_of(endpoint_id)}/workers", what=f"endpoint {endpoint_id}")

    def releases(self, endpoint_id: str) -> Answer:
        """What was changed, the newest first, and how far it is rolled out."""
        return self.call("GET", f"{path_of(endpoint_id)}/releases", what=f"endpoint {endpoint_id}")

    def log(self, endpoint_id: str, worker: str, tail: int, quiet_s: float, *, follow: bool) -> Iterator[Answer]:
        """Lines of a worker's log: `source`, `line` and `ts` of each.

        Args:
            endpoint_id: whose worker.
            worker: its id.
            tail: lines of the past to begin with.
            quiet_s: the stream stays open after the last of them: without news for so long, it is at its end. Where
                there are always news, it is after as many lines, or ten times as long.
            follow: go on for ever instead, from the last line on where the stream breaks off.
        """
        path, what = f"{path_of(endpoint_id)}/workers/{_id(worker, 'worker')}/logs", f"worker {worker}"
        end = math.inf if follow else time.monotonic() + 10 * quiet_s
        last: dict[str, str] = {}
        while True:
            read_s = TIMEOUT_S[1] if follow else quiet_s
            with self.open("GET", f"{path}?tail={tail}", what=what, headers=last, read_s=read_s) as stream:
                events = _events(stream, quiet_s=None if follow else quiet_s)
                for event_id, event in events if follow else islice(events, tail):
                    if event_id:
                        last = {"Last-Event-ID": event_id}
                    yield event
                    if time.monotonic() > end:
                        break
            if not follow:
                return
            time.sleep(self._pause_s)


def path_of(endpoint_id: str) -> str:
    """Of an endpoint, after the base.

    Raises:
        DeployError: it is no id, but something that would make another path.
    """
    return f"/v2/serverless/{_id(endpoint_id, 'endpoint')}"


def _id(said: str, what: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]+", said):
        raise DeployError(f"{said!r} is no {what}'s id: letters and digits, as in 4m7x2k9q")
    return said


def rest_url() -> str:
    """Where REST v2 is."""
    return os.environ.get("RUNPOD_REST_URL") or REST_URL


def _events(stream: requests.Response, quiet_s: float | None) -> Iterator[tuple[str, Answer]]:
    """Server-sent events: the id and the data of each, until the stream ends or says nothing for `quiet_s`."""
    event_id, news = "", time.monotonic()
    try:
        for line in stream.iter_lines(chunk_size=1):
            field, _, value = line.decode(errors="replace").partition(":")
            if field == "id":
                event_id = value.strip()
            elif field == "data":
                news = time.monotonic()
                try:
                    event = json.loads(value)
                except ValueError:
                    event = None
                yield event_id, event if isinstance(event, dict) else {"source": "", "ts": "", "line": value.strip()}
            elif quiet_s is not None and time.monotonic() - news > quiet_s:
                return  # nothing but signs of life
    except requests.RequestException:
        return


class Jobs(Api):
    """The job API of one endpoint."""

    def __init__(self, endpoint_id: str, secret: str, pause_s: float = 1.0) -> None:
        path_of(endpoint_id)
        base = os.environ.get("RUNPOD_ENDPOINT_BASE_URL") or JOBS_URL
        super().__init__(f"{base.rstrip('/')}/{endpoint_id}", secret, pause_s)
        self._what = f"endpoint {endpoint_id}"

    def run(self, said: Answer) -> str:
        """Submit a job, and return its id."""
        return str(self.call("POST", "/run", {"input": said}, what=self._what)["id"])

    def status(self, job_id: str) -> Answer:
        """Of a job."""
        return self.call("GET", f"/status/{quote(job_id, safe='')}", what=f"job {job_id}")

    def cancel(self, job_id: str) -> None:
        """Give a job up."""
        self.call("POST", f"/cancel/{quote(job_id, safe='')}", what=f"job {job_id}")

    def health(self) -> Answer:
        """How many jobs and workers there are, by their state."""
        return self.call("GET", "/health", what=self._what)
