"""What is taken out of a line of the log."""

import base64
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from qwen_worker.scrub import PART, secret_parts, without

PRIVATE = 'Käse "und"\nWurst\x1b[31m, <sehr> privat/ö+%'


@pytest.mark.parametrize(
    "form",
    [
        PRIVATE, PRIVATE.upper(), repr(PRIVATE), json.dumps(PRIVATE), ascii(PRIVATE),
        repr(PRIVATE.encode()), quote(PRIVATE), quote_plus(PRIVATE), PRIVATE.encode().hex(),
        *(base64.b64encode(b"x" * n + PRIVATE.encode()).decode() for n in range(3)),
    ],
)  # fmt: skip
def test_a_text_is_hidden_in_every_form(form: str) -> None:
    """And so are its first and its last letters; what stands around it stays."""
    said = without(f"cannot read {form}, sorry", [PRIVATE])

    assert said.startswith("cannot read ")
    assert said.endswith(", sorry")
    for part in (form[3 : PART + 3], form[-PART - 4 : -4]):
        assert part not in said
        assert without(f"|{part}|", [PRIVATE]) == "|[hidden]|"


@pytest.mark.parametrize(
    "quoted",
    [
        lambda text: repr(json.dumps({"prompt": text})),
        lambda text: json.dumps(json.dumps(json.dumps(text))),
        lambda text: repr(repr(text.encode())),
        lambda text: repr(ascii(text)),
        lambda text: text.encode().decode("latin-1"),
        lambda text: quote(quote(text)),
    ],
)
@pytest.mark.parametrize("text", ["请把图片中的猫换成一只戴着红色帽子的狗", "Замените кошку на собаку", PRIVATE])
def test_what_is_quoted_again_is_hidden(text: str, quoted: Callable[[str], str]) -> None:
    """As in the repr of an exception that quotes JSON: half the backslashes away, and it could be read."""
    hidden = without(f"cannot read {quoted(text)}, sorry", [text])

    assert "[hidden]" in hidden
    assert len(hidden) < 80


@pytest.mark.parametrize("said", ["{'pw': 'hunter2', 'w': 10}", "password hunter2", "user sailor"])
def test_a_short_password_in_an_address_is_hidden(said: str) -> None:
    """By itself, and not what a size or a format is."""
    parts = secret_parts("https://sailor:letmein@host/a?pw=hunter2&w=10")

    assert without(said, parts) == said.replace("hunter2", "[hidden]").replace("sailor", "[hidden]")


def test_each_part_of_a_text_is_hidden_wherever_it_begins() -> None:
    """And alone in its line."""
    text = "".join(chr(ord("a") + number * 7 % 26) for number in range(26)) + "0123456789"

    assert {without(text[at : at + PART], [text]) for at in range(len(text) - PART + 1)} == {"[hidden]"}


def test_a_word_of_two_syllables_is_hidden() -> None:
    """Two letters of some scripts say what ten of others do."""
    assert without("bad text: 短い", ["短い"]) == "bad text: [hidden]"


def test_short_texts_are_hidden_as_they_are() -> None:
    """Those of one or two letters are not: they stand in every line."""
    assert without("an error of Error, e.g. edit", ["error", "e", "ed"]) == "an [hidden] of Error, e.g. edit"


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("'Authorization': 'Bearer hf_abc'", "'Authorization': '[hidden]'"),
        ("header: X-Any: private", "header: [hidden]"),
        ("send: b'GET /a?sig=1 HTTP/1.1\\r\\nAuthorization: AWS4 Signature=ab'", "send: [hidden]"),
        ("http.client.BadStatusLine: private\nDuring", "http.client.BadStatusLine [hidden]\nDuring"),
        ("'Location': 'https://h/let-me-in'", "'Location': '[hidden]'"),
        ("input_value='data:image/png;base64,iVBORw0KG...'", "input_value='data:image/png;base64,[hidden]'"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(line: str, kept: str) -> None:
    """Nobody needs to have named it."""
    assert without(line, []) == kept


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://user:pw@host:80/a?b=c#d", ("/a?b=c#d", "user:pw")),  # pragma: allowlist secret
        ("https://host?b@c", ("?b@c", "")),
        ("DATA:image/png;base64,abc", ("abc", "abc")),
        ("no address", ("no address",)),
    ],
)
def test_of_an_address_the_host_may_be_told(url: str, parts: tuple[str, ...]) -> None:
    """Everything else may let one in."""
    assert secret_parts(url) == parts


@pytest.mark.parametrize("letters", ["a", "ab", "?/", "://", "data:", "\\", "İ"])
def test_no_text_takes_long(letters: str) -> None:
    """Of one letter again and again, in a line of the same."""
    text = letters * (2000 // len(letters))
    begin = time.perf_counter()
    without(text * 10, [text, text + "x", *(letters * n for n in range(1, 20))])

    assert time.perf_counter() - begin < 0.5
