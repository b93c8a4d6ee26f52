"""Attacks beyond the list: every way to write an address with every block that is not public, and more tricks."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote

from hostile.addresses.zone import INSIDE_V4, INSIDE_V6

_V4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
_V6 = (
    "::/128", "::1/128", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64",
    "100:0:0:1::/64", "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32",
    "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001::/23", "2001:db8::/32", "2002::/16",
    "2620:4f:8000::/48", "2d00::/8", "3000::/4", "3ffe::/16", "3fff::/20", "4000::/3", "5f00::/16", "8000::/3",
    "fc00::/7", "fd00:ec2::254/128", "fd20:ce::254/128", "fe80::/10", "fec0::/10", "ff00::/8",
)  # fmt: skip
_MOST_WANTED = (
    "127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.100.100.200", "192.0.0.192",
)  # fmt: skip
_EMBEDDING = ("::", "::ffff:", "::FFFF:", "::ffff:0:", "64:ff9b::", "64:ff9b:1::", "64:ff9b:1:1::", "2001:db8::")
_HIDDEN = ("127.0.0.1", "169.254.169.254", "2130706433", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]", "a-loop.test")
_SIGNS = ("@", "%40", "#@", "?@", "/@", ";@", "\\@", "%23@", "%2f@", ":80@", "&@", " @", "\t@", "%20@", "\uff20")
_BREAKS = ("\r\n", "\n", "\r", "%0d%0a", "%0a", "%250d%250a", "\u010d\u010a", "\u560d\u560a", "\x0b", "\x85", "\0")
_DIGITS = {
    "fullwidth": 0xFF10, "bold": 0x1D7CE, "double-struck": 0x1D7D8, "sans": 0x1D7E2, "monospace": 0x1D7F6,
    "arabic": 0x0660, "persian": 0x06F0, "devanagari": 0x0966, "bengali": 0x09E6, "thai": 0x0E50,
}  # fmt: skip
_DOTS = "\u3002\uff0e\uff61\u2024\ufe52"
_ODD_PORTS = (0, 1, 21, 22, 23, 25, 79, 81, 110, 442, 444, 2375, 3306, 5432, 6379, 8000, 8079, 8081, 9200, 11211, 65535)
_CODES = (300, 301, 302, 303, 305, 306, 307, 308)
_PATH = "/latest/meta-data/"


def block() -> Iterator[str]:
    """Addresses that must not be dialled."""
    hosts = [*_encoded(), *_blocks(), *_embedded(), *_names()]
    yield from (f"http://{host}{_PATH}" for host in hosts)
    for address in _MOST_WANTED:
        yield from (f"http://{host}{_PATH}" for host in _spelt(address))
        yield from _confused(address)
    for code in _CODES:
        yield from (f"http://pub.test/redir?code={code}&to={quote(to, safe='')}" for to in _targets())
    yield from (f"http://pub.test/redirraw?to={quote(to, safe='')}" for to in _targets())


def closed_ports() -> Iterator[str]:
    """Of a public host."""
    yield from (f"http://pub.test:{port}/img.png" for port in _ODD_PORTS)
    yield from (f"https://[2606:4700:4700::1111]:{port}/img.png" for port in _ODD_PORTS)
    yield from (f"http://pub.test/redir?code=302&to=http://pub.test:{port}/img.png" for port in _ODD_PORTS)
    yield from (f"http://pub.test/redir?code=302&to=//pub.test:{port}/img.png" for port in _ODD_PORTS)


def injected() -> Iterator[str]:
    """Line breaks that would end a header."""
    for end in _BREAKS:
        line = f"{end}X-Injected: 1{end}"
        yield from (f"http://pub.test/{line}", f"http://pub.test/?{line}", f"http://pub.test/#{line}")
        yield from (f"http://pub.test{line}/", f"http://a{line}@pub.test/", f"http://pub.test:80{line}/")
        yield from (f"http://pub.test/redir?code=302&to={quote(f'http://pub.test/{line}')}",)
        yield from (f"http://pub.test/redirraw?to={quote(f'/{line}')}", f"http://pub.test/redir?code=302&to=/{line}")


def _encoded() -> Iterator[str]:
    for block in map(IPv4Network, _V4):
        yield from _written(block[block.num_addresses // 2])


def _written(address: IPv4Address) -> Iterator[str]:
    number, parts = int(address), address.packed
    yield from (str(number), hex(number), f"0X{number:X}", f"0{number:o}", f"0x{number:016x}", str(number + 2**32))
    yield from (".".join(map(hex, parts)), ".".join(f"0{part:o}" for part in parts))
    yield from (".".join(f"{part:04d}" for part in parts), ".".join(f"000{part:o}" for part in parts))
    yield f"{hex(parts[0])}.0{parts[1]:o}.{parts[2]}.{parts[3]}"
    yield from (f"{parts[0]}.{number & 0xFFFFFF}", f"{parts[0]}.{parts[1]}.{number & 0xFFFF}")
    yield from (f"{hex(parts[0])}.{hex(number & 0xFFFFFF)}", ".".join(str(part + 256) for part in parts))
    yield from (f"{address}.", f"{address}..", f"{number}.", f".{address}", f"{address}%00", f"{address}%20")


def _spelt(text: str) -> Iterator[str]:
    """With digits and dots of other scripts, or escaped."""
    for zero in _DIGITS.values():
        yield "".join(chr(zero + int(sign)) if sign.isdigit() else sign for sign in text)
    yield from (text.replace(".", dot) for dot in _DOTS)
    yield from ("".join(f"%{ord(sign):02x}" for sign in text), text.replace(".", "%2e"), text.replace(".", "%252e"))
    yield from ("".join(f"%25{ord(sign):02x}" for sign in text), quote(text.replace(".", "\u3002")))
    yield from (sign.join(text) for sign in ("\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff"))


def _blocks() -> Iterator[str]:
    """The ends and the middle of each."""
    for block in map(IPv4Network, _V4):
        yield from (str(block[at]) for at in {0, block.num_addresses // 2, -1})
    for wide in map(IPv6Network, _V6):
        last = wide[-1]
        yield from (f"[{wide[0]}]", f"[{wide[wide.num_addresses // 2]}]", f"[{last}]", f"[{last.exploded}]")
        yield from (f"[{last}%25lo]", f"[{last}%lo]", f"[{last}%251]")


def _embedded() -> Iterator[str]:
    for text in _MOST_WANTED:
        number = int(IPv4Address(text))
        high, low = number >> 16, number & 0xFFFF
        for head in _EMBEDDING:
            yield from (f"[{head}{text}]", f"[{head}{high:x}:{low:x}]")
        yield from (f"[2002:{high:x}:{low:x}::]", f"[2002:{high:x}:{low:x}::1]", f"[2001:0:{high:x}:{low:x}::1]")
        yield f"[2001:0:4136:e378:8000:63bf:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}]"
        for head in ("0", "100", "200", "300"):
            yield f"[2606:4700:1:2:{head}:5efe:{text}]"
        yield from (f"[::ffff:{text}%25lo]", f"[::ffff:{text}%lo]", f"[{IPv6Address(f'::ffff:{text}').exploded}]")


def _names() -> Iterator[str]:
    known = [*(f"a-{name}.test" for name in INSIDE_V4), *(f"aaaa-{name}.test" for name in INSIDE_V6)]
    known += ["x.dname.test", "cname-chain.test", "multi-many.test", "127.0.0.1.nip.io", "localhost", "ip6-localhost"]
    for name in known:
        yield from (name, f"{name}.", name.upper())


def _confused(address: str) -> Iterator[str]:
    """A parser may take either host for the true one."""
    for sign in _SIGNS:
        yield f"http://pub.test{sign}{address}/"
    for form in ("http:{}/", "http:/{}/", "http:///{}/", "http:\\\\{}\\", "http:/\\{}/", "//{}/", "\\\\{}\\", "{}/"):
        yield form.format(address)
    for form in ("HTTP://{}/", " http://{}/", "http://{}:80/", "http://{}:/", "http://{}:00080/", "https://{}:8443/"):
        yield form.format(address)
    for form in ("http://a:b@{}/", "http://@{}/", "http://a@b@{}/", "http://[{}]/", "http://{}\u2044x.pub.test/"):
        yield form.format(address)


def _targets() -> Iterator[str]:
    for address in _HIDDEN:
        for form in (
            "http://{}/",
            "//{}/",
            "///{}/",
            "\\\\{}\\",
            "/\\{}/",
            "http:{}/",
            "https://{}/",
            "HTTP://{}:8080/",
        ):
            yield form.format(address)
        for form in ("http://pub.test@{}/", "\thttp://{}/", "http://{}#@pub.test/", "http:\\\\{}"):
            yield form.format(address)
    yield from ("file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "ftp://127.0.0.1/", "dict://127.0.0.1:11211/stats")
    yield from ("jar:http://127.0.0.1/", "data:image/png;base64,AA==", "javascript:1", "http+unix://%2frun%2fx/", "")
    yield from ("http://pub.test/redir?code=302&to=http%3A%2F%2F127.0.0.1%2F", "http://r1-kin.test/redir?code=302&to=/")
