"""Words that stand in secret places alone, and a search for them in whatever form somebody may tell them."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

PART = 12  # characters of a canary that tell it
PLACES = (
    "access key", "secret key", "hub token", "job api key", "user", "path", "query", "upload path", "upload query",
    "picture", "prompt", "negative prompt", "location", "body", "header",
)  # fmt: skip
#: place → the word that stands there
CANARY = {place: f"cAn{hashlib.sha256(place.encode()).hexdigest()[:24]}Ry" for place in PLACES}
#: with all that could break a line, or a search: quotes, ANSI, line ends, a line to forge
FORGED = '{"level": "CRITICAL", "message": "forged"}'
PROMPT = f"{CANARY['prompt']} \"in\" 'quotes'\r\n{FORGED}\n\x1b[31m\u2028ünïcödé \\u0041 %41"
NEGATIVE_PROMPT = f"<&{CANARY['negative prompt']}>\t\x00"


def told_in(text: str) -> list[str]:
    """The places whose words a text tells: whole or in part, in any case, quoted, encoded or broken over lines."""
    seen = set(_windows(text)) | set(_windows(re.sub(r"\s|\\[rn]", "", text)))
    return [place for place, word in CANARY.items() if not _NEEDLES[place].isdisjoint(seen)]


def without_what_is_due(body: dict[str, Any]) -> dict[str, Any]:
    """A successful answer less the links and the prompts, which are documented."""
    answer: dict[str, Any] = json.loads(json.dumps(body))
    for result in [answer.get("result"), *answer.get("results", [])]:
        if isinstance(result, dict) and "presigned_url" in result:
            del result["presigned_url"]
        if isinstance(result, dict) and "meta" in result:
            del result["meta"]["prompt"], result["meta"]["negative_prompt"]
    return answer


def _forms(word: str) -> Iterator[str]:
    raw = word.encode()
    yield from (word, word[::-1], repr(word), json.dumps(word), quote(word), quote_plus(word), raw.hex())
    yield from (base64.b64encode(bytes(gap) + raw).decode()[4:-4] for gap in range(3))


def _windows(text: str) -> Iterator[str]:
    low = text.lower()
    return (low[at : at + PART] for at in range(len(low) - PART + 1))


_NEEDLES = {place: {part for form in _forms(word) for part in _windows(form)} for place, word in CANARY.items()}
