"""`python -m hostile.addresses.inside SUITE CANDIDATE`: the attacks; each outcome is a line of JSON.

A process of its own, since it leaves the machine's network for good.
"""

import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hostile.addresses import canary, fetchers, kin, names, namespace, zone
from hostile.addresses.namespace import NO_NAMESPACE
from hostile.outcome import WORKER, Outcome
from local.tls import Authority
from local.worker import ROOT

VECTORS = ROOT / "tests" / "data" / "ssrf_vectors.json"
FILES = {
    "/etc/resolv.conf": zone.RESOLV_CONF,
    "/etc/nsswitch.conf": "hosts: files dns\n",
    "/etc/hosts": "127.0.0.1 localhost localhost.localdomain\n::1 localhost ip6-localhost ip6-loopback\n",
}
NAMES = ("pub.test", "www.pub.test", "sni.test", "pub6.test", "localhost", "127.0.0.1", "::1", *sorted(zone.OPEN))
LITERAL_S = 1.0
LATE = f"refused after more than {LITERAL_S:g} s, with nothing looked up or dialled"


class World:
    """The canary, the name server and the authority of this namespace."""

    def __init__(self, folder: Path) -> None:
        namespace.enter(FILES, zone.REFUSING)
        authority = Authority(folder)
        self.ca_file = str(authority.file)
        self.zone = zone.serve()
        urls = [*(vector["url"] for vector in listed()), *kin.block(), *kin.closed_ports()]
        self.canary = canary.Canary(authority.context(*NAMES), {port for url in urls for port in _ports(url)})

    def attack(self, name: str, fetch: fetchers.Fetch, url: str, *, ports: bool = False, typed: bool = True) -> Outcome:
        """What an address that must not be fetched came to. `ports`: closed ports count; `typed`: errors' types do."""
        outcome = self._attempt(name, fetch, url, ports=ports, typed=typed)
        # A shared machine stands still now and then: what is late by itself is late again.
        return self._attempt(name, fetch, url, ports=ports, typed=typed) if outcome.through == LATE else outcome

    def _attempt(self, name: str, fetch: fetchers.Fetch, url: str, *, ports: bool, typed: bool) -> Outcome:
        before, asked = len(self.canary.dialled), len(self.zone.asked)
        heads = len(self.canary.heads)
        body, error, seconds = fetchers.tried(fetch, url)
        self.canary.settle()
        wrong = [place for place in self.canary.dialled[before:] if _is_forbidden(place, ports=ports)]
        through = None
        if wrong:
            through = f"dialled {wrong}"
        elif any(re.search(rb"(?im)^x-injected", head) for head in self.canary.heads[heads:]):
            through = "a header of the caller's was sent"
        elif body is not None and not url.lower().startswith("http"):
            through = f"a body of {len(body)} bytes"
        elif typed and error and not fetchers.is_typed(error):
            through = f"{type(error).__name__}: {error}"
        elif error and seconds > LITERAL_S and len(self.zone.asked) == asked and not self.canary.dialled[before:]:
            through = LATE
        return Outcome(name, through, seconds)

    def control(self, name: str, fetch: fetchers.Fetch, url: str) -> Outcome:
        """An ordinary picture."""
        body, error, seconds = fetchers.tried(fetch, url)
        through = None if body == canary.PICTURE else f"not fetched: {error!r}"
        return Outcome(name, through, seconds, control=True)


def _is_forbidden(place: tuple[str, int], *, ports: bool) -> bool:
    return place[0] not in zone.OPEN or (ports and place[1] not in {80, 443, 8080, 8443})


def _ports(url: str) -> list[int]:
    found = [int(port) for port in re.findall(r"(?::|%3A)(\d{1,5})(?=[/%?#@]|$)", url)]
    return [port for port in found if 1 <= port <= 65535]


def listed() -> list[dict[str, str]]:
    """The list of addresses: `cat`, `url`, and `expect`, which is block, noinject or allow."""
    vectors: list[dict[str, str]] = json.loads(VECTORS.read_text())
    return vectors


def of_the_list(world: World, candidate: str) -> Iterator[Outcome]:
    """Each address of the list, controls too."""
    fetch, own = fetchers.of(candidate, world.ca_file), candidate == WORKER
    for number, vector in enumerate(listed()):
        name, url = f"{number} {vector['cat']} {vector['url']!a}", vector["url"]
        if vector["expect"] == "allow":
            yield world.control(name, fetch, url)
        else:
            yield world.attack(name, fetch, url, ports=own, typed=own)


def of_the_kin(world: World) -> Iterator[Outcome]:
    """The kin; and everything once more with every port open, as closed ones hide what lies behind, and as a PUT."""
    for url in (*kin.block(), *kin.injected(), *kin.closed_ports()):
        yield world.attack(f"kin {url!a}", fetchers.of(WORKER, world.ca_file), url, ports=True)
    anywhere = fetchers.worker_with(world.ca_file, any_port=True).fetch
    attacks = [vector["url"] for vector in listed() if vector["expect"] != "allow"]
    for how, call in (("any port", anywhere), ("PUT", fetchers.put_with(world.ca_file))):
        for number, url in enumerate((*attacks, *kin.block(), *kin.injected())):
            yield world.attack(f"{how} {number} {url!a}", call, url)


def addresses(world: World, candidate: str) -> Iterator[Outcome]:
    """S1."""
    yield from of_the_list(world, candidate)
    if candidate == WORKER:
        yield from of_the_kin(world)


SUITES = {"S1": addresses, "S1-list": of_the_list, "S2": names.attacks}


def main() -> None:
    """Run one suite on one candidate."""
    suite, candidate = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for outcome in SUITES[suite](World(Path(folder)), candidate):
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except namespace.NamespaceError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(NO_NAMESPACE)
