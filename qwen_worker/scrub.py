"""What must not be told, taken out of a text: pure functions.

A text is hidden as it is and as libraries write it, and so is every longer part of it: a message that is cut in the
middle, or quotes a few words of a prompt, tells as much.
"""

import base64
import functools
import html
import json
import re
from collections.abc import Collection, Iterable
from itertools import groupby
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "[hidden]"
MIN_HIDDEN = 3  # shorter texts stand in every line by chance
PART = 12  # so long a part of a hidden text is hidden too, in capitals or not
MIN_WORD = 6  # so long a value of a query is hidden by itself: shorter ones are sizes and formats
MOST_WORDS = 10  # of a query
PIECE = PART // 2
EDGE = 300  # what quotes a data: URL shows how it begins and ends

_ORIGIN = re.compile(r"[^:/?#]+://(?:([^/?#]*)@)?[^/?#@]*")
_RULES = (
    # What follows the question mark of an address or of a request target, up to white space.
    (re.compile(r"(?<![^\s?])([^\s?/]*/[^\s?]*)\?\S+"), rf"\1?{HIDDEN}"),
    (re.compile(r"(?<=://)[^\s/?#@]+@"), ""),
    (re.compile(r"(data:[^\s,]{0,200},)[^\s,'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(r"\b((?:authorization|location|(?:set-)?cookie)['\"]?: ?b?['\"]?)[^'\"\\\r\n]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # What goes over the wire, as http.client prints it, and what it could not understand there.
    (
        re.compile(r"(^(?:send|reply|header):|BadStatusLine|got length|invalid literal|unparsed data).+", re.MULTILINE),
        rf"\1 {HIDDEN}",
    ),
)


def without(line: str, texts: Collection[str]) -> str:
    """The line without these texts, in whatever form, and without what looks like a secret in any line.

    It takes time in proportion to the line, and to those of the texts that it has something in common with.
    """
    marks = bytearray(len(line))
    _mark_parts(marks, line, texts)
    for form in {form for text in texts for form in _forms(text)}:
        if len(form) < PART and is_long_enough(form):
            _mark(marks, line, form)
    line = _joined(line, marks) if any(marks) else line
    for pattern, instead in _RULES:
        line = pattern.sub(instead, line)
    return line


def is_long_enough(text: str) -> bool:
    """Whether a text is one to hide: in many scripts a letter is a syllable or a word."""
    return len(text.encode(errors="replace" if text.isascii() else "surrogatepass")) >= MIN_HIDDEN


def secret_parts(url: str) -> tuple[str, ...]:
    """What of an address may let one in: all but its scheme and host. Of a data: URL, how its bytes begin and end."""
    if url[:5].lower() == "data:":
        data = url.partition(",")[2]
        return data[:EDGE], data[-EDGE:]
    found = _ORIGIN.match(url)
    if not found:
        return (url,)
    rest, login = url[found.end() :], found[1] or ""
    query = rest.partition("?")[2].partition("#")[0].split("&")[:MOST_WORDS]
    words = [*(pair.partition("=")[2] for pair in query), *login.split(":")]
    # Longer ones are parts of the whole.
    return rest, login, *(word for word in words if MIN_WORD <= len(word) < PART)


@functools.lru_cache(maxsize=128)
def _forms(text: str) -> frozenset[str]:
    """The text as libraries write it."""
    raw = text.encode(errors="surrogatepass")
    plain = {text, unquote(text), repr(text)[1:-1], json.dumps(text)[1:-1], html.escape(text)}
    quoted = {quote(raw), quote(raw, safe=""), quote_plus(raw), repr(raw)[2:-1], raw.hex()}
    # Quoted twice, and in the wrong alphabet.
    quoted |= {quote(quote(raw, safe=""), safe=""), raw.decode("latin-1")}
    return frozenset(plain | quoted | {text.encode("unicode_escape").decode()} | _in_base64(raw))


def _in_base64(raw: bytes) -> set[str]:
    """At each of the three places where it may begin in a longer text."""
    plain = {base64.b64encode(bytes(gap) + raw).decode()[-(-gap * 4 // 3) :].rstrip("=") for gap in range(3)}
    return plain | {one.replace("+", "-").replace("/", "_") for one in plain}


def _mark_parts(marks: bytearray, line: str, texts: Iterable[str]) -> None:
    low, origin = _even(_low(line))
    places: dict[str, list[int]] = {}
    for at in range(len(low) - PART + 1):
        places.setdefault(low[at : at + PART], []).append(at)
    pieces = {low[at : at + PIECE] for at in range(len(low) - PIECE + 1)} if places else set()
    for form in {form for text in texts if not _pieces(text).isdisjoint(pieces) for form in _even_forms(text)}:
        for at in range(len(form) - PART + 1):
            # Each part once: a text of one letter would else be marked at each of its places again and again.
            for place in places.pop(form[at : at + PART], ()):
                begin, end = origin[place], origin[place + PART - 1] + 1
                marks[begin:end] = bytes([1]) * (end - begin)


@functools.lru_cache(maxsize=128)
def _even_forms(text: str) -> frozenset[str]:
    return frozenset(_even(_low(form))[0] for form in _forms(text))


@functools.lru_cache(maxsize=128)
def _pieces(text: str) -> frozenset[str]:
    """Of each form's every PART letters in a row one piece at least: a line without any of them repeats no part."""
    return frozenset(
        form[at : at + PIECE] for form in _even_forms(text) for at in range(0, len(form) - PIECE + 1, PIECE)
    )


def _even(text: str) -> tuple[str, list[int]]:
    """With one backslash for any number in a row, as what is quoted again has more; and where each letter was."""
    origin = [at for at, one in enumerate(text) if one != "\\" or text[at - 1 : at] != "\\"]
    return "".join(text[at] for at in origin), origin


def _mark(marks: bytearray, line: str, form: str) -> None:
    at = line.find(form)
    while at >= 0:
        marks[at : at + len(form)] = bytes([1]) * len(form)
        at = line.find(form, at + len(form))


def _low(text: str) -> str:
    """In small letters, each in its place: a few letters become two."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(one if len(one.lower()) > 1 else one.lower() for one in text)


def _joined(line: str, marks: bytearray) -> str:
    runs = groupby(zip(line, marks, strict=True), key=lambda pair: pair[1])
    return "".join(HIDDEN if hidden else "".join(letter for letter, _ in run) for hidden, run in runs)
