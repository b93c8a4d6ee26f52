"""S5: every picture ends soon, within its memory, in a picture or in a refusal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostile.decoding import corpus
from hostile.decoding.harness import Case, Decoding
from hostile.outcome import Outcome
from hostile.pictures import broken, foreign, jpeg, legal, png, profiles, scans, webp
from hostile.pictures.parts import Named

SECONDS = 2.0
PEAK_MB = 512.0


@dataclass(frozen=True)
class Limits:
    """What a picture may take: seconds, and MB that any one process holds."""

    seconds: float = SECONDS
    peak_mb: float = PEAK_MB


def attack(candidate: str) -> Iterator[Outcome]:
    """Everything that is fetched, and everything that is made."""
    corpus.fetch()
    with Decoding(candidate) as decoding:
        yield from put(decoding, everything())


def everything() -> Iterator[Named]:
    """All cases."""
    for path in corpus.files():
        yield str(path.relative_to(corpus.ROOT)), path.read_bytes()
    for module in (png, jpeg, scans, webp, profiles, foreign, broken, legal):
        yield from module.all_of_them()
    yield from profiles.slow()


def put(decoding: Decoding, cases: Iterable[Named], limits: Limits = Limits()) -> Iterator[Outcome]:
    """Put these to a candidate, one after the other."""
    for name, data in cases:
        case = decoding.put(data)
        if case.answer.untyped is None and case.answer.seconds > limits.seconds:
            # Caches and memory are shared with others too: what is slow by itself is slow again.
            case = min(case, decoding.put(data), key=lambda one: one.answer.seconds)
        yield Outcome(name, through(case, limits), case.answer.seconds, case.grown_mb)


def through(case: Case, limits: Limits) -> str | None:
    """What did not hold; None if everything did."""
    answer = case.answer
    if answer.untyped or answer.after:
        return answer.untyped or answer.after
    if answer.seconds > limits.seconds:
        return f"it took {answer.seconds:.1f} s"
    if case.peak_mb > limits.peak_mb:
        return f"a process held {case.peak_mb:.0f} MB"
    return None
