"""Ports and hosts as an operator lists them."""

import pytest

from qwen_worker.hosts import HostList, canonical, is_ambiguous, ports_of, told


def test_ports_are_listed_one_by_one_or_as_ranges() -> None:
    """Spaces do no harm; it can be told again."""
    ports = ports_of("80, 443,8000-9000")

    assert ports == (range(80, 81), range(443, 444), range(8000, 9001))
    assert told(ports) == "80, 443, 8000-9000"


@pytest.mark.parametrize(
    "said", ["", "http", "80,", "0", "65536", "-1", "9000-8000", "80;443", "8O", "٨٠", "80-", "1e3"]
)
def test_what_is_no_port_is_refused(said: str) -> None:
    """With what it must be."""
    with pytest.raises(ValueError, match="ports"):
        ports_of(said)


@pytest.mark.parametrize(
    ("host", "one"),
    [
        ("EXAMPLE.com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("a。example", "a.example"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1.", "127.0.0.1"),
        ("\uff11\uff12\uff17.1", "127.0.0.1"),
        ("[::FFFF:127.0.0.1]", "127.0.0.1"),
        ("[2606:4700:0:0::1111]", "2606:4700::1111"),
    ],
)
def test_a_host_has_one_spelling(host: str, one: str) -> None:
    """Else a list would hold for one of them only."""
    assert canonical(host) == one


@pytest.mark.parametrize(
    ("said", "opened", "closed"),
    [
        ("", ["example.com", "127.0.0.1"], []),
        ("example.com", ["example.com", "EXAMPLE.COM."], ["a.example.com", "example.com.evil.com", "badexample.com"]),
        ("*.example.com", ["a.example.com", "a.b.example.com"], ["example.com", "badexample.com"]),
        ("!bad.com", ["good.com", "a.bad.com"], ["bad.com", "BAD.com.", "\uff42ad.com"]),
        ("!*.bad.com", ["bad.com"], ["a.bad.com", "a.b.bad.com."]),
        ("*.a.com, !x.a.com", ["y.a.com"], ["x.a.com", "b.com"]),
        ("!a.com,a.com", [], ["a.com", "b.com"]),
        ("Bücher.example", ["xn--bcher-kva.example"], ["bucher.example"]),
        ("9.9.9.9,[2606:4700::1]", ["9.9.9.9", "0x9.9.9.9", "[2606:4700:0::1]"], ["9.9.9.8"]),
        ("!134744072", ["8.8.4.4"], ["8.8.8.8", "[::ffff:8.8.8.8]", "8.8.2056"]),
    ],
)
def test_a_refusal_wins_and_where_something_is_allowed_nothing_else_is(
    said: str, opened: list[str], closed: list[str]
) -> None:
    """Whole labels, and however a host is spelt."""
    hosts = HostList.parse(said)

    assert [host for host in opened if not hosts.has(host)] == []
    assert [host for host in closed if hosts.has(host)] == []


@pytest.mark.parametrize(
    "said", ["a.com,", "!", "*", "*.", "*.9.9.9.9", "a..com", "http://a.com", "a.com:80", "a*.com"]
)
def test_what_is_no_host_is_refused(said: str) -> None:
    """With what it must be."""
    with pytest.raises(ValueError, match="must be hosts"):
        HostList.parse(said)


@pytest.mark.parametrize("host", ["010.0.0.1", "10.0.0.01", "0177.1", "017700000001", "0x7f.00.0.1", "08.8.8.8."])
def test_a_zero_in_front_of_a_number_is_ambiguous(host: str) -> None:
    """Octal to some, decimal to others."""
    assert is_ambiguous(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "0.0.0.0", "0", "0x7f.1", "01.com", "a.01", "08.example", "[::1]", "1.1.1.1."]
)
def test_other_hosts_are_not_ambiguous(host: str) -> None:
    """Names may begin with a zero."""
    assert not is_ambiguous(host)
