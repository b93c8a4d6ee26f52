"""Steps of the preset `balanced`: where the first block says that little changes, the others are not computed.

Done by cache-dit's DBCache, with the settings that vLLM-Omni publishes for this model (one block computed, four steps
of warm-up, threshold 0.24, three steps skipped in a row at most). What it remembers of a picture must not be seen by
the next.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

COMPUTED_BLOCKS, WARM_UP_STEPS, THRESHOLD, MOST_IN_A_ROW = 1, 4, 0.24, 3
# What is remembered of a picture of 2048 x 2048 with a reference of this size: in each of two passes, two tensors of
# 32,768 tokens of 3,072 numbers.
BYTES = 2 * 2 * 2 * 32_768 * 3_072

_skipped: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def enable(transformer: Any) -> None:
    """To be called once for a transformer."""
    _library().enable_cache(transformer, cache_config=_config(guided=True))


@contextmanager
def for_one_picture(transformer: Any, *, guided: bool) -> Iterator[None]:
    """What is remembered of the picture is forgotten afterwards; it is large, too.

    Args:
        transformer: that `enable` was called for.
        guided: each step has two passes, with the prompt and without it, which remember apart.
    """
    _library().refresh_context(transformer, cache_config=_config(guided=guided))
    try:
        yield
    finally:
        (first, *_) = _library().summary(transformer, logging=False)
        _skipped[transformer] = len(first.cached_steps) + len(first.cfg_cached_steps)
        _library().refresh_context(transformer, cache_config=_config(guided=guided))


def skipped(transformer: Any) -> int:
    """Passes of the last picture in which blocks were not computed."""
    return _skipped[transformer]


def _config(*, guided: bool) -> Any:
    return _library().DBCacheConfig(
        Fn_compute_blocks=COMPUTED_BLOCKS,
        Bn_compute_blocks=0,
        max_warmup_steps=WARM_UP_STEPS,
        residual_diff_threshold=THRESHOLD,
        max_continuous_cached_steps=MOST_IN_A_ROW,
        enable_separate_cfg=guided,
    )


def _library() -> Any:
    """Imported where it is used: it takes a second. What it would tell of each picture is ours to tell."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
    import cache_dit  # noqa: PLC0415

    return cache_dit
