"""Servers that cannot prove who they are."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
NOW = dt.datetime.now(dt.UTC)
LOCALHOST: tuple[x509.GeneralName, ...] = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@dataclass(frozen=True)
class Holder:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Wish:
    """What a certificate says. `days` are from when to when, counted from today."""

    name: str = "localhost"
    names: tuple[x509.GeneralName, ...] = LOCALHOST
    days: tuple[int, int] = (-30, 300)
    authority: bool = False
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH
    key: Callable[[], Key] = lambda: ec.generate_private_key(ec.SECP256R1())
    permitted: tuple[x509.GeneralName, ...] = ()


def issue(wish: Wish, by: Holder | None = None) -> Holder:
    """A certificate signed by another, or by itself."""
    key = wish.key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wish.name)])
    begin, end = (NOW + dt.timedelta(days=days) for days in wish.days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=wish.authority, path_length=None), critical=True)
    )
    for extension in _extensions(wish):
        builder = builder.add_extension(extension, critical=False)
    return Holder(builder.sign(by.key if by else key, hashes.SHA256()), key)


def _extensions(wish: Wish) -> Iterator[x509.ExtensionType]:
    if wish.names:
        yield x509.SubjectAlternativeName(wish.names)
    if not wish.authority:
        yield x509.ExtendedKeyUsage([wish.usage])
    if wish.permitted:
        yield x509.NameConstraints(permitted_subtrees=wish.permitted, excluded_subtrees=None)


def context(holder: Holder, folder: Path, *chain: Holder) -> ssl.SSLContext:
    """A server's side of TLS; it takes every version and key that the library can still speak."""
    private = holder.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / f"{holder.certificate.serial_number}.pem"
    file.write_bytes(private + b"".join(link.pem for link in (holder, *chain)))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.load_cert_chain(file)
    return made


def _only(version: ssl.TLSVersion, made: ssl.SSLContext) -> ssl.SSLContext:
    made.minimum_version = ssl.TLSVersion.TLSv1
    made.maximum_version = version
    return made


def _without_certificate() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("aNULL:@SECLEVEL=0")
    return made


def root(name: str = "Root") -> Holder:
    """An authority."""
    return issue(Wish(name=name, names=(), authority=True))


def contexts(trusted: Holder, folder: Path) -> dict[str, ssl.SSLContext]:
    """By case: what a server shows that is no proof of being localhost."""

    def shows(wish: Wish, by: Holder | None = trusted, *chain: Holder) -> ssl.SSLContext:
        return context(issue(wish, by), folder, *chain)

    good, middle = Wish(), Wish(name="Middle", names=(), authority=True)

    def through(wish: Wish, by: Holder = trusted, *, shown: bool = True) -> ssl.SSLContext:
        between = issue(wish, by)
        return shows(good, between, *((between,) if shown else ()))

    def named(*names: str) -> ssl.SSLContext:
        return shows(replace(good, names=tuple(x509.DNSName(name) for name in names)))

    return {
        "wrong host": named("elsewhere.example"),
        "expired": shows(replace(good, days=(-300, -1))),
        "not yet valid": shows(replace(good, days=(1, 300))),
        "self-signed": shows(good, None),
        "self-signed authority": shows(replace(good, authority=True), None),
        "unknown authority": shows(good, root("Unknown")),
        "unknown authority of the same name": shows(good, root()),
        "only a common name": shows(replace(good, names=())),
        "common name right, names wrong": named("elsewhere.example", "localhost.example"),
        "wildcard for everything": named("*"),
        "wildcard in a part": named("local*", "*host"),
        "wildcard below it": named("*.localhost"),
        "a name that begins with it": named("localhost.elsewhere.example"),
        "an e-mail address of it": shows(replace(good, names=(x509.RFC822Name("a@localhost"),))),
        "a link to it": shows(replace(good, names=(x509.UniformResourceIdentifier("https://localhost/"),))),
        "another address": shows(replace(good, names=(x509.IPAddress(ipaddress.ip_address("127.0.0.2")),))),
        "for clients only": shows(replace(good, usage=ExtendedKeyUsageOID.CLIENT_AUTH)),
        "for signing code only": shows(replace(good, usage=ExtendedKeyUsageOID.CODE_SIGNING)),
        "intermediate expired": through(replace(middle, days=(-300, -1))),
        "intermediate is no authority": through(replace(middle, authority=False)),
        "intermediate missing": through(middle, shown=False),
        "intermediate of another root": through(middle, root("Unknown")),
        "intermediate for other names": through(replace(middle, permitted=(x509.DNSName("elsewhere.example"),))),
        "RSA of 1024 bits": shows(replace(good, key=lambda: rsa.generate_private_key(65537, 1024))),  # noqa: S505  # nosec B505 - refused
        "TLS 1.0": _only(ssl.TLSVersion.TLSv1, shows(good)),
        "TLS 1.1": _only(ssl.TLSVersion.TLSv1_1, shows(good)),
        "no certificate": _without_certificate(),
    }


def by_address(trusted: Holder, folder: Path) -> dict[str, ssl.SSLContext]:
    """The same for who asks for https://127.0.0.1."""

    def named(*names: x509.GeneralName) -> ssl.SSLContext:
        return context(issue(Wish(names=names), trusted), folder)

    return {
        "address, for the name only": named(x509.DNSName("localhost")),
        "address, as a name": named(x509.DNSName("127.0.0.1")),
        "address, with a wildcard": named(x509.DNSName("*.0.0.1")),
        "address, of another": named(x509.IPAddress(ipaddress.ip_address("127.0.0.2"))),
        "address, as a network of names": named(x509.DNSName("*")),
    }


def good(trusted: Holder, folder: Path) -> dict[str, ssl.SSLContext]:
    """What is proof enough: the controls."""
    middle = issue(Wish(name="Middle", names=(), authority=True), trusted)
    return {
        "good": context(issue(Wish(), trusted), folder),
        "good, TLS 1.2": _only(ssl.TLSVersion.TLSv1_2, context(issue(Wish(), trusted), folder)),
        "good, with an intermediate": context(issue(Wish(), middle), folder, middle),
        "good, RSA of 2048 bits": context(
            issue(Wish(key=lambda: rsa.generate_private_key(65537, 2048)), trusted), folder
        ),
    }
