"""Generated requests: what the JSON Schema calls valid, what no caller sane writes, and both in one request."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from qwen_worker.schema import FIELDS, INPUTS, json_schema

LONG = 10_000_000
SCHEMA = json_schema()
URL = "https://example.com/a.jpg"
#: text of every kind: lone surrogates, combining and right-to-left letters, NUL, ANSI escapes
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


def chosen(values: list[Any]) -> st.SearchStrategy[Any]:
    """One of these. `sampled_from` would write them all down, and they are huge."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    """Something inside something inside ..."""
    inner: Any = "x"
    for _ in range(depth):
        inner = wrap(inner)
    return inner


HUGE_TEXTS = [
    "a" * LONG,
    "\U0001f600" * (LONG // 4),
    "é" * (LONG // 2),
    "9" * LONG,
    "http://" + "a" * LONG,
    "data:image/png;base64," + "A" * LONG,
    "data:" + ";base64" * (LONG // 7),
    "\x00" * LONG,
]
DEEP = [nested(depth, wrap) for depth in (1_000, 100_000) for wrap in (lambda one: [one], lambda one: {"a": one})]
WIDE = [["x"] * 100_000, {str(number): number for number in range(100_000)}, dict.fromkeys("abc", "x" * 10_000)]
NUMBERS = [
    10**5000,
    -(10**5000),
    10**400,
    2**63,
    2**32,
    -1,
    0,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    -float("inf"),
    1.5,
    True,
    False,
]
DATA_URLS = [
    "data:",
    "data:,",
    "data:;base64,",
    "data:image/png;base64",
    "data:image/png;base64,%%%",
    "DATA:;BASE64,====",
    "data:image/png;base64,\ud800",
    "data:" + "x" * 300 + ";base64,AA",
    "data:text/html,<script>",
    "data:;base64,A A",
    "data:image/svg+xml;charset=utf-8;base64,PHN2Zz4=",
]
ADDRESSES = [
    "http://",
    "http://[",
    "http://[::1",
    "http://user:pw@host/",  # pragma: allowlist secret
    "http://host:99999/",
    "http://host:x/",
    "ftp://host/",
    "http://host/\r\nX: y",
    "http://\u202eexample.com/",
    "http://xn--/",
    "http://%00/",
    "//host/",
    "http:/host",
    "http://" + "a." * 4000,
    "http://" + "\ufdfa" * 8000,
    "file:///etc/passwd",
    "\\\\host\\share",
]

hostile_values = st.one_of(
    chosen([*HUGE_TEXTS, *DEEP, *WIDE]),
    chosen([*NUMBERS, *map(str, (10**400, 1.5, True, None))]),
    st.sampled_from([*DATA_URLS, *ADDRESSES]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
        max_leaves=8,
    ),
)
hostile_names = ANY_TEXT | chosen([*HUGE_TEXTS[:3], "input", "operation\x00", "Prompt", "__class__", "id"])
odd_names = st.one_of(hostile_names, st.integers(), st.none(), st.booleans(), st.tuples(chosen(NUMBERS)))
job_ids = st.one_of(hostile_values, chosen(["../../etc/passwd", "a\nb", "", None, 0, "x" * LONG]))


def of_schema(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a part of the JSON Schema allows, mostly: addresses are told apart from other texts by hand."""
    if "const" in rule or "enum" in rule:
        return st.sampled_from(rule.get("enum", [rule.get("const")]))
    if "anyOf" in rule and "type" not in rule:
        return st.one_of([of_schema(one) for one in rule["anyOf"]])
    return KINDS[rule["type"]](rule)


def _text(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "anyOf" in rule or "http" in rule.get("pattern", "").lower() or "[Hh]" in rule.get("pattern", ""):
        return st.sampled_from([URL, "HTTP://h?q#f", "http://münchen.example/ö", "data:image/png;base64,iVBORw0KGgo="])
    return st.text(min_size=1, max_size=min(rule.get("maxLength", 100), 100)) | st.just("é" * rule.get("maxLength", 1))


def _number(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    least, most = rule.get("minimum", rule.get("exclusiveMinimum")), rule.get("maximum", rule.get("exclusiveMaximum"))
    if rule["type"] == "integer":
        whole = st.integers(least, most and most - ("exclusiveMaximum" in rule))
        return whole | whole.filter(lambda number: number < 2**53).map(float)
    return st.floats(least, most, exclude_min="exclusiveMinimum" in rule)


def _array(rule: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.lists(of_schema(rule["items"]), min_size=rule["minItems"], max_size=rule["maxItems"])


KINDS: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "string": _text,
    "integer": _number,
    "number": _number,
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
    "array": _array,
    "object": lambda rule: st.dictionaries(
        st.sampled_from(["ink", "none"]), of_schema(rule["additionalProperties"]), max_size=2
    ),
}


def _branch(branch: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: of_schema(rule) for name, rule in branch["properties"].items()}
    required = {name: fields.pop(name) for name in branch["required"]}
    return st.fixed_dictionaries(required, optional=fields)


#: each branch of the JSON Schema; what holds between fields may be broken
from_schema = st.one_of([_branch(branch) for branch in SCHEMA["oneOf"]])
_some_fields = st.dictionaries(st.sampled_from(FIELDS), hostile_values, max_size=6)
#: a good request with a few bad fields
spoilt = st.builds(lambda good, bad: {**good, **bad}, from_schema, _some_fields)
all_hostile = st.fixed_dictionaries({name: hostile_values for name in FIELDS if name != "operation"}).flatmap(
    lambda said: st.sampled_from([*INPUTS, None]).map(lambda name: {**said, "operation": name})
)
_crowd = st.dictionaries(odd_names, hostile_values, max_size=30)
strangers = st.builds(lambda good, bad: {**good, **bad}, from_schema, _crowd)
crowds = st.builds(
    lambda name, count: {f"{name}{number}": None for number in range(count)}, ANY_TEXT, st.integers(1, 5_000)
)
#: as JSON text, which RunPod's SDK reads
_deep_texts = st.integers(1, 200_000).map(lambda depth: "[" * depth + "]" * depth)
_deeper_texts = st.integers(1, 200_000).map(lambda depth: '{"a":' * depth + "1" + "}" * depth)
_odd_texts = [
    '{"seed": NaN}',
    '{"prompt": "\\ud800"}',
    '{"seed": 1e999}',
    '{"seed": 1, "seed": 2}',
    f'{{"seed": {"9" * 4300}}}',
]
_texts = st.one_of(_deep_texts, _deeper_texts, st.sampled_from(_odd_texts))


def read(text: str) -> Any:
    """The JSON of a job's input, or nothing where it cannot be read: the SDK never hands it over then."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


#: kind of attack → requests
KINDS_OF_ATTACK: dict[str, st.SearchStrategy[Any]] = {
    "anything": hostile_values,
    "by the schema": from_schema,
    "spoilt": spoilt,
    "all fields hostile": all_hostile,
    "strange fields": strangers,
    "fields by the thousand": crowds,
    "JSON text": _texts.map(read),
}
