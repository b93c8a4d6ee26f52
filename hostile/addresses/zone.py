"""A name server whose answers lead inside, at the first look-up or at a later one."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from dnslib import AAAA, CNAME, DNAME, QTYPE, RR, A, DNSLabel
from dnslib.server import DNSHandler, DNSRecord, DNSServer

#: Where it is asked, by whoever reads RESOLV_CONF.
PLACE = "127.0.0.53"
RESOLV_CONF = f"nameserver {PLACE}\noptions timeout:2 attempts:1\n"

#: The only addresses of this world that are public, and of those the one that nobody answers at.
PUBLIC, PUBLIC_2, PUBLIC_V6 = "93.184.216.34", "9.9.9.9", "2606:4700:4700::1111"
REFUSING = "93.184.216.99"
OPEN = frozenset({PUBLIC, PUBLIC_2, PUBLIC_V6, REFUSING, "1.1.1.1", "3.3.3.3", "2606:4700::1"})

#: It never answers for this name and those below it.
SILENT = "silent.test"

INSIDE_V4 = {
    "loop": "127.0.0.1", "meta": "169.254.169.254", "10": "10.0.0.1", "192": "192.168.1.1", "172": "172.16.0.1",
    "cgnat": "100.100.100.200", "zero": str(IPv4Address(0)), "bcast": "255.255.255.255", "doc": "203.0.113.1",
    "bench": "198.18.0.1", "ietf": "192.0.0.192", "azure": "168.63.129.16", "relay": "192.88.99.1",
}  # fmt: skip
INSIDE_V6 = {
    "loop": "::1", "ula": "fd00::1", "mapped": "::ffff:127.0.0.1", "mappedmeta": "::ffff:169.254.169.254",
    "6to4": "2002:7f00:1::", "compat": "::127.0.0.1", "unspec": "::", "ec2": "fd00:ec2::254",
    "siit": "::ffff:0:127.0.0.1", "sitelocal": "fec0::1", "nat64": "64:ff9b::a9fe:a9fe",
    "nat64local": "64:ff9b:1::a9fe:a9fe", "teredo": "2001:0:7f00:1::1", "isatap": "2606:4700::5efe:a00:1",
    "link": "fe80::1", "srv6": "5f00::1", "doc": "2001:db8::1", "doc2": "3fff::1", "as112": "2620:4f:8000::1",
    "dummy": "100::1", "orchid": "2001:20::1", "6bone": "3ffe::1",
}  # fmt: skip
_KNOWN = {
    "pub.test": [PUBLIC], "www.pub.test": [PUBLIC], "sni.test": [PUBLIC], "pub6.test": [PUBLIC_V6],
    "xn--bcher-kva.test": [PUBLIC], "kubernetes.default.svc": ["10.96.0.1"], "metadata": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"], "metadata.packet.net": ["169.254.169.254"],
    "host.docker.internal": ["192.168.65.254"],
    "multi-pub.test": [PUBLIC, PUBLIC_2], "multi-pub-priv.test": [PUBLIC, "127.0.0.1"],
    "multi-priv-pub.test": ["127.0.0.1", PUBLIC], "multi-pub-priv-ref.test": [REFUSING, "127.0.0.1"],
    "multi-v4priv-v6pub.test": ["127.0.0.1", PUBLIC_V6], "multi-v4pub-v6priv.test": [PUBLIC, "::1"],
    "multi-many.test": [REFUSING, "10.0.0.1", "169.254.169.254", "fd00::1", "::ffff:127.0.0.1"],
}  # fmt: skip
_CHAINS = {
    "cname-pub": ["pub.test"],
    "cname-loop": ["a-loop.test"],
    "cname-meta": ["a-meta.test"],
    "cname-chain": [*(f"chain-{number}.test" for number in range(6)), "a-meta.test"],
}


class Zone:
    """What is answered, and what was asked: `asked` has (name, type) in order, `given` the addresses of each name."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.given: dict[str, set[str]] = {}
        self._times: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord | None:
        """The answer with a life of 0 s."""
        del handler
        name, kind = b".".join(request.q.qname.label).decode("latin-1").lower(), QTYPE.get(request.q.qtype)
        with self._lock:
            self.asked.append((name, kind))
            time = self._times[name, kind]
            self._times[name, kind] += 1
        if name == SILENT or name.endswith(f".{SILENT}"):
            raise _SilentError
        reply = request.reply()
        for record in self._records(request.q.qname, name, kind, time):
            reply.add_answer(record)
        return reply

    def _records(self, owner: DNSLabel, name: str, kind: str, time: int) -> Iterator[RR]:
        if name.endswith(".dname.test"):
            yield RR("dname.test", QTYPE.DNAME, rdata=DNAME("inside.test"), ttl=0)
        for alias in _chain(name, time):
            yield RR(owner, QTYPE.CNAME, rdata=CNAME(alias), ttl=0)
            owner = DNSLabel(alias)
        for address in _addresses([name, *_chain(name, time)][-1], time):
            if (":" in address) == (kind == "AAAA") and kind in {"A", "AAAA"}:
                self.given.setdefault(name, set()).add(address)
                # As bytes: dnslib does not read every way to write one.
                data = AAAA(tuple(IPv6Address(address).packed)) if kind == "AAAA" else A(address)
                yield RR(owner, getattr(QTYPE, kind), rdata=data, ttl=0)


class _SilentError(Exception):
    pass


class _Quiet:
    """dnslib's logger, which says nothing, of what is silent on purpose neither."""

    def __getattr__(self, _: str) -> object:
        return lambda *_: None


def serve() -> Zone:
    """A name server in a thread, for the life of the process."""
    zone = Zone()
    server = DNSServer(zone, address=PLACE, port=53, logger=_Quiet())
    server.server.handle_error = lambda *_: None
    server.start_thread()
    return zone


def _chain(name: str, time: int) -> list[str]:
    label = name.removesuffix(".test")
    if label.endswith(".dname"):
        return [f"{label.removesuffix('.dname')}.inside.test"]
    if label.startswith("rcname-"):
        return ["cname-public.test", "pub.test"] if time == 0 else ["a-loop.test"]
    return _CHAINS.get(label, [])


def _addresses(name: str, time: int) -> list[str]:
    """Of a name that is unknown: this machine. Whatever a parser makes of an address, it must not lead inside."""
    if name in _KNOWN:
        return _KNOWN[name]
    if embedded := re.search(r"(\d+\.\d+\.\d+\.\d+)\.nip\.io$", name):
        return [embedded[1]]
    first, _, rest = name.removesuffix(".test").partition("-")
    if first == "a" and rest in INSIDE_V4:
        return [INSIDE_V4[rest]]
    if first == "aaaa" and rest in INSIDE_V6:
        return [INSIDE_V6[rest]]
    return _changing(first, rest, time)


def _changing(first: str, rest: str, time: int) -> list[str]:
    """Public at the first look-up, or the first two or three; or in turns."""
    if later := re.fullmatch(r"r([1-9])", first):
        return [PUBLIC if time < int(later[1]) else "127.0.0.1"]
    number = sum(map(int, re.findall(r"-?(\d+)$", rest)))
    turns = {
        "rrand": [PUBLIC if (number * 7 + time * 5) % 3 else "10.0.0.1"],
        "raaaa": [PUBLIC_V6 if time == 0 else "::1"],
        "rmeta": [PUBLIC if time == 0 else "169.254.169.254"],
        "rflip": [PUBLIC if (time + number) % 2 else "127.0.0.1"],
        "rmulti": [PUBLIC, "10.0.0.1", "fd00::1"] if time == 0 else ["127.0.0.1", "::1"],
        "rboth": [PUBLIC, PUBLIC_V6] if time == 0 else ["169.254.169.254", "::ffff:127.0.0.1"],
        "rref": [REFUSING] if time == 0 else ["127.0.0.1"],
    }
    return turns.get(first, ["127.0.0.1"])
