"""Suites S3 and S4: hostile servers, and servers that cannot prove who they are."""

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hostile.outcome import HARDENED, REQUESTS, SAFE_GET, WORKER, Outcome, Suite
from hostile.servers import answers, connections, uploads
from hostile.servers import tls as tls_servers
from hostile.servers.behaviours import LARGEST, PICTURE, SIZE, TIMEOUT_S, head, says
from hostile.servers.tls import Holder
from local.children import start
from local.hostile_server import Behaviour, DeafServer, HostileServer, Peer, by_path

MOST_MB = 64.0
AT_ONCE = 16
BASELINES_AT_ONCE = 4  # each may take three GiB
LAST_RESORT_S = 90.0
RIGHT = {hashlib.sha256(body).hexdigest() for body in (PICTURE, LARGEST)}
TYPED = {"GET": {"DownloadFailed", "BadInput"}, "PUT": {"StorageError"}}
BASELINES = (REQUESTS, HARDENED, SAFE_GET)
TARGET = "/the-path?and=the-query"


@dataclass(frozen=True)
class Case:
    """One attempt: a name, a method, where to, and whether it must succeed."""

    name: str
    method: str
    url: str
    control: bool = False


def path(name: str) -> str:
    """The path of a behaviour."""
    return "/" + re.sub(r"[^A-Za-z0-9]+", "-", name)


def judged(case: Case, ended: dict[str, Any], candidate: str) -> Outcome:
    """What did not hold. Of a baseline any exception is good enough."""
    typed = TYPED[case.method] if candidate == WORKER else {ended.get("error")} - {"MemoryError", "none"}
    error = ended.get("error")
    faults = []
    if error and error not in typed:
        faults.append(f"{error}: {ended['message']}")
    if case.control and error:
        faults.append(f"refused: {ended['message']}")
    if not error and case.method == "GET" and ended["sha256"] not in RIGHT:
        faults.append(f"{ended['size']} wrong bytes were taken")
    if not error and case.method == "PUT" and not case.control:
        faults.append("taken for a success")
    if ended["seconds"] > TIMEOUT_S + 1:
        faults.append(f"{ended['seconds']:.1f} s")
    if ended["peak_mb"] > MOST_MB:
        faults.append(f"{ended['peak_mb']:.0f} MB")
    return Outcome(case.name, "; ".join(faults) or None, ended["seconds"], ended["peak_mb"], case.control)


class Range:
    """The servers of a run, and the processes that are sent to them.

    Args:
        candidate: who is attacked.
        stack: ends the servers.
        folder: for keys and certificates.
    """

    def __init__(self, candidate: str, stack: contextlib.ExitStack, folder: Path) -> None:
        self._candidate = candidate
        self._stack = stack
        self.folder = folder
        self.authority = tls_servers.root()
        self.ca_file = folder / "authority.pem"
        self.ca_file.write_bytes(self.authority.pem)
        self.certificate = tls_servers.good(self.authority, folder)["good"]
        self._warm_up = self.paths({"good": uploads.read(says(head(SIZE), PICTURE))}, tls=True).url("/good")

    def paths(self, behaviours: Mapping[str, Behaviour], *, tls: bool = False) -> HostileServer:
        """A server with these behaviours, by path."""
        table = by_path({path(name): behaviour for name, behaviour in behaviours.items()})
        return self._stack.enter_context(HostileServer(table, self.certificate if tls else None))

    def port(self, behaviour: Behaviour) -> int:
        """A server with one behaviour."""
        return self._stack.enter_context(HostileServer(behaviour)).port

    def outcomes(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        """Some cases at a time, each in a process of its own."""
        with ThreadPoolExecutor(AT_ONCE if self._candidate == WORKER else BASELINES_AT_ONCE) as pool:
            yield from pool.map(self._outcome, cases)

    def _outcome(self, case: Case) -> Outcome:
        words = [self._candidate, case.method, case.url, self._warm_up, str(self.ca_file)]
        environment = os.environ | {"REQUESTS_CA_BUNDLE": str(self.ca_file), "no_proxy": "*"}
        with start(
            [sys.executable, "-m", "hostile.servers.attempt", *words],
            environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            out, err = child.communicate(timeout=LAST_RESORT_S)
        if child.returncode:
            return Outcome(case.name, f"exit {child.returncode}: {err[-300:]}", 0.0, control=case.control)
        return judged(case, json.loads(out.splitlines()[-1]), self._candidate)


@contextlib.contextmanager
def _range(candidate: str) -> Iterator[Range]:
    with contextlib.ExitStack() as stack:
        yield Range(candidate, stack, Path(stack.enter_context(TemporaryDirectory())))


def _by_path(server: HostileServer, names: Iterable[str], method: str = "GET", *, control: bool = False) -> list[Case]:
    return [Case(name, method, server.url(path(name)), control) for name in names]


def _servers(field: Range, deaf: DeafServer, *, put: bool) -> Iterator[Case]:
    clear = field.paths(answers.ATTACKS | answers.CONTROLS)
    inside = field.paths(connections.INSIDE_TLS | connections.INSIDE_TLS_CONTROLS, tls=True)
    yield from _by_path(clear, answers.ATTACKS)
    yield from _by_path(clear, answers.CONTROLS, control=True)
    yield from _by_path(inside, connections.INSIDE_TLS)
    yield from _by_path(inside, connections.INSIDE_TLS_CONTROLS, control=True)
    for name, behaviour in connections.UNHEARD.items():
        yield Case(name, "GET", f"http://127.0.0.1:{field.port(behaviour)}/")
    for name, behaviour in connections.HANDSHAKES.items():
        yield Case(name, "GET", f"https://127.0.0.1:{field.port(behaviour)}/")
    yield Case("never accepts", "GET", f"http://127.0.0.1:{deaf.port}/")
    if put:
        yield from _uploads(field, deaf)


def _uploads(field: Range, deaf: DeafServer) -> Iterator[Case]:
    clear = field.paths(uploads.ATTACKS | uploads.CONTROLS)
    yield from _by_path(clear, uploads.ATTACKS, "PUT")
    yield from _by_path(clear, uploads.CONTROLS, "PUT", control=True)
    for name, behaviour in (connections.UNHEARD | connections.HANDSHAKES).items():
        scheme = "http" if name in connections.UNHEARD else "https"
        yield Case(f"PUT, {name}", "PUT", f"{scheme}://127.0.0.1:{field.port(behaviour)}/")
    yield Case("PUT, never accepts", "PUT", f"http://127.0.0.1:{deaf.port}/")


def hostile_servers(candidate: str) -> Iterator[Outcome]:
    """S3. Baselines are not asked to PUT."""
    with _range(candidate) as field, DeafServer() as deaf:
        yield from field.outcomes(_servers(field, deaf, put=candidate == WORKER))


def overhears(context: ssl.SSLContext, heard: list[bytes]) -> Behaviour:
    """Answers a GET or a PUT well, if it comes to that, and notes what it was told before and after the handshake."""

    def play(peer: Peer) -> None:
        heard.append(peer.connection.recv(16384, socket.MSG_PEEK))
        with context.wrap_socket(peer.connection, server_side=True) as inside:
            inner = Peer(inside)
            with contextlib.closing(inside):
                inner.hear()
                heard.append(inner.heard)
                inner.hear_body()
                inner.send(head(SIZE) + PICTURE)

    return play


def unproven_servers(candidate: str) -> Iterator[Outcome]:
    """S4: nothing of the request is said before the server has proven who it is."""
    with _range(candidate) as field:
        heard: dict[str, list[bytes]] = {}
        ended = list(field.outcomes(_unproven(field, field.authority, heard, put=candidate == WORKER)))
        yield from (_silent(outcome, b"".join(heard[outcome.name])) for outcome in ended)


def _silent(outcome: Outcome, said: bytes) -> Outcome:
    if outcome.control or not (TARGET.encode() in said or b"HTTP/1.1" in said):
        return outcome
    return replace(outcome, through="; ".join(filter(None, (outcome.through, "the server was told the target"))))


def _unproven(field: Range, trusted: Holder, heard: dict[str, list[bytes]], *, put: bool) -> Iterator[Case]:
    tables = (
        ("localhost", False, tls_servers.contexts(trusted, field.folder)),
        ("127.0.0.1", False, tls_servers.by_address(trusted, field.folder)),
        ("localhost", True, tls_servers.good(trusted, field.folder)),
    )
    for method in ("GET", "PUT") if put else ("GET",):
        for host, control, table in tables:
            for kind, context in table.items():
                name = f"{method}, {kind}"
                port = field.port(overhears(context, heard.setdefault(name, [])))
                yield Case(name, method, f"https://{host}:{port}{TARGET}", control)


S3 = Suite("S3", f"ends within {TIMEOUT_S:g} s + 1 s, typed, with at most {MOST_MB:g} MB", hostile_servers, BASELINES)
S4 = Suite("S4", "refused, and not a byte of the request is said", unproven_servers, BASELINES)
