"""Which of RunPod's pools of GPUs a worker runs on, by the table of profiles."""

from collections.abc import Iterable
from dataclasses import dataclass

from ops.rest import DeployError
from qwen_worker.cards import CARDS, Rented
from qwen_worker.profiles import ProfileError, choose, published
from qwen_worker.settings import Settings


@dataclass(frozen=True)
class Pool:
    """One pool, for one worker.

    Attributes:
        id: at RunPod.
        cards: that a worker may get.
        usd_per_second: of the dearest of them; None: not published.
        profiles: that the worker would choose on them.
        problem: why it cannot run on one of them; None: it can.
        default: whether `create` takes this pool by itself.
    """

    id: str
    cards: tuple[str, ...]
    usd_per_second: float | None
    profiles: tuple[str, ...]
    problem: str | None
    default: bool


def pools(settings: Settings) -> list[Pool]:
    """All, the cheapest first, those without a price last."""
    ids = dict.fromkeys(one.pool for one in CARDS)
    made = [_pool(name, [one for one in CARDS if one.pool == name], settings) for name in ids]
    return sorted(made, key=lambda one: (one.usd_per_second is None, one.usd_per_second or 0))


def _pool(name: str, cards: list[Rented], settings: Settings) -> Pool:
    numbers = published(settings.model, settings.t2i)
    chosen: list[str] = []
    problem = None
    if numbers:
        try:
            chosen = [choose(settings.profile, numbers, one.card, settings.computed_cache_bytes).name for one in cards]
        except ProfileError as error:
            problem = str(error)
    prices = [one.usd_per_second for one in cards]
    # PROFILE=auto would take int4 on a small card, which changes pictures: nobody gets that unasked.
    wanted = "bf16" if settings.profile == "auto" else settings.profile
    return Pool(
        id=name,
        cards=tuple(one.name for one in cards),
        usd_per_second=None if None in prices else max(price or 0 for price in prices),
        profiles=tuple(dict.fromkeys(chosen)),
        problem=problem,
        default=problem is None and set(chosen) == {wanted},
    )


def defaults(settings: Settings) -> list[str]:
    """The pools of a worker for which none are named: those that keep its model as PROFILE says, or as it is.

    Raises:
        DeployError: there are none.
    """
    if found := [one.id for one in pools(settings) if one.default]:
        return found
    if not published(settings.model, settings.t2i):
        raise DeployError(f"how much memory {settings.model.id} takes is not known: name its GPUs with --gpu-pool")
    raise DeployError(
        "no pool keeps this model as PROFILE says, or without loss: `pools` shows what each can do; name one with "
        "--gpu-pool"
    )


def refuse_unfit(named: Iterable[str], settings: Settings) -> None:
    """Refuse pools on which the worker would not start.

    Raises:
        DeployError: with what is wrong with each.
    """
    known = {one.id: one for one in pools(settings)}
    problems = []
    for name in named:
        if name not in known:
            problems.append(f"--gpu-pool {name}: there is no such pool, or not of a size for this worker: "
                            f"{', '.join(known)}")  # fmt: skip
        elif problem := known[name].problem:
            problems.append(f"--gpu-pool {name}: {problem}")
    if problems:
        raise DeployError("\n".join(problems))
